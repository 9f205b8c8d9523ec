package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/query"
)

// Limits of streams (Server-Sent Events, https://html.spec.whatwg.org/multipage/server-sent-events.html).
const (
	maxStreams = 5 // a user and process
	// streamPage is how many events are read at once, and streamBytes about how many bytes of them are sent before the
	// stream looks whether it is to go on.
	streamPage  = 100
	streamBytes = 64 << 10
	// streamPiece is how many bytes are written at once.
	streamPiece = 8 << 10
	// streamBuffer is how many bytes the system keeps for a reader, about.
	streamBuffer = 16 << 10
	// streamBacklog is how many events may wait for a reader who has caught up before; it is the buffer that may be
	// full.
	streamBacklog = 1000
	// lateTimeout is how long a reader with a full buffer has to take what is being sent.
	lateTimeout = time.Second
	// takeTimeout is how long any reader has.
	takeTimeout = 15 * time.Second
	// heartbeat is the time between signs of life, and between looks at whether the caller still may listen.
	heartbeat = 15 * time.Second
	// streamRetry is when a stream looks again after the database was away.
	streamRetry = time.Second
)

// streams holds the open streams of each user.
type streams struct {
	mu   sync.Mutex
	open map[string]map[*stream]bool
}

// enter adds a stream, if the user may have one more.
func (s *streams) enter(header http.Header, user string, st *stream) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open[user]) >= maxStreams {
		header.Add("RateLimit-Policy", `"streams";q=`+strconv.Itoa(maxStreams))
		header.Add("RateLimit", `"streams";r=0`)
		return nil, newProblem(
			http.StatusTooManyRequests,
			"rate_limited",
			"a user can have "+strconv.Itoa(maxStreams)+" streams open",
		).
			with("Retry-After", strconv.Itoa(int(heartbeat.Seconds())))
	}
	if s.open[user] == nil {
		s.open[user] = map[*stream]bool{}
	}
	s.open[user][st] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open[user], st)
		if len(s.open[user]) == 0 {
			delete(s.open, user)
		}
	}, nil
}

// hurry gives readers who are being sent something a last moment to take it.
func (s *streams) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, streams := range s.open {
		for st := range streams {
			st.hurry()
		}
	}
}

// stream is one reader of a user's events. What it sends it reads from the read model at the reader's own pace, so that
// a slow one costs nobody anything.
type stream struct {
	conn     *http.ResponseController
	out      http.ResponseWriter
	takeTime time.Duration
	backlog  int64
	wake     chan struct{} // holds one value when there may be something new
	last     int64         // seq of the last event sent

	mu   sync.Mutex // guards what follows
	head int64      // the user's last seq that was announced
	sent int64      // last, as announce sees it
	live bool       // it has caught up once
	// when the reader must have taken what is being sent, because too much waits or the stream ends; zero = no such
	// time
	late time.Time
	over bool // the connection is no longer this stream's
}

// announce takes note of the user's newest seq. A reader for whom too much waits has only a moment left.
func (st *stream) announce(seq int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.head = max(st.head, seq)
	if st.live && st.head-st.sent > st.backlog {
		st.limit()
	}
	st.look()
}

// look has the stream look for something new.
func (st *stream) look() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

func (st *stream) hurry() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.limit()
}

// end lets go of the connection, which may have a next request.
func (st *stream) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.over = true
}

// limit ends what is being sent in a moment.
func (st *stream) limit() {
	if st.late.IsZero() && !st.over {
		st.late = time.Now().Add(lateTimeout)
		// An error means that the connection is gone, which the write tells as well.
		_ = st.conn.SetWriteDeadline(st.late)
	}
}

// allow gives the reader its time to take the next piece.
func (st *stream) allow() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	deadline := time.Now().Add(st.takeTime)
	if !st.late.IsZero() && st.late.Before(deadline) {
		deadline = st.late
	}
	return st.conn.SetWriteDeadline(deadline)
}

