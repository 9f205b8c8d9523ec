package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"taskledger/migrations/postgres"
)

// pair is a primary and a standby that follows it through a relay.
type pair struct {
	t                *testing.T
	primary, standby *postgres.Server
	relay            *relay
	url, adminURL    string // lead to whichever of them takes writes
}

func openPair(t *testing.T, synchronous bool) *pair {
	t.Helper()
	p := &pair{t: t}
	first, second := dataDir(t), dataDir(t)
	if err := startPostgres(t, first).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A copy of a cluster at rest is a base backup.
	if out, err := exec.Command("cp", "-a", filepath.Join(first, "data"), filepath.Join(first, "password"), second).
		CombinedOutput(); err != nil {
		t.Fatalf("copy the cluster: %v: %s", err, out)
	}
	p.primary = startPostgres(t, first)
	p.relay = openRelay(t, p.primary.AdminURL())
	follow := fmt.Sprintf("\nprimary_conninfo = '%s'\n", p.relay.url)
	if err := errors.Join(
		os.WriteFile(filepath.Join(second, "data", "standby.signal"), nil, 0o644),
		appendTo(filepath.Join(second, "data", "postgresql.auto.conf"), follow),
	); err != nil {
		t.Fatal(err)
	}
	p.standby = startPostgres(t, second)
	either := func(one, two *url.URL) string {
		one.Host += "," + two.Host
		one.RawQuery += "&target_session_attrs=read-write"
		return one.String()
	}
	p.url = either(parseURL(t, p.primary.URL()), parseURL(t, p.standby.URL()))
	p.adminURL = either(parseURL(t, p.primary.AdminURL()), parseURL(t, p.standby.AdminURL()))
	if synchronous {
		execute(t, p.adminURL, `ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`)
	}
	return p
}

func startPostgres(t *testing.T, dir string) *postgres.Server {
	t.Helper()
	s, err := postgres.Start(t.Context(), postgres.Options{Dir: dir, Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { crash(s) })
	return s
}

// crash ends a PostgreSQL without a chance to finish or to send anything.
func crash(s *postgres.Server) {
	hurried, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.Stop(hurried) // that there was no time for it
}

func parseURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// crowd are users who go on writing, whatever happens to the database.
type crowd struct {
	t         *testing.T
	survivors []*survivor
	reading   atomic.Bool  // what is acknowledged is read, and must be found
	paused    atomic.Bool  // nobody begins another write
	refused   atomic.Int64 // answers that the service is not available
	stop      func()
}

func gather(t *testing.T, servers []*served, n int, keyed bool) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	c := &crowd{t: t, stop: sync.OnceFunc(func() { cancel(); work.Wait() })}
	t.Cleanup(c.stop)
	for i := range n {
		s := newSurvivor(t, servers, fmt.Sprint("user-", i))
		s.keyed, s.refused = keyed, &c.refused
		c.survivors = append(c.survivors, s)
		work.Go(func() {
			for n := 0; ctx.Err() == nil && !t.Failed(); n++ {
				for c.paused.Load() && tick(ctx) {
				}
				reading := c.reading.Load()
				if a, ok := s.write(ctx, servers[n%2], n); ok && reading {
					s.read(servers[(n+1)%2], a)
				}
			}
		})
	}
	return c
}

// await waits until each user has had n more writes acknowledged.
func (c *crowd) await(n int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for _, s := range c.survivors {
		for want := s.acknowledged() + n; s.acknowledged() < want; {
			if !tick(ctx) {
				c.t.Fatal("no more writes are acknowledged")
			}
		}
	}
}

func (c *crowd) acknowledged() (n int64) {
	for _, s := range c.survivors {
		n += int64(s.acknowledged())
	}
	return n
}

// survivor is one of them.
type survivor struct {
	t       *testing.T
	servers []*served
	token   string
	keyed   bool
	refused *atomic.Int64

	mu   sync.Mutex
	acks []ack
	id   string // of the task made last
}

