package main

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"taskledger/migrations/testdb"
	"taskledger/projections"
)

// A read shows what was acknowledged before it, on another server too, while the read model is made anew again and again: also when it
// queued behind the moment in which the tables are swapped.
func TestNoReadMissesAWriteDuringRebuilds(t *testing.T) {
	t.Parallel()
	const rebuilds, writers = 20, 4
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=warn"}
	servers := []*served{startServer(t, env...), startServer(t, env...)}
	db, err := connect(t.Context(), url, testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	var (
		done atomic.Bool
		work sync.WaitGroup
		read atomic.Int64
	)
	for i := range writers {
		token, user := openAccount(t, fmt.Sprint("u", i)).token, fmt.Sprint("u", i)
		work.Go(func() {
			for n := 1; !done.Load() && !t.Failed(); n++ {
				title := fmt.Sprint(user, "-", n)
				got, err := servers[n%2].send(token, "POST", "/api/tasks", fmt.Sprintf(`{"title":%q}`, title))
				if err != nil || got.status != 201 {
					t.Errorf("a write: %d %s %v", got.status, got.body, err)
					return
				}
				for _, path := range []string{
					got.header.Get("Location"), "/api/tasks?limit=1", "/api/history?limit=1", "/api/sync?since=" + fmt.Sprint(n-1),
				} {
					got, err := servers[(n+1)%2].send(token, "GET", path, "")
					if err != nil || got.status != 200 || !strings.Contains(string(got.body), title) ||
						got.header.Get("X-Version") != fmt.Sprint(n) || got.header.Get("X-Stale") != "" {
						t.Errorf("GET %s, behind event %d: %d %s %v %v", path, n, got.status, got.body, got.header, err)
					}
					read.Add(1)
				}
			}
		})
	}
	for range rebuilds {
		if _, err := projections.Rebuild(t.Context(), db.ledger, "", nil); err != nil {
			t.Error(err)
		}
	}
	done.Store(true)
	work.Wait()
	if n := read.Load(); n < rebuilds {
		t.Errorf("%d reads were made", n)
	}
}