// send writes to the reader, piece by piece, so that who takes a little now and then is told from who takes nothing.
func (st *stream) send(data []byte) error {
	for piece := range slices.Chunk(data, streamPiece) {
		if err := st.allow(); err != nil {
			return err
		}
		if _, err := st.out.Write(piece); err != nil {
			return err
		}
		if err := st.conn.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// sendChanges sends what it is given, or the beginning of that when it is large.
func (st *stream) sendChanges(changes []query.Change) error {
	var page bytes.Buffer
	last := st.last
	for _, c := range changes {
		if page.Len() > streamBytes {
			break
		}
		fmt.Fprintf(&page, "id: %d\nevent: %s\ndata: %s\n\n", c.Seq, eventNames[c.Type], c.JSON)
		last = c.Seq
		if c.Type == events.TypeUserErased {
			break
		}
	}
	if err := st.send(page.Bytes()); err != nil {
		return err
	}
	if st.last > 0 && len(changes) > 0 && changes[0].Type == events.TypeUserErased { // it is the first there is
		return errErased
	}
	st.last = last
	more := len(changes) == streamPage || len(changes) > 0 && changes[len(changes)-1].Seq > last
	if more {
		st.look()
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.sent = last
	st.live = st.live || !more
	if st.head-st.sent <= st.backlog {
		st.late = time.Time{}
	}
	return nil
}

// errErased ends a stream: what its reader has of what was before is gone, and the reader begins anew behind it.
var errErased = errors.New("the user was erased")

// eventNames are the names of events on a stream.
var eventNames = map[events.Type]string{
	events.TypeTaskCreated:   "task.created",
	events.TypeTaskRenamed:   "task.updated",
	events.TypeTaskDescribed: "task.updated",
	events.TypeTaskCompleted: "task.completed",
	events.TypeTaskReopened:  "task.reopened",
	events.TypeTaskDeleted:   "task.deleted",
	events.TypeTaskRestored:  "task.restored",
	events.TypeTaskImported:  "task.created",
	events.TypeUserErased:    "erased",
}

// lastEventID reads the seq behind which a stream begins; ok is false when it begins now.
func (in *input) lastEventID(r *http.Request) (seq int64, ok bool) {
	id := r.Header.Get("Last-Event-ID")
	if id == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(id, 10, 63)
	if err != nil {
		in.parameter("Last-Event-ID", "invalid_value", "must be the id of an event, or 0")
	}
	return int64(n), true
}

// streamEvents sends the user's events as they happen, each once and in order, until the caller leaves or may no longer
// listen, or the server stops.
func (s *Server) streamEvents(c echo.Context, caller auth.Caller) error {
	var in input
	after, given := in.lastEventID(c.Request())
	ask := s.ask(&in, caller, in.values(c.Request()))
	if err := in.problem(); err != nil {
		return err
	}
	st := &stream{
		conn:     http.NewResponseController(c.Response()),
		out:      c.Response(),
		takeTime: s.takeTime,
		backlog:  s.backlog,
		wake:     make(chan struct{}, 1),
	}
	leave, err := s.streams.enter(c.Response().Header(), caller.UserID, st)
	if err != nil {
		return err
	}
	defer leave()
	defer st.end()
	// before the look at what is there, or what happens in between is missed
	defer s.watch(caller.UserID, st.announce)()
	head, last, err := s.beginning(c, ask, after, given)
	if err != nil {
		return err
	}
	st.last = last
	workOf(c).limit(forever)
	if conn := tcpOf(c.Request()); conn != nil {
		if err := errors.Join(conn.SetWriteBuffer(streamBuffer), setUserTimeout(conn, s.takeTime)); err != nil {
			return err
		}
	}
	setVersion(c, head)
	c.Response().Header().Set("Content-Type", "text/event-stream")
	// A proxy must pass it on at once: nginx, and those that would compress it and keep it until they have enough
	// (Next.js).
	c.Response().Header().Set("X-Accel-Buffering", "no")
	c.Response().Header().Add("Cache-Control", "no-transform")
	c.Response().WriteHeader(http.StatusOK)
	if err := st.send([]byte("retry: 3000\n\n")); err != nil {
		return nil // the reader has gone
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	s.follow(c.Request(), caller, st)
	return nil
}

// beginning is where a stream begins: now, or behind the event that the reader had last, which must be there.
func (s *Server) beginning(c echo.Context, ask query.Ask, after int64, given bool) (head, last int64, err error) {
	head, err = s.queries.End(c.Request().Context(), ask)
	switch {
	case err != nil || !given:
		return head, head, err
	case after > head:
		return head, 0, invalid(
			[]inputProblem{{Parameter: "Last-Event-ID", Code: "out_of_range", Detail: "is past the last event"}},
		)
	}
	return head, after, nil
}

// follow sends events until there is a reason to stop.
func (s *Server) follow(r *http.Request, caller auth.Caller, st *stream) {
	listening, end := context.WithCancel(r.Context())
	defer end()
	defer time.AfterFunc(caller.Left(time.Now()), func() { st.hurry(); end() }).Stop()
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	st.look()
	for !s.isStopping() {
		var err error
		select {
		case <-st.wake:
			err = s.sendNext(listening, caller, st)
		case <-beat.C:
			if !s.mayListen(r) {
				return
			}
			err = st.send([]byte(": \n\n"))
		case <-s.stopping:
		case <-listening.Done():
			return
		}
		if err != nil {
			return // the reader has gone, or takes nothing
		}
	}
}

// errLost: a standby that was behind has taken over, and the log no longer holds what was sent. The stream ends; who
// connects again is told that the last event is none.
var errLost = errors.New("the log has lost what was sent")

// sendNext sends the next page, if there is one. While the database is away a stream stays open, and looks again from
// time to time.
func (s *Server) sendNext(ctx context.Context, caller auth.Caller, st *stream) error {
	looking, cancel := context.WithTimeout(ctx, s.workTime)
	defer cancel()
	changes, err := s.queries.Changes(looking, caller.UserID, st.last, streamPage)
	if err == nil && len(changes) == 0 {
		var end int64
		if end, err = s.queries.End(looking, query.Ask{UserID: caller.UserID}); err == nil && end < st.last {
			return errLost
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.Debug("a stream can't read and tries again", "err", safeCause(unavailable(err)))
			time.AfterFunc(streamRetry, st.look)
		}
		return ctx.Err()
	}
	if len(changes) > 0 && changes[0].Seq != st.last+1 && changes[0].Type != events.TypeUserErased {
		time.AfterFunc(streamRetry, st.look) // what was between has been erased, and that is about to be shown
		return nil
	}
	return st.sendChanges(changes)
}

// mayListen checks the credentials again: a session may have ended, a key may be gone. If that can't be told now, it is
// told later.
func (s *Server) mayListen(r *http.Request) bool {
	_, err := s.auth.Authenticate(r)
	var refused *auth.Error
	return !errors.As(err, &refused)
}
