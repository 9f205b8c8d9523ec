package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
)

// maxEvents is how many events a batch has at most.
const maxEvents = 1000

// follower runs one projection. Watermill's subscriber goroutine selects, executes and backs off; the router's goroutine folds in
// between. One message is on its way at a time, so the two take turns, but for the end, when the subscriber does not wait.
type follower struct {
	projection *projection
	pool       *pgxpool.Pool
	log        *slog.Logger
	metrics    *Metrics
	commits    *autocommit
	progress   *progress

	appended atomic.Int64  // the last position known to be in the log
	wake     chan struct{} // holds one value when appended has grown
	stopped  chan struct{}
	stopOnce sync.Once

	mu        sync.Mutex         // guards what follows
	current   *batch             // selected, not yet written
	next      watermillsql.Query // what writes current
	selected  bool               // the select gave its row
	sought    int64              // appended, before the select
	oneByOne  int64              // up to this position batches have one event, because a larger one was refused
	refused   error              // why the database refused the event at refusedAt
	refusedAt int64
	failing   bool // a fault was logged and is not over
}

func newFollower(p *projection, pool *pgxpool.Pool, log *slog.Logger, metrics *Metrics, moved *broadcast) *follower {
	return &follower{
		projection: p,
		pool:       pool,
		log:        log,
		metrics:    metrics,
		progress:   &progress{moved: moved},
		wake:       make(chan struct{}, 1),
		stopped:    make(chan struct{}),
	}
}

func (f *follower) stop() { f.stopOnce.Do(func() { close(f.stopped) }) }

