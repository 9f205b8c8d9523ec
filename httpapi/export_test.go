package httpapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"taskledger/events"
)

// audit holds an export against the rules of the chain, and returns its last seq and hash.
func audit(t testing.TB, export io.Reader) (n, seq int64, hash string) {
	t.Helper()
	a := events.NewAudit(export)
	for {
		if _, err := a.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	_, seq, last := a.Head()
	return a.Events, seq, last.String()
}

func TestExport(t *testing.T) {
	t.Parallel()
	s := start(t)
	get := call{method: "GET", path: "/api/export", user: "u"}
	if a := s.want(200, get); len(a.body) > 0 || a.Header.Get("X-Version") != "0" {
		t.Errorf("without any event: X-Version %s, %q", a.Header.Get("X-Version"), a.body)
	}
	a := s.create("u", `{"title":"A \u2028 <b> \"quoted\"","description":"\t\u001b 日本","is_completed":true}`)
	s.change("PATCH", "/api/tasks/"+a.ID.String(), `{"title":"B","description":null}`)
	s.titled("v", "private")
	s.want(204, call{method: "DELETE", path: "/api/tasks/" + a.ID.String(), user: "u"})
	answer := s.want(200, get)
	link := as[struct {
		Seq  int64
		Hash string
	}](t, s.want(200, call{method: "GET", path: "/api/ledger", user: "u"}))
	n, seq, hash := audit(t, strings.NewReader(string(answer.body)))
	if n != 5 || seq != 5 || link.Seq != 5 || hash != link.Hash || strings.Contains(string(answer.body), "private") {
		t.Errorf(
			"%d events to seq %d with hash %s, want 5 to %d with %s:\n%s",
			n,
			seq,
			hash,
			link.Seq,
			link.Hash,
			answer.body,
		)
	}
	h := answer.Header
	if h.Get("Content-Type") != "application/x-ndjson" || h.Get("X-Version") != "5" ||
		!strings.HasSuffix(string(answer.body), "}\n") {
		t.Errorf("header %v, body %q", h, answer.body)
	}
	var first map[string]any
	line, _, _ := strings.Cut(string(answer.body), "\n")
	if first = specObject(line); len(first) != 12 {
		t.Errorf("a line has %d members: %s", len(first), line)
	}
	head := get
	head.method = "HEAD"
	if a := s.want(
		200,
		head,
	); len(a.body) > 0 || a.Header.Get("ETag") != h.Get("ETag") ||
		a.Header.Get("Content-Type") != h.Get("Content-Type") {
		t.Errorf("HEAD: %v", a.Header)
	}
	same := get
	same.header = http.Header{"If-None-Match": {h.Get("ETag")}}
	s.want(304, same)
	s.refused(422, "validation_error", call{method: "GET", path: "/api/export?min_version=x", user: "u"})
	s.refused(503, "not_yet_consistent", call{method: "GET", path: "/api/export?min_version=6", user: "u"})
	s.refused(405, "method_not_allowed", call{method: "POST", path: "/api/export", user: "u"})

	s.want(204, call{method: "DELETE", path: "/api/me", user: "u"})
	s.titled("u", "a new life")
	answer = s.want(200, get)
	if n, seq, _ := audit(
		t,
		strings.NewReader(string(answer.body)),
	); n != 2 || seq != 7 ||
		!strings.Contains(string(answer.body), link.Hash) {
		t.Errorf("after an erasure: %d events to seq %d\n%s", n, seq, answer.body)
	}
}

// A user whom the read model does not follow gets what it shows, and is told.
func TestExportOfAParkedUser(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.titled("u", "shown")
	s.list("u", "")
	s.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 2, gen_random_uuid(), 'TaskCompleted', 1, '{}', gen_random_uuid(), gen_random_uuid(), 'u', 'r',
			clock_timestamp())`)
	s.want(200, call{method: "GET", path: "/api/export", user: "u"})
	answer := s.want(200, call{method: "GET", path: "/api/export", user: "u"})
	if n, seq, _ := audit(t, strings.NewReader(string(answer.body))); n != 1 || seq != 1 ||
		answer.Header.Get("X-Stale") != "true" || answer.Header.Get("X-Version") != "1" {
		t.Errorf("%d events to seq %d, header %v", n, seq, answer.Header)
	}
}

// flood appends events to a user's stream by hand: one task, completed and reopened time and again.
func (s *service) flood(user string, n int) {
	s.t.Helper()
	s.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT $1, n, '0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f',
			CASE WHEN n = 1 THEN 'TaskCreated' WHEN n % 2 = 0 THEN 'TaskCompleted' ELSE 'TaskReopened' END, 1,
			CASE WHEN n = 1 THEN '{"title":"Flood","description":null}' ELSE '{}' END::jsonb,
			gen_random_uuid(), gen_random_uuid(), $1, 'r', clock_timestamp()
		FROM generate_series(1, $2) n`, user, n)
	s.eventually(func() bool {
		a := s.do(call{method: "GET", path: "/api/ledger", user: user})
		return a.Header.Get("X-Version") == strconv.Itoa(n)
	})
}

