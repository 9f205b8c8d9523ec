package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// still is a read model that nobody brings further. It counts who waits for it, and who does to the end.
type still struct {
	waits, inVain atomic.Int64
	end           atomic.Pointer[time.Time] // of the time of who waited last
}

func (s *still) Mark() uint64 { return 0 }
func (s *still) Shown() int64 { return 0 }
func (s *still) Await(ctx context.Context, _ int64, _ uint64) error {
	s.waits.Add(1)
	if end, ok := ctx.Deadline(); ok {
		s.end.Store(&end)
	}
	<-ctx.Done()
	if ctx.Err() == context.DeadlineExceeded {
		s.inVain.Add(1)
	}
	return ctx.Err()
}

// within tells whether who waited last was to wait no longer than a second from then on, and not for a second one.
func (s *still) within(begin time.Time) bool { return s.end.Load().Before(begin.Add(3 * patience / 2)) }

// fixture is a reader on a database whose read model is written by hand.
type fixture struct {
	*Reader
	t     testing.TB
	db    *events.DB
	model *still
}

// readAs is the role that row level security binds, for whom all tables are readable.
const readAs = `SELECT set_config('role', 'pg_read_all_data', true)`

func newFixture(t testing.TB) *fixture {
	t.Helper()
	pool := testdb.New(t)
	db := events.NewDB(pool, testdb.Schema, "")
	log := events.Open(db)
	t.Cleanup(log.Close)
	f := &fixture{t: t, db: db, model: &still{}}
	f.Reader = NewReader(
		Config{DB: events.NewDB(pool, testdb.Schema, readAs), Log: log, ReadModel: f.model, KeptBytes: 1 << 20},
	)
	return f
}

func (f *fixture) exec(text string, args ...any) {
	f.t.Helper()
	if _, err := f.db.Exec(f.t.Context(), text, args...); err != nil {
		f.t.Fatalf("%s: %v", text, err)
	}
}

// fill puts n tasks and as many history entries of each of two users into the read model, as the projection would, and
// the last event of each into the log.
func (f *fixture) fill(n int) {
	f.t.Helper()
	const at = `'2026-11-22 12:00Z'::timestamptz`
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = events.TitleKey(fmt.Sprintf("task %d", i+1))
	}
	f.exec(`
		INSERT INTO {schema}.tasks
			(user_id, id, version, is_completed, created_at, updated_at, deleted_at, title_key, search, body)
		SELECT u, id, n, n % 3 = 0, created_at, updated_at,
			CASE WHEN n % 10 = 9 THEN `+at+` + n * interval '1 second' END, ($2::bytea[])[n], 'task ' || n,
			format('{"id":"%s","user_id":"%s","title":"task %s","is_completed":%s,"created_at":"%s","updated_at":"%s",'
				'"version":%s}', id, u, n, (n % 3 = 0)::text,
				to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SSZ'),
				to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SSZ'), n)
		FROM unnest('{u,v}'::text[]) u, generate_series(1, $1::int) n, LATERAL (
			SELECT gen_random_uuid() AS id, `+at+` + n * interval '1 second' AS created_at,
				`+at+` + (n * 7919 % 10007) * interval '1 second' AS updated_at
			WHERE n > 0
		) i`, n, keys)
	f.exec(`
		INSERT INTO {schema}.task_history
			(user_id, seq, task_id, type, version, recorded_at, actor, request_id, changes, hash,
				title, is_completed, created_at)
		SELECT u, n, ('00000000-0000-7000-8000-' || lpad((n % 100)::text, 12, '0'))::uuid,
			(ARRAY['TaskCreated', 'TaskCompleted', 'TaskReopened', 'TaskRenamed'])[n % 4 + 1], n,
			`+at+` + n * interval '1 second', u, 'r', '{}', '\x00', 'task', false, `+at+`
		FROM unnest('{u,v}'::text[]) u, generate_series(1, $1::int) n`, n)
	f.exec(
		`INSERT INTO {schema}.users (user_id, seq, live, hash) SELECT u, $1, 1, '' FROM unnest('{u,v}'::text[]) u`,
		n,
	)
	f.head("u", n)
	f.head("v", n)
	f.exec(`ANALYZE`)
}

// rename puts an x before each title, which no projection would.
func (f *fixture) rename() {
	f.t.Helper()
	f.exec(`UPDATE {schema}.tasks SET body = replace(body, '"title":"', '"title":"x')`)
}

