// Package query answers from the read model, and from nothing else; of the log it only looks where a user's stream
// ends, to know that an answer shows all of it. A question is one statement in one round trip. Answers are kept, and
// given again after a look at that end. Who asks for lists again and again has all live tasks kept, if they are few:
// any page of any list is made of those. What is kept of tasks is taken on with each append of this process, by the
// fold that the read model will have.
package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"taskledger/events"
)

var (
	// ErrNotFound: the user has no such task.
	ErrNotFound = errors.New("task not found")
	// ErrFuture: the user's stream has not come to the moment that was asked for.
	ErrFuture = errors.New("that moment is still to come")
	// ErrNotYet: the read model does not show the version that was asked for.
	ErrNotYet = errors.New("the read model does not show this version yet")
)

const (
	// patience bounds how long a read waits for the read model.
	patience = time.Second
	// streamSize is how many bytes of a list without a limit are gathered before it is streamed.
	streamSize = 256 << 10
)

// ReadModel is the read model, in the making.
type ReadModel interface {
	// Mark is taken before a look at the log and the read model.
	Mark() uint64
	// Shown is the position of the log that the read model was last known to show.
	Shown() int64
	// Await has the read model brought up to a position that was seen after the mark, and returns when it is, or with
	// the error of ctx.
	Await(ctx context.Context, position int64, mark uint64) error
}

// Config configures a Reader. All of it is needed.
type Config struct {
	// DB has connections that row level security binds.
	DB *events.DB
	// Log is asked where streams end.
	Log *events.Log
	// ReadModel is waited for when it is behind.
	ReadModel ReadModel
	// KeptBytes bounds the answers that are kept.
	KeptBytes int
}

// Reader answers questions of one user at a time. Its methods may be called from many goroutines at once.
type Reader struct {
	db      *events.DB
	log     *events.Log
	model   ReadModel
	kept    kept
	metrics metrics
}

// NewReader returns a Reader; it does no I/O.
func NewReader(cfg Config) *Reader {
	r := &Reader{db: cfg.DB, log: cfg.Log, model: cfg.ReadModel, kept: newKept(cfg.KeptBytes)}
	r.metrics = newMetrics(r.kept.users.Bytes)
	return r
}

// Head is what an answer reflects.
type Head struct {
	// Seq is the user's seq, 0 without any event.
	Seq int64
	// EventID is that of the end of the user's stream when the answer shows all of that, else zero. Generation is that
	// of the user's part of the read model. Two answers with the same of both, and an event, are the same.
	EventID    uuid.UUID
	Generation int64
	// Stale: there are events that the answer should show and does not.
	Stale bool
}

// Answer is an answer in JSON.
type Answer struct {
	Head
	// Unchanged: the caller has this answer; there is no Body.
	Unchanged bool
	// Streamed: the Body has been written to the caller's stream.
	Streamed bool
	Body     []byte
	// Version is that of the task, if it is one.
	Version int64
	// Next is where the next page of a list begins; nil = there is none.
	Next *Place
}

// Ask says how a question is asked.
type Ask struct {
	UserID string
	// MinVersion is a seq of the user that the answer must reflect; ErrNotYet if it does not within a second.
	MinVersion int64
	// Has tells whether the caller has the answer for this head already; nil = it has none.
	Has func(Head) bool
	// Stream begins to write an answer that is too large to be gathered, and has no Next; nil = everything is gathered.
	Stream func(Head) io.Writer
}

// question is one statement, and how to read its answer. Answers under the same key are the same as long as the head
// is.
type question struct {
	key string // empty = the answer is not kept
	// sql is the statement, and its arguments behind the user. Who gets a kept answer needs none.
	sql  func() (text string, args []any)
	read func(rows pgx.Rows, st state, a *Answer, w *writer) error
	// of answers of all live tasks of the user; nil = it takes more than those.
	of func(live liveTasks, a *Answer) error
	// list: it is a list of those.
	list bool
}

