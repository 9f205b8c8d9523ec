package httpapi

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/labstack/echo/v4"

	"taskledger/events"
	"taskledger/query"
)

// Limits of streams (Server-Sent Events, https://html.spec.whatwg.org/multipage/server-sent-events.html).
const (
	maxStreams = 5 // a user and process
	// streamPage is how many events are read and sent at once: all that the server keeps of a stream's events.
	streamPage = 100
	// streamBuffer is how many bytes the system keeps for a reader, about.
	streamBuffer = 64 << 10
	// streamBacklog is how many events may wait for a reader who has caught up before; it is the buffer that may be full.
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

// streams counts the open streams of each user.
type streams struct {
	mu   sync.Mutex
	open map[string]int
}

// enter counts one stream more, if the user may have it.
func (s *streams) enter(header http.Header, user string) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[user] >= maxStreams {
		header.Add("RateLimit-Policy", `"streams";q=`+strconv.Itoa(maxStreams))
		header.Add("RateLimit", `"streams";r=0`)
		return nil, newProblem(http.StatusTooManyRequests, "rate_limited", "a user can have "+strconv.Itoa(maxStreams)+" streams open").
			with("Retry-After", strconv.Itoa(int(heartbeat.Seconds())))
	}
	s.open[user]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[user]--; s.open[user] == 0 {
			delete(s.open, user)
		}
	}, nil
}

// stream is one reader of a user's events. What it sends it reads from the read model at the reader's own pace, so that a slow one
// costs nobody anything.
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
}

// announce takes note of the user's newest seq. A reader for whom too much waits has only a moment left.
func (st *stream) announce(seq int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	wasFull := st.full()
	st.head = max(st.head, seq)
	if !wasFull && st.full() {
		// An error means that the connection is gone, which the write tells as well.
		_ = st.conn.SetWriteDeadline(time.Now().Add(lateTimeout))
	}
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// full tells whether too much waits for a reader who has caught up before.
func (st *stream) full() bool { return st.live && st.head-st.sent > st.backlog }

// allow gives the reader the time to take what is sent next.
func (st *stream) allow() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	limit := st.takeTime
	if st.full() {
		limit = lateTimeout
	}
	return st.conn.SetWriteDeadline(time.Now().Add(limit))
}

// send writes to the reader, who has to take it in time.
func (st *stream) send(data []byte) error {
	if err := st.allow(); err != nil {
		return err
	}
	if _, err := st.out.Write(data); err != nil {
		return err
	}
	return st.conn.Flush()
}