// head gives the user's stream its event n, and takes it the one before.
func (f *fixture) head(user string, n int) {
	f.t.Helper()
	f.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ($1, $2, gen_random_uuid(), 'TaskCreated', 1, '{}', gen_random_uuid(), gen_random_uuid(), $1, 'r',
			clock_timestamp())`,
		user, n)
}

// wrote says that this process wrote an event, behind another one than is known.
func (f *fixture) wrote(user string, position int64) {
	f.Wrote(&events.Commit{Events: []events.Event{{UserID: user, Position: position}}}, nil)
}

// value is the one value that a query gives.
func value[T any](f *fixture, text string, args ...any) (v T) {
	f.t.Helper()
	if found, err := events.One(f.t.Context(), f.db, text, args, &v); err != nil || !found {
		f.t.Fatalf("%s: %t, %v", text, found, err)
	}
	return v
}

// plan is the plan of a statement as the reader runs it for the user u: planned once, whatever its parameters are.
func (f *fixture) plan(text string, args []any) string {
	f.t.Helper()
	values := []string{`'u'`}
	for _, arg := range args {
		if at, ok := arg.(time.Time); ok {
			arg = at.Format(time.RFC3339Nano)
		}
		if id, ok := arg.([16]byte); ok {
			arg = uuid.UUID(id)
		}
		values = append(values, fmt.Sprintf(`'%v'`, arg))
	}
	var lines []string
	err := f.db.Begin(f.t.Context(), pgx.TxOptions{}, func(tx *events.Tx) error {
		name := "plan_" + uuid.NewString()
		if _, err := tx.Tx.Exec(f.t.Context(), readAs); err != nil {
			return err
		}
		if _, err := tx.Tx.Prepare(f.t.Context(), name, f.db.SQL(text)); err != nil {
			return err
		}
		rows, err := tx.Tx.Query(
			f.t.Context(),
			`EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE "`+name+`" (`+strings.Join(values, ", ")+`)`,
			pgx.QueryExecModeSimpleProtocol,
		)
		if err != nil {
			return err
		}
		lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func (f *fixture) inOrderOf(name, index, plan string) {
	f.t.Helper()
	if !strings.Contains(plan, index) || strings.Contains(plan, "Sort") || strings.Contains(plan, "Seq Scan on task") {
		f.t.Errorf("%s is not in the order of %s:\n%s", name, index, plan)
	}
}

// The lists that frontends show come out of an index in its order: nothing is sorted, no table is scanned. Other orders
// are sorted from the user's tasks.
func TestListsAreInTheOrderOfAnIndex(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(20_000)
	after := &Place{ID: uuid.New(), Time: time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC)}
	for _, order := range []Order{Ascending, Descending} {
		for _, status := range []Status{StatusAll, StatusPending, StatusCompleted} {
			for _, search := range []string{"", "TASK 1"} {
				for _, next := range []*Place{nil, after} {
					filter := TaskFilter{Status: status, Sort: SortCreatedAt, Order: order, Search: search}
					columns, from, args := filter.sql(Page{Limit: 20, After: next})
					name := fmt.Sprintf("%+v next=%t", filter, next != nil)
					f.inOrderOf(name, "tasks_by_created_at", f.plan(statement(columns, from), args))
				}
			}
		}
	}
	for _, sort := range []Sort{SortTitle, SortUpdatedAt} {
		columns, from, args := TaskFilter{Sort: sort, Order: Descending}.sql(Page{Limit: 20})
		if plan := f.plan(statement(columns, from), args); strings.Contains(plan, "Seq Scan on task") {
			t.Errorf("%s:\n%s", sort, plan)
		}
	}
	id := uuid.MustParse("00000000-0000-7000-8000-000000000007")
	for _, order := range []Order{Ascending, Descending} {
		filter := HistoryFilter{Order: order, Since: &Moment{Seq: 100}, Until: &Moment{Time: time.Now()}}
		columns, from, args := filter.sql(Page{Limit: 20, After: &Place{Seq: 500}})
		f.inOrderOf("history "+string(order), "task_history_pkey", f.plan(statement(columns, from), args))
		filter.TaskID = &id
		columns, from, args = filter.sql(Page{Limit: 20, After: &Place{Seq: 500}})
		f.inOrderOf("history of a task "+string(order), "task_history_by_task", f.plan(statement(columns, from), args))
		columns, from, args = HistoryFilter{
			Order: order,
			Type:  events.TypeTaskRestored,
		}.sql(
			Page{Limit: 20, After: &Place{Seq: 500}},
		)
		f.inOrderOf("history of a type "+string(order), "task_history_by_type", f.plan(statement(columns, from), args))
	}
	columns, from, args := TrashFilter{}.sql(Page{Limit: 20, After: &Place{Time: time.Now(), Seq: 500}})
	if plan := f.plan(statement(columns, from), args); !strings.Contains(plan, "Presorted Key: t.deleted_at") ||
		!strings.Contains(plan, "tasks_deleted") {
		t.Errorf("trash:\n%s", plan)
	}
	f.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 500, gen_random_uuid(), 'TaskCreated', 1, '{}', gen_random_uuid(), gen_random_uuid(), 'u', 'r',
			'2026-11-22 12:08:20Z')`)
	since := f.plan(statement(`coalesce(b.reset, false), x.version, x.id, x.body`, changedSince), []any{500, 100})
	if i := strings.Index(since, "tasks_deleted"); i < 0 || strings.Contains(since[i:], "Rows Removed by Filter") ||
		!strings.Contains(since, "Presorted Key: t_1.deleted_at") {
		t.Errorf("sync:\n%s", since)
	}
	columns, from, args = TaskFilter{AsOf: &Moment{Seq: 500}}.sql(Page{})
	for name, plan := range map[string]string{
		"link": f.plan(statement(`x.hash`, linkAt), []any{15_000}), "as of": f.plan(statement(columns, from), args),
	} {
		if strings.Contains(plan, "Rows Removed by Filter") {
			t.Errorf("%s reads rows that it does not need:\n%s", name, plan)
		}
	}
	if plan := f.plan(
		changes,
		[]any{500, 100},
	); !strings.Contains(plan, "task_history_pkey") ||
		strings.Contains(plan, "Seq Scan on task") {
		t.Errorf("changes:\n%s", plan)
	}
}