// statement is the beginning of every question: it names the user to row level security before anything else is read,
// and tells where the user's stream ends and what the read model shows of it, in the snapshot of what follows. That is
// joined to s, of which there is one row. The row of users is asked for in the select list: so its table is locked
// last, as a swap of the tables does, which could not come through readers who do so the other way round.
func statement(columns, from string) string {
	return `
	WITH scope AS MATERIALIZED (
		SELECT set_config('taskledger.user_id', $1, true) COLLATE "C" AS user_id
	)
	SELECT
		coalesce(h.seq, 0), coalesce(h.position, 0), coalesce(h.event_id, '00000000-0000-0000-0000-000000000000'),
		(SELECT ARRAY[CASE WHEN u.parked_error IS NULL THEN u.seq ELSE -u.seq - 1 END, u.generation]
			FROM {schema}.users u WHERE u.user_id = $1),
		` + columns + `
	FROM scope s
	LEFT JOIN LATERAL (
		SELECT e.seq, e.position, e.event_id
		FROM {schema}.task_events e
		WHERE e.user_id = s.user_id
		ORDER BY e.seq DESC
		LIMIT 1
	) h ON true
	` + from
}

// state is what a statement tells of the user.
type state struct {
	user   string
	end    events.Look // where the stream ends
	shown  int64       // seq that the read model shows
	parked bool
}

// headColumns is how many columns a statement has before those of the question.
const headColumns = 4

// places are where the columns of a row go, behind those of the state.
func places(columns ...any) []any {
	return append(make([]any, headColumns, headColumns+len(columns)), columns...)
}

func scanState(rows pgx.Rows, user string) (st state, err error) {
	st.user = user
	to := make([]any, len(rows.RawValues()))
	var shown []int64 // none, where the read model has nothing of the user
	to[0], to[1], to[2], to[3] = &st.end.Seq, &st.end.Position, (*[16]byte)(&st.end.EventID), &shown
	if err = rows.Scan(to...); len(shown) > 0 {
		st.shown, st.end.Generation = shown[0], shown[1]
	}
	if st.parked = st.shown < 0; st.parked {
		st.shown = -st.shown - 1
	}
	return st, err
}

// head is what an answer to a read that began when the stream ended at seq reflects.
func (st state) head(began int64) Head {
	h := Head{Seq: st.shown, Generation: st.end.Generation, Stale: st.shown < min(began, st.end.Seq)}
	if st.shown == st.end.Seq {
		h.EventID = st.end.EventID
	}
	return h
}

// behind tells that the read model can be brought further to show what the read has to.
func (st state) behind(began int64) bool { return st.head(began).Stale && !st.parked }

// errBehind says that the read model does not show enough yet.
var errBehind = errors.New("the read model is behind")

// answer answers a question: from what is kept, if the stream still ends where it did, else from the read model, as
// soon as that shows all that was in the log when the read began.
func (r *Reader) answer(ctx context.Context, ask Ask, q question) (Answer, error) {
	deadline := time.Now().Add(patience)
	if ask.MinVersion > 0 {
		if err := r.awaitVersion(ctx, ask, deadline); err != nil {
			return Answer{}, err
		}
	}
	kept := r.kept.get(ask.UserID, q)
	if kept.good() || ask.Has != nil {
		look, err := r.log.Head(context.WithoutCancel(ctx), ask.UserID) // which ends by itself
		if err != nil {
			return Answer{}, err
		}
		head := Head{Seq: look.Seq, EventID: look.EventID, Generation: look.Generation}
		if kept.good() && kept.head != head { // it may have been taken on since
			kept = r.kept.get(ask.UserID, q)
		}
		switch {
		case look.Parked: // what was appended is not shown
		case ask.Has != nil && ask.Has(head):
			r.metrics.unchanged.Inc()
			return Answer{Head: head, Unchanged: true}, nil
		case kept.good() && kept.head == head:
			r.metrics.hits.Inc()
			return r.give(ask.UserID, q, kept)
		}
	}
	r.metrics.misses.Inc()
	a, err := r.read(ctx, ask, q, kept, deadline)
	if err == nil && a.Stale {
		r.metrics.stale.Inc()
	}
	return a, err
}