func newSurvivor(t *testing.T, servers []*served, user string) *survivor {
	t.Helper()
	return &survivor{t: t, servers: servers, token: openAccount(t, user).token, refused: new(atomic.Int64)}
}

// ack is a write that was acknowledged.
type ack struct {
	id  string
	seq int64
}

// must reads, and fails the test unless it is answered with the status.
func (s *survivor) must(want int, from *served, path string, header ...string) reply {
	s.t.Helper()
	got, err := from.send(s.token, "GET", path, "", header...)
	if err != nil || got.status != want {
		s.t.Fatalf("GET %s: %d %s %v, want %d", path, got.status, got.body, err, want)
	}
	return got
}

// writeSome writes so many times.
func (s *survivor) writeSome(times int) {
	for n := range times {
		s.write(s.t.Context(), s.servers[n%2], n)
	}
}

// stream gives the ids of the user's events from the first one on, as they are sent; it is closed when the stream ends.
func (s *survivor) stream(from *served) <-chan int64 {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", from.base+"/api/events", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Last-Event-ID", "0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		s.t.Fatalf("a stream: %v %v", resp, err)
	}
	ids := make(chan int64)
	go func() {
		defer close(ids)
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if text, found := strings.CutPrefix(lines.Text(), "id: "); found {
				id, _ := strconv.ParseInt(text, 10, 64)
				select {
				case ids <- id:
				case <-s.t.Context().Done():
					return
				}
			}
		}
	}()
	return ids
}

// write writes once, or under a key until there is an answer. It is none that the service is not available.
func (s *survivor) write(ctx context.Context, to *served, n int) (ack, bool) {
	method, path, body := "PATCH", "/api/tasks/"+s.id+"/complete", ""
	if n%3 == 0 || s.id == "" {
		method, path, body = "POST", "/api/tasks", fmt.Sprintf(`{"title":"task %d"}`, n)
	}
	var header []string
	if s.keyed {
		header = []string{"Idempotency-Key", fmt.Sprint("key-", n)}
	}
	got, err := to.send(s.token, method, path, body, header...)
	for s.keyed && err == nil && got.status == 503 && tick(ctx) {
		s.refused.Add(1)
		to = s.servers[rand.IntN(2)]
		got, err = to.send(s.token, method, path, body, header...)
	}
	switch {
	case err != nil:
		s.t.Errorf("%s %s: %v", method, path, err)
		return ack{}, false
	case !s.keyed && got.status == 404 && method == "PATCH": // the task was lost
		s.id = ""
		return ack{}, false
	case got.status == 503:
		tick(ctx)
		return ack{}, false
	case got.status != 200 && got.status != 201:
		s.t.Errorf("%s %s: %d %s; the server said:\n%s", method, path, got.status, got.body, to.stderr)
		return ack{}, false
	}
	task, err := readTask(string(got.body))
	seq, seqErr := strconv.ParseInt(got.header.Get("X-Version"), 10, 64)
	if err = errors.Join(err, seqErr); err != nil {
		s.t.Errorf("%s %s: %s: %v", method, path, got.body, err)
	}
	a := ack{task.ID, seq}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.acks = task.ID, append(s.acks, a)
	return a, err == nil
}

// read reads what was acknowledged.
func (s *survivor) read(from *served, a ack) {
	got, err := from.send(s.token, "GET", "/api/tasks/"+a.id, "")
	if err != nil || got.status != 200 || got.header.Get("X-Version") != fmt.Sprint(a.seq) ||
		got.header.Get("X-Stale") != "" {
		s.t.Errorf("after event %d was acknowledged, a read gives %d %s %v %v; the server said:\n%s",
			a.seq, got.status, got.body, got.header, err, from.stderr)
	}
}

func (s *survivor) acknowledged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acks)
}

