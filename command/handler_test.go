package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// newProcess is the commands of one process on a database. Nobody projects there, so a write is visible at once.
func newProcess(t *testing.T, pool *pgxpool.Pool) *Handler {
	t.Helper()
	log := events.Open(pool, func(int64) {})
	t.Cleanup(log.Close)
	return NewHandler(Config{Log: log, Visible: func(context.Context, int64) {}, Quota: 100, CacheBytes: 1 << 20})
}

func do(t *testing.T, h *Handler, cmd Command) Result {
	t.Helper()
	result, err := h.Do(t.Context(), Request{UserID: "u", RequestID: "r"}, cmd)
	if err != nil {
		t.Fatalf("%#v: %v", cmd, err)
	}
	return result
}

func stored(t *testing.T, h *Handler, user string) []events.Event {
	t.Helper()
	var out []events.Event
	err := h.cfg.Log.Load(t.Context(), user, 0, func(e events.Event) error {
		out = append(out, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestACommandIsStoredWholeWithWhoAndWhy(t *testing.T) {
	t.Parallel()
	h := newProcess(t, testdb.New(t))
	do(t, h, CreateTask{ID: idA, Title: "a"})
	result := do(t, h, UpdateTask{ID: idA, Title: ptr("b"), Completed: ptr(true)})
	got := stored(t, h, "u")
	if len(got) != 3 || result.Seq != 3 || result.Task.Version != 3 || result.Task.Title != "b" || !result.Task.Completed {
		t.Fatalf("stored %+v, answered %+v", got, result)
	}
	for i, e := range got {
		if e.Seq != int64(i+1) || e.Actor != "u" || e.RequestID != "r" || e.TaskID != idA {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	if !result.Task.UpdatedAt.Equal(got[2].RecordedAt) || !got[1].RecordedAt.Equal(got[2].RecordedAt) {
		t.Errorf("answered %v, recorded %v and %v", result.Task.UpdatedAt, got[1].RecordedAt, got[2].RecordedAt)
	}
	if again := do(t, h, UpdateTask{ID: idA, Title: ptr("b")}); again.Seq != 3 || len(stored(t, h, "u")) != 3 {
		t.Errorf("nothing changed, but %+v", again)
	}
}

// What a process remembers of a stream may be old: neither a no nor a "nothing to do" is said without a look at the log.
func TestAnOldMemoryIsNotBelieved(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	one, two := newProcess(t, pool), newProcess(t, pool)
	do(t, one, CreateTask{ID: idA, Title: "a"})
	do(t, two, CompleteTask{idA})
	do(t, one, CreateTask{ID: idB, Title: "b"}) // behind: the primary key says so
	if result := do(t, two, CompleteTask{idB}); result.Task.Version != 4 {
		t.Errorf("a task that the other process made: %+v", result)
	}
	do(t, one, ReopenTask{idA})
	if result := do(t, two, CompleteTask{idA}); result.Task.Version != 6 || !result.Task.Completed {
		t.Errorf("completed already, as far as was known: %+v", result)
	}
	do(t, one, DeleteTask{idA})
	if _, err := two.Do(t.Context(), Request{UserID: "u"}, ToggleTask{idA}); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted by the other process: %v", err)
	}
}

// 100 toggles of one task, by two processes at once: each one counts.
func TestRacesAreDecidedAnew(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	processes := []*Handler{newProcess(t, pool), newProcess(t, pool)}
	do(t, processes[0], CreateTask{ID: idA, Title: "a"})
	var work sync.WaitGroup
	for i := range 101 {
		work.Go(func() {
			if _, err := processes[i%2].Do(t.Context(), Request{UserID: "u"}, ToggleTask{idA}); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	all := stored(t, processes[0], "u")
	if len(all) != 102 {
		t.Fatalf("%d events, want 102", len(all))
	}
	for i, e := range all {
		if e.Seq != int64(i+1) {
			t.Fatalf("event %d has seq %d", i, e.Seq)
		}
	}
	if result := do(t, processes[1], UpdateTask{ID: idA}); !result.Task.Completed {
		t.Error("101 toggles left the task open")
	}
}

func TestOneConditionLetsOneWriterThrough(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	processes := []*Handler{newProcess(t, pool), newProcess(t, pool)}
	do(t, processes[0], CreateTask{ID: idA, Title: "a"})
	results := make(chan error, 50)
	for i := range 50 {
		go func() {
			req := Request{UserID: "u", Match: Match{Present: true, Versions: []int64{1}}}
			_, err := processes[i%2].Do(t.Context(), req, UpdateTask{ID: idA, Title: ptr(fmt.Sprint(i))})
			results <- err
		}()
	}
	done := 0
	for range 50 {
		var failed *PreconditionError
		switch err := <-results; {
		case err == nil:
			done++
		case !errors.As(err, &failed) || failed.Current != 2:
			t.Errorf("got %v", err)
		}
	}
	if done != 1 {
		t.Errorf("%d writers were let through", done)
	}
}

// A write waits for the read model, but no longer than a second.
func TestAWriteWaitsUntilItIsVisible(t *testing.T) {
	t.Parallel()
	h := newProcess(t, testdb.New(t))
	var waited int64
	h.cfg.Visible = func(_ context.Context, position int64) { waited = position }
	do(t, h, CreateTask{ID: idA, Title: "a"})
	if all := stored(t, h, "u"); waited != all[0].Position {
		t.Errorf("waited for position %d, want %d", waited, all[0].Position)
	}
	h.cfg.Visible = func(ctx context.Context, _ int64) { <-ctx.Done() }
	begin := time.Now()
	do(t, h, CompleteTask{idA})
	if took := time.Since(begin); took < visibleTimeout || took > 5*visibleTimeout {
		t.Errorf("answered after %v", took)
	}
}

func TestAnEventFromTheFutureHoldsUpItsUserOnly(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	h := newProcess(t, pool)
	do(t, h, CreateTask{ID: idA, Title: "a"})
	_, err := pool.Exec(t.Context(), `
		INSERT INTO task_events (user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 2, $1, 'TaskArchived', 1, '{}', $1, $1, 'u', 'r', clock_timestamp())`, idA)
	if err != nil {
		t.Fatal(err)
	}
	var unfolded *events.FoldError
	if _, err := h.Do(t.Context(), Request{UserID: "u"}, CompleteTask{idA}); !errors.As(err, &unfolded) || unfolded.Seq != 2 {
		t.Errorf("got %v", err)
	}
	if _, err := h.Do(t.Context(), Request{UserID: "v"}, CreateTask{ID: uuid.New(), Title: "a"}); err != nil {
		t.Errorf("another user: %v", err)
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO skipped_events (user_id, seq) VALUES ('u', 2)`); err != nil {
		t.Fatal(err)
	}
	if result := do(t, h, CompleteTask{idA}); result.Seq != 3 {
		t.Errorf("after a skip: %+v", result)
	}
}

func TestLanesEndWithTheirCallers(t *testing.T) {
	t.Parallel()
	l := lanes{busy: map[string]*lane{}}
	release, waited, err := l.take(t.Context(), "u")
	if err != nil || waited {
		t.Fatal(waited, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, waited, err := l.take(gone, "u"); !errors.Is(err, context.Canceled) || !waited {
		t.Errorf("a busy lane, and nobody waits: %v %v", waited, err)
	}
	release()
	if len(l.busy) != 0 {
		t.Errorf("%d lanes are left", len(l.busy))
	}
}

// However many writers of one process never stop, a writer of another process gets its turn, with and without a key, and what both
// did is there once.
func TestNobodyIsAlwaysLast(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	many, one := newProcess(t, pool), newProcess(t, pool)
	do(t, many, CreateTask{ID: idA, Title: "a"})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var work sync.WaitGroup
	var toggles atomic.Int64
	for range 16 {
		work.Go(func() {
			for ctx.Err() == nil {
				if _, err := many.Do(t.Context(), Request{UserID: "u", RequestID: "r"}, ToggleTask{idA}); err != nil {
					t.Errorf("of the many: %v", err)
				}
				toggles.Add(1)
			}
		})
	}
	for n := range 60 {
		begin := time.Now()
		req := Request{UserID: "u", RequestID: "r"}
		if n%2 == 1 {
			req.Key = fmt.Sprint("key", n)
		}
		if _, err := one.Do(t.Context(), req, ToggleTask{idA}); err != nil {
			t.Errorf("write %d of the one: %v", n, err)
		}
		toggles.Add(1)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("write %d of the one took %v", n, took)
		}
	}
	stop()
	work.Wait()
	if n := int64(len(stored(t, one, "u"))); n != toggles.Load()+1 {
		t.Errorf("%d events stored for %d toggles", n, toggles.Load())
	}
}

// The same request comes again and again while another process never stops: one effect, one answer.
func TestAContendedKeyHasOneEffect(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	processes := []*Handler{newProcess(t, pool), newProcess(t, pool)}
	do(t, processes[0], CreateTask{ID: idA, Title: "a"})
	for turn := range 10 {
		var work sync.WaitGroup
		results := make([]Result, 24)
		for i := range results {
			work.Go(func() {
				h := processes[i%2]
				req := Request{UserID: "u", RequestID: "r", Key: fmt.Sprint("turn", turn)}
				if i%3 > 0 {
					req.Key = ""
				}
				var err error
				if results[i], err = h.Do(t.Context(), req, ToggleTask{idA}); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		for i := 3; i < len(results); i += 3 {
			if results[i].Seq != results[0].Seq || results[i].Task.Completed != results[0].Task.Completed {
				t.Errorf("turn %d: %+v and %+v under one key", turn, results[0], results[i])
			}
		}
	}
	if n := len(stored(t, processes[0], "u")); n != 1+10*17 {
		t.Errorf("%d events, want %d", n, 1+10*17)
	}
}

// An answer that stores nothing waits as well: what it says must be seen by the next read.
func TestANoWaitsForWhatItRestsOn(t *testing.T) {
	t.Parallel()
	h := newProcess(t, testdb.New(t))
	var waited []int64
	h.cfg.Visible = func(_ context.Context, position int64) { waited = append(waited, position) }
	do(t, h, CreateTask{ID: idA, Title: "a"})
	do(t, h, ReopenTask{idA})
	if _, err := h.Do(t.Context(), Request{UserID: "u", Match: Match{Present: true}}, DeleteTask{idA}); err == nil {
		t.Error("not refused")
	}
	if _, err := h.Do(t.Context(), Request{UserID: "u", Async: true}, ReopenTask{idA}); err != nil {
		t.Error(err)
	}
	created := stored(t, h, "u")[0].Position
	if !slices.Equal(waited, []int64{created, created, created}) {
		t.Errorf("waited for %v, want three times %d", waited, created)
	}
}
