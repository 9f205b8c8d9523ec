package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

const (
	// notifyPause is the least time between two notifications.
	notifyPause = 10 * time.Millisecond
	// listenCheck is how often a listening connection is asked whether it is still there.
	listenCheck = 15 * time.Second
	// listenRetry is when LISTEN is tried again.
	listenRetry = time.Second
	// listenLinger is how long a process goes on listening when nobody watches any more.
	listenLinger = 5 * time.Second
	// unheardPoll is how often the log is looked at while somebody watches and nothing can be heard: behind a transaction pooler.
	unheardPoll = 250 * time.Millisecond
)

// channel is the NOTIFY channel of the ledger.
func channel(db *events.DB) string { return db.Schema() + "_moved" }

// notify tells other processes of what this one has applied, if one of them listens: those hold the advisory lock for it.
func (r *Runner) notify(ctx context.Context) {
	for {
		select {
		case <-r.moved:
		case <-ctx.Done():
			return
		}
		telling, cancel := context.WithTimeout(ctx, statementTimeout)
		_, err := r.db.Exec(telling, `
			SELECT pg_notify($1, ''), set_config('synchronous_commit', 'off', true)
			WHERE EXISTS (
				SELECT FROM pg_locks
				WHERE locktype = 'advisory' AND objsubid = 1 AND database = (
					SELECT oid FROM pg_database WHERE datname = current_database()
				) AND (classid::bigint << 32 | objid::bigint) = $2 AND pid <> $3
			)`, channel(r.db), r.db.LockKey("listen"), int64(r.listener.Load()))
		cancel()
		if err != nil && ctx.Err() == nil {
			r.log.Debug("other processes could not be told", "err", safeError(err))
		}
		if pause(ctx, notifyPause) != nil {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listen turns the notifications of other processes into looks at the log, while somebody watches.
func (r *Runner) listen(ctx context.Context) {
	for {
		select {
		case <-r.watch.first:
		case <-ctx.Done():
			return
		}
		for !r.watch.none() {
			wait := listenRetry
			if r.db.Pooled() {
				wait = unheardPoll
			} else if err := r.listenOnce(ctx); err != nil && ctx.Err() == nil {
				r.log.Debug("other processes can't be heard", "err", safeError(err))
			}
			r.Look()
			if pause(ctx, wait) != nil {
				return
			}
		}
	}
}

// listenOnce listens until nobody watches any more.
func (r *Runner) listenOnce(ctx context.Context) error {
	pooled, err := r.db.Pool().Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack() // LISTEN is session state: the connection does not go back
	defer func() {
		r.listener.Store(0)
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // it is of no use any more
	}()
	if err := r.tune(ctx, conn); err != nil {
		return err
	}
	r.Look() // what was told before is not told again
	checked := time.Now()
	for !r.watch.none() {
		waiting, cancel := context.WithTimeout(ctx, listenLinger)
		_, err := conn.WaitForNotification(waiting)
		timeout := waiting.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			r.Look()
		case !timeout:
			return err
		case time.Since(checked) > listenCheck:
			if err := ping(ctx, conn); err != nil {
				return err
			}
			checked = time.Now()
		}
	}
	return nil
}

// tune listens, and takes the advisory lock that tells others so.
func (r *Runner) tune(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{channel(r.db)}.Sanitize()); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock_shared($1)`, r.db.LockKey("listen")); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	r.listener.Store(conn.PgConn().PID())
	return nil
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return conn.Ping(ctx)
}
