package events

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Errors of Append.
var (
	// ErrWrongSeq: another writer appended to the stream first. Load what is new, decide again.
	ErrWrongSeq = errors.New("the stream has moved on")
	// ErrKeyUsed: the stream holds an event with this idempotency key already.
	ErrKeyUsed = errors.New("the idempotency key was used before")
	// ErrClosed: the log is shutting down and took nothing.
	ErrClosed = errors.New("the log is closed")
)

const (
	// maxBatch bounds the commands of one INSERT.
	maxBatch = 512
	// maxCommandEvents is more events than any command has.
	maxCommandEvents = 1000
	// appendTimeout bounds one INSERT, the wait for a connection and for the append lock included.
	appendTimeout = 5 * time.Second
)

// Log is the event log in PostgreSQL. Its methods may be called from many goroutines at once.
type Log struct {
	pool     *pgxpool.Pool
	insert   string // the statement; a test takes the lock out of it
	queue    chan *pending
	onAppend func(position int64)
	alone    chan struct{} // holds one value while nobody is in Exclusively
	done     chan struct{} // closed when the appender has ended

	mu     sync.RWMutex // held for reading while sending on queue
	closed bool
}

// pending is one command's events on their way into the log.
type pending struct {
	events []Event
	result chan error // gets one value; events then carry position and time
}

// Open starts the appender. onAppend is called after each committed batch with its last position; it must not block. The caller
// closes the log before the pool.
func Open(pool *pgxpool.Pool, onAppend func(position int64)) *Log {
	l := &Log{
		pool:     pool,
		insert:   insertEvents,
		queue:    make(chan *pending, maxBatch),
		onAppend: onAppend,
		alone:    make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	l.alone <- struct{}{}
	go l.run()
	return l
}

// Close appends what is queued and stops the appender. Append returns ErrClosed from then on.
func (l *Log) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	<-l.done
}

// Append stores the events of one command, all or none, behind what their stream holds, and sets their Position and RecordedAt.
// It returns ErrWrongSeq, ErrKeyUsed or ErrClosed; after any other error it is unknown whether they were stored. ctx bounds the
// wait in the queue only: what was handed to the database is waited for.
func (l *Log) Append(ctx context.Context, events []Event) error {
	p := &pending{events: events, result: make(chan error, 1)}
	if err := l.enqueue(ctx, p); err != nil {
		return err
	}
	return <-p.result
}

func (l *Log) enqueue(ctx context.Context, p *pending) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return ErrClosed
	}
	select {
	case l.queue <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run is the appender: it takes whatever is waiting, from all users, as the next batch. While one batch commits the next one
// gathers, so the batch grows with the load by itself.
func (l *Log) run() {
	defer close(l.done)
	for first := range l.queue {
		batch := append(make([]*pending, 0, 16), first)
		l.flush(l.gather(batch))
	}
}

func (l *Log) gather(batch []*pending) []*pending {
	for len(batch) < maxBatch {
		select {
		case p, ok := <-l.queue:
			if !ok {
				return batch
			}
			batch = append(batch, p)
		default:
			return batch
		}
	}
	return batch
}

// flush appends a batch. When a row violates a constraint nothing of the batch was stored: then each command goes alone, so that
// each gets its own answer and stays atomic.
func (l *Log) flush(batch []*pending) {
	err := l.store(batch)
	if len(batch) > 1 && isRefusal(err) {
		l.flushEach(batch)
		return
	}
	for _, p := range batch {
		p.result <- err
	}
}

// store appends a batch and tells of it.
func (l *Log) store(batch []*pending) error {
	var events []*Event
	for _, p := range batch {
		for i := range p.events {
			events = append(events, &p.events[i])
		}
	}
	position, err := publish(l.pool, l.insert, events)
	if errors.Is(err, context.DeadlineExceeded) {
		l.pool.Reset() // PostgreSQL may have gone without a word: its other connections are as dead as this one
	}
	if err == nil {
		l.onAppend(position)
	}
	return err
}

// flushEach appends one command after the other. A fault ends it for all the rest, or each would wait for the next in turn.
func (l *Log) flushEach(batch []*pending) {
	var fault error
	for _, p := range batch {
		if fault != nil {
			p.result <- fault
			continue
		}
		err := l.store([]*pending{p})
		if err != nil && !isRefusal(err) {
			fault = err
		}
		p.result <- err
	}
}

// isRefusal tells an answer about the data, after which the rest of a batch can still succeed, from a fault of the database.
func isRefusal(err error) bool {
	var pgErr *pgconn.PgError
	if errors.Is(err, ErrWrongSeq) || errors.Is(err, ErrKeyUsed) {
		return true
	}
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}

// columns are what a fold needs of an event e.
const columns = `e.position, e.user_id, e.seq, e.task_id, e.type, e.schema_version, e.data, e.actor, e.request_id, e.recorded_at,
	EXISTS (SELECT FROM skipped_events s WHERE s.user_id = e.user_id AND s.seq = e.seq)`

// db is a pool or a transaction.
type db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// Load calls visit with the user's events behind seq after, oldest first, and stops at visit's first error.
func (l *Log) Load(ctx context.Context, user string, after int64, visit func(Event) error) error {
	return Load(ctx, l.pool, user, after, visit)
}

// Load is Log.Load for those who only read.
func Load(ctx context.Context, pool *pgxpool.Pool, user string, after int64, visit func(Event) error) error {
	return loadStream(ctx, pool, user, after, visit)
}

func loadStream(ctx context.Context, from db, user string, after int64, visit func(Event) error) error {
	rows, err := from.Query(ctx, `
		SELECT `+columns+`
		FROM task_events e
		WHERE e.user_id = $1 AND e.seq > $2
		ORDER BY e.seq`, user, after)
	if err != nil {
		return fmt.Errorf("load stream: %w", err)
	}
	if err := visitRows(rows, visit); err != nil {
		return fmt.Errorf("load stream: %w", err)
	}
	return nil
}

// Head is the seq of the user's last event, 0 without any.
func (l *Log) Head(ctx context.Context, user string) (int64, error) {
	var seq int64
	err := l.pool.QueryRow(ctx, `SELECT coalesce(max(seq), 0) FROM task_events WHERE user_id = $1`, user).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("read the head of a stream: %w", err)
	}
	return seq, nil
}

