package main

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"taskledger/migrations/testdb"
)

// balancer is a load balancer as they all are: it asks each server now and then whether it is ready, and sends requests
// to those that were when they were asked last.
type balancer struct {
	t       *testing.T
	mu      sync.Mutex
	servers []*served // that it asks
	ready   []*served
	next    int
}

// balanceEvery is the time between two questions.
const balanceEvery = 250 * time.Millisecond

// balance begins to ask. It ends with stop.
func balance(t *testing.T, servers ...*served) (b *balancer, stop func()) {
	b = &balancer{t: t, servers: slices.Clone(servers)} // the caller writes to its own
	b.ask()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		every := time.NewTicker(balanceEvery)
		defer every.Stop()
		for {
			select {
			case <-every.C:
				b.ask()
			case <-done:
				return
			}
		}
	}()
	return b, func() { close(done); <-ended }
}

func (b *balancer) ask() {
	b.mu.Lock()
	servers := append([]*served(nil), b.servers...)
	b.mu.Unlock()
	var ready []*served
	for _, s := range servers {
		if status, err := s.status("/readyz"); err == nil && status == http.StatusOK {
			ready = append(ready, s)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = ready
}

func (b *balancer) replace(i int, by *served) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.servers[i] = by
}

func (b *balancer) has(s *served) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, other := range b.ready {
		if other == s {
			return true
		}
	}
	return false
}

func (b *balancer) pick() *served {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ready) == 0 {
		return nil
	}
	b.next++
	return b.ready[b.next%len(b.ready)]
}

// writeAndRead writes and reads in turn with a pause between, until it is done or has failed, and counts.
func (b *balancer) writeAndRead(token string, pause time.Duration, done *atomic.Bool, requests *atomic.Int64) {
	every := time.NewTicker(max(pause, time.Microsecond))
	defer every.Stop()
	for n := 1; !done.Load(); n++ {
		got, err := b.pick().send(token, "POST", "/api/tasks", fmt.Sprintf(`{"title":"%d"}`, n))
		if err != nil || got.status != 201 {
			b.t.Errorf("a write: %d %s %v", got.status, got.body, err)
			return
		}
		<-every.C
		got, err = b.pick().send(token, "GET", "/api/tasks?limit=1", "")
		if err != nil || got.status != 200 || got.header.Get("X-Version") != fmt.Sprint(n) ||
			got.header.Get("X-Stale") != "" {
			b.t.Errorf("a read behind event %d: %d %s %v %v", n, got.status, got.body, got.header, err)
			return
		}
		<-every.C
		requests.Add(2)
	}
}

// Both servers are replaced, one after the other, twice, and nobody's request fails: not one, and nobody repeats any.
// Some users have a request under way all the time; others come now and then, when the server that is to stop may have
// none.
func TestARollingRestart(t *testing.T) {
	t.Parallel()
	for name, pause := range map[string]time.Duration{"busy": 0, "quiet": 40 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
			servers := []*served{startServer(t, env...), startServer(t, env...)}
			b, stop := balance(t, servers...)
			var (
				done     atomic.Bool
				requests atomic.Int64
				work     sync.WaitGroup
			)
			for i := range 4 {
				token := openAccount(t, fmt.Sprint("u", i)).token
				work.Go(func() { b.writeAndRead(token, pause, &done, &requests) })
			}
			var slowest time.Duration
			for n := range 4 {
				old := servers[n%2]
				began := time.Now()
				old.terminate()
				slowest = max(slowest, time.Since(began))
				servers[n%2] = startServer(t, env...)
				b.replace(n%2, servers[n%2])
				old.await(1, func() (int, error) {
					if b.has(servers[n%2]) || t.Failed() {
						return 1, nil
					}
					return 0, nil
				})
			}
			done.Store(true)
			work.Wait()
			stop()
			t.Logf(
				"%d requests, none failed; the slowest stop took %v",
				requests.Load(),
				slowest.Round(time.Millisecond),
			)
			got := finish(t, program(t, env[:1], "verify"))
			want := fmt.Sprintf("compared 4 users, %d events", requests.Load()/2)
			if got.code != 0 || !strings.HasPrefix(got.stdout, want) {
				t.Errorf("verify: %+v, want %s", got, want)
			}
		})
	}
}