// The standby has not heard of the last writes when it takes over. They are lost, and nothing else: streams are whole,
// nobody is parked, and what is acknowledged from then on is read. Whoever has seen what was lost is told so.
func TestAFailoverToAStandbyThatWasBehind(t *testing.T) {
	t.Parallel()
	for name, busy := range map[string]bool{"busy": true, "at rest": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := openPair(t, false)
			env := []string{"DATABASE_URL=" + p.url, "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
			servers := []*served{startServer(t, env...), startServer(t, env...)}
			crowd, quiet := gather(t, servers, 6, false), newSurvivor(t, servers, "quiet")
			quiet.writeSome(5)
			crowd.await(20)
			p.relay.silence()
			quiet.writeSome(6)
			lost := quiet.acks[len(quiet.acks)-1]
			list := quiet.must(200, servers[0], "/api/tasks")
			open := quiet.stream(servers[0])
			for seq := int64(0); seq < lost.seq; {
				seq = <-open
			}
			crowd.await(20)
			crowd.paused.Store(!busy)
			crash(p.primary)
			acknowledged, kept := crowd.acknowledged()+lost.seq, p.promote()
			p.takesWrites(servers)
			crowd.reading.Store(true)
			head := value[int64](t, p.adminURL, `SELECT max(seq) FROM taskledger.task_events WHERE user_id = 'quiet'`)
			if head >= lost.seq {
				t.Fatalf("of the %d events of the quiet user %d are kept", lost.seq, head)
			}
			for i, s := range servers {
				got := quiet.must(200, s, "/api/tasks", "If-None-Match", list.header.Get("ETag"))
				if got.header.Get("X-Version") != fmt.Sprint(head) || got.header.Get("X-Stale") != "" {
					t.Errorf("server %d: %v", i, got.header)
				}
				quiet.must(503, s, fmt.Sprint("/api/tasks?min_version=", lost.seq))
				quiet.must(422, s, "/api/events", "Last-Event-ID", fmt.Sprint(lost.seq))
			}
			select {
			case id, more := <-open:
				if more {
					t.Errorf("event %d is sent behind event %d, which was lost", id, lost.seq)
				}
			case <-time.After(patience):
				t.Error("a stream goes on behind what was lost")
			}
			if a, ok := quiet.write(t.Context(), servers[1], 0); !ok || a.seq != head+1 {
				t.Errorf("behind event %d comes %+v", head, a)
			}
			crowd.paused.Store(false)
			crowd.await(20)
			crowd.stop()
			t.Logf("of %d acknowledged writes %d were lost", acknowledged, acknowledged-kept)
			p.audit()
		})
	}
}

