// Package query answers from the read model, and from nothing else; of the log it only looks where a user's stream ends, to know that an
// answer shows all of it. A question is one statement in one round trip. Answers are kept, and given again after a look at that end.
package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

var (
	// ErrNotFound: the user has no such task.
	ErrNotFound = errors.New("task not found")
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
	// Await has the read model brought up to a position that was seen after the mark, and returns when it is, or with the error of ctx.
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
	db    *events.DB
	log   *events.Log
	model ReadModel
	kept  kept
}

// NewReader returns a Reader; it does no I/O.
func NewReader(cfg Config) *Reader {
	return &Reader{db: cfg.DB, log: cfg.Log, model: cfg.ReadModel, kept: newKept(cfg.KeptBytes)}
}

// Head is what an answer reflects.
type Head struct {
	// Seq is the user's seq, 0 without any event.
	Seq int64
	// EventID and Generation are those of the end of the user's stream and of the read model, when the answer shows all of the stream:
	// an answer with the same two is the same. Else they are zero.
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

// question is one statement, and how to read its answer. Answers under the same key are the same as long as the head is.
type question struct {
	key  string
	text string
	args []any // behind the user
	read func(rows pgx.Rows, a *Answer, w *writer) error
}

// statement is the beginning of every question: it names the user to row level security before anything else is read, and tells what the
// read model shows of the user. What follows is joined to s, of which there is one row. Where the stream ends is not asked here: that look
// is shared by many (measured at 16 and 64 connections: a third of the database's time for a list of 20).
func statement(columns, from string) string {
	return `
	WITH scope AS MATERIALIZED (
		SELECT set_config('taskledger.user_id', $1, true) COLLATE "C" AS user_id
	)
	SELECT
		(SELECT CASE WHEN u.parked_error IS NULL THEN u.seq ELSE -u.seq - 1 END FROM {schema}.users u WHERE u.user_id = $1),
		(SELECT c.generation FROM {schema}.checkpoints c WHERE c.projection = 'tasks'),
		` + columns + `
	FROM scope s
	` + from
}

// state is what a statement tells of the user.
type state struct {
	shown      int64 // seq that the read model shows
	parked     bool
	generation int64
}

// headColumns is how many columns a statement has before those of the question.
const headColumns = 2

func scanState(rows pgx.Rows, columns int) (st state, err error) {
	var shown *int64
	places := make([]any, headColumns+columns)
	places[0], places[1] = &shown, &st.generation
	if err := rows.Scan(places...); err != nil || shown == nil {
		return st, err
	}
	st.shown = *shown
	if st.parked = st.shown < 0; st.parked {
		st.shown = -st.shown - 1
	}
	return st, nil
}

// head is that of an answer from the read model to a read that began when the stream ended at end.
func (st state) head(end events.Look) Head {
	h := Head{Seq: st.shown, Stale: st.shown < end.Seq}
	if st.shown == end.Seq && st.generation == end.Generation {
		h.EventID, h.Generation = end.EventID, end.Generation
	}
	return h
}

// behind tells that the read model can be brought further to show the end of the stream.
func (st state) behind(end events.Look) bool { return st.shown < end.Seq && !st.parked }

// errBehind says that the read model does not show enough yet.
var errBehind = errors.New("the read model is behind")

// answer answers a question: from what is kept, if the stream still ends where it did, else from the read model, as soon as that shows
// all that was in the log when the read began.
func (r *Reader) answer(ctx context.Context, ask Ask, q question) (Answer, error) {
	deadline := time.Now().Add(patience)
	if ask.MinVersion > 0 {
		if err := r.awaitVersion(ctx, ask, deadline); err != nil {
			return Answer{}, err
		}
	}
	kept, written := r.kept.get(ask.UserID, q.key)
	if kept == nil && ask.Has == nil {
		return r.ask(ctx, ask, q, r.look(ctx, ask.UserID), written, deadline)
	}
	look, err := r.log.Head(ctx, ask.UserID)
	if err != nil {
		return Answer{}, err
	}
	head := Head{Seq: look.Seq, EventID: look.EventID, Generation: look.Generation}
	switch {
	case ask.Has != nil && ask.Has(head):
		return Answer{Head: head, Unchanged: true}, nil
	case kept != nil && kept.Head == head:
		return *kept, nil
	}
	return r.ask(ctx, ask, q, func() (events.Look, error) { return look, nil }, written, deadline)
}

// look begins a look at where the user's stream ends; the function returned waits for what it tells.
func (r *Reader) look(ctx context.Context, user string) func() (events.Look, error) {
	var (
		look events.Look
		err  error
		done = make(chan struct{})
	)
	go func() {
		look, err = r.log.Head(ctx, user)
		close(done)
	}()
	return func() (events.Look, error) {
		<-done
		return look, err
	}
}

// ask asks the read model until it shows what it must, or the time is up. What this process wrote for the user is waited for beforehand,
// which saves a statement.
func (r *Reader) ask(
	ctx context.Context, ask Ask, q question, end func() (events.Look, error), written int64, deadline time.Time,
) (Answer, error) {
	mark := r.model.Mark()
	if written > r.model.Shown() {
		r.awaitWritten(ctx, end, written, mark, deadline)
	}
	for shown := false; ; {
		mark = r.model.Mark()
		a, err := r.askOnce(ctx, ask, q, end, time.Now().After(deadline))
		if err == nil && a.Seq < ask.MinVersion {
			return Answer{Head: a.Head}, ErrNotYet
		}
		if !errors.Is(err, errBehind) {
			return a, err
		}
		look, err := end()
		if err != nil {
			return Answer{}, err
		}
		if shown {
			r.db.Pool().Reset() // what is shown elsewhere is not shown here: this is a database that another one has taken over from
		}
		shown = r.await(ctx, look.Position, mark, deadline)
	}
}

// awaitWritten waits for what this process wrote for the user, unless the log does not hold it: a standby that was behind may have taken
// over since.
func (r *Reader) awaitWritten(
	ctx context.Context, end func() (events.Look, error), written int64, mark uint64, deadline time.Time,
) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if look, err := end(); err != nil || look.Position < written {
			cancel()
		}
	}()
	r.await(ctx, written, mark, deadline)
}