// A read that waits for the tasks has locked neither of the tables that a swap locks after them: or each would wait for
// the other.
func TestReadsLockTablesAsASwapDoes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	past := listing(t, TaskFilter{AsOf: &Moment{Seq: 5}, Sort: SortCreatedAt}, Page{})
	for name, read := range map[string]func() error{
		"a task": func() error { _, err := f.Task(t.Context(), Ask{UserID: "u"}, uuid.New(), nil); return err },
		"a list": func() error {
			_, err := f.List(t.Context(), Ask{UserID: "u"}, listing(t, TaskFilter{Sort: SortTitle}, Page{Limit: 3}))
			return err
		},
		"a list of the past": func() error { _, err := f.List(t.Context(), Ask{UserID: "u"}, past); return err },
		"what has changed":   func() error { _, err := f.Sync(t.Context(), Ask{UserID: "u"}, 5, 3); return err },
	} {
		swap, err := f.db.Pool().Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = swap.Exec(t.Context(), f.db.SQL(`LOCK TABLE {schema}.tasks IN ACCESS EXCLUSIVE MODE`))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- read() }()
		var held string
		waiting := func() bool {
			found, err := events.One(t.Context(), f.db, `
				SELECT coalesce((
					SELECT string_agg(h.relation::regclass::text, ',')
					FROM pg_locks h
					WHERE h.pid = w.pid AND h.granted AND h.relation::regclass::text ~ '(users|task_history)$'
				), '')
				FROM pg_locks w
				WHERE NOT w.granted AND w.relation = '{schema}.tasks'::regclass`, nil, &held)
			return err == nil && found
		}
		for !waiting() {
			select {
			case err := <-done:
				t.Fatalf("%s did not wait: %v", name, err)
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			default:
			}
		}
		if held != "" {
			t.Errorf("%s waits for the tasks and has locked %s", name, held)
		}
		if err := swap.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (f *fixture) list(filter Filter, page Page) Answer {
	f.t.Helper()
	a, err := f.List(f.t.Context(), Ask{UserID: "u"}, listing(f.t, filter, page))
	if err != nil {
		f.t.Fatalf("%+v: %v", filter, err)
	}
	return a
}

func listing(t testing.TB, filter Filter, page Page) Listing {
	t.Helper()
	l, err := NewListing(filter)
	if err != nil {
		t.Fatal(err)
	}
	l.Page = page
	return l
}

func ids(t testing.TB, a Answer) []string {
	t.Helper()
	var items []struct {
		ID  string
		Seq int64
	}
	if err := json.Unmarshal(a.Body, &items); err != nil {
		t.Fatalf("%s: %v", a.Body, err)
	}
	out := []string{}
	for _, item := range items {
		out = append(out, fmt.Sprint(item.ID, item.Seq))
	}
	return out
}