// The primary is put to rest without a restart: it takes no more writes, and its connections stay. Servers leave it for
// the standby that took over, with what they write and with what they read.
func TestAPrimaryThatTakesNoMoreWritesIsLeft(t *testing.T) {
	t.Parallel()
	p := openPair(t, false)
	env := []string{"DATABASE_URL=" + p.url, "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
	servers := []*served{startServer(t, env...), startServer(t, env...)}
	crowd := gather(t, servers, 6, false)
	crowd.reading.Store(true)
	crowd.await(20)
	crowd.reading.Store(false)
	crowd.await(5)
	execute(t, p.primary.AdminURL(), `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
	p.promote()
	p.takesWrites(servers)
	crowd.reading.Store(true)
	crowd.await(20)
	crowd.stop()
	p.audit()
}

// audit holds the log and the read model against what is promised of them.
func (p *pair) audit() {
	p.t.Helper()
	holes := value[int64](p.t, p.adminURL, `
		SELECT count(*) FROM (SELECT FROM taskledger.task_events GROUP BY user_id HAVING max(seq) <> count(*)) x`)
	if holes > 0 {
		p.t.Errorf("%d streams have holes", holes)
	}
	got := finish(p.t, program(p.t, []string{"DATABASE_URL=" + p.url}, "verify"))
	if got.code != 0 || !strings.HasSuffix(got.stdout, "; 0 parked\n") {
		p.t.Errorf("verify: %+v", got)
	}
}

// takesWrites waits until each server writes and reads again.
func (p *pair) takesWrites(servers []*served) {
	p.t.Helper()
	begin := time.Now()
	for _, s := range servers {
		for method, want := range map[string]int{"POST": 201, "GET": 200} {
			s.await(want, func() (int, error) {
				status, _, err := s.call("probe", method, "/api/tasks", `{"title":"a"}`)
				return status, err
			})
		}
	}
	took := time.Since(begin)
	p.t.Logf("writes are taken again %v after the promotion", took)
	if took > recovery {
		p.t.Errorf("writes are taken again %v after the promotion", took)
	}
}

// promote makes the standby the primary. It returns how many events had come there.
func (p *pair) promote() (kept int64) {
	p.t.Helper()
	kept = value[int64](p.t, p.standby.AdminURL(), `SELECT count(*) FROM taskledger.task_events`)
	if !value[bool](p.t, p.standby.AdminURL(), `SELECT pg_promote()`) {
		p.t.Fatal("the standby is not promoted")
	}
	return kept
}

// A standby that PostgreSQL waits for has all that was acknowledged, also when it could not be reached for a while
// before it took over. Meanwhile PostgreSQL shows what the standby lacks, once nobody waits for it any more: that is no
// reason to acknowledge it.
func TestAFailoverToASynchronousStandby(t *testing.T) {
	t.Parallel()
	p := openPair(t, true)
	env := []string{"DATABASE_URL=" + p.url, "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
	servers := []*served{startServer(t, env...), startServer(t, env...)}
	crowd, quiet := gather(t, servers, 6, true), newSurvivor(t, servers, "quiet")
	quiet.writeSome(1)
	crowd.await(20)
	p.relay.silence()
	for shown := int64(0); shown < 2; {
		quiet.mustNotComplete()
		shown = value[int64](
			t,
			p.primary.AdminURL(),
			`SELECT max(seq) FROM taskledger.task_events WHERE user_id = 'quiet'`,
		)
	}
	quiet.mustNotComplete() // as far as can be seen it is done already
	for begin := crowd.refused.Load(); crowd.refused.Load() < begin+15; {
		if !tick(t.Context()) {
			t.FailNow()
		}
	}
	shown := value[int64](t, p.primary.AdminURL(), `SELECT count(*) FROM taskledger.task_events`)
	crash(p.primary)
	if kept := p.promote(); shown <= kept {
		t.Errorf("the primary showed %d events, the standby had %d: nothing is put to the test", shown, kept)
	}
	p.takesWrites(servers)
	crowd.reading.Store(true)
	crowd.await(20)
	crowd.stop()
	t.Logf("%d answers were that the service is not available", crowd.refused.Load())
	p.audit()
	for _, s := range crowd.survivors {
		s.audit(servers[0])
	}
}

// audit holds what was acknowledged against what is there: all of it, once, and nothing else but the write that is not
// answered yet.
func (s *survivor) audit(from *served) {
	s.t.Helper()
	var entries []entry
	for after := int64(0); ; after = entries[len(entries)-1].Seq {
		got := s.must(200, from, fmt.Sprint("/api/history?order=asc&limit=500&since=", after))
		var page []entry
		if err := json.Unmarshal(got.body, &page); err != nil {
			s.t.Fatal(err)
		}
		if entries = append(entries, page...); len(page) < 500 {
			break
		}
	}
	if extra := len(entries) - len(s.acks); extra < 0 || extra > 1 {
		s.t.Errorf("%d events of %d acknowledged writes", len(entries), len(s.acks))
	}
	for i, a := range s.acks {
		if i < len(entries) && (entries[i].Seq != a.seq || entries[i].TaskID != a.id) {
			s.t.Errorf("acknowledged %+v, stored %+v", a, entries[i])
			return
		}
	}
}

// mustNotComplete tries to complete the task, and fails the test if that is acknowledged.
func (s *survivor) mustNotComplete() {
	s.t.Helper()
	got, err := s.servers[0].send(s.token, "PUT", "/api/tasks/"+s.id+"/complete", "")
	if err != nil || got.status != 503 {
		s.t.Errorf("the standby can't have it: %d %s %v", got.status, got.body, err)
	}
}