// await waits for a position, and tells whether it is shown. When the time is up, the answer is what there is.
func (r *Reader) await(ctx context.Context, position int64, mark uint64, deadline time.Time) (shown bool) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return r.model.Await(ctx, position, mark) == nil
}

// askOnce runs the statement. Unless it is the last try, an answer that does not show the end of the stream is errBehind. No connection is
// held while the end is waited for: that takes another one.
func (r *Reader) askOnce(
	ctx context.Context, ask Ask, q question, end func() (events.Look, error), last bool,
) (a Answer, err error) {
	w := &writer{}
	if ask.Stream != nil { // the header tells what the answer reflects, and goes first
		if _, err := end(); err != nil {
			return Answer{}, err
		}
	}
	var st state
	err = r.db.Query(ctx, q.text, append([]any{ask.UserID}, q.args...), func(rows pgx.Rows) (err error) {
		if !rows.Next() {
			return errors.Join(rows.Err(), errNoRow)
		}
		if st, err = scanState(rows, len(rows.RawValues())-headColumns); err != nil {
			return err
		}
		if ask.Stream != nil {
			look, _ := end()
			if st.behind(look) && !last {
				return errBehind
			}
			w.stream = func() io.Writer { return ask.Stream(st.head(look)) }
		}
		return q.read(rows, &a, w)
	})
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, errBehind) {
		return Answer{}, fmt.Errorf("read: %w", err)
	}
	look, endErr := end()
	if endErr != nil {
		return Answer{}, endErr
	}
	if st.behind(look) && !last {
		return Answer{}, errBehind
	}
	a.Head, a.Body, a.Streamed = st.head(look), w.body, w.out != nil
	if err == nil && a.EventID != uuid.Nil && !a.Streamed {
		r.kept.put(ask.UserID, q.key, a)
	}
	return a, err
}

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

// End is the seq at which the user's stream ends, 0 without any event.
func (r *Reader) End(ctx context.Context, user string) (int64, error) {
	look, err := r.log.Head(ctx, user)
	return look.Seq, err
}

const oneTask = `t.body, t.version`

// Task finds one live task of the user. The answer's Head is known when ErrNotFound is returned too.
func (r *Reader) Task(ctx context.Context, ask Ask, id uuid.UUID) (Answer, error) {
	return r.answer(ctx, ask, question{
		key: "task " + string(id[:]),
		text: statement(oneTask, `
			LEFT JOIN LATERAL (
				SELECT t.body, t.version
				FROM {schema}.tasks t
				WHERE t.user_id = s.user_id AND t.id = $2 AND t.deleted_at IS NULL
				LIMIT 1
			) t ON true`),
		args: []any{[16]byte(id)},
		read: func(rows pgx.Rows, a *Answer, w *writer) error {
			var version *int64
			if err := rows.Scan(nil, nil, &w.body, &version); err != nil {
				return err
			}
			if version == nil {
				return ErrNotFound
			}
			a.Version = *version
			return nil
		},
	})
}