// sendChanges sends a page of events.
func (st *stream) sendChanges(changes []query.Change) error {
	if len(changes) > 0 {
		var page bytes.Buffer
		for _, c := range changes {
			if err := writeChange(&page, c); err != nil {
				return err
			}
		}
		if err := st.send(page.Bytes()); err != nil {
			return err
		}
		st.last = changes[len(changes)-1].Seq
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.sent = st.last
	st.live = st.live || len(changes) < streamPage
	return nil
}

// eventNames are the names of events on a stream.
var eventNames = map[events.Type]string{
	events.TypeTaskCreated:   "task.created",
	events.TypeTaskRenamed:   "task.updated",
	events.TypeTaskDescribed: "task.updated",
	events.TypeTaskCompleted: "task.completed",
	events.TypeTaskReopened:  "task.reopened",
	events.TypeTaskDeleted:   "task.deleted",
	events.TypeTaskRestored:  "task.restored",
}

// changeJSON is an event on a stream. Task is the task after it, nil when it is deleted.
type changeJSON struct {
	historyJSON
	Task *taskJSON `json:"task"`
}

func writeChange(page *bytes.Buffer, c query.Change) error {
	change := changeJSON{historyJSON: toHistoryJSON(c.HistoryEntry)}
	if c.Task.Live() {
		task := toJSON(c.Task)
		change.Task = &task
	}
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	page.WriteString("id: " + strconv.FormatInt(c.Seq, 10) + "\nevent: " + eventNames[c.Type] + "\ndata: ")
	page.Write(data)
	page.WriteString("\n\n")
	return nil
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

// streamEvents sends the user's events as they happen, each once and in order, until the caller leaves or may no longer listen, or the
// server stops.
func (s *Server) streamEvents(c echo.Context, caller Caller) error {
	var in input
	after, given := in.lastEventID(c.Request())
	if err := s.prepareRead(c, caller, &in, in.values(c.Request())); err != nil {
		return err
	}
	leave, err := s.streams.enter(c.Response().Header(), caller.UserID)
	if err != nil {
		return err
	}
	defer leave()
	st := &stream{
		conn:     http.NewResponseController(c.Response()),
		out:      c.Response(),
		takeTime: s.takeTime,
		backlog:  s.backlog,
		wake:     make(chan struct{}, 1),
	}
	defer s.watch(caller.UserID, st.announce)() // before the look at what is there, or what happens in between is missed
	head, err := s.beginning(c, caller, after, given)
	if err != nil {
		return err
	}
	st.last = head.Seq
	if given {
		st.last = after
	}
	s.noDeadline(c)
	if conn, ok := c.Request().Context().Value(connKey{}).(*net.TCPConn); ok {
		if err := conn.SetWriteBuffer(streamBuffer); err != nil {
			return err
		}
	}
	setHead(c, head)
	c.Response().Header().Set("Content-Type", "text/event-stream")
	c.Response().Header().Set("X-Accel-Buffering", "no") // a proxy (nginx) must pass it on at once
	c.Response().WriteHeader(http.StatusOK)
	if err := st.send([]byte("retry: 3000\n\n")); err != nil {
		return nil // the reader has gone
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	s.follow(c.Request(), caller, st)
	return nil
}

// beginning looks at what there is. Where the stream is to begin behind that, the read models get a moment to come there.
func (s *Server) beginning(c echo.Context, caller Caller, after int64, given bool) (query.Head, error) {
	head, err := s.queries.Shown(c.Request().Context(), caller.UserID)
	if err != nil || !given || after <= head.Seq {
		return head, err
	}
	err = s.await(c, caller, after)
	var p *problem
	if errors.As(err, &p) && p.Code == "not_yet_consistent" {
		return head, invalid([]inputProblem{{Parameter: "Last-Event-ID", Code: "out_of_range", Detail: "is past the last event"}})
	}
	head.Seq = max(head.Seq, after)
	return head, err
}

// follow sends events until there is a reason to stop.
func (s *Server) follow(r *http.Request, caller Caller, st *stream) {
	expired := time.NewTimer(untilExpired(caller, time.Now()))
	defer expired.Stop()
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	for {
		again, err := s.sendNew(r.Context(), caller, st)
		if err != nil {
			return // the reader has gone, or took nothing
		}
		var retry <-chan time.Time
		if again > 0 {
			retry = time.After(again)
		}
		select {
		case <-st.wake:
		case <-retry:
		case <-beat.C:
			if !s.mayListen(r) || st.send([]byte(": \n\n")) != nil {
				return
			}
		case <-expired.C:
			return
		case <-s.stopping:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// sendNew sends what there is. While the database is away a stream stays open: again tells when to look again.
func (s *Server) sendNew(ctx context.Context, caller Caller, st *stream) (again time.Duration, err error) {
	for {
		looking, cancel := context.WithTimeout(ctx, s.workTime)
		changes, err := s.queries.Changes(looking, caller.UserID, st.last, streamPage)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				s.log.Debug("a stream can't read and tries again", "err", safeCause(unavailable(err)))
			}
			return streamRetry, ctx.Err()
		}
		if err := st.sendChanges(changes); err != nil {
			return 0, err
		}
		if len(changes) < streamPage || s.isStopping() {
			return 0, nil
		}
	}
}

// mayListen checks the credentials again: a session may have ended, a key may be gone. If that can't be told now, it is told later.
func (s *Server) mayListen(r *http.Request) bool {
	_, err := s.auth.Authenticate(r)
	var refused *AuthError
	return !errors.As(err, &refused)
}

// untilExpired is how long a stream may last: to the end that the credential names, or of the leeway it still had.
func untilExpired(caller Caller, now time.Time) time.Duration {
	if left := caller.Expires.Sub(now); left > 0 {
		return left
	}
	return caller.Expires.Add(tokenLeeway).Sub(now)
}
