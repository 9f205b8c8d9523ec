package httpapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Thousands of requests of every kind leave nothing behind: neither memory nor goroutines. What is kept for the next
// request grows for a while, as with each new connection to the database; a leak grows with every round. Not parallel:
// the memory is the process's.
func TestRequestsLeaveNothingBehind(t *testing.T) {
	s := start(t, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	tokens := make([]string, 20)
	for i := range tokens {
		tokens[i] = s.token(fmt.Sprint("user", i))
	}
	work := func(from, to int) {
		var clients sync.WaitGroup
		for c := range 4 {
			clients.Go(func() {
				for n := from + c; n < to; n += 4 {
					s.everything(tokens[n%len(tokens)], n)
				}
			})
		}
		clients.Wait()
	}
	const turns, rounds, most = 120, 5, 512 << 10
	work(0, turns)
	memory, goroutines := s.inUse()
	for round := 1; ; round++ {
		work(round*turns, (round+1)*turns)
		after, still := s.inUse()
		t.Logf("%d KiB, then %d KiB; %d goroutines, then %d", memory>>10, after>>10, goroutines, still)
		if after-memory <= most && still <= goroutines+5 {
			return
		}
		if round == rounds {
			t.Fatalf("each of %d rounds of %d turns has left something behind", rounds, turns)
		}
		memory, goroutines = after, still
	}
}

// everything sends requests of every kind, and looks at the beginning of a stream.
func (s *service) everything(token string, n int) {
	s.t.Helper()
	created := s.send(
		token,
		"POST",
		"/api/tasks",
		`{"title":"a"}`,
		http.Header{"Idempotency-Key": {fmt.Sprint("key", n)}},
	)
	path := created.Header.Get("Location")
	s.send(token, "PATCH", path, `{"title":"b","description":"c"}`, http.Header{"If-Match": {`"1"`}})
	s.send(token, "PATCH", path+"/complete", "", nil)
	s.send(token, "GET", "/api/tasks?limit=1", "", nil)
	s.send(token, "GET", "/api/history?limit=5", "", nil)
	s.send(token, "POST", "/api/tasks", `{"title":`, nil)
	s.send(token, "GET", missing, "", nil)
	s.send(token, "GET", fmt.Sprint("/api/nothing/", n), "", nil)
	s.send(fmt.Sprint("x", n), "GET", "/api/tasks", "", nil)
	s.send(token, "GET", "/api/events", "", nil)
	if deleted := s.send(token, "DELETE", path, "", nil); deleted.StatusCode != 204 {
		s.t.Errorf("turn %d: %d", n, deleted.StatusCode)
	}
}

// send sends a request and reads the answer to its end, of a stream the beginning.
func (s *service) send(token, method, path, body string, header http.Header) *http.Response {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.http.URL+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	length := int64(1 << 20)
	if path == "/api/events" {
		length = int64(len("retry: 3000\n\n"))
	}
	if _, err := io.CopyN(io.Discard, resp.Body, length); err != nil && err != io.EOF {
		s.t.Error(err)
	}
	return resp
}

// inUse waits until no stream is open, and is what memory and goroutines are in use then.
func (s *service) inUse() (memory int64, goroutines int) {
	s.t.Helper()
	s.eventually(func() bool {
		s.server.streams.mu.Lock()
		defer s.server.streams.mu.Unlock()
		return len(s.server.streams.open) == 0
	})
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	s.eventually(func() bool { return s.server.connections.settled(time.Time{}) })
	settled := time.NewTimer(100 * time.Millisecond) // goroutines of closed connections end
	defer settled.Stop()
	<-settled.C
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc), runtime.NumGoroutine()
}