// signal tells that the log has grown to position.
func (f *follower) signal(position int64) {
	for {
		known := f.appended.Load()
		if position <= known {
			return
		}
		if f.appended.CompareAndSwap(known, position) {
			break
		}
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// selectAdapter is the subscriber's SchemaAdapter. The embedded interface is nil: a subscriber does not insert.
type selectAdapter struct {
	watermillsql.SchemaAdapter
	follower *follower
}

// SubscribeIsolationLevel implements watermill-sql's SchemaAdapter. Each statement commits by itself; see autocommit.
func (selectAdapter) SubscribeIsolationLevel() sql.IsolationLevel { return sql.LevelReadCommitted }

// SelectQuery implements watermill-sql's SchemaAdapter: the next batch as one message.
func (a selectAdapter) SelectQuery(string, string, watermillsql.OffsetsAdapter) watermillsql.Query {
	f := a.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	f.selected, f.current = false, nil
	f.sought = f.appended.Load()
	limit := maxEvents
	if f.progress.at() < f.oneByOne {
		limit = 1
	}
	return watermillsql.Query{Query: f.projection.selectBatch(), Args: []any{f.projection.name, limit}}
}

// UnmarshalMessage implements watermill-sql's SchemaAdapter. It reads all of the row, because the handler may use the connection.
func (a selectAdapter) UnmarshalMessage(row watermillsql.Scanner) (watermillsql.Row, error) {
	var (
		from, generation int64
		to               *int64
		payload          []byte
	)
	if err := row.Scan(&from, &generation, &to, &payload); err != nil {
		return watermillsql.Row{}, fmt.Errorf("read batch: %w", err)
	}
	f := a.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	f.selected = true
	f.progress.confirm(from)
	if to == nil {
		return watermillsql.Row{}, sql.ErrNoRows
	}
	f.current = &batch{from: from, to: *to, generation: generation}
	return watermillsql.Row{Offset: *to, Msg: message.NewMessage(watermill.NewUUID(), payload)}, nil
}

// handle folds the batch. It never fails, and so is never nacked: a batch that can't be folded now is left, and selected again.
func (f *follower) handle(msg *message.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = nothing
	defer func() {
		if r := recover(); r != nil {
			f.next = nothing
			f.fault(fmt.Errorf("panic: %T at %s", r, debug.Stack()))
		}
	}()
	b, err := parseBatch(msg.Payload)
	if err != nil {
		f.fault(err)
		return nil
	}
	b.from, b.to, b.generation = f.current.from, f.current.to, f.current.generation
	f.current = b
	folded, err := b.fold(msg.Context(), loadFrom(f.pool))
	if err != nil {
		f.fault(err)
		return nil
	}
	if f.refusedAt == b.to && len(b.Events) == 1 {
		folded.park(b, f.refused)
	}
	f.tellParked(b, folded)
	f.next = watermillsql.Query{Query: f.projection.writeBatch(), Args: f.projection.writeArgs(b, folded)}
	return nil
}

// nothing is the statement of a batch that was not folded.
var nothing = watermillsql.Query{Query: `SELECT 1 WHERE false`}

// park stops the user of a batch's one event, because the database refused its rows.
func (f *folded) park(b *batch, reason error) {
	u := f.users[b.Events[0].UserID]
	u.seq = b.Events[0].Seq - 1
	u.park(reason.Error())
	f.changes = nil
}

// tellParked logs each user whom this batch parks.
func (f *follower) tellParked(b *batch, folded folded) {
	before := map[string]bool{}
	for _, row := range b.Users {
		before[row.UserID] = row.Parked != nil
	}
	for _, u := range folded.users {
		if u.parked != nil && !before[u.user] {
			f.metrics.parked(f.projection.name)
			f.log.Error("stream parked: this read model no longer follows this user", "user_id", u.user, "seq", u.seq+1, "reason", *u.parked)
		}
	}
}

// checkpointAdapter is the subscriber's OffsetsAdapter. The embedded interface is nil: the offset is selected with the batch.
type checkpointAdapter struct {
	watermillsql.OffsetsAdapter
	follower *follower
}

// BeforeSubscribingQueries implements watermill-sql's OffsetsAdapter: the migrations made the row.
func (checkpointAdapter) BeforeSubscribingQueries(string, string) []watermillsql.Query { return nil }

// ConsumedMessageQuery implements watermill-sql's OffsetsAdapter.
func (checkpointAdapter) ConsumedMessageQuery(string, watermillsql.Row, string, []byte) watermillsql.Query {
	return watermillsql.Query{}
}

// AckMessageQuery implements watermill-sql's OffsetsAdapter: the one statement that writes the rows and moves the checkpoint.
func (a checkpointAdapter) AckMessageQuery(string, watermillsql.Row, string) watermillsql.Query {
	a.follower.mu.Lock()
	defer a.follower.mu.Unlock()
	return a.follower.next
}

// HandleError implements watermill-sql's BackoffManager. It is called after each turn of the subscriber, when nothing is open:
// the place to take note of what was written, and to wait for more.
func (f *follower) HandleError(_ watermill.LoggerAdapter, noMsg bool, err error) time.Duration {
	if again, pause := f.conclude(noMsg, err); again {
		return pause
	}
	f.await()
	return 0
}

// conclude takes note of how a turn ended. It tells whether to try again, after a pause, without waiting for more.
func (f *follower) conclude(noMsg bool, err error) (again bool, pause time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil && f.refusedByDatabase(err):
		return true, 0
	case err != nil:
		if errors.Is(err, context.DeadlineExceeded) {
			f.pool.Reset() // its other connections are as dead as this one
		}
		f.fault(err)
		return true, pollInterval
	case noMsg && !f.selected:
		f.fault(errors.New("the select for the next batch broke off"))
		return true, pollInterval
	case !noMsg && f.next.Query == nothing.Query:
		return true, pollInterval
	}
	f.recovered()
	if !noMsg && f.commits.affected.Load() > 0 {
		f.metrics.applied(f.projection.name, len(f.current.Events))
		f.progress.confirm(f.current.to)
	}
	return f.more(noMsg), 0
}

// more tells whether the next select is likely to find something.
func (f *follower) more(noMsg bool) bool {
	if noMsg {
		// Not "what is known to be appended is not there": after a restore, or when a stranger said so, it never comes.
		return f.appended.Load() > f.sought
	}
	return len(f.current.Events) == maxEvents || f.progress.at() < max(f.oneByOne, f.appended.Load())
}

// await returns when the log has grown since the last select, after the poll interval, or at the end.
func (f *follower) await() {
	f.mu.Lock()
	sought := f.sought
	f.mu.Unlock()
	timeout := time.NewTimer(pollInterval)
	defer timeout.Stop()
	for f.appended.Load() <= max(sought, f.progress.at()) {
		select {
		case <-f.wake:
		case <-timeout.C:
			return
		case <-f.stopped:
			return
		}
	}
}

// refusedByDatabase narrows down which event the database refuses the rows of: first event by event, then that event's user is
// parked. It tells whether the error was such a refusal.
func (f *follower) refusedByDatabase(err error) bool {
	var pgErr *pgconn.PgError
	if f.current == nil || !errors.As(err, &pgErr) || (pgErr.Code[:2] != "22" && pgErr.Code[:2] != "23") {
		return false
	}
	if len(f.current.Events) > 1 {
		f.oneByOne = f.current.to
		return true
	}
	if f.refusedAt == f.current.to {
		return false // parking it was refused as well
	}
	f.refusedAt = f.current.to
	// Not the message: it may quote a title.
	f.refused = fmt.Errorf("the read model refused it: SQLSTATE %s, constraint %q", pgErr.Code, pgErr.ConstraintName)
	return true
}

// fault logs the first of a row of faults. At the end, what breaks off is none.
func (f *follower) fault(err error) {
	select {
	case <-f.stopped:
		return
	default:
	}
	if f.failing {
		return
	}
	f.failing = true
	f.log.Warn("projection is held up and tries again", "err", safeError(err))
}

func (f *follower) recovered() {
	if f.failing {
		f.failing = false
		f.log.Info("projection goes on")
	}
}

// safeError leaves out what PostgreSQL says of the data.
func safeError(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return "SQLSTATE " + pgErr.Code
	}
	return err.Error()
}

func parsePosition(s string) (int64, error) {
	return strconv.ParseInt(s, 10, 64)
}

// loadFrom loads streams of the log on a pool.
func loadFrom(pool *pgxpool.Pool) loader {
	return func(ctx context.Context, user string, after int64, visit func(events.Event) error) error {
		return events.Load(ctx, pool, user, after, visit)
	}
}
