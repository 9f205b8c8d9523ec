package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"taskledger/events"
)

// errOvertaken: the checkpoint is not where the batch begins. Another process has applied it, or an operator has made
// the tables anew, or the log does not hold what was remembered of it. The database must say where it stands.
var errOvertaken = errors.New("the checkpoint has moved")

// follower runs one projection.
type follower struct {
	projection projection
	checkpoint string // its name
	log        *slog.Logger
	db         events.Querier
	subscriber *events.Subscriber
	progress   progress
	shown      func(d *events.Delivery) // told of each batch that was written
	parked     func()                   // told when a user was parked
	metrics    counters
	last       *events.Event // the one that what is remembered rests on

	mu      sync.Mutex
	failing bool // a fault was logged and is not over
}

func newFollower(p projection, checkpoint string, db events.Querier, log *slog.Logger, metrics *Metrics) *follower {
	return &follower{
		projection: p,
		checkpoint: checkpoint,
		log:        log,
		db:         db,
		progress:   progress{waiters: map[*waiter]bool{}},
		shown:      func(*events.Delivery) {},
		parked:     func() {},
		metrics:    metrics.of(checkpoint),
	}
}

// handle applies a message of the subscriber. An error nacks it: nothing of it was written, or its first part.
func (f *follower) handle(m *message.Message) (err error) {
	d, err := events.DeliveryOf(m)
	if err != nil {
		return err
	}
	ctx, span := f.startSpan(m.Context(), d)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %T at %s", r, debug.Stack())
		}
		endSpan(span, err)
		if err != nil {
			f.forget()
		}
		if !errors.Is(err, errOvertaken) {
			f.report(err)
		}
	}()
	return f.apply(ctx, d)
}

// startSpan begins the span of a batch: in the trace of the first append that is traced, and with a link to each. Where
// none is, there is no span.
func (f *follower) startSpan(ctx context.Context, d *events.Delivery) (context.Context, trace.Span) {
	if len(d.Appends) == 0 {
		return ctx, trace.SpanFromContext(ctx)
	}
	links := make([]trace.Link, len(d.Appends))
	for i, span := range d.Appends {
		links[i].SpanContext = span.SpanContext()
	}
	first := d.Appends[0]
	return first.TracerProvider().Tracer("taskledger/projections").Start(trace.ContextWithSpan(ctx, first), "project",
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links...),
		trace.WithAttributes(attribute.String("projection", f.checkpoint), attribute.Int("events", len(d.Events))))
}

func endSpan(span trace.Span, err error) {
	switch {
	case errors.Is(err, errOvertaken):
		span.SetAttributes(attribute.Bool("overtaken", true))
	case err != nil:
		span.SetStatus(codes.Error, events.Cause(err))
	}
	span.End()
}

// forget drops what is remembered of earlier batches.
func (f *follower) forget() {
	f.last = nil
	f.projection.forget()
}

// apply writes a batch. One that the database refuses, or does not write in time, is halved: what is wrong with one
// event must not hold up the others. An erasure goes alone: it deletes rows of the tables that the others write.
func (f *follower) apply(ctx context.Context, d *events.Delivery) error {
	if at := slices.IndexFunc(d.Events, isErasure); at >= 0 && len(d.Events) > 1 {
		first, rest := split(d, max(at, 1))
		return firstError(f.apply(ctx, first), func() error { return f.apply(ctx, rest) })
	}
	err := f.write(ctx, d, "", false)
	if isDuplicate(err) {
		f.forget()
		err = f.write(ctx, d, "", true) // rows that should be new are there, and now replaced
	}
	if err == nil {
		return nil
	}
	if held, ok := errors.AsType[*heldError](err); ok {
		return f.applyBefore(ctx, d, held)
	}
	if !isRefusal(err) && !isTimeout(err) {
		return err
	}
	f.forget()
	if n := len(d.Events); n > 1 {
		first, rest := split(d, n/2)
		return firstError(f.apply(ctx, first), func() error { return f.apply(ctx, rest) })
	}
	if isTimeout(err) {
		return err
	}
	return f.write(ctx, d, refusal(err), true)
}