// give gives what is kept.
func (r *Reader) give(user string, q question, kept keptFor) (Answer, error) {
	if kept.answer != nil {
		return *kept.answer, nil
	}
	a := Answer{Head: kept.head}
	err := q.of(kept.live, &a)
	if err == nil {
		r.kept.putMade(user, q.key, a)
	}
	return a, err
}

// read asks the read model. Who asks for lists again and again is answered of all live tasks, which are kept.
func (r *Reader) read(ctx context.Context, ask Ask, q question, kept keptFor, deadline time.Time) (Answer, error) {
	if kept.learn {
		a, live, err := r.askLive(ctx, ask, kept.written, deadline)
		if err != nil {
			return a, err
		}
		if live != nil {
			return r.give(ask.UserID, q, keptFor{head: a.Head, live: live})
		}
	}
	return r.ask(ctx, ask, q, kept.written, deadline)
}

// ask asks the read model until it shows what was in the log when the read began, or the time is up; then the answer is
// what there is. What this process wrote for the user is waited for beforehand, which saves a statement.
func (r *Reader) ask(ctx context.Context, ask Ask, q question, written int64, deadline time.Time) (Answer, error) {
	mark := r.model.Mark()
	if written > r.model.Shown() {
		r.awaitWritten(ctx, ask.UserID, written, mark, deadline)
	}
	text, args := q.sql()
	args = append([]any{ask.UserID}, args...)
	var began events.Look // where the stream ended, by the first statement
	for shown := false; ; {
		mark = r.model.Mark()
		a, end, err := r.askOnce(ctx, ask, q, text, args, began.Seq, time.Now().After(deadline))
		switch {
		case errors.Is(err, errBehind):
			if began.Seq == 0 {
				began = end
			}
			if shown {
				// what is shown elsewhere is not shown here: another database has taken over from this one
				r.db.Pool().Reset()
			}
			shown = r.await(ctx, began.Position, mark, deadline)
		case (err == nil || isAnswer(err)) && a.Seq < ask.MinVersion:
			return Answer{Head: a.Head}, ErrNotYet
		default:
			return a, err
		}
	}
}

// lostAfter is how long a write of this process is waited for before the log is asked whether it is there.
const lostAfter = 50 * time.Millisecond

// awaitWritten waits for what this process wrote for the user, unless the log does not hold it: a standby that was
// behind may have taken over since.
func (r *Reader) awaitWritten(ctx context.Context, user string, written int64, mark uint64, deadline time.Time) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(lostAfter, func() {
		if look, err := r.log.Head(ctx, user); err != nil || look.Position < written {
			cancel()
		}
	})
	defer timer.Stop()
	r.await(ctx, written, mark, deadline)
}

// await waits for a position, and tells whether it is shown. When the time is up, the answer is what there is.
func (r *Reader) await(ctx context.Context, position int64, mark uint64, deadline time.Time) (shown bool) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if reading := trace.SpanFromContext(ctx); reading.IsRecording() {
		var span trace.Span
		ctx, span = reading.TracerProvider().Tracer("taskledger/query").Start(ctx, "wait for the read model")
		defer func() {
			span.SetAttributes(attribute.Bool("shown", shown))
			span.End()
		}()
	}
	began := time.Now()
	err := r.model.Await(ctx, position, mark)
	r.metrics.waits.Observe(time.Since(began).Seconds())
	return err == nil
}

