package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
)

const (
	// pollInterval is the truth; signals only make it sooner.
	pollInterval = 100 * time.Millisecond
	// neverExpires: an AckDeadline that ran out would hand out a second message while the first is being folded. Folding writes
	// nothing, so there is nothing a deadline would save. (0 is documented as "off" and refused.)
	neverExpires = 1000 * time.Hour
	// statementTimeout bounds one statement: a PostgreSQL that went away without a word would never answer it.
	statementTimeout = 5 * time.Second
	// listenCheck is how often the listening connection is asked whether it is still there.
	listenCheck = 15 * time.Second
	// skipPrefix begins a notification that tells of a skip; the user follows.
	skipPrefix = "skip "
)

// Runner runs every projection of this program, in this process. Any number of processes may run on one database: the checkpoint
// decides who applied a batch, and who was late has lost nothing.
type Runner struct {
	pool      *pgxpool.Pool
	log       *slog.Logger
	followers []*follower
	moved     broadcast
	watchers  watchers
	onSkip    func(ctx context.Context, user string)
}

// OnSkip has f called, while the runner runs, with each user of whom an operator has had an event passed over: who remembers the
// stream must forget it. It is called before Run.
func (r *Runner) OnSkip(f func(ctx context.Context, user string)) { r.onSkip = f }

// NewRunner returns a runner that is not running yet. pool needs two connections a projection, one to listen and one for the
// watchers.
func NewRunner(pool *pgxpool.Pool, log *slog.Logger, metrics *Metrics) *Runner {
	r := &Runner{pool: pool, log: log, watchers: watchers{users: map[string]map[*watcher]bool{}}, onSkip: func(context.Context, string) {}}
	for _, p := range all() {
		r.followers = append(r.followers, newFollower(p, pool, log.With("projection", p.name), metrics, &r.moved))
	}
	return r
}

// Signal tells that the log has been appended to, up to position. It does not block.
func (r *Runner) Signal(position int64) {
	for _, f := range r.followers {
		f.signal(position)
	}
}

// Visible returns when every projection shows what was appended up to position, or when ctx ends.
func (r *Runner) Visible(ctx context.Context, position int64) {
	for _, f := range r.followers {
		f.progress.wait(ctx, position)
	}
}

// Moved returns a channel that is closed when some projection has come further, as far as this process knows.
func (r *Runner) Moved() <-chan struct{} { return r.moved.wait() }

// Run runs the projections until ctx ends, and returns when all have stopped.
func (r *Runner) Run(ctx context.Context) error {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return fmt.Errorf("run projections: %w", err)
	}
	for _, f := range r.followers {
		closeSubscriber, err := f.subscribe(router)
		if err != nil {
			return fmt.Errorf("run projections: %w", err)
		}
		defer closeSubscriber()
	}
	var beside sync.WaitGroup
	beside.Go(func() { r.listen(ctx) })
	beside.Go(func() { r.announce(ctx) })
	defer beside.Wait()
	// A follower that waits for a signal must learn of the end before the router closes its subscriber.
	defer context.AfterFunc(ctx, func() {
		for _, f := range r.followers {
			f.stop()
		}
	})()
	if err := router.Run(ctx); err != nil {
		return fmt.Errorf("run projections: %w", err)
	}
	return nil
}

// subscribe adds the projection to the router. The caller calls closeSubscriber after the router has stopped.
func (f *follower) subscribe(router *message.Router) (closeSubscriber func(), err error) {
	db, commits := openAutocommit(f.pool)
	f.commits = commits
	deadline := neverExpires
	subscriber, err := watermillsql.NewSubscriber(db, watermillsql.SubscriberConfig{
		ConsumerGroup:  f.projection.name,
		AckDeadline:    &deadline,
		SchemaAdapter:  selectAdapter{follower: f},
		OffsetsAdapter: checkpointAdapter{follower: f},
		BackoffManager: f,
	}, watermill.NopLogger{})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	router.AddConsumerHandler(f.projection.name, events.Topic, subscriber, f.handle)
	return func() {
		if err := errors.Join(subscriber.Close(), db.Close()); err != nil {
			f.log.Warn("projection did not close cleanly", "err", err)
		}
	}, nil
}

// listen turns the notifications of other processes into signals. Without them, behind a pooler for one, polling does.
func (r *Runner) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		r.log.Debug("not listening for other processes' events", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
}

func (r *Runner) listenOnce(ctx context.Context) error {
	pooled, err := r.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack() // LISTEN is session state: the connection does not go back
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := conn.Close(closing); err != nil {
			r.log.Debug("listening connection did not close cleanly", "err", err)
		}
	}()
	if _, err := conn.Exec(ctx, `LISTEN `+events.Topic); err != nil {
		return err
	}
	for {
		n, err := waitForNotification(ctx, conn)
		if err != nil {
			return err
		}
		if user, skipped := strings.CutPrefix(n.Payload, skipPrefix); skipped {
			r.onSkip(ctx, user)
			continue
		}
		position, err := parsePosition(n.Payload)
		if err != nil {
			return err
		}
		r.Signal(position)
	}
}

// waitForNotification waits for as long as the connection is there.
func waitForNotification(ctx context.Context, conn *pgx.Conn) (*pgconn.Notification, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, listenCheck)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		if err == nil || waiting.Err() == nil || ctx.Err() != nil {
			return n, err
		}
		asking, cancel := context.WithTimeout(ctx, statementTimeout)
		err = conn.Ping(asking)
		cancel()
		if err != nil {
			return nil, err
		}
	}
}

// Lag is the age of the oldest event that some read model does not show yet; 0 when all show everything.
func Lag(ctx context.Context, pool *pgxpool.Pool) (time.Duration, error) {
	var seconds float64
	err := pool.QueryRow(ctx, `
		SELECT coalesce(max(extract(epoch FROM clock_timestamp() - e.recorded_at)), 0)
		FROM projection_checkpoints c
		CROSS JOIN LATERAL (
			SELECT recorded_at
			FROM task_events
			WHERE position > c.position
			ORDER BY position
			LIMIT 1
		) e`).Scan(&seconds)
	if err != nil {
		return 0, fmt.Errorf("read lag: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}