// A list is the same whatever the page, and its seq is the read model's.
func TestPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(100)
	moment := &Moment{Seq: 50}
	for _, filter := range []Filter{
		TaskFilter{Status: StatusAll, Sort: SortCreatedAt, Order: Descending},
		TaskFilter{Status: StatusCompleted, Sort: SortUpdatedAt, Order: Ascending},
		TaskFilter{Status: StatusPending, Sort: SortTitle, Order: Ascending, Search: "ASK"},
		HistoryFilter{Order: Descending},
		HistoryFilter{Order: Ascending, Since: moment},
	} {
		whole := f.list(filter, Page{})
		want := ids(t, whole)
		if whole.Next != nil || whole.Seq != 100 || whole.EventID == uuid.Nil || len(want) == 0 {
			t.Fatalf("%+v: %d items, %+v", filter, len(want), whole.Head)
		}
		for _, limit := range []int{1, 7, len(want) - 1, len(want), len(want) + 1} {
			var paged []string
			page := Page{Limit: limit}
			for more := true; more; {
				a := f.list(filter, page)
				paged = append(paged, ids(t, a)...)
				page.After, more = a.Next, a.Next != nil
			}
			if !slices.Equal(paged, want) {
				t.Errorf("%+v: pages of %d give %d items, the whole %d", filter, limit, len(paged), len(want))
			}
		}
	}
}

func TestNobodysListIsEmptyAtZero(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	a, err := f.List(t.Context(), Ask{UserID: "nobody"}, listing(t, TaskFilter{Sort: SortCreatedAt}, Page{}))
	if err != nil || string(a.Body) != "[]" || a.Seq != 0 || a.Stale {
		t.Errorf("%s, %+v, %v", a.Body, a.Head, err)
	}
	if a := f.list(
		TaskFilter{Sort: SortCreatedAt, Search: "nothing like it"},
		Page{},
	); string(a.Body) != "[]" ||
		a.Seq != 10 {
		t.Errorf("an empty list of a user at 10: %s, %+v", a.Body, a.Head)
	}
	never := uuid.New()
	if a, err := f.TaskHistory(
		t.Context(),
		Ask{UserID: "u"},
		listing(t, HistoryFilter{TaskID: &never, Order: Ascending}, Page{}),
	); !errors.Is(err, ErrNotFound) ||
		a.Seq != 10 {
		t.Errorf("the history of a task that never was: %+v, %v", a, err)
	}
	if a, err := f.Task(t.Context(), Ask{UserID: "u"}, uuid.New(), nil); !errors.Is(err, ErrNotFound) || a.Seq != 10 {
		t.Errorf("a task that never was: %+v, %v", a, err)
	}
}

// A list without a limit is streamed when it is large, and is the same.
func TestLargeListsAreStreamed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(9000)
	want := f.list(TaskFilter{Sort: SortCreatedAt, Order: Descending}, Page{})
	if len(want.Body) < 2*streamSize || want.Streamed {
		t.Fatalf("%d bytes, streamed %t", len(want.Body), want.Streamed)
	}
	var body strings.Builder
	writes := 0
	ask := Ask{UserID: "u", Stream: func(h Head) io.Writer {
		if h != want.Head {
			t.Errorf("streamed of %+v, want %+v", h, want.Head)
		}
		return writerFunc(func(p []byte) (int, error) {
			if writes++; len(p) > streamSize+1024 {
				t.Errorf("%d bytes at once", len(p))
			}
			return body.Write(p)
		})
	}}
	a, err := f.List(t.Context(), ask, listing(t, TaskFilter{Sort: SortCreatedAt, Order: Descending}, Page{}))
	if err != nil || !a.Streamed || writes < 2 || body.String() != string(want.Body) {
		t.Errorf("%d writes, %d bytes of %d, %v", writes, body.Len(), len(want.Body), err)
	}
}

