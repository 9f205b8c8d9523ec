package events

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Exclusive is the log while nobody else can append to it.
type Exclusive struct {
	tx       pgx.Tx
	insert   string
	position int64 // of the last event appended, 0 for none
}

// Exclusively calls do while nobody else, in whatever process, can append, and then stores what do appended, unless do returns an
// error. It is for a writer who has lost its race again and again: who decides on a stream that others never stop appending to may
// otherwise never be first (measured with 16 writers of one process against 1 of another: 8 writes of that one in 8 seconds). It holds
// the append lock for some round trips, so it is not the way of every write.
func (l *Log) Exclusively(ctx context.Context, do func(*Exclusive) error) error {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	select {
	case <-l.alone: // one of this process at a time, or those who wait would use up the connections
		defer func() { l.alone <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	x := &Exclusive{insert: l.insert}
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := lockLog(ctx, tx); err != nil {
			return err
		}
		x.tx = tx
		return do(x)
	})
	if err == nil && x.position > 0 {
		l.onAppend(x.position)
	}
	return err
}

// lockLog keeps others from appending until the transaction ends, and the transaction from being forgotten.
func lockLog(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `
		SELECT set_config('lock_timeout', '4s', true), set_config('idle_in_transaction_session_timeout', '5s', true)`)
	if err == nil {
		_, err = tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(appendLock))
	}
	if err != nil {
		return fmt.Errorf("lock the log: %w", err)
	}
	return nil
}

// Load is Log.Load.
func (x *Exclusive) Load(ctx context.Context, user string, after int64, visit func(Event) error) error {
	return loadStream(ctx, x.tx, user, after, visit)
}

// LoadTask is Log.LoadTask.
func (x *Exclusive) LoadTask(ctx context.Context, user string, task uuid.UUID, through int64, visit func(Event) error) error {
	return loadTask(ctx, x.tx, user, task, through, visit)
}

// FindKey is Log.FindKey.
func (x *Exclusive) FindKey(ctx context.Context, user, key string) (*KeyUse, error) {
	return findKey(ctx, x.tx, user, key)
}

// Append is Log.Append, but that the events are stored when the caller's do has returned.
func (x *Exclusive) Append(_ context.Context, events []Event) error {
	rows := make([]*Event, len(events))
	for i := range events {
		rows[i] = &events[i]
	}
	position, err := publish(x.tx, x.insert, rows)
	x.position = max(x.position, position)
	return err
}
