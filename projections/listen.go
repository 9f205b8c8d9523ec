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
	// lastWord bounds the notification that is made after the end.
	lastWord = time.Second
	// listenCheck is how often a listening connection is asked whether it is still there.
	listenCheck = 15 * time.Second
	// listenRetry is when LISTEN is tried again.
	listenRetry = time.Second
	// listenLinger is how long a process goes on listening when nobody watches any more, and how often it looks when
	// nothing is heard.
	listenLinger = 5 * time.Second
	// takeOver is how long who has appended may take to apply that and tell, before another process does.
	takeOver = 250 * time.Millisecond
	// unheardPoll is how often the log is looked at while somebody watches and nothing can be heard: behind a
	// transaction pooler.
	unheardPoll = 250 * time.Millisecond
)

// channel is the NOTIFY channel of the ledger.
func channel(db *events.DB) string { return db.Schema() + "_moved" }

// notifyAny notifies if somebody listens: who does holds the advisory lock for it. To try that lock costs a twentieth
// of a look at all.
const notifyAny = `
	SELECT pg_notify($1, ''), set_config('synchronous_commit', 'off', true)
	WHERE NOT pg_try_advisory_xact_lock($2)`

// notifyOthers notifies if another than this process listens.
const notifyOthers = `
	SELECT pg_notify($1, ''), set_config('synchronous_commit', 'off', true)
	WHERE EXISTS (
		SELECT FROM pg_locks
		WHERE locktype = 'advisory' AND objsubid = 1 AND database = (
			SELECT oid FROM pg_database WHERE datname = current_database()
		) AND (classid::bigint << 32 | objid::bigint) = $2 AND pid <> $3
	)`

// notify tells other processes of what this one has applied, if one of them listens, until ctx ends.
func (r *Runner) notify(ctx context.Context) {
	for {
		select {
		case <-r.moved:
		case <-ctx.Done():
			return
		}
		r.tellOthers(ctx, statementTimeout)
		if pause(ctx, notifyPause) != nil {
			return
		}
	}
}

// notifyLast tells of what was applied before the end and nobody has been told of.
func (r *Runner) notifyLast(ctx context.Context) {
	select {
	case <-r.moved:
		r.tellOthers(context.WithoutCancel(ctx), lastWord)
	default:
	}
}

func (r *Runner) tellOthers(ctx context.Context, timeout time.Duration) {
	text, args := notifyAny, []any{channel(r.db), r.db.LockKey("listen")}
	if own := r.listener.Load(); own != 0 {
		text, args = notifyOthers, append(args, int64(own))
	}
	telling, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	told, err := r.db.Exec(telling, text, args...)
	switch {
	case err == nil && told > 0:
		r.events.Announce(channel(r.db))
	case err == nil:
		r.events.Announce("")
	case err != nil && ctx.Err() != nil:
		signal(r.moved) // the end came in between
	case err != nil:
		r.log.Debug("other processes could not be told", "err", events.Cause(err))
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
				r.log.Debug("other processes can't be heard", "err", events.Cause(err))
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
	r.lookAll()
	checked := time.Now()
	var owed time.Time // when who has appended must have applied that, and told; zero = nobody has
	for !r.watch.none() {
		until := owed
		if owed.IsZero() {
			until = time.Now().Add(listenLinger)
		}
		waiting, cancel := context.WithDeadline(ctx, until)
		heard, err := conn.WaitForNotification(waiting)
		timeout := waiting.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil && heard.Payload == events.Appended:
			if owed.IsZero() {
				owed = time.Now().Add(takeOver)
			}
			continue
		case err == nil:
			owed = time.Time{}
			r.Look()
			continue
		case !timeout:
			return err
		}
		owed = time.Time{}
		r.Look() // who appended may have ended before it could apply that, and tell
		if time.Since(checked) > listenCheck {
			if err := ping(ctx, conn); err != nil {
				return err
			}
			checked = time.Now()
		}
	}
	return nil
}

// lookAll has all who watch look: while nothing was heard the database may have been replaced by a standby, and
// positions stand for other events than those that were told of.
func (r *Runner) lookAll() {
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	r.watch.tellAll()
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