// A server is killed the moment it has acknowledged a write, before it could show it to anybody. Another one takes over
// what is left to do: for who asks, at once; for who watches, within a second, and not because it looks now and then.
func TestAServerThatIsKilledIsTakenOver(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
	other := startServer(t, env...)
	events := bufio.NewScanner(other.stream("watcher"))
	shown := func(seq int) {
		t.Helper()
		began := time.Now()
		for events.Scan() && events.Text() != fmt.Sprint("id: ", seq) {
		}
		if took := time.Since(began); took > time.Second || events.Err() != nil {
			t.Errorf("event %d came after %v: %v", seq, took, events.Err())
		}
	}
	for n := range 3 {
		killed := startServer(t, env...)
		for before := range 2 { // with the second it is known that it has found out that somebody listens
			killed.must(201, "watcher", "POST", "/api/tasks", `{"title":"a"}`)
			shown(3*n + 1 + before)
		}
		killed.must(201, "watcher", "POST", "/api/tasks", `{"title":"a"}`)
		if err := killed.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if n == 0 { // a read has the read model brought up to date, and so watchers told: later ones do without
			if status, tasks, err := other.list("watcher"); status != 200 || len(tasks) != 3 || err != nil {
				t.Errorf("a reader: %d %v %v", status, tasks, err)
			}
			t.Logf("a reader saw it after %v", time.Since(began).Round(time.Millisecond))
		}
		shown(3*n + 3)
		t.Logf("a watcher saw it after %v", time.Since(began).Round(time.Millisecond))
	}
}

// A newer program works beside this one: on a schema with more in it, and it stores events of a type that this one does
// not know. This one goes on to take writes and to answer, says what it can't do, parks nobody, and goes on when the
// newer one has.
func TestANewerProgramBeside(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	execute(t, url, `INSERT INTO taskledger.schema_versions (version_id, is_applied) VALUES (99999, true)`,
		`ALTER TABLE taskledger.tasks ADD COLUMN pinned boolean NOT NULL DEFAULT false`,
		`ALTER TABLE taskledger.task_events ADD COLUMN origin text`)
	s := startServer(t, env...)
	for _, user := range []string{"u", "v"} {
		s.must(201, user, "POST", "/api/tasks", `{"title":"a"}`)
		s.must(200, user, "GET", "/api/tasks", "")
	}
	execute(t, url, `SET taskledger.ledger = 'on'`, `
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'v', 2, id, 'TaskPinned', 1, '{}', gen_random_uuid(), gen_random_uuid(), 'v', 'r', clock_timestamp()
		FROM taskledger.tasks
		WHERE user_id = 'v'`)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"b"}`)
	token := openAccount(t, "u").token
	got, err := s.send(token, "GET", "/api/tasks", "")
	if err != nil || got.status != 200 || got.header.Get("X-Stale") != "true" {
		t.Errorf("behind an event of a newer program: %d %v %v", got.status, got.header, err)
	}
	if status, answer, err := s.call("v", "POST", "/api/tasks", `{"title":"b"}`); err != nil || status != 503 {
		t.Errorf("a decision on what is not known: %d %v %v", status, answer, err)
	}
	if status, err := s.status("/readyz"); status != 200 || err != nil {
		t.Errorf("readyz: %d %v", status, err)
	}
	said := s.stderr.String()
	if !strings.Contains(said, "stopped until a newer program") || !strings.Contains(said, "TaskPinned") {
		t.Errorf("it does not say so: %s", said)
	}
	if got := finish(t, program(t, env, "parked")); got.code != 0 {
		t.Errorf("parked: %+v", got)
	}
	// The newer program applies it.
	execute(t, url, `SET taskledger.ledger = 'on'`,
		`UPDATE taskledger.users SET seq = 2 WHERE user_id = 'v'`,
		`UPDATE taskledger.checkpoints
		SET position = (SELECT position FROM taskledger.task_events WHERE type = 'TaskPinned')`)
	began := time.Now()
	s.await(1, func() (int, error) {
		got, err := s.send(token, "GET", "/api/tasks", "")
		return strings.Count(string(got.body), `"b"`), err
	})
	t.Logf("it goes on %v after the newer program has", time.Since(began).Round(time.Millisecond))
	if got, err := s.send(token, "GET", "/api/tasks", ""); err != nil || got.header.Get("X-Stale") != "" {
		t.Errorf("afterwards: %v %v", got.header, err)
	}
	s.await(1, func() (int, error) { return strings.Count(s.stderr.String(), "projection goes on"), nil })
}
