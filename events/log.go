package events

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Errors of Append.
var (
	// ErrConflict: the stream is not at the head that was given, its read model has another generation, or the
	// idempotency key was used before. Load what is there, decide again.
	ErrConflict = errors.New("the stream has moved on")
	// ErrClosed: the log is shutting down and took nothing.
	ErrClosed = errors.New("the log is closed")
)

const (
	// maxBatch bounds the events of one INSERT; a command with more goes alone.
	maxBatch = 1000
	// statementTimeout bounds one statement, the wait for a connection and for a lock included: a PostgreSQL that went
	// away without a word would never answer.
	statementTimeout = 5 * time.Second
)

// Log is the log of one ledger. Its methods may be called from many goroutines at once.
type Log struct {
	db      *DB
	sql     *sql.DB // the same database, as Watermill's publisher wants it
	queue   chan *pending
	alone   chan struct{} // holds one value while nobody is in Exclusively
	done    chan struct{} // closed when the appender has ended
	looks   looks
	metrics metrics

	mu     sync.RWMutex // held for reading while sending on queue
	closed bool

	failed atomic.Bool // the last batch met with a fault of the database

	announced atomic.Pointer[string] // the channel on which appends are announced; nil = on none

	subscribersMu sync.RWMutex
	subscribers   map[*Subscriber]bool

	lock       string // a test takes the lock out of it
	lockKey    int64
	batchBytes int // a test makes it less
}

// Open starts the appender. The caller closes the log before the pool.
func Open(db *DB) *Log {
	l := &Log{
		db:          db,
		sql:         stdlib.OpenDBFromPool(db.pool),
		queue:       make(chan *pending, maxBatch),
		alone:       make(chan struct{}, 1),
		done:        make(chan struct{}),
		subscribers: map[*Subscriber]bool{},
		metrics:     newMetrics(),
		lock:        db.withPrelude(lockLog),
		lockKey:     db.LockKey("append"),
		batchBytes:  batchBytes,
	}
	l.alone <- struct{}{}
	go l.run()
	return l
}

// DB is the ledger's database.
func (l *Log) DB() *DB { return l.db }

// Appended is the payload of the notification that Announce is about.
const Appended = "appended"

// Announce has each append notify on the channel, in its own transaction, or with "" on none from now on. It is for
// when other processes listen: should this one end before it has told them what has become of an append, they know that
// there is something left to do.
func (l *Log) Announce(channel string) {
	if channel == "" {
		l.announced.Store(nil)
		return
	}
	l.announced.Store(&channel)
}

// Announces tells whether appends notify.
func (l *Log) Announces() bool { return l.announced.Load() != nil }

// Close appends what is queued and stops the appender. Append returns ErrClosed from then on.
func (l *Log) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	<-l.done
	_ = l.sql.Close() // it holds nothing of its own
}

// Head is where a user's stream ends: its last event, or zero without any.
type Head struct {
	Seq      int64
	Position int64
	EventID  uuid.UUID
}

// Commit is what one command appends: all of its events, or none.
type Commit struct {
	// Events follow each other in one stream; Append sets their Position and RecordedAt.
	Events []Event
	// After is the event that the command was decided on; zero is the beginning of the stream.
	After uuid.UUID
	// Generation is that of the read model which the command was decided on.
	Generation int64
	// IdempotencyKey and Fingerprint are stored with the first event; both or neither.
	IdempotencyKey string
	Fingerprint    []byte
	// Until bounds the wait for a place in the queue, as the deadline of a context does; zero is no bound. A timer is
	// made only when there is a wait.
	Until time.Time
}

// pending is a commit on its way into the log.
type pending struct {
	*Commit
	after uuid.UUID  // where the stream must end before the batch: Commit.After, or that of the commit it is chained to
	span  trace.Span // of its append; nil where nobody traces
	done  func(error)
}

// newPending begins the span of an append in the trace of ctx, if there is one.
func newPending(ctx context.Context, c *Commit, done func(error)) *pending {
	p := &pending{Commit: c, after: c.After, done: done}
	if caller := trace.SpanFromContext(ctx); caller.IsRecording() {
		_, p.span = caller.TracerProvider().Tracer("taskledger/events").Start(ctx, "append",
			trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attribute.Int("events", len(c.Events))))
	}
	return p
}

// settle tells the outcome.
func (p *pending) settle(err error) {
	if p.span != nil {
		switch {
		case errors.Is(err, ErrConflict):
			p.span.SetAttributes(attribute.Bool("conflict", true))
		case err != nil:
			p.span.SetStatus(codes.Error, Cause(err))
		}
		p.span.End()
	}
	p.done(err)
}

// Append stores a commit. It returns ErrConflict or ErrClosed; after any other error it is unknown whether the events
// were stored. ctx bounds the wait for a place in the queue only: what was handed to the database is waited for.
func (l *Log) Append(ctx context.Context, c *Commit) error {
	result := make(chan error, 1)
	if err := l.Submit(ctx, c, func(err error) { result <- err }); err != nil {
		return err
	}
	return <-result
}