// applyBefore applies the events before the one that holds up the projection.
func (f *follower) applyBefore(ctx context.Context, d *events.Delivery, held *heldError) error {
	f.forget()
	if held.before > 0 {
		first, _ := split(d, held.before)
		if err := f.apply(ctx, first); err != nil {
			return err
		}
	}
	return held
}

func isErasure(e events.Event) bool {
	_, erased := e.Data.(events.UserErased)
	return erased
}

func firstError(err error, next func() error) error {
	if err != nil {
		return err
	}
	return next()
}

// split cuts a batch in two, of which the first has n events.
func split(d *events.Delivery, n int) (first, rest *events.Delivery) {
	cut := d.Events[n-1].Position
	first = &events.Delivery{Batch: events.Batch{From: d.From, To: cut, Events: d.Events[:n]}, Generation: d.Generation}
	rest = &events.Delivery{Batch: events.Batch{From: cut, To: d.To, Events: d.Events[n:]}, Generation: d.Generation}
	return first, rest
}

// write writes what the batch makes of the tables and moves the checkpoint, in one statement. Doubtful: no row is taken
// for new.
func (f *follower) write(ctx context.Context, d *events.Delivery, refusal string, doubtful bool) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	began := time.Now()
	made, err := f.projection.derive(ctx, f.db, d, refusal)
	if err != nil {
		return err
	}
	made.doubtful = made.doubtful || doubtful
	text, args := writeBatch(made)
	written, err := f.db.Write(ctx, text, append(f.args(d), args...))
	if err != nil {
		return fmt.Errorf("write a batch: %w", err)
	}
	if !written {
		return errOvertaken
	}
	for _, u := range made.parked {
		f.metrics.parked.Inc()
		f.parked()
		f.log.Error("stream parked: the read model no longer follows this user",
			"user_id", u.user, "seq", u.seq+1, "reason", *u.parked)
	}
	f.last = &d.Events[len(d.Events)-1]
	f.metrics.written(d.Events, time.Since(began))
	f.progress.confirm(d.To, trace.SpanContextFromContext(ctx))
	f.shown(d)
	return nil
}

// args are those of writeBatch before those of the rows.
func (f *follower) args(d *events.Delivery) []any {
	last := &d.Events[len(d.Events)-1]
	before := f.last
	if before == nil {
		before = last
	}
	args := make([]any, 0, 64)
	return append(args, f.checkpoint, d.From, d.To, d.Generation,
		last.UserID, last.Seq, [16]byte(last.EventID), before.UserID, before.Seq, [16]byte(before.EventID))
}

// report logs the first of a row of faults, and the end of them.
func (f *follower) report(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var held *heldError
	switch {
	case errors.Is(err, context.Canceled): // the end
	case err == nil && f.failing:
		f.failing = false
		f.metrics.failing.Set(0)
		f.log.Info("projection goes on")
	case err == nil || f.failing:
	case errors.As(err, &held):
		f.fail()
		f.log.Error("projection stopped until a newer program goes on or takes over", "err", held)
	default:
		f.fail()
		f.log.Warn("projection is held up and tries again", "err", events.Cause(err))
	}
}

// fail notes that the projection is held up. The caller holds mu.
func (f *follower) fail() {
	f.failing = true
	f.metrics.failing.Set(1)
}

// isRefusal tells that the database refuses rows for what they are.
func isRefusal(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}

// isDuplicate tells that a row is there which should be new.
func isDuplicate(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23505"
}

// isTimeout tells that the database had no time for a statement.
func isTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "57014" || errors.Is(err, context.DeadlineExceeded)
}

// refusal is why the database refuses an event. Not its message: that may quote a title.
func refusal(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fmt.Sprintf("the read model refused it: SQLSTATE %s, constraint %q", pgErr.Code, pgErr.ConstraintName)
	}
	return "the read model refused it"
}
