package command

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func newDB(t testing.TB) *events.DB {
	t.Helper()
	return events.NewDB(testdb.New(t), testdb.Schema, "")
}

// newProcess is the commands of one process on a database. Nobody projects there: what is decided on is the log.
func newProcess(t testing.TB, db *events.DB) *Handler {
	t.Helper()
	log := events.Open(db)
	t.Cleanup(log.Close)
	return NewHandler(Config{Log: log, Stored: func(*events.Commit, []events.Task) {}, Quota: 100, CacheBytes: 1 << 20})
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
	err := events.ReadStream(t.Context(), h.cfg.Log.DB(), user, 0, math.MaxInt64, func(e events.Event) error {
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
	h := newProcess(t, newDB(t))
	do(t, h, CreateTask{ID: idA, Title: "a"})
	result := do(t, h, UpdateTask{ID: idA, Title: ptr("b"), Completed: ptr(true)})
	got := stored(t, h, "u")
	if len(got) != 3 || result.Seq != 3 || result.Task.Version != 3 || result.Task.Title != "b" ||
		!result.Task.Completed {
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

// What a process remembers of a stream may be old: neither a no nor a "nothing to do" is said without a look at the
// log.
func TestAnOldMemoryIsNotBelieved(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	one, two := newProcess(t, db), newProcess(t, db)
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
	db := newDB(t)
	processes := []*Handler{newProcess(t, db), newProcess(t, db)}
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
	db := newDB(t)
	processes := []*Handler{newProcess(t, db), newProcess(t, db)}
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

// Who keeps answers hears of each append, before its command is answered.
func TestAnAppendIsToldOf(t *testing.T) {
	t.Parallel()
	h := newProcess(t, newDB(t))
	var told []int64
	h.cfg.Stored = func(c *events.Commit, _ []events.Task) { told = append(told, c.Events[len(c.Events)-1].Position) }
	do(t, h, CreateTask{ID: idA, Title: "a"})
	do(t, h, ReopenTask{idA}) // changes nothing
	do(t, h, UpdateTask{ID: idA, Title: ptr("b"), Completed: ptr(true)})
	if all := stored(t, h, "u"); !slices.Equal(told, []int64{all[0].Position, all[2].Position}) {
		t.Errorf("told of %v", told)
	}
}

// They hear of a user's appends in their order, and of the tasks as each append left them.
func TestAppendsAreToldOfInOrder(t *testing.T) {
	t.Parallel()
	h := newProcess(t, newDB(t))
	do(t, h, CreateTask{ID: idA, Title: "a"})
	var told []events.Task
	h.cfg.Stored = func(c *events.Commit, tasks []events.Task) {
		if tasks[0].UpdatedAt != c.Events[0].RecordedAt || tasks[0].Version != c.Events[0].Seq {
			t.Errorf("told of %+v after %+v", tasks[0], c.Events[0])
		}
		told = append(told, tasks...)
	}
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() { do(t, h, ToggleTask{idA}) })
	}
	work.Wait()
	for i, task := range told {
		if task.Version != int64(i+2) || task.Completed != (i%2 == 0) {
			t.Errorf("told of version %d as number %d", task.Version, i)
		}
	}
	if len(told) != 50 {
		t.Errorf("told of %d appends", len(told))
	}
}

func TestAnEventFromTheFutureHoldsUpItsUserOnly(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	h := newProcess(t, db)
	do(t, h, CreateTask{ID: idA, Title: "a"})
	_, err := db.Exec(t.Context(), `
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 2, $1, 'TaskArchived', 1, '{}', $1, $1, 'u', 'r', clock_timestamp())`, idA)
	if err != nil {
		t.Fatal(err)
	}
	var unfolded *events.FoldError
	if _, err := h.Do(
		t.Context(),
		Request{UserID: "u"},
		CompleteTask{idA},
	); !errors.As(err, &unfolded) ||
		unfolded.Seq != 2 {
		t.Errorf("got %v", err)
	}
	if _, err := h.Do(t.Context(), Request{UserID: "v"}, CreateTask{ID: uuid.New(), Title: "a"}); err != nil {
		t.Errorf("another user: %v", err)
	}
	if _, err := db.Exec(
		t.Context(),
		`INSERT INTO {schema}.skipped_events (user_id, seq) VALUES ('u', 2)`,
	); err != nil {
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
	release()
	if len(l.busy) != 0 {
		t.Errorf("%d lanes are left", len(l.busy))
	}
}

// However many writers of one process never stop, a writer of another process gets its turn, with and without a key,
// and what both did is there once.
func TestNobodyIsAlwaysLast(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	many, one := newProcess(t, db), newProcess(t, db)
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
		req := Request{UserID: "u", RequestID: "r"}
		if n%2 == 1 {
			req.Key = fmt.Sprint("key", n)
		}
		if _, err := one.Do(t.Context(), req, ToggleTask{idA}); err != nil {
			t.Errorf("write %d of the one: %v", n, err)
		}
		toggles.Add(1)
	}
	stop()
	work.Wait()
	// Not in seconds, for a slow machine is slow for them too. Seen: 200 to 2,600; where the one never got to be alone
	// with the log, some 5,000 for each write of its own.
	t.Logf("%d writes while the one made 60", toggles.Load())
	if toggles.Load() > 20_000 {
		t.Errorf("%d writes while the one made 60", toggles.Load())
	}
	if n := int64(len(stored(t, one, "u"))); n != toggles.Load()+1 {
		t.Errorf("%d events stored for %d toggles", n, toggles.Load())
	}
}

// The same request comes again and again while another process never stops: one effect, one answer.
func TestAContendedKeyHasOneEffect(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	processes := []*Handler{newProcess(t, db), newProcess(t, db)}
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

// shown makes the read model show a user's stream through a seq, as the projection would.
func shown(t testing.TB, db *events.DB, user string, seq int64, live int, tasks ...events.Task) {
	t.Helper()
	_, err := db.Exec(
		t.Context(),
		`INSERT INTO {schema}.users (user_id, seq, live, hash) VALUES ($1, $2, $3, '')`,
		user,
		seq,
		live,
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		_, err := db.Exec(t.Context(), `
			INSERT INTO {schema}.tasks
				(user_id, id, version, is_completed, created_at, updated_at, title_key, search, body)
			VALUES ($1, $2, $3, $4, $5, $6, '', '', $7)`,
			user, task.ID, task.Version, task.Completed, task.CreatedAt, task.UpdatedAt, string(task.AppendJSON(nil)))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A decision rests on what the read model shows and on the log behind it, and so costs the same whatever the age of the
// stream.
func TestADecisionRestsOnTheReadModelAndTheLogBehindIt(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	h := newProcess(t, db)
	first := do(t, h, CreateTask{ID: idA, Title: "a"})
	// What comes before the seq that is shown is not read: here it could not be.
	shown(t, db, "u", 1, 41, first.Task)
	if _, err := db.Exec(t.Context(), `ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `UPDATE {schema}.task_events SET data = '{"broken":true}'`); err != nil {
		t.Fatal(err)
	}
	do(t, newProcess(t, db), CreateTask{ID: idB, Title: "b"})
	do(t, newProcess(t, db), CompleteTask{idB})
	cold := newProcess(t, db)
	if result := do(t, cold, CompleteTask{idA}); result.Seq != 4 || !result.Task.Completed || result.Task.Title != "a" {
		t.Errorf("the task of the read model: %+v", result)
	}
	if result := do(t, cold, ReopenTask{idB}); result.Seq != 5 || result.Task.Completed || result.Task.Title != "b" {
		t.Errorf("the task of the log behind it: %+v", result)
	}
	if s, ok := cold.streams.Get("u"); !ok || s.live != 42 || len(s.tasks) != 2 {
		t.Errorf("%d tasks are live", s.live)
	}
	cold.cfg.Quota = 42
	cold.streams.Clear()
	if _, err := cold.Do(
		t.Context(),
		Request{UserID: "u"},
		CreateTask{ID: uuid.New(), Title: "c"},
	); !errors.As(
		err,
		new(*QuotaError),
	) {
		t.Errorf("the 43rd task: %v", err)
	}
}

// What is remembered of a user is bounded, whatever the user writes.
func TestAFewTasksAreRemembered(t *testing.T) {
	t.Parallel()
	h := newProcess(t, newDB(t))
	ids := make([]uuid.UUID, 90)
	for i := range ids {
		ids[i] = uuid.New()
		do(t, h, CreateTask{ID: ids[i], Title: fmt.Sprint(i)})
	}
	for i, id := range ids {
		if result := do(t, h, CompleteTask{id}); result.Task.Title != fmt.Sprint(i) || !result.Task.Completed {
			t.Fatalf("task %d: %+v", i, result)
		}
	}
	if s, _ := h.streams.Get("u"); len(s.tasks) > rememberedTasks || s.live != len(ids) {
		t.Errorf("%d tasks are remembered, %d are live", len(s.tasks), s.live)
	}
}

// An operator's work on the read model, in whatever process, makes what is remembered worth nothing.
func TestMaintenanceIsNoticed(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	h := newProcess(t, db)
	do(t, h, CreateTask{ID: idA, Title: "a"})
	for _, text := range []string{
		`INSERT INTO {schema}.skipped_events (user_id, seq) VALUES ('u', 1)`,
		`UPDATE {schema}.checkpoints SET generation = generation + 1`,
	} {
		if _, err := db.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Do(t.Context(), Request{UserID: "u"}, CompleteTask{idA}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a task whose creation is passed over: %v", err)
	}
}

// The stream that is remembered is ahead of the log: the database is now a standby that was behind.
func TestAMemoryAheadOfTheLogIsDropped(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	h := newProcess(t, db)
	do(t, h, CreateTask{ID: idA, Title: "a"})
	do(t, h, CreateTask{ID: idB, Title: "b"})
	lose := func(seq int64) {
		for _, text := range []string{
			`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`,
			fmt.Sprintf(`DELETE FROM {schema}.task_events WHERE seq >= %d`, seq),
			`ALTER TABLE {schema}.task_events ENABLE TRIGGER USER`,
		} {
			if _, err := db.Exec(t.Context(), text); err != nil {
				t.Fatal(err)
			}
		}
	}
	lose(2)
	if result := do(t, h, CompleteTask{idA}); result.Seq != 2 {
		t.Errorf("a hole is left: %+v", result)
	}
	// Another process writes what has the seq of what was lost.
	lose(2)
	do(t, newProcess(t, db), UpdateTask{ID: idA, Title: ptr("other")})
	if result := do(t, h, CompleteTask{idA}); result.Seq != 3 || result.Task.Title != "other" {
		t.Errorf("decided on what was lost: %+v", result)
	}
	if _, err := h.Do(t.Context(), Request{UserID: "u"}, CompleteTask{idB}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a task that was lost: %v", err)
	}
}

// The answer to a retry is that of then, whether the read model shows it yet or shows more.
func TestAReplayIsOfThen(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	h := newProcess(t, db)
	req := Request{UserID: "u", RequestID: "r", Key: "k"}
	first, err := h.Do(t.Context(), req, CreateTask{ID: idA, Title: "a", Completed: true})
	if err != nil {
		t.Fatal(err)
	}
	do(t, h, UpdateTask{ID: idA, Title: ptr("b")})
	replays := func(name string) {
		t.Helper()
		again, err := newProcess(t, db).Do(t.Context(), req, CreateTask{ID: idB, Title: "a", Completed: true})
		if err != nil || !again.Replayed || again.Seq != 2 || again.Task.ID != idA || again.Task.Title != "a" ||
			!again.Task.Completed ||
			!again.Task.UpdatedAt.Equal(first.Task.UpdatedAt) {
			t.Errorf("%s: %+v, %v; at first %+v", name, again, err, first)
		}
	}
	replays("nothing is shown")
	_, err = db.Exec(t.Context(), `
		INSERT INTO {schema}.task_history
			(user_id, seq, task_id, type, version, recorded_at, actor, request_id, changes, hash,
				title, is_completed, created_at)
		SELECT user_id, seq, task_id, type, seq, recorded_at, actor, request_id, '{}', '', 'a', true, recorded_at
		FROM {schema}.task_events WHERE seq = 2`)
	if err != nil {
		t.Fatal(err)
	}
	shown(t, db, "u", 2, 1, first.Task)
	replays("it is shown")
	other := Request{UserID: "u", Key: "k"}
	if _, err := h.Do(t.Context(), other, CreateTask{ID: idB, Title: "b"}); !errors.Is(err, ErrKeyReused) {
		t.Errorf("another request: %v", err)
	}
}

// Fingerprints are stored, so that of a request is the same for ever.
func TestFingerprintsAreFrozen(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/fingerprints")
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.MustParse("0190a8f0-7a57-7000-8000-000000000001")
	is := Match{Present: true, Versions: []int64{7, 8}}
	got := ""
	for _, tc := range []struct {
		name  string
		cmd   Command
		match Match
	}{
		{"create", CreateTask{ID: uuid.New(), Title: "a <&>"}, Match{}},
		{"create with all", CreateTask{ID: uuid.New(), Title: "a", Description: ptr("d"), Completed: true}, Match{}},
		{"update nothing", UpdateTask{ID: id}, Match{}},
		{"update all", UpdateTask{ID: id, Title: ptr("b"), Description: ptr(ptr("d")), Completed: ptr(false)}, is},
		{
			"update to no description", UpdateTask{ID: id, Description: ptr[*string](nil)},
			Match{Present: true, Any: true},
		},
		{"toggle", ToggleTask{id}, Match{}},
		{"complete", CompleteTask{id}, Match{}},
		{"reopen", ReopenTask{id}, is},
		{"delete", DeleteTask{id}, Match{}},
		{"restore", RestoreTask{id}, is},
		{"revert", RevertTask{ID: id, Version: 3, then: &events.Task{}}, Match{}},
		{"create with an id", CreateTask{ID: id, Chosen: &id, Title: "a"}, Match{}},
		{"erase", eraseUser{}, Match{}},
	} {
		print, err := fingerprint([]Step{{tc.cmd, tc.match}}, false)
		if err != nil {
			t.Fatal(err)
		}
		got += fmt.Sprintf("%x %s\n", print, tc.name)
	}
	print, err := fingerprint([]Step{{CreateTask{ID: uuid.New(), Title: "a"}, Match{}}, {DeleteTask{id}, is}}, true)
	if err != nil {
		t.Fatal(err)
	}
	got += fmt.Sprintf("%x %s\n", print, "several")
	if got != string(text) {
		t.Errorf("fingerprints are\n%s\nwant\n%s", got, text)
	}
}

// A user with a long stream is served as fast as anybody.
func TestALongStreamCostsNoMore(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	h := newProcess(t, db)
	first := do(t, h, CreateTask{ID: idA, Title: "a"})
	const events = 100_000
	_, err := db.Exec(t.Context(), `
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'u', n, $1, CASE n % 2 WHEN 0 THEN 'TaskCompleted' ELSE 'TaskReopened' END, 1, '{}', gen_random_uuid(),
			gen_random_uuid(), 'u', 'r', clock_timestamp()
		FROM generate_series(2, $2::bigint) n`, idA, events)
	if err != nil {
		t.Fatal(err)
	}
	first.Task.Version, first.Task.Completed = events, true
	shown(t, db, "u", events, 1, first.Task)
	begin := time.Now()
	if n := len(stored(t, h, "u")); n != events {
		t.Fatalf("%d events are stored", n)
	}
	whole := time.Since(begin)
	// Less than to read the whole stream, however slow the machine is; the best of some, for others are at work too.
	least := time.Duration(math.MaxInt64)
	for n := range 5 {
		begin = time.Now()
		result := do(t, newProcess(t, db), ToggleTask{idA})
		least = min(least, time.Since(begin))
		if result.Seq != int64(events+1+n) || result.Task.Completed != (n%2 == 1) {
			t.Errorf("toggle %d: %+v", n, result)
		}
	}
	t.Logf("a toggle takes %v, to read the stream %v", least, whole)
	if least > whole/4 {
		t.Errorf("a toggle takes %v, to read the stream %v", least, whole)
	}
}