// askOnce runs the statement, and tells where the stream ended. Unless it is the last try, an answer that does not show
// what was there when the read began, 0 = now, is errBehind.
func (r *Reader) askOnce(
	ctx context.Context, ask Ask, q question, text string, args []any, began int64, last bool,
) (a Answer, end events.Look, err error) {
	w := &writer{}
	var st state
	err = r.db.Query(ctx, text, args, func(rows pgx.Rows) (err error) {
		if !rows.Next() {
			return errors.Join(rows.Err(), errNoRow)
		}
		if st, err = scanState(rows, ask.UserID); err != nil {
			return err
		}
		if began == 0 {
			began = st.end.Seq
		}
		if st.behind(began) && !last {
			return errBehind
		}
		if ask.Stream != nil {
			w.stream = func() io.Writer { return ask.Stream(st.head(began)) }
		}
		return q.read(rows, st, &a, w)
	})
	if err != nil && !isAnswer(err) && !errors.Is(err, errBehind) {
		return Answer{}, st.end, fmt.Errorf("read: %w", err)
	}
	a.Head, a.Body, a.Streamed = st.head(began), w.body, w.out != nil
	if err == nil && a.EventID != uuid.Nil && !a.Streamed && q.key != "" {
		r.kept.put(ask.UserID, q.key, a)
	}
	return a, st.end, err
}

// isAnswer tells an error that says what is the case, and is no fault.
func isAnswer(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, ErrFuture) }

var errNoRow = errors.New("the database did not tell what it shows of the user")

// writer gathers an answer, or streams it when it is large.
type writer struct {
	stream func() io.Writer // nil = gather all
	out    io.Writer
	body   []byte
}

// sent is called between two items.
func (w *writer) flush() error {
	if w.out == nil && (w.stream == nil || len(w.body) < streamSize) {
		return nil
	}
	if w.out == nil {
		w.out = w.stream()
	}
	_, err := w.out.Write(w.body)
	w.body = w.body[:0]
	return err
}

// end is called behind the last item.
func (w *writer) end() error {
	if w.out == nil {
		return nil
	}
	_, err := w.out.Write(w.body)
	w.body = nil
	return err
}

// End is the seq at which the user's stream ends, 0 without any event. Of the Ask, it heeds UserID and MinVersion.
func (r *Reader) End(ctx context.Context, ask Ask) (int64, error) {
	if ask.MinVersion > 0 {
		if err := r.awaitVersion(ctx, ask, time.Now().Add(patience)); err != nil {
			return 0, err
		}
	}
	look, err := r.log.Head(ctx, ask.UserID)
	return look.Seq, err
}

// taskKey begins the key of a question about one task as it is now, and of no other.
const taskKey = "task "

func keyOfTask(id uuid.UUID) string { return taskKey + string(id[:]) }

var findTask = statement(`t.body, t.version`, `
	LEFT JOIN LATERAL (
		SELECT t.body, t.version
		FROM {schema}.tasks t
		WHERE t.user_id = s.user_id AND t.id = $2 AND t.deleted_at IS NULL
		LIMIT 1
	) t ON true`)

// Task finds one live task of the user, as it is or, if asOf is not nil, as it was. The answer's Head is known when
// ErrNotFound or ErrFuture is returned too.
func (r *Reader) Task(ctx context.Context, ask Ask, id uuid.UUID, asOf *Moment) (Answer, error) {
	if asOf != nil {
		return r.taskAsOf(ctx, ask, id, *asOf)
	}
	return r.answer(ctx, ask, question{
		key: keyOfTask(id),
		sql: func() (string, []any) { return findTask, []any{[16]byte(id)} },
		read: func(rows pgx.Rows, _ state, a *Answer, w *writer) error {
			var version *int64
			if err := rows.Scan(places(&w.body, &version)...); err != nil {
				return err
			}
			if version == nil {
				return ErrNotFound
			}
			a.Version = *version
			return nil
		},
		of: func(live liveTasks, a *Answer) error {
			for _, t := range live {
				if t.ID == id {
					a.Version, a.Body = t.Version, t.AppendJSON(nil)
					return nil
				}
			}
			return ErrNotFound
		},
	})
}