// Submit is Append that does not wait: done is called with the outcome, in the order in which commits were submitted;
// it must not block. A commit may be submitted behind one whose outcome is not known yet: if that one is not stored,
// this one is not either.
func (l *Log) Submit(ctx context.Context, c *Commit, done func(error)) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return ErrClosed
	}
	p := newPending(ctx, c, done)
	select {
	case l.queue <- p:
		return nil
	default:
	}
	if !c.Until.IsZero() {
		var cancel func()
		ctx, cancel = context.WithDeadline(ctx, c.Until)
		defer cancel()
	}
	select {
	case l.queue <- p:
		return nil
	case <-ctx.Done():
		if p.span != nil {
			p.span.End()
		}
		return ctx.Err()
	}
}

// Durable returns when all that was read from the log before is as durable as what Append has stored. Whoever tells a
// caller that a command is carried out, because its events are there, asks for it: where PostgreSQL waits for a
// standby, a commit whose wait was cut short is there for all to read, and the standby may take over without it.
func Durable(ctx context.Context, in Querier) error {
	_, err := in.Exec(ctx, `
		SELECT pg_logical_emit_message(true, 'taskledger', '')
		WHERE current_setting('synchronous_standby_names') <> ''`)
	if err != nil {
		return fmt.Errorf("wait until the log is durable: %w", err)
	}
	return nil
}

// run is the appender: it takes whatever is waiting, from all users, as the next batch. While one batch commits the
// next one gathers, so the batch grows with the load by itself.
func (l *Log) run() {
	defer close(l.done)
	for first := range l.queue {
		for next := first; next != nil; {
			var batch []*pending
			batch, next = l.gather(next)
			l.flush(batch)
		}
	}
}

// gather returns the next batch, and the commit that did not fit in: one of too many events, or one that must not be in
// it.
func (l *Log) gather(first *pending) (batch []*pending, rest *pending) {
	batch = append(make([]*pending, 0, 16), first)
	users := map[string]*pending{first.user(): first}
	for n := len(first.Events); ; {
		select {
		case p, ok := <-l.queue:
			if !ok {
				return batch, nil
			}
			n += len(p.Events)
			if before := users[p.user()]; n > maxBatch || before != nil && !p.chain(before) {
				return batch, p
			}
			users[p.user()] = p
			batch = append(batch, p)
		default:
			return batch, nil
		}
	}
}

func (p *pending) user() string { return p.Events[0].UserID }

// chain chains the commit to one of its user before it in the batch. It is stored if that one is: so what decides about
// that one must decide about both.
func (p *pending) chain(before *pending) bool {
	last := before.Events[len(before.Events)-1]
	if p.After != last.EventID || p.Generation != before.Generation || before.IdempotencyKey != "" {
		return false
	}
	p.after = before.after
	return true
}

// flush appends a batch. What the database refuses for its data is refused whole: then each commit goes alone, so that
// one can't cost the others theirs.
func (l *Log) flush(batch []*pending) {
	stored, err := l.publish(l.db.withRows, batch)
	if errors.Is(err, context.DeadlineExceeded) || isReadOnly(err) {
		// PostgreSQL may have gone without a word, or another one have taken over: other connections are as dead
		l.db.pool.Reset()
	}
	if len(batch) > 1 && isRefusal(err) {
		for _, p := range batch {
			p.after = p.After
			l.flush([]*pending{p})
		}
		return
	}
	l.failed.Store(err != nil && !isRefusal(err))
	if err == nil && stored.len() > 0 {
		l.handOver(stored)
	}
	for _, p := range batch {
		switch {
		case err != nil:
			p.settle(err)
		case p.Events[0].Position == 0:
			l.metrics.conflicts.Inc()
			p.settle(ErrConflict)
		default:
			p.settle(nil)
		}
	}
}

// isReadOnly tells that the database takes no writes.
func isReadOnly(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "25006"
}

// isRefusal tells an answer about the data, after which the rest of a batch can still succeed, from a fault of the
// database.
func isRefusal(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}

// Exclusively calls do while nobody else, in whatever process, can append, and then stores what do appended, unless do
// returns an error. It is for a writer who has lost its race again and again: who decides on a stream that others never
// stop appending to may otherwise never be first (measured with 16 writers of one process against 1 of another: 8
// writes of that one in 8 seconds). It holds the append lock for some round trips, so it is not the way of every write.
func (l *Log) Exclusively(ctx context.Context, do func(*Exclusive) error) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	select {
	case <-l.alone: // one of this process at a time, or those who wait would use up the connections
		defer func() { l.alone <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	x := &Exclusive{log: l}
	err := l.db.Begin(ctx, pgx.TxOptions{}, func(tx *Tx) error {
		if _, err := tx.Exec(ctx, l.lock, l.lockKey); err != nil {
			return fmt.Errorf("lock the log: %w", err)
		}
		x.Tx = tx
		return do(x)
	})
	if err == nil && x.stored != nil {
		l.handOver(x.stored)
	}
	return err
}

// Exclusive is the log while nobody else can append to it; what is read through its transaction is the latest there is.
type Exclusive struct {
	*Tx
	log    *Log
	stored *Batch
}

// Submit is Log.Submit, but that done is called before it returns, and that the events are stored when the caller's do
// has returned. It is called once.
func (x *Exclusive) Submit(ctx context.Context, c *Commit, done func(error)) error {
	p := newPending(ctx, c, done)
	stored, err := x.log.publish(x.Tx.withRows, []*pending{p})
	if err == nil && stored.len() == 0 {
		x.log.metrics.conflicts.Inc()
		err = ErrConflict
	}
	if err == nil {
		x.stored = stored
	}
	p.settle(err)
	return nil
}
