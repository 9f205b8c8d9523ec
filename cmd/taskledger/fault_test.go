package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"taskledger/migrations/postgres"
)

// go test ./cmd/taskledger -run Fault -args -fault.duration=5m -fault.seed=7
var (
	faultDuration = flag.Duration("fault.duration", 15*time.Second, "how long TestFaults breaks things")
	faultSeed     = flag.Uint64("fault.seed", 0, "seed of TestFaults; 0 draws one")
)

const (
	aloneUsers  = 8 // with one client each
	sharedUsers = 2 // with two clients each
	// recovery is how soon after PostgreSQL is back a write must succeed: three times what is promised, because this
	// machine may be slow, and runs other tests.
	recovery = 30 * time.Second
	// maxReplays bounds the commands of a user that are sent again at the end: each replay reads the user's whole
	// stream.
	maxReplays = 300
)

// stage is where a fault test plays: one PostgreSQL, two servers, and what was seen.
type stage struct {
	t     *testing.T
	db    *postgres.Server
	disk  string // PostgreSQL's own; empty where none could be mounted
	nodes []*node
	http  *http.Client
	// probes is the user of the writes that ask whether writing works.
	probes *account

	mu      sync.Mutex
	answers map[int]int
	broken  int // requests without an answer
	faults  map[string]int
	slowest time.Duration // from PostgreSQL's return to the first write that succeeded
}

// Servers and their PostgreSQL are killed, cut off, held up and out of disk at random under clients that repeat what
// was not answered, with the same idempotency key. In the end all that was acknowledged is there, once, and nothing
// else is.
func TestFaults(t *testing.T) {
	t.Parallel()
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf(
		"to repeat: go test ./cmd/taskledger -run 'TestFaults$' -args -fault.duration=%v -fault.seed=%d",
		*faultDuration,
		seed,
	)
	s := openStage(t)
	accounts := openAccounts(t)
	stopListening := s.listen(seed, accounts)
	defer stopListening()
	s.play(seed, accounts)
	if t.Failed() {
		return
	}
	s.calm()
	s.audit(seed, accounts)
	stopListening()
	t.Log(s.summary(accounts))
}

// listen has one listener a user, from before the first event to the end.
func (s *stage) listen(seed uint64, accounts []*account) (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var work sync.WaitGroup
	for i, a := range accounts {
		a.listener = &listener{stage: s, account: a, random: rand.New(rand.NewPCG(seed, uint64(2000+i)))}
		work.Go(func() { a.listener.run(ctx) })
	}
	return func() { cancel(); work.Wait() }
}

func openStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{
		t: t, answers: map[int]int{}, faults: map[string]int{},
		http:   &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
		probes: openAccount(t, "probe"),
	}
	t.Cleanup(s.http.CloseIdleConnections)
	s.db, s.disk = openDatabase(t)
	env := []string{
		"PORT=0",
		"ADMIN_ADDR=",
		"RATE_LIMIT_RPS=0",
		"LOG_LEVEL=warn",
		"DATABASE_URL=" + s.db.URL(),
		"BETTER_AUTH_SECRET=" + serveSecret,
	}
	for range 2 {
		n := &node{t: t, env: env, stderr: &lockedBuffer{}}
		if err := n.start(); err != nil {
			t.Fatalf("start a server: %v\n%s", err, n.stderr)
		}
		t.Cleanup(n.kill)
		s.nodes = append(s.nodes, n)
	}
	return s
}

func openAccounts(t *testing.T) []*account {
	t.Helper()
	var accounts []*account
	for i := range aloneUsers + sharedUsers {
		a := openAccount(t, fmt.Sprintf("user-%d", i))
		a.shared = i >= aloneUsers
		accounts = append(accounts, a)
	}
	return accounts
}

// play runs clients and faults until the time is up, then faults end and clients finish what they have begun.
func (s *stage) play(seed uint64, accounts []*account) {
	s.prepareDisk()
	ctx, cancel := context.WithTimeout(s.t.Context(), *faultDuration)
	defer cancel()
	var work sync.WaitGroup
	source := uint64(0)
	random := func() *rand.Rand {
		source++
		return rand.New(rand.NewPCG(seed, source))
	}
	for _, a := range accounts {
		clients := 1
		if a.shared {
			clients = 2
		}
		for number := range clients {
			c := &client{stage: s, account: a, random: random(), number: number}
			work.Go(func() { c.run(ctx) })
		}
	}
	databases, servers := random(), random()
	work.Go(func() { s.breakDatabase(ctx, databases) })
	work.Go(func() { s.breakServers(ctx, servers) })
	work.Wait()
}

// calm waits until all is well.
func (s *stage) calm() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for _, n := range s.nodes {
		for {
			status, err := s.get(n, "/readyz")
			if err == nil && status == http.StatusOK {
				break
			}
			if !tick(ctx) {
				s.t.Fatalf("after the faults: readyz %d, %v; the server said:\n%s", status, err, n.stderr)
			}
		}
	}
}

// audit holds the model against the servers, the log against the read models, and each first answer against the one to
// the same request now.
func (s *stage) audit(seed uint64, accounts []*account) {
	s.t.Helper()
	var work sync.WaitGroup
	for i, a := range accounts {
		work.Go(func() {
			s.auditHistory(a)
			a.listener.audit()
			s.auditTasks(a)
			s.replayAll(a, rand.New(rand.NewPCG(seed, uint64(1000+i))))
		})
	}
	work.Wait()
	got := finish(s.t, program(s.t, []string{"DATABASE_URL=" + s.db.URL()}, "verify"))
	if got.code != 0 || !strings.HasSuffix(got.stdout, "; 0 parked\n") {
		s.t.Errorf("verify: %+v", got)
	}
	s.t.Logf("verify: %s", got.stdout)
}

func (s *stage) summary(accounts []*account) string {
	acknowledged, tasks, streamed, streams := 0, 0, 0, 0
	for _, a := range accounts {
		acknowledged, tasks = acknowledged+len(a.orders), tasks+len(a.tasks)
		streamed, streams = streamed+len(a.listener.heard), streams+a.listener.streams
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf(
		"%d commands settled on %d tasks; %d events heard on %d streams; answers %v, %d requests broken off; "+
			"faults %v; %v at most until a write succeeded",
		acknowledged,
		tasks,
		streamed,
		streams,
		s.answers,
		s.broken,
		s.faults,
		s.slowest.Round(time.Millisecond),
	)
}
