package projections

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/trace"

	"taskledger/events"
)

const (
	// maxEvents bounds the events of a batch.
	maxEvents = 1000
	// linger is how long a batch that nobody waits for gathers events, so that a burst of writes becomes few large
	// statements: each has a cost of its own of about 1 ms, half of it because PostgreSQL has cooled down meanwhile.
	// Measured (toggle, at 16 and 64 connections, as a multiple of 10 ms): 1.14, 1.12.
	linger = 50 * time.Millisecond
	// watchedLinger is that while streams are open, here or in another process that listens: they wait for all that
	// happens.
	watchedLinger = 2 * time.Millisecond
	// statementTimeout bounds one statement: a PostgreSQL that went away without a word would never answer it.
	statementTimeout = 5 * time.Second
)

// Runner runs every projection of this program, in this process.
type Runner struct {
	db         *events.DB
	events     *events.Log
	log        *slog.Logger
	followers  []*follower
	watch      watch
	moved      chan struct{} // holds one value when other processes are to be told that the read model has moved
	metrics    *Metrics
	active     chan struct{} // holds one value when the projections have done something: a time for a survey
	due        atomic.Bool   // a survey is not to wait
	generation atomic.Int64  // of the read model, as it was last read
	listener   atomic.Uint32 // the process id of the connection that listens, in PostgreSQL; 0 = none
}

// NewRunner returns a runner of the projections on a log; it is not running yet.
func NewRunner(log *events.Log, logger *slog.Logger, metrics *Metrics) *Runner {
	return newRunner(log, logger, metrics, newReadModel())
}

func (r *Runner) linger() time.Duration {
	if r.watch.none() && !r.events.Announces() {
		return linger
	}
	return watchedLinger
}

// newRunner takes the projections; the first is the one that readers wait for.
func newRunner(log *events.Log, logger *slog.Logger, metrics *Metrics, projections ...projection) *Runner {
	r := &Runner{db: log.DB(), events: log, log: logger, watch: newWatch(), moved: make(chan struct{}, 1),
		metrics: metrics, active: make(chan struct{}, 1)}
	for i, p := range projections {
		f := newFollower(p, p.name(), log.DB(), logger.With("projection", p.name()), metrics)
		confirm := func(c events.Checkpoint) { f.progress.confirm(c.Position, trace.SpanContext{}) }
		if i == 0 {
			f.shown = r.shown
			f.parked = r.surveyNow
			confirm = func(c events.Checkpoint) {
				f.progress.confirm(c.Position, trace.SpanContext{})
				r.watch.moved(c.Position)
				r.confirmed(c.Generation)
			}
		}
		f.subscriber = log.NewSubscriber(events.SubscriberConfig{
			Projection: p.name(),
			Linger:     r.linger,
			MaxEvents:  maxEvents,
			Confirm:    confirm,
			Report: func(err error) {
				if err != nil {
					f.report(err)
				}
			},
		})
		metrics.showLag(p.name(), f.subscriber.Lag)
		r.followers = append(r.followers, f)
	}
	return r
}

// Run runs the projections until ctx ends, and returns when all have stopped.
func (r *Runner) Run(ctx context.Context) error {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return fmt.Errorf("run projections: %w", err)
	}
	for _, f := range r.followers {
		router.AddConsumerHandler(f.projection.name(), events.Topic, f.subscriber, f.handle)
	}
	var beside sync.WaitGroup
	defer r.notifyLast(ctx)
	defer beside.Wait()
	beside.Go(func() { r.tellWatchers(ctx) })
	beside.Go(func() { r.listen(ctx) })
	beside.Go(func() { r.notify(ctx) })
	if r.metrics != nil {
		beside.Go(func() { r.survey(ctx) })
	}
	if err := router.Run(ctx); err != nil {
		return fmt.Errorf("run projections: %w", err)
	}
	return nil
}

// main is the follower of the read model.
func (r *Runner) main() *follower { return r.followers[0] }

// Mark is taken before a look at the log and the read model; see Await.
func (r *Runner) Mark() uint64 { return r.main().progress.mark() }

// Shown is the position that the read model was last known to show.
func (r *Runner) Shown() int64 { return r.main().progress.at() }

// Await has the read model brought up to a position that was seen in the log after the mark, and returns when the
// database has said so, or with the error of ctx.
func (r *Runner) Await(ctx context.Context, position int64, mark uint64) error {
	return r.main().progress.await(ctx, position, mark, r.main().subscriber.Hurry)
}

// Drain returns when every projection has applied what this process has appended, which is to be no more, or with the
// error of ctx. What is left then is applied by another process, or by the next one.
func (r *Runner) Drain(ctx context.Context) error {
	for _, f := range r.followers {
		mark := f.progress.mark()
		if position := f.subscriber.Appended(); position > f.progress.at() {
			if err := f.progress.await(ctx, position, mark, f.subscriber.Hurry); err != nil {
				return fmt.Errorf("apply what is left: %w", err)
			}
		}
	}
	return nil
}

// Look has every projection look whether there is more in the log, as after a word that there may be.
func (r *Runner) Look() {
	for _, f := range r.followers {
		f.subscriber.Look()
	}
}

// shown tells of a batch that the read model now shows.
func (r *Runner) shown(d *events.Delivery) {
	r.watch.applied(d)
	signal(r.moved)
	signal(r.active)
}

// Lag is the age of the oldest event that the read model does not show yet; 0 when it shows everything.
func Lag(ctx context.Context, db *events.DB) (time.Duration, error) {
	var seconds float64
	_, err := events.One(ctx, db, `
		SELECT coalesce(max(extract(epoch FROM clock_timestamp() - e.recorded_at)), 0)::float8
		FROM {schema}.checkpoints c
		CROSS JOIN LATERAL (
			SELECT recorded_at
			FROM {schema}.task_events
			WHERE position > c.position
			ORDER BY position
			LIMIT 1
		) e
		WHERE c.projection = $1`, []any{Name}, &seconds)
	if err != nil {
		return 0, fmt.Errorf("read lag: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}