type writerFunc func(p []byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// A kept answer is given again as long as the stream ends where it did and nobody has made the read model anew.
func TestAnswersAreKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	filter := TaskFilter{Sort: SortCreatedAt, Order: Descending}
	first := f.list(filter, Page{Limit: 3})
	secretly := f.rename
	kept := func(want bool, why string) {
		t.Helper()
		secretly()
		a := f.list(filter, Page{Limit: 3})
		if (string(a.Body) == string(first.Body)) != want {
			t.Errorf("%s: kept %t", why, !want)
		}
		first = a
	}
	kept(true, "nothing has happened")
	if a := f.list(filter, Page{Limit: 4}); len(ids(t, a)) != 4 {
		t.Error("another page is given for this one")
	}
	if a, err := f.List(
		t.Context(),
		Ask{UserID: "v"},
		listing(t, filter, Page{Limit: 3}),
	); err != nil ||
		string(a.Body) == string(first.Body) {
		t.Errorf("another user's: %s, %v", a.Body, err)
	}
	f.exec(`UPDATE {schema}.users SET generation = generation + 1`)
	kept(false, "the read model was made anew")
	kept(true, "nothing has happened since")
	f.wrote("u", 0)
	kept(false, "this process has written")
	f.exec(`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
	f.exec(`UPDATE {schema}.task_events SET event_id = gen_random_uuid() WHERE user_id = 'u'`)
	kept(false, "the event of that seq is another one, after a failover")
	f.exec(`UPDATE {schema}.users SET seq = 11 WHERE user_id = 'u'`)
	f.head("u", 11)
	kept(false, "another process has written")
	if waits := f.model.waits.Load(); waits > 0 {
		t.Errorf("waited %d times", waits)
	}
}

// What this process writes about a task leaves the answers about the user's other tasks as they are, as long as it
// knows of all that was written.
func TestAnAnswerOutlivesEventsOfOtherTasks(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	filter := TaskFilter{Sort: SortCreatedAt, Order: Descending}
	seq, tasks := 10, value[[]string](
		f,
		`SELECT array_agg(id::text) FROM {schema}.tasks WHERE user_id = 'u' AND deleted_at IS NULL`,
	)
	var last Head
	// state has everything asked, and tells what comes of what is kept.
	state := func() (told []string) {
		t.Helper()
		f.rename()
		ask := map[string]func() (Answer, error){
			"list": func() (Answer, error) { return f.list(filter, Page{}), nil },
			"a": func() (Answer, error) {
				return f.Task(t.Context(), Ask{UserID: "u"}, uuid.MustParse(tasks[0]), nil)
			},
			"b": func() (Answer, error) {
				return f.Task(t.Context(), Ask{UserID: "u"}, uuid.MustParse(tasks[1]), nil)
			},
		}
		title := value[string](
			f, `SELECT body::json ->> 'title' FROM {schema}.tasks WHERE version = 1 AND user_id = 'u'`)
		current := `"title":"` + strings.TrimSuffix(title, "task 1")
		for name, ask := range ask {
			a, err := ask()
			if err != nil || a.Seq != int64(seq) {
				t.Errorf("%s: %+v, %v", name, a.Head, err)
			}
			last = a.Head
			if !strings.Contains(string(a.Body), current) {
				told = append(told, name)
			}
		}
		slices.Sort(told)
		return told
	}
	expect := func(why string, want ...string) {
		t.Helper()
		if kept := state(); !slices.Equal(kept, want) {
			t.Errorf("%s: kept %v, want %v", why, kept, want)
		}
	}
	// write has the log and the read model go on, and this process know of it.
	write := func(after uuid.UUID, generation int64, about ...string) {
		t.Helper()
		c := &events.Commit{After: after, Generation: generation}
		for _, id := range about {
			seq++
			f.head("u", seq)
			e := events.Event{UserID: "u", Seq: int64(seq), TaskID: uuid.MustParse(id)}
			e.EventID = value[uuid.UUID](
				f,
				`SELECT event_id FROM {schema}.task_events WHERE user_id = 'u' AND seq = $1`,
				seq,
			)
			c.Events = append(c.Events, e)
		}
		f.exec(`UPDATE {schema}.users SET seq = $1 WHERE user_id = 'u'`, seq)
		f.Wrote(c, nil)
	}
	expect("nothing was asked before")
	expect("nothing has happened", "a", "b", "list")
	write(last.EventID, last.Generation, tasks[1])
	expect("b has changed", "a")
	write(last.EventID, last.Generation, tasks[2], tasks[0])
	expect("a has changed, and another", "b")
	write(uuid.New(), last.Generation, tasks[2])
	expect("something else was written in between")
	f.exec(`UPDATE {schema}.users SET generation = generation + 1`)
	write(last.EventID, last.Generation+1, tasks[2])
	expect("the read model was made anew in between")
	seq++
	f.head("u", seq)
	f.exec(`UPDATE {schema}.users SET seq = $1 WHERE user_id = 'u'`, seq)
	expect("another process has written")
}

