package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
	"taskledger/projections"
)

// A read shows what was acknowledged before it, on another server too, while the read model is made anew again and
// again: also when it queued behind the moment in which the tables are swapped.
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
					got.header.Get("Location"), "/api/tasks?limit=1", "/api/history?limit=1",
					"/api/sync?since=" + fmt.Sprint(n-1),
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

// The moments of a rebuild, each with what holds it there, and lets servers serve at least when it is over.
var rebuildMoments = map[string]string{
	"fold":  `LOCK TABLE taskledger.task_events IN ACCESS EXCLUSIVE MODE`,
	"index": `INSERT INTO taskledger.checkpoints (projection) VALUES ('tasks_rebuild')`,
	"swap":  `LOCK TABLE taskledger.tasks IN ACCESS SHARE MODE`,
}

// heldRebuild runs do while a rebuild, which start begins, is held at a moment.
func heldRebuild(t *testing.T, url, moment string, start, do func() error) {
	t.Helper()
	onDatabase(t, url, func(ctx context.Context, conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(ctx)
		if _, err := tx.Exec(ctx, rebuildMoments[moment]); err != nil {
			return err
		}
		if err := start(); err != nil {
			return err
		}
		for waiting := 0; waiting == 0; {
			err := tx.QueryRow(ctx, `
				SELECT count(*)
				FROM pg_locks
				WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))`).Scan(&waiting)
			if err != nil || waiting == 0 && !tick(ctx) {
				return errors.Join(err, ctx.Err())
			}
		}
		return do()
	})
}

const leftTables = `SELECT count(*) FROM pg_tables WHERE schemaname = 'taskledger' AND tablename LIKE '%\_rebuild'`

// A rebuild that is interrupted, whenever that is and however, leaves the read model as it serves, and can be run
// again.
func TestARebuildThatIsInterrupted(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	written := 0
	for _, kill := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		for moment := range rebuildMoments {
			rebuild := program(t, env, "rebuild")
			var stderr bytes.Buffer
			rebuild.Stderr = &stderr
			heldRebuild(t, url, moment, rebuild.Start, func() error {
				if err := rebuild.Process.Signal(kill); err != nil {
					return err
				}
				if err := rebuild.Wait(); err == nil {
					t.Errorf("%v while it is at %s: %s", kill, moment, &stderr)
				}
				return nil
			})
			left := value[int](t, url, leftTables)
			if kill == syscall.SIGINT && (left > 0 || !strings.HasSuffix(stderr.String(), "run again\n")) ||
				kill == syscall.SIGKILL && left == 0 {
				t.Errorf("%v while it is at %s: %d tables are left; %s", kill, moment, left, &stderr)
			}
			s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
			written++
			if status, tasks, err := s.list("u"); status != 200 || len(tasks) != written || err != nil {
				t.Errorf("%v while it is at %s: %d, %d tasks of %d, %v", kill, moment, status, len(tasks), written, err)
			}
			got := finish(t, program(t, env, "rebuild"))
			if got.code != 0 || !strings.Contains(got.stdout, "swapped in and verified") {
				t.Errorf("after %v while it is at %s: %+v", kill, moment, got)
			}
			if left := value[int](t, url, leftTables); left > 0 {
				t.Errorf("%d tables are left of a rebuild that was done", left)
			}
		}
	}
	if got := finish(t, program(t, env, "verify")); got.code != 0 {
		t.Errorf("verify: %+v", got)
	}
}