// memory is how much this process has of the machine's, as its runtime counts it.
func memory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys - m.HeapReleased)
}

// raced tells that the race detector is at work.
func raced() bool {
	build, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// 100,000 events take no more memory than a few thousand. Not parallel: the memory is the process's.
func TestExportTakesConstantMemory(t *testing.T) {
	s := start(t)
	n := 100_000
	if raced() {
		n /= 5 // it is slow, and memory is not what it is
	}
	s.flood("u", n)
	s.flood("few", 5000)
	s.want(200, call{method: "GET", path: "/api/export", user: "few"})
	before, most := memory(), int64(0)
	resp := s.exportLive("u")
	defer resp.Body.Close()
	seen := 0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if seen++; seen%5000 == 0 {
			most = max(most, memory())
		}
	}
	if grown := most - before; seen != n || grown > 16<<20 {
		t.Errorf("%d lines, want %d; the process grew by %d KiB", seen, n, grown>>10)
	}
	t.Logf("the process grew by %d KiB", (most-before)>>10)
}

// exportLive begins an export.
func (s *service) exportLive(user string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "GET", s.http.URL+"/api/export", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token(user))
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		s.t.Fatal(resp.Status)
	}
	return resp
}

// told is a log that tells when it has said a text.
type told struct {
	text string
	said chan struct{}
}

func tellOf(text string) *told { return &told{text: text, said: make(chan struct{}, 1)} }

func (l *told) Write(line []byte) (int, error) {
	if strings.Contains(string(line), l.text) {
		select {
		case l.said <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

func (l *told) config(c *Config) { c.Log = slog.New(slog.NewTextHandler(l, nil)) }

func (l *told) await(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	select {
	case <-l.said:
	case <-deadline.C:
		t.Fatalf("the log does not say %q", l.text)
	}
}

// An export that cannot go on does not end as a whole one would: the user was erased meanwhile, events are missing, the
// reader sleeps.
func TestAnExportThatIsCutOffDoesNotLookWhole(t *testing.T) {
	t.Parallel()
	for name, disturb := range map[string]func(s *service){ // what is done before it is read on
		"erased": func(s *service) { s.want(204, call{method: "DELETE", path: "/api/me", user: "u"}) },
		"an event is missing": func(s *service) {
			s.exec(`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
			s.exec(`DELETE FROM {schema}.task_events WHERE seq = 39000`)
		},
		"the end is missing": func(s *service) {
			s.exec(`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
			s.exec(`DELETE FROM {schema}.task_events WHERE seq > 39000`)
		},
		"the table is away": func(s *service) { s.exec(`ALTER TABLE {schema}.task_events RENAME TO gone`) },
		"nobody reads":      func(*service) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := tellOf("an export was cut off")
			s := start(t, log.config)
			s.server.workTime = time.Second
			s.flood("u", 40_000)
			resp := s.exportLive("u") // what sockets do not hold is not read yet
			defer resp.Body.Close()
			if disturb(s); name == "nobody reads" {
				log.await(t)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil {
				t.Errorf("it ended well after %d bytes", n)
			}
		})
	}
}

// An export that fails before its first line is an error like any other.
func TestAnExportThatCannotBegin(t *testing.T) {
	t.Parallel()
	log := tellOf(events.ErrBroken.Error())
	s := start(t, log.config)
	s.titled("u", "a")
	s.titled("u", "b")
	s.list("u", "")
	s.exec(`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
	s.exec(`DELETE FROM {schema}.task_events WHERE seq = 1`)
	s.refused(503, "unavailable", call{method: "GET", path: "/api/export", user: "u"})
	log.await(t)
}