// What this process writes of a task is what a read of it answers, though the read model does not show it yet; but a
// parked user gets what the read model shows.
func TestAWrittenTaskIsAnswered(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	id := value[uuid.UUID](f, `SELECT id FROM {schema}.tasks WHERE user_id = 'u' AND version = 1`)
	task := events.Task{UserID: "u", ID: id, Version: 11, Title: "written"}
	read := func() (Answer, error) { return f.Task(t.Context(), Ask{UserID: "u"}, id, nil) }
	before, err := read()
	if err != nil || before.Version != 1 {
		t.Fatalf("%+v, %v", before, err)
	}
	write := func(after uuid.UUID) uuid.UUID {
		t.Helper()
		f.head("u", int(task.Version))
		e := events.Event{UserID: "u", Seq: task.Version, TaskID: id}
		e.EventID = value[uuid.UUID](
			f,
			`SELECT event_id FROM {schema}.task_events WHERE user_id = 'u' AND seq = $1`,
			e.Seq,
		)
		f.Wrote(
			&events.Commit{After: after, Generation: before.Generation, Events: []events.Event{e}},
			[]events.Task{task},
		)
		return e.EventID
	}
	expect := func(why string) {
		t.Helper()
		a, err := read()
		want := string(task.AppendJSON(nil))
		if err != nil || a.Stale || a.Seq != task.Version || a.Version != task.Version || string(a.Body) != want {
			t.Errorf("%s: %+v %s, %v", why, a.Head, a.Body, err)
		}
	}
	write(before.EventID)
	expect("behind what was read")
	task.Version = 12
	last := write(uuid.New())
	expect("behind something else")
	f.exec(`UPDATE {schema}.users SET parked_error = 'x', parked_at = now() WHERE user_id = 'u'`)
	for _, has := range []func(Head) bool{nil, func(h Head) bool { return h.EventID == last }} {
		a, err := f.Task(t.Context(), Ask{UserID: "u", Has: has}, id, nil)
		if err != nil || a.Unchanged || !a.Stale || a.Version != 1 {
			t.Errorf("parked: %+v %s, %v", a, a.Body, err)
		}
	}
	f.exec(`UPDATE {schema}.users SET parked_error = NULL, parked_at = NULL WHERE user_id = 'u'`)
	expect("parked no more")
	deleted := time.Now()
	task.Version, task.DeletedAt = 13, &deleted
	write(last)
	f.exec(`UPDATE {schema}.users SET seq = 13 WHERE user_id = 'u'`)
	f.exec(`UPDATE {schema}.tasks SET deleted_at = now() WHERE id = $1`, id)
	if a, err := read(); !errors.Is(err, ErrNotFound) || a.Seq != 13 {
		t.Errorf("deleted: %+v, %v", a, err)
	}
}

// Who has the answer gets none: a look at the end of the stream tells.
func TestWhoHasTheAnswerGetsNone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	filter := TaskFilter{Sort: SortCreatedAt, Order: Descending}
	first := f.list(filter, Page{})
	ask := Ask{UserID: "u", Has: func(h Head) bool { return h == first.Head }}
	if a, err := f.List(t.Context(), ask, listing(t, filter, Page{})); err != nil || !a.Unchanged || a.Seq != 10 {
		t.Errorf("%+v, %v", a, err)
	}
	f.exec(`UPDATE {schema}.users SET seq = 11 WHERE user_id = 'u'`)
	f.head("u", 11)
	if a, err := f.List(t.Context(), ask, listing(t, filter, Page{})); err != nil || a.Unchanged || a.Seq != 11 {
		t.Errorf("%+v, %v", a, err)
	}
}

