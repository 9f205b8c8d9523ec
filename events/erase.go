package events

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"
)

// eraseAttempts is how often an erasure may find the read model made anew in the moment of its append.
const eraseAttempts = 5

// beginErasure lets a transaction delete one user's events, and gives it the time for a large stream.
const beginErasure = `
	SELECT set_config('taskledger.ledger', 'on', true), set_config('taskledger.erase_user', $1, true),
	       set_config('statement_timeout', '0', true), pg_advisory_xact_lock($2)`

// errNothing ends an erasure that has nothing to do.
var errNothing = errors.New("there is nothing to erase")

// Erase deletes all events of e's user and what was derived of them, and appends e, whose Data it sets to UserErased,
// in one transaction. A stream without events, or with none behind its last erasure, stays as it is, and e gets no
// Position. Others can append and project while a large stream is being deleted, for the user too. It returns
// ErrConflict when the key was used before.
func (l *Log) Erase(ctx context.Context, e *Event, key string, fingerprint []byte) error {
	x := &Exclusive{log: l}
	err := l.db.Begin(ctx, pgx.TxOptions{}, func(tx *Tx) error {
		x.Tx = tx
		if _, err := tx.Exec(ctx, beginErasure, e.UserID, l.db.UserLockKey(e.UserID)); err != nil {
			return err
		}
		end, err := shownEnd(ctx, tx, e.UserID)
		if err != nil {
			return err
		}
		if err := end.erase(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT {schema}.forget_user($1)`, e.UserID); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, l.lock, l.db.LockKey("append")); err != nil {
			return fmt.Errorf("lock the log: %w", err)
		}
		if err := end.erase(ctx, tx); err != nil { // what was appended meanwhile
			return err
		}
		if end.seq == 0 || end.erased {
			return errNothing
		}
		e.Seq, e.Data = end.seq+1, UserErased{Hash: end.hash}
		return x.append(ctx, &Commit{Events: []Event{*e}, IdempotencyKey: key, Fingerprint: fingerprint})
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("erase: %w", err)
	}
	*e = x.stored.Events[0]
	l.handOver(x.stored)
	return nil
}

// append appends a commit to an empty stream.
func (x *Exclusive) append(ctx context.Context, c *Commit) (err error) {
	for range eraseAttempts {
		_, err = One(
			ctx,
			x,
			`SELECT generation FROM {schema}.checkpoints WHERE projection = 'tasks'`,
			nil,
			&c.Generation,
		)
		if err != nil {
			return err
		}
		if submitErr := x.Submit(ctx, c, func(result error) { err = result }); submitErr != nil {
			return submitErr
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return err
}

// streamEnd is the end of a stream, with its link of the chain.
type streamEnd struct {
	user   string
	seq    int64
	hash   Hash
	erased bool // the last event is an erasure
}

// shownEnd is where the read model stands.
func shownEnd(ctx context.Context, tx *Tx, user string) (*streamEnd, error) {
	end := &streamEnd{user: user}
	var hash []byte
	_, err := One(
		ctx,
		tx,
		`SELECT u.seq, u.hash FROM {schema}.users u WHERE u.user_id = $1`,
		[]any{user},
		&end.seq,
		&hash,
	)
	if err != nil {
		return nil, fmt.Errorf("find the end of the chain: %w", err)
	}
	copy(end.hash[:], hash)
	return end, nil
}

// erase goes on to the end of the stream, and deletes its events.
func (end *streamEnd) erase(ctx context.Context, tx *Tx) error {
	var record []byte
	err := ReadStream(ctx, tx, end.user, end.seq, math.MaxInt64, func(e Event) error {
		end.hash, record = e.Link(end.hash, record)
		end.seq = e.Seq
		return nil
	})
	if err != nil {
		return err
	}
	var last Type
	_, err = One(ctx, tx, `
		SELECT e.type
		FROM {schema}.task_events e
		WHERE e.user_id = $1
		ORDER BY e.seq DESC
		LIMIT 1`, []any{end.user}, &last)
	if err != nil {
		return err
	}
	if end.erased = last == TypeUserErased; end.erased {
		return errNothing
	}
	_, err = tx.Exec(ctx, `DELETE FROM {schema}.task_events WHERE user_id = $1 AND seq <= $2`, end.user, end.seq)
	return err
}
