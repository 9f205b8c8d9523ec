package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"taskledger/migrations/testdb"
)

// Who waits for a version that does not come asks the database little, however many they are.
func TestWaitersAskLittle(t *testing.T) {
	t.Parallel()
	way := openRelay(t, testdb.URL(t))
	s := startServer(t, "DATABASE_URL="+way.url, "BETTER_AUTH_SECRET="+serveSecret)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	s.must(200, "u", "GET", "/api/tasks", "")
	const requests = 200
	before := way.sent.Load()
	begins := time.NewTicker(20 * time.Millisecond)
	defer begins.Stop()
	var work sync.WaitGroup
	for n := range requests {
		<-begins.C
		work.Go(func() {
			status, answer, err := s.call(fmt.Sprint("u", n%2*n), "GET", "/api/tasks?min_version=99", "")
			if err != nil || status != 503 || answer["code"] != "not_yet_consistent" {
				t.Errorf("a version that does not come: %d %v %v", status, answer, err)
			}
		})
	}
	work.Wait()
	if asked := way.sent.Load() - before; asked > 5*requests {
		t.Errorf("the database was asked %d times for %d requests", asked, requests)
	}
}

// neighbours are 32 users who write through two servers without a pause.
type neighbours struct {
	t       *testing.T
	servers []*served
	written atomic.Int64
}

func moveIn(t *testing.T) *neighbours {
	t.Helper()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
	n := &neighbours{t: t, servers: []*served{startServer(t, env...), startServer(t, env...)}}
	for i := range 32 {
		user := fmt.Sprint("neighbour-", i)
		task := n.servers[i%2].must(201, user, "POST", "/api/tasks", `{"title":"a"}`)["id"].(string)
		n.keep(user, func(token string) {
			got, err := n.servers[i%2].send(token, "PATCH", "/api/tasks/"+task+"/complete", "")
			if err != nil || got.status != 200 {
				t.Errorf("a neighbour's write: %d %s %v", got.status, got.body, err)
			}
			n.written.Add(1)
		})
	}
	return n
}

// keep does something again and again, as a user, until the end of the test, or until stop is called.
func (n *neighbours) keep(user string, do func(token string)) (stop func()) {
	token := openAccount(n.t, user).token
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for !n.t.Failed() {
			select {
			case <-ended:
				return
			default:
				do(token)
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(ended); <-stopped })
	n.t.Cleanup(stop)
	return stop
}

// disturbed compares what the neighbours write in a time with and without something that disturb does until what it
// returns is called. The times follow each other, so that whatever else the machine does is in both.
func (n *neighbours) disturbed(disturb func() (stop func())) {
	n.t.Helper()
	var alone, beside int64
	measure := func() int64 {
		before := n.written.Load()
		<-time.After(time.Second)
		return n.written.Load() - before
	}
	measure()
	for range 4 {
		alone += measure()
		stop := disturb()
		beside += measure()
		stop()
	}
	n.t.Logf("the neighbours wrote %d times a second, and beside it %d", alone/4, beside/4)
	if beside < alone/2 {
		n.t.Errorf("the neighbours wrote %d times a second, and beside it %d", alone/4, beside/4)
	}
}

func together(stops []func()) (stop func()) {
	return func() {
		var work sync.WaitGroup
		for _, stop := range stops {
			work.Go(stop)
		}
		work.Wait()
	}
}

// Fifty who wait for a version that does not come do not slow down who writes.
func TestWaitersCostOthersLittle(t *testing.T) {
	t.Parallel()
	n := moveIn(t)
	n.disturbed(func() func() {
		var stops []func()
		for i := range 50 {
			stops = append(stops, n.keep(fmt.Sprint("waiter-", i%25), func(token string) {
				got, err := n.servers[i%2].send(token, "GET", "/api/tasks?min_version=99", "")
				if err != nil || got.status != 503 {
					t.Errorf("a waiter: %d %s %v", got.status, got.body, err)
				}
			}))
		}
		return together(stops)
	})
}

// A user who writes through two servers at once, 50 times a second each, races with nobody but that user: others go on
// as before, and each write counts.
func TestAUserOfTwoServersCostsOthersLittle(t *testing.T) {
	t.Parallel()
	n := moveIn(t)
	task := n.servers[0].must(201, "hot", "POST", "/api/tasks", `{"title":"a"}`)["id"].(string)
	var toggles atomic.Int64
	var work sync.WaitGroup
	n.disturbed(func() func() {
		var stops []func()
		for _, s := range n.servers {
			ticks := time.NewTicker(20 * time.Millisecond)
			t.Cleanup(ticks.Stop)
			stops = append(stops, n.keep("hot", func(token string) {
				<-ticks.C
				work.Go(func() {
					got, err := s.send(token, "PATCH", "/api/tasks/"+task+"/complete", "")
					if err != nil || got.status != 200 {
						t.Errorf("a toggle: %d %s %v", got.status, got.body, err)
					}
					toggles.Add(1)
				})
			}))
		}
		return together(stops)
	})
	work.Wait()
	got := n.servers[1].must(200, "hot", "GET", "/api/tasks/"+task, "")
	if got["version"] != float64(toggles.Load()+1) || got["is_completed"] != (toggles.Load()%2 == 1) {
		t.Errorf("after %d toggles the task is %v", toggles.Load(), got)
	}
}