// A read waits for the read model, a second at most, and says so when it is behind nevertheless; of a parked user at
// once.
func TestAReadThatIsBehindSaysSo(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	f.head("u", 11)
	begin := time.Now()
	a := f.list(TaskFilter{Sort: SortCreatedAt}, Page{Limit: 2})
	if took := time.Since(
		begin,
	); !a.Stale || a.Seq != 10 || a.EventID != uuid.Nil || took < patience ||
		!f.model.within(begin) {
		t.Errorf("%+v after %v", a.Head, took)
	}
	// What this process wrote, and what a version is waited for, is waited for within that second.
	f.wrote("u", 1)
	begin = time.Now()
	a = f.list(TaskFilter{Sort: SortCreatedAt}, Page{Limit: 2})
	if took := time.Since(begin); !a.Stale || took < patience || !f.model.within(begin) {
		t.Errorf("%+v after %v", a.Head, took)
	}
	time.AfterFunc(3*patience/4, func() { f.head("u", 12) })
	begin = time.Now()
	_, err := f.List(
		t.Context(),
		Ask{UserID: "u", MinVersion: 12},
		listing(t, TaskFilter{Sort: SortCreatedAt}, Page{Limit: 1}),
	)
	if took := time.Since(begin); !errors.Is(err, ErrNotYet) || took < patience || !f.model.within(begin) {
		t.Errorf("min_version: %v after %v", err, took)
	}
	if _, err := f.Task(t.Context(), Ask{UserID: "u", MinVersion: 12}, uuid.New(), nil); !errors.Is(err, ErrNotYet) {
		t.Errorf("a task that may be there by then: %v", err)
	}
	// What it wrote and the log does not hold, after a failover, is not waited for.
	f.exec(`UPDATE {schema}.users SET seq = 12 WHERE user_id = 'u'`)
	f.wrote("u", 1<<40)
	inVain := f.model.inVain.Load()
	if a = f.list(TaskFilter{Sort: SortCreatedAt}, Page{Limit: 2}); a.Stale || a.Seq != 12 {
		t.Errorf("%+v", a.Head)
	}
	f.head("u", 13)
	f.exec(`UPDATE {schema}.users SET seq = 10, parked_error = 'x', parked_at = now() WHERE user_id = 'u'`)
	if a = f.list(TaskFilter{Sort: SortCreatedAt}, Page{Limit: 2}); !a.Stale || a.Seq != 10 {
		t.Errorf("parked: %+v", a.Head)
	}
	if n := f.model.inVain.Load() - inVain; n > 0 {
		t.Errorf("%d waited to the end for what does not come", n)
	}
	if _, err := f.List(
		t.Context(),
		Ask{UserID: "u", MinVersion: 11},
		listing(t, TaskFilter{Sort: SortCreatedAt}, Page{}),
	); !errors.Is(
		err,
		ErrNotYet,
	) {
		t.Errorf("min_version of a parked user: %v", err)
	}
}

// moving is a read model that is brought further when somebody waits for it.
type moving struct {
	still
	move func()
}

func (m *moving) Await(context.Context, int64, uint64) error {
	m.waits.Add(1)
	m.move()
	return nil
}

// A read shows what was in the log when it began, and does not run after what is written meanwhile.
func TestAReadShowsWhatWasThereBefore(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	f.head("u", 11)
	next := 12
	m := &moving{move: func() { // shows one more event, and by then another one has been written
		f.head("u", next)
		next++
		f.exec(`UPDATE {schema}.users SET seq = seq + 1 WHERE user_id = 'u'`)
	}}
	f.Reader.model = m
	a := f.list(TaskFilter{Sort: SortCreatedAt}, Page{Limit: 2})
	if a.Stale || a.Seq != 11 || m.waits.Load() != 1 {
		t.Errorf("%+v after %d waits", a.Head, m.waits.Load())
	}
	f.wrote("u", 1<<40)
	if a := f.list(TaskFilter{Sort: SortCreatedAt}, Page{Limit: 2}); a.Stale || a.Seq < 12 || m.waits.Load() < 2 {
		t.Errorf("a read of this process's own write: %+v after %d waits", a.Head, m.waits.Load())
	}
}

// min_version waits on its user: for what this process writes at once, for what another one writes by looks that all
// waiters share.
func TestAReadWaitsForItsVersion(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	f.exec(`UPDATE {schema}.users SET seq = 11`)
	var work sync.WaitGroup
	for range 20 {
		work.Go(func() {
			a, err := f.List(
				t.Context(),
				Ask{UserID: "u", MinVersion: 11},
				listing(t, TaskFilter{Sort: SortCreatedAt}, Page{Limit: 1}),
			)
			if err != nil || a.Seq < 11 {
				t.Errorf("%+v, %v", a.Head, err)
			}
		})
	}
	f.head("u", 11)
	f.wrote("u", 0)
	work.Wait()
	begin := time.Now()
	if _, err := f.Task(
		t.Context(),
		Ask{UserID: "u", MinVersion: 99},
		uuid.New(),
		nil,
	); !errors.Is(err, ErrNotYet) ||
		time.Since(begin) < patience {
		t.Errorf("a version that never comes: %v after %v", err, time.Since(begin))
	}
	if len(f.kept.waits) > 0 {
		t.Errorf("%d waits are left", len(f.kept.waits))
	}
}