// Of two rebuilds the second says that there is another; and a read model that is not what the log says is not swapped
// in.
func TestARebuildIsAloneAndLooksBeforeItSwaps(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"private"}`)
	s.must(200, "u", "GET", "/api/tasks", "")
	generation := value[int](t, url, `SELECT generation FROM taskledger.checkpoints`)
	rebuild := program(t, env, "rebuild")
	var stderr bytes.Buffer
	rebuild.Stderr = &stderr
	heldRebuild(t, url, "index", rebuild.Start, func() error {
		for _, args := range [][]string{{"rebuild"}, {"rebuild", "--user", "u"}} {
			got := finish(t, program(t, env, args...))
			if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 ||
				!strings.Contains(got.stderr, "another rebuild") {
				t.Errorf("a second one: %+v", got)
			}
		}
		execute(t, url, `SET taskledger.ledger = 'on'`, `UPDATE taskledger.tasks_rebuild SET body = 'something else'`)
		return nil
	})
	if err := rebuild.Wait(); err == nil || !strings.Contains(stderr.String(), "member=body") ||
		strings.Contains(stderr.String(), "private") {
		t.Errorf("a read model that is not right: %v %s", err, &stderr)
	}
	if now := value[int](t, url, `SELECT generation FROM taskledger.checkpoints`); now != generation {
		t.Errorf("generation %d, then %d", generation, now)
	}
	if status, tasks, err := s.list("u"); status != 200 || len(tasks) != 1 || tasks[0]["title"] != "private" {
		t.Errorf("%d %v %v", status, tasks, err)
	}
}

// makeRowsOfTwoVersions leaves two tasks in tables of version 99, the second as this program writes it, and checks what
// is said of that.
func makeRowsOfTwoVersions(t *testing.T, url string, env []string) {
	t.Helper()
	const told = "taskledger rebuild"
	first := startServer(t, env...)
	first.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	first.must(200, "u", "GET", "/api/tasks", "")
	first.terminate()
	if said := first.stderr.String(); strings.Contains(said, told) {
		t.Errorf("nothing is wrong: %s", said)
	}
	execute(t, url, `UPDATE taskledger.checkpoints SET version = 99`)
	second := startServer(t, env...)
	second.must(201, "u", "POST", "/api/tasks", `{"title":"b"}`)
	second.must(200, "u", "GET", "/api/tasks", "")
	second.terminate()
	if said := second.stderr.String(); strings.Count(said, told) != 1 || !strings.Contains(said, "made_by=99") ||
		!strings.Contains(said, "WARN") {
		t.Errorf("no word of the version: %s", said)
	}
	// Its rows are beside those of version 99 now.
	st, got := statusOf(t, env...)
	if got.code != exitFailed || !hasLine(st.Problems, "version 0") || !hasLine(st.Problems, told) {
		t.Errorf("status: %+v", got)
	}
}

// Servers that find tables of another version say so, serve on, and make them anew in the background if they are to:
// one of them does, and if that one is killed, another.
func TestAReadModelOfAnotherVersion(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	const begun, done = "is being made anew", "was made anew"
	makeRowsOfTwoVersions(t, url, env)
	generation := value[int](t, url, `SELECT generation FROM taskledger.checkpoints`)
	env = append(env, "REBUILD_ON_START=true")
	servers := []*served{}
	working := func() int {
		return slices.IndexFunc(servers, func(s *served) bool { return strings.Contains(s.stderr.String(), begun) })
	}
	heldRebuild(t, url, "swap", func() error {
		// both ready, while nothing can be swapped
		servers = append(servers, startServer(t, env...), startServer(t, env...))
		return nil
	}, func() error {
		servers[0].await(1, func() (int, error) { return min(working()+1, 1), nil })
		killed := working()
		if err := servers[killed].cmd.Process.Kill(); err != nil {
			return err
		}
		servers = slices.Delete(servers, killed, killed+1)
		servers[0].await(0, func() (int, error) { return working(), nil })
		servers = append(servers, startServer(t, env...))
		servers[1].must(201, "u", "POST", "/api/tasks", `{"title":"c"}`)
		servers[0].must(200, "u", "GET", "/api/tasks", "")
		return nil
	})
	servers[0].await(1, func() (int, error) {
		return value[int](t, url, `SELECT version FROM taskledger.checkpoints WHERE projection = 'tasks'`), nil
	})
	for _, s := range servers { // one has done it, and the other found that out
		s.await(1, func() (int, error) { return strings.Count(s.stderr.String(), done), nil })
	}
	for _, s := range servers {
		if status, tasks, err := s.list("u"); status != 200 || len(tasks) != 3 || err != nil {
			t.Errorf("%d %v %v", status, tasks, err)
		}
		s.terminate()
	}
	if strings.Contains(servers[1].stderr.String(), begun) {
		t.Errorf("both did: %s", servers[1].stderr)
	}
	if now := value[int](t, url, `SELECT generation FROM taskledger.checkpoints`); now != generation+1 {
		t.Errorf("generation %d, then %d: not made anew once", generation, now)
	}
	if got := finish(t, program(t, env, "verify")); got.code != 0 {
		t.Errorf("verify: %+v", got)
	}
}