// LoadTask calls visit with the events of one task of the user, through seq through, oldest first.
func (l *Log) LoadTask(ctx context.Context, user string, task uuid.UUID, through int64, visit func(Event) error) error {
	return loadTask(ctx, l.pool, user, task, through, visit)
}

func loadTask(ctx context.Context, from db, user string, task uuid.UUID, through int64, visit func(Event) error) error {
	rows, err := from.Query(ctx, `
		SELECT `+columns+`
		FROM task_events e
		WHERE e.user_id = $1 AND e.task_id = $2 AND e.seq <= $3
		ORDER BY e.seq`, user, task, through)
	if err != nil {
		return fmt.Errorf("load a task: %w", err)
	}
	if err := visitRows(rows, visit); err != nil {
		return fmt.Errorf("load a task: %w", err)
	}
	return nil
}

// KeyUse is where an idempotency key was used: the first event of the command has the key, the last tells where the command ended.
type KeyUse struct {
	TaskID       uuid.UUID
	Fingerprint  []byte
	LastSeq      int64
	LastPosition int64
}

// FindKey tells where the user used an idempotency key; nil when nowhere.
func (l *Log) FindKey(ctx context.Context, user, key string) (*KeyUse, error) {
	return findKey(ctx, l.pool, user, key)
}

func findKey(ctx context.Context, from db, user, key string) (*KeyUse, error) {
	rows, err := from.Query(ctx, `
		SELECT f.task_id, f.request_fingerprint, e.seq, e.position
		FROM task_events f
		JOIN task_events e ON e.user_id = f.user_id AND e.seq BETWEEN f.seq AND f.seq + $3 AND e.command_id = f.command_id
		WHERE f.user_id = $1 AND f.idempotency_key = $2
		ORDER BY e.seq DESC
		LIMIT 1`, user, key, maxCommandEvents)
	if err != nil {
		return nil, fmt.Errorf("find idempotency key: %w", err)
	}
	use, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[KeyUse])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find idempotency key: %w", err)
	}
	return &use, nil
}

// Scan calls visit with every event up to position through, user by user and each user's in order, and stops at visit's first
// error. An empty user means all users.
func Scan(ctx context.Context, tx pgx.Tx, user string, through int64, visit func(Event) error) error {
	where, args := `e.position <= $1`, []any{through}
	if user != "" {
		where, args = `e.position <= $1 AND e.user_id = $2`, []any{through, user}
	}
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM task_events e WHERE `+where+` ORDER BY e.user_id, e.seq`, args...)
	if err != nil {
		return fmt.Errorf("scan log: %w", err)
	}
	if err := visitRows(rows, visit); err != nil {
		return fmt.Errorf("scan log: %w", err)
	}
	return nil
}

func visitRows(rows pgx.Rows, visit func(Event) error) error {
	defer rows.Close()
	for rows.Next() {
		e, err := scanEvent(rows)
		if err != nil {
			return err
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return rows.Err()
}

func scanEvent(row pgx.CollectableRow) (Event, error) {
	var (
		e       Event
		typ     Type
		version int
		data    []byte
		at      time.Time
		skipped bool
	)
	err := row.Scan(&e.Position, &e.UserID, &e.Seq, &e.TaskID, &typ, &version, &data, &e.Actor, &e.RequestID, &at, &skipped)
	if err != nil {
		return Event{}, err
	}
	e.RecordedAt = at.UTC()
	e.Data = Read(typ, version, data, skipped)
	return e, nil
}