// Row level security is a second lock: a query that forgot its user sees that user's rows and no others, and where
// nobody is named none at all. It holds for every table, also after a rebuild (projections,
// TestARebuiltTableIsTheSameTable).
func TestAQueryThatForgetsItsUserSeesNobodyElse(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(10)
	seen := func(user, table string) (names string) {
		t.Helper()
		// Each question has a LIMIT or an order, which has it name the user before it reads: PostgreSQL 18 may read
		// first.
		text := `
			WITH scope AS MATERIALIZED (SELECT set_config('taskledger.user_id', $1, true) AS user_id)
			SELECT coalesce(string_agg(DISTINCT x.user_id, ' '), '')
			FROM scope s
			CROSS JOIN LATERAL (SELECT user_id FROM {schema}.` + table + ` WHERE s.user_id IS NOT NULL LIMIT 1000) x`
		if _, err := events.One(t.Context(), f.Reader.db, text, []any{user}, &names); err != nil {
			t.Fatal(err)
		}
		return names
	}
	for _, table := range []string{"tasks", "task_history", "users", "task_events"} {
		for user, want := range map[string]string{"u": "u", "v": "v", "nobody": "", "": ""} {
			if names := seen(user, table); names != want {
				t.Errorf("%s for %q: sees %q, want %q", table, user, names, want)
			}
		}
		var n int
		if _, err := events.One(
			t.Context(),
			f.Reader.db,
			`SELECT count(*) FROM {schema}.`+table,
			nil,
			&n,
		); err != nil ||
			n > 0 {
			t.Errorf("%s, nobody is named: %d rows, %v", table, n, err)
		}
	}
	for _, forbidden := range []string{
		`DELETE FROM {schema}.tasks`, `UPDATE {schema}.tasks SET body = 'x'`,
		`UPDATE {schema}.checkpoints SET position = 0`,
	} {
		if _, err := f.Reader.db.Exec(
			t.Context(),
			forbidden,
		); err == nil ||
			!strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %v", forbidden, err)
		}
	}
}

// What a question costs with the user's name and the head in its statement, and what the bare select would.
func BenchmarkQuestion(b *testing.B) {
	f := newFixture(b)
	f.fill(1000)
	f.Reader.db = events.NewDB(f.db.Pool(), testdb.Schema, "")
	id := uuid.UUID{}
	if _, err := events.One(
		b.Context(),
		f.db,
		`SELECT id FROM {schema}.tasks WHERE user_id = 'u' AND deleted_at IS NULL LIMIT 1`,
		nil,
		&id,
	); err != nil {
		b.Fatal(err)
	}
	filter := TaskFilter{Status: StatusAll, Sort: SortCreatedAt, Order: Descending}
	for name, ask := range map[string]func() error{
		"list": func() error {
			_, err := f.List(b.Context(), Ask{UserID: "u"}, listing(b, filter, Page{Limit: 20}))
			return err
		},
		"get": func() error {
			_, err := f.Task(b.Context(), Ask{UserID: "u"}, id, nil)
			return err
		},
	} {
		b.Run(name+"/asked", func(b *testing.B) {
			for b.Loop() {
				f.wrote("u", 0)
				if err := ask(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/kept", func(b *testing.B) {
			for b.Loop() {
				if err := ask(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	const bare = `
		SELECT t.id, t.version, t.body FROM {schema}.tasks t
		WHERE t.user_id = $1 AND t.deleted_at IS NULL ORDER BY t.created_at DESC, t.id DESC LIMIT 20`
	b.Run("list/bare", func(b *testing.B) {
		for b.Loop() {
			err := f.db.Query(b.Context(), bare, []any{"u"}, func(rows pgx.Rows) error {
				for rows.Next() {
				}
				return rows.Err()
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestUsersAreFoundByHowTheirIDBegins(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, id := range []string{"a", "ab", "ab􏿿􏿿z", "abc", "ac", "A%", "é"} {
		f.exec(`INSERT INTO {schema}.users (user_id, seq, live, hash) VALUES ($1, 3, 2, '')`, id)
	}
	f.exec(`UPDATE {schema}.users SET parked_error = 'why', parked_at = now() WHERE user_id = 'ab'`)
	for prefix, want := range map[string]string{
		"":   "A%,a,ab",
		"ab": "ab,abc,ab􏿿􏿿z",
		"A%": "A%",
		"%":  "",
		"é":  "é",
	} {
		found, err := FindUsers(t.Context(), f.db, prefix, 3)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, u := range found {
			ids = append(ids, u.ID)
			if u.Seq != 3 || u.Live != 2 || u.Parked != (u.ID == "ab") {
				t.Errorf("found %+v", u)
			}
		}
		if got := strings.Join(ids, ","); got != want {
			t.Errorf("%q finds %q, want %q", prefix, got, want)
		}
	}
}
