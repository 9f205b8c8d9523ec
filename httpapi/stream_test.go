package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/httpapi/auth"
)

// reader reads a stream of events as a client does.
type reader struct {
	t     testing.TB
	resp  *http.Response
	lines *bufio.Scanner
	beats int // comments seen
	close func()
}

// frame is one event of a stream.
type frame struct {
	ID    int64
	Event string
	Data  struct {
		historyJSON
		Task *taskJSON `json:"task"`
	}
	raw string
}

// listen opens a stream. lastID is sent if it is not empty.
func (s *service) listen(user, lastID string) *reader {
	s.t.Helper()
	return s.listenAs(s.token(user), lastID)
}

func (s *service) listenAs(token, lastID string) *reader {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // for all that a test does meanwhile
	req, err := http.NewRequestWithContext(ctx, "GET", s.http.URL+"/api/events", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	r := &reader{t: s.t, resp: resp, lines: bufio.NewScanner(resp.Body)}
	r.lines.Buffer(nil, 1<<20)
	r.close = func() { cancel(); _ = resp.Body.Close() }
	s.t.Cleanup(r.close)
	if resp.StatusCode == 200 {
		s.spec.check(s.t, req, resp, []byte("retry: 3000\n\n"))
		if !r.lines.Scan() || r.lines.Text() != "retry: 3000" {
			s.t.Fatalf("a stream begins with %q, %v", r.lines.Text(), r.lines.Err())
		}
	}
	return r
}

// next reads the next event; it returns io.EOF at a clean end.
func (r *reader) next() (frame, error) {
	var f frame
	for r.lines.Scan() {
		name, value, _ := strings.Cut(r.lines.Text(), ": ")
		var err error
		switch {
		case r.lines.Text() == "" && f.Event != "":
			return f, nil
		case name == "":
			r.beats++
		case name == "id":
			f.ID, err = strconv.ParseInt(value, 10, 64)
		case name == "event":
			f.Event = value
		case name == "data":
			f.raw = value
			err = json.Unmarshal([]byte(value), &f.Data)
		case r.lines.Text() != "":
			err = errors.New("what is this?")
		}
		if err != nil {
			r.t.Fatalf("line %q: %v", r.lines.Text(), err)
		}
	}
	if err := r.lines.Err(); err != nil {
		return f, err
	}
	return f, io.EOF
}

// want reads the next event and fails the test unless it is the one with that seq.
func (r *reader) want(seq int64) frame {
	r.t.Helper()
	f, err := r.next()
	if err != nil || f.ID != seq || f.Data.Seq != seq {
		r.t.Fatalf("event %d of %+v, %v; want %d", f.ID, f, err, seq)
	}
	return f
}

// Each kind of change comes at once, under its name, as it stands in the history, with the task as it then is.
func TestChangesAreStreamedLive(t *testing.T) {
	t.Parallel()
	s := start(t)
	task := s.create("u", `{"title":"before the stream"}`)
	live := s.listen("u", "")
	if h := live.resp.Header; live.resp.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" ||
		h.Get("X-Version") != "1" ||
		strings.Join(h.Values("Cache-Control"), ", ") != "private, no-cache, no-transform" ||
		h.Get("X-Accel-Buffering") != "no" {
		t.Errorf("%d %v", live.resp.StatusCode, h)
	}
	path := "/api/tasks/" + task.ID.String()
	created := as[taskJSON](
		t,
		s.want(
			201,
			call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"<é\u2028\n>","is_completed":true}`},
		),
	)
	live.want(2)
	if f := live.want(3); f.Event != "task.completed" || *f.Data.Task != created {
		t.Errorf("created completed: %+v", f)
	}
	seq := int64(3)
	for _, step := range []struct {
		call
		events []string
	}{
		{
			call{method: "PATCH", path: path, body: `{"title":"b","description":"c"}`},
			[]string{"task.updated", "task.updated"},
		},
		{call{method: "PATCH", path: path, body: `{"title":"b"}`}, nil},
		{call{method: "PUT", path: path + "/complete"}, []string{"task.completed"}},
		{call{method: "PATCH", path: path + "/complete"}, []string{"task.reopened"}},
		{call{method: "DELETE", path: path}, []string{"task.deleted"}},
		{call{method: "POST", path: "/api/tasks", body: `{"title":"new"}`}, []string{"task.created"}},
	} {
		step.user = "u"
		a := s.do(step.call)
		var last frame
		for _, name := range step.events {
			seq++
			if last = live.want(seq); last.Event != name {
				t.Errorf("%s %s: event %s, want %s", step.method, step.path, last.Event, name)
			}
		}
		switch {
		case last.Event == "task.deleted":
			if last.Data.Task != nil || !strings.Contains(last.raw, `"task":null`) {
				t.Errorf("deleted: %s", last.raw)
			}
		case last.Event != "":
			if task := as[taskJSON](
				t,
				a,
			); last.Data.Task == nil ||
				fmt.Sprint(*last.Data.Task) != fmt.Sprint(task) && *last.Data.Task.Description != *task.Description {
				t.Errorf("%s: task %+v, want %s", last.Event, last.Data.Task, a.body)
			}
		}
	}
	again := s.listen("u", "0")
	history := s.want(200, call{method: "GET", path: "/api/history?order=asc", user: "u"})
	for _, entry := range as[[]json.RawMessage](t, history) {
		f, err := again.next()
		if err != nil {
			t.Fatal(err)
		}
		if prefix := strings.TrimSuffix(string(entry), "}"); !strings.HasPrefix(f.raw, prefix+`,"task":`) {
			t.Errorf("history has %s, the stream %s", entry, f.raw)
		}
	}
}

// While many write, through two processes, readers who come at any moment, leave and come again get each event once and
// in order.
func TestEveryEventIsStreamedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 50
	one := start(t)
	two := startOn(t, one.pool)
	var work sync.WaitGroup
	for w := range writers {
		work.Go(func() {
			own, strange := one.titled("u", "own").ID.String(), one.titled("stranger", "secret").ID.String()
			for n := range each - 1 {
				process := []*service{one, two}[(w+n)%2]
				process.want(200, call{method: "PATCH", path: "/api/tasks/" + own + "/complete", user: "u"})
				process.want(200, call{method: "PATCH", path: "/api/tasks/" + strange + "/complete", user: "stranger"})
			}
		})
	}
	for i := range 4 {
		work.Go(func() {
			seen := int64(0)
			for process := i; seen < writers*each; process++ {
				r := []*service{one, two}[process%2].listen("u", fmt.Sprint(seen))
				for range 30 + 20*i { // then it connects again, to the other process
					if seen == writers*each {
						break
					}
					seen++
					if f := r.want(seen); f.Data.Task == nil || f.Data.Task.UserID != "u" {
						t.Errorf("event %d: %s", seen, f.raw)
					}
				}
				r.close()
			}
		})
	}
	work.Wait()
}

// What a stream has told, the next read shows.
func TestAStreamIsNeverAheadOfTheLists(t *testing.T) {
	t.Parallel()
	one := start(t)
	two := startOn(t, one.pool)
	live := two.listen("u", "0")
	path := "/api/tasks/" + one.titled("u", "a").ID.String()
	live.want(1)
	for seq := int64(2); seq < 60; seq++ {
		one.want(
			200,
			call{
				method: "PATCH",
				path:   path + "/complete",
				user:   "u",
				header: http.Header{"Prefer": {"respond-async"}},
			},
		)
		live.want(seq)
		for _, read := range []string{path, "/api/tasks", path + "/history", "/api/history"} {
			a := two.want(200, call{method: "GET", path: read, user: "u"})
			if shown, err := strconv.ParseInt(a.Header.Get("X-Version"), 10, 64); err != nil || shown < seq {
				t.Fatalf("%s shows %d after event %d", read, shown, seq)
			}
		}
	}
}

func TestLastEventID(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.titled("u", "a")
	for _, wrong := range []string{"x", "-1", "1.5", "+1", "99999999999999999999", "2"} {
		p := s.refused(
			422,
			"validation_error",
			call{method: "GET", path: "/api/events", user: "u", header: http.Header{"Last-Event-Id": {wrong}}},
		)
		if len(p.Errors) != 1 || p.Errors[0].Parameter != "Last-Event-ID" {
			t.Errorf("%s: %+v", wrong, p)
		}
	}
	live := s.listen("u", "1")
	s.titled("u", "b")
	live.want(2)
	for _, wrong := range []string{"", "-1", "x"} {
		s.refused(422, "validation_error", call{method: "GET", path: "/api/events?min_version=" + wrong, user: "u"})
	}
	s.refused(503, "not_yet_consistent", call{method: "GET", path: "/api/events?min_version=3", user: "u"})
	if a := s.want(405, call{method: "HEAD", path: "/api/events", user: "u"}); a.Header.Get("Allow") == "" {
		t.Errorf("HEAD: %v", a.Header)
	}
	s.want(401, call{method: "GET", path: "/api/events"})
}

func TestAUserHasFiveStreams(t *testing.T) {
	t.Parallel()
	s := start(t)
	var open []*reader
	for range maxStreams {
		open = append(open, s.listen("u", ""))
	}
	p := s.want(429, call{method: "GET", path: "/api/events", user: "u"})
	if p.Header.Get("Retry-After") == "" || as[problemJSON](t, p).Code != "rate_limited" {
		t.Errorf("%s %v", p.body, p.Header)
	}
	s.listen("v", "")
	open[0].close()
	s.eventually(func() bool { // the server has seen it go
		r := s.listen("u", "")
		return r.resp.StatusCode == 200
	})
}

func TestHeartbeats(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.heartbeat = 20 * time.Millisecond
	live := s.listen("u", "")
	for live.beats < 3 && live.lines.Scan() {
		if live.lines.Text() == ":" || strings.HasPrefix(live.lines.Text(), ": ") {
			live.beats++
		}
	}
	if live.beats < 3 || New(Config{Metrics: noMetrics{}}).heartbeat != 15*time.Second {
		t.Errorf("%d heartbeats, every %v", live.beats, s.server.heartbeat)
	}
}

// A stream ends when the token does, when the session is closed, and when the server stops; not before, and not when
// the work of other requests would.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.workTime = 500 * time.Millisecond
	token, err := auth.SignToken(testSecret, "u", "", "", time.Now(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	brief, long := s.listenAs(token, ""), s.listen("u", "")
	begin := time.Now()
	if f, err := brief.next(); err != io.EOF || time.Since(begin) > 30*time.Second ||
		time.Since(begin) < 500*time.Millisecond {
		t.Errorf("a token of two seconds: %+v %v after %v", f, err, time.Since(begin))
	}
	s.titled("u", "a")
	long.want(1)
	close(s.server.stopping)
	if f, err := long.next(); err != io.EOF {
		t.Errorf("when the server stops: %+v %v", f, err)
	}
}

func TestAStreamEndsWithItsSession(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.heartbeat = 50 * time.Millisecond
	live := s.listenAs(s.signIn("u"), "")
	s.titled("u", "a")
	live.want(1)
	if _, err := s.pool.Exec(t.Context(), `DELETE FROM public."session"`); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if f, err := live.next(); err != io.EOF || time.Since(begin) > time.Minute {
		t.Errorf("after sign-out: %+v %v after %v", f, err, time.Since(begin))
	}
}

// The database goes away under a stream: it stays open, and goes on where it was.
func TestAStreamOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.titled("u", "a")
	live := s.listen("u", "0")
	live.want(1)
	conn, err := pgx.ConnectConfig(t.Context(), s.pool.Config().ConnConfig) // one that is not among those it ends
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for seq := int64(2); seq < 5; seq++ {
		if _, err := conn.Exec(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		s.eventually(func() bool {
			return s.do(
				call{
					method: "POST",
					path:   "/api/tasks",
					user:   "u",
					body:   `{"title":"b"}`,
					header: keyed(fmt.Sprint(seq)),
				},
			).StatusCode == 201
		})
		live.want(seq)
	}
}

// A reader who takes nothing is cut off: at once when too much waits for it, else after some time. Writers and other
// readers do not notice.
func TestAReaderWhoTakesNothingIsCutOff(t *testing.T) {
	t.Parallel()
	s := start(t)
	if s.server.takeTime != 15*time.Second {
		t.Error("not the time of the contract")
	}
	for name, limit := range map[string]func(*Server){
		"too much waits": func(s *Server) { s.takeTime, s.backlog = time.Hour, 20 },
		"it takes long":  func(s *Server) { s.takeTime = 100 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			limit(s.server)
			s.deaf("u")
			reading := s.listen("u", "")
			path := "/api/tasks/" + s.titled("u", "a").ID.String()
			reading.want(1)
			seq := int64(1)
			for begin := time.Now(); s.server.openStreams("u") == 2; {
				seq++
				s.want(
					200,
					call{
						method: "PATCH",
						path:   path,
						user:   "u",
						body:   fmt.Sprintf(`{"description":"%d%s"}`, seq, strings.Repeat("🦫", 990)),
					},
				)
				reading.want(seq)
				if time.Since(begin) > 3*time.Minute {
					t.Fatalf("not cut off after %d events", seq)
				}
			}
			s.titled("u", "b")
			reading.want(seq + 1)
		})
	}
}

// deaf opens a stream and reads nothing of it.
func (s *service) deaf(user string) {
	s.t.Helper()
	s.dial(s.token(user), "")
	s.eventually(func() bool { return s.server.openStreams(user) == 1 })
}

// dial asks for a stream on a connection that keeps little for who does not read.
func (s *service) dial(token, header string) net.Conn {
	s.t.Helper()
	return s.dialAt(s.http.Listener.Addr().String(), token, header)
}

func (s *service) dialAt(address, token, header string) net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(
		conn,
		"GET /api/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+header+"Authorization: Bearer "+token+"\r\n\r\n",
	); err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// fat gives the user a history of n events that are about 8 KB each on a stream.
func (s *service) fat(user string, n int) {
	s.t.Helper()
	path := "/api/tasks/" + s.titled(user, "a").ID.String()
	for i := range n - 1 {
		s.want(
			200,
			call{
				method: "PATCH",
				path:   path,
				user:   user,
				body:   fmt.Sprintf(`{"description":"%d%s"}`, i, strings.Repeat("🦫", 650)),
			},
		)
	}
}

// sip reads a stream from its beginning, some bytes every now and then, until it ends.
func (s *service) sip(token string, bytes int, pause time.Duration) (read int64, took time.Duration) {
	s.t.Helper()
	conn := s.dial(token, "Last-Event-ID: 0\r\n")
	begin := time.Now()
	for {
		n, err := io.CopyN(io.Discard, conn, int64(bytes))
		read += n
		if err != nil || time.Since(begin) > 40*time.Second {
			return read, time.Since(begin)
		}
		<-time.After(pause)
	}
}

// A reader who is slow to catch up listens no longer than the token lasts.
func TestACatchingUpStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.fat("u", 150)
	token, err := auth.SignToken(testSecret, "u", "", "", time.Now(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if read, took := s.sip(token, 4<<10, 100*time.Millisecond); took > 20*time.Second {
		t.Errorf("still open after %v and %d bytes", took, read)
	}
}

// A reader who takes little but steadily is not one who takes nothing.
func TestASlowReaderIsNotCutOff(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.takeTime = 2 * time.Second
	s.fat("u", 25)
	conn := s.dial(s.token("u"), "Last-Event-ID: 0\r\n")
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	begin := time.Now()
	for last := ""; last != "id: 25"; {
		if !lines.Scan() {
			t.Fatalf("cut off after %v, behind %s: %v", time.Since(begin), last, lines.Err())
		}
		if strings.HasPrefix(lines.Text(), "id: ") {
			last = lines.Text()
			<-time.After(60 * time.Millisecond)
		}
	}
	if time.Since(begin) < 3*time.Second {
		t.Errorf("all was read in %v: too fast to show anything", time.Since(begin))
	}
}

// Neither a reader who takes nothing nor a stream that waits holds up a stop.
func TestStreamsDoNotHoldUpAStop(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.fat("u", 150)
	v := s.serve()
	s.dialAt(v.address, s.token("u"), "Last-Event-ID: 0\r\n")
	s.dialAt(v.address, s.token("u"), "")
	s.eventually(func() bool { return s.server.openStreams("u") == 2 })
	v.stop()
	v.wantEnd(stopTimeout - time.Second) // a request that does not end is waited for so long
}

// Each type of event has a name on a stream.
func TestEveryTypeHasANameOnAStream(t *testing.T) {
	t.Parallel()
	for _, typ := range events.Types() {
		if eventNames[typ] == "" {
			t.Errorf("%s has none", typ)
		}
	}
	if len(eventNames) != len(events.Types()) {
		t.Errorf("%d names for %d types", len(eventNames), len(events.Types()))
	}
}

func (s *Server) openStreams(user string) int {
	s.streams.mu.Lock()
	defer s.streams.mu.Unlock()
	return len(s.streams.open[user])
}

// eventually waits until a condition holds.
func (s *service) eventually(holds func() bool) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatal("it never held")
		}
	}
}
