package query

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// fill puts n tasks and as many history entries of each of two users into the read models, as the projections would.
func fill(t testing.TB, pool *pgxpool.Pool, n int) {
	t.Helper()
	const at = `'2026-11-22 12:00Z'::timestamptz`
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = events.TitleKey(fmt.Sprintf("task %d", i+1))
	}
	for _, sql := range []string{
		`INSERT INTO tasks
		SELECT u, gen_random_uuid(), n, 'task ' || n, NULL, n % 3 = 0, ` + at + ` + n * interval '1 second', ` + at + ` + (n * 7919 % 10007) * interval '1 second',
			CASE WHEN n % 10 = 9 THEN ` + at + ` END, ($2::bytea[])[n], 'task ' || n
		FROM unnest('{u,v}'::text[]) u, generate_series(1, $1) n`,
		`INSERT INTO task_history
		SELECT u, n, ('00000000-0000-7000-8000-' || lpad((n % 100)::text, 12, '0'))::uuid, 'TaskCreated', u, 'r', ` + at + ` + n * interval '1 second', '{}',
			'task', NULL, false, ` + at + `, NULL
		FROM unnest('{u,v}'::text[]) u, generate_series(1, $1) n
		WHERE $2::bytea[] IS NOT NULL`,
		`INSERT INTO tasks_users SELECT u, $1 FROM unnest('{u,v}'::text[]) u WHERE $2::bytea[] IS NOT NULL`,
		`INSERT INTO task_history_users SELECT u, $1 FROM unnest('{u,v}'::text[]) u WHERE $2::bytea[] IS NOT NULL`,
	} {
		if _, err := pool.Exec(t.Context(), sql, pgx.QueryExecModeExec, n, keys); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pool.Exec(t.Context(), `ANALYZE`); err != nil {
		t.Fatal(err)
	}
}

// plan is the plan of a statement as the reader runs it for the user u.
func plan(t *testing.T, pool *pgxpool.Pool, sql string, args []any) string {
	t.Helper()
	var lines []string
	err := NewReader(pool).read(t.Context(), "u", func(b *pgx.Batch) {
		b.Queue(`EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) `+sql, args...).Query(func(rows pgx.Rows) (err error) {
			lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// Every list with a limit comes out of an index in its order: nothing is sorted, no table is scanned.
func TestListsAreInTheOrderOfAnIndex(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 20_000)
	last := events.Task{ID: uuid.New(), Title: "task 5", CreatedAt: time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC), UpdatedAt: time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC)}
	for _, sort := range []Sort{SortCreatedAt, SortTitle, SortUpdatedAt} {
		index := map[Sort]string{SortCreatedAt: "tasks_by_created_at", SortTitle: "tasks_by_title", SortUpdatedAt: "tasks_by_updated_at"}[sort]
		for _, order := range []Order{Ascending, Descending} {
			for _, status := range []Status{StatusAll, StatusPending, StatusCompleted} {
				for _, search := range []string{"", "TASK 1"} {
					for _, next := range []bool{false, true} {
						f := TaskFilter{Status: status, Sort: sort, Order: order, Search: search, Limit: 20}
						if next {
							after := f.Cursor(last)
							f.After = &after
						}
						sql, args := f.sql("u")
						name := fmt.Sprintf("%s %s %s %q next=%t", status, sort, order, search, next)
						inOrderOf(t, name, index, plan(t, pool, sql, args))
					}
				}
			}
		}
	}
}

func TestHistoryIsInTheOrderOfAnIndex(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 20_000)
	id := uuid.MustParse("00000000-0000-7000-8000-000000000007")
	for _, order := range []Order{Ascending, Descending} {
		f := HistoryFilter{Order: order, Limit: 20, After: 500, Since: &Moment{Seq: 100}, Until: &Moment{Time: time.Now()}}
		sql, args := f.sql("u")
		inOrderOf(t, "history "+string(order), "task_history_pkey", plan(t, pool, sql, args))
		f.TaskID = &id
		sql, args = f.sql("u")
		inOrderOf(t, "history of a task "+string(order), "task_history_by_task", plan(t, pool, sql, args))
	}
}

func TestChangesAreInTheOrderOfAnIndex(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 20_000)
	inOrderOf(t, "changes", "task_history_pkey", plan(t, pool, changesAfter, []any{"u", 500, 100}))
}

// Changes never tell what only one of the read models shows.
func TestChangesAreShownByEveryReadModel(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 50)
	for shown, want := range map[int]int{50: 40, 30: 20, 10: 0, 0: 0} {
		if _, err := pool.Exec(t.Context(), `UPDATE tasks_users SET seq = $1 WHERE user_id = 'u'`, shown); err != nil {
			t.Fatal(err)
		}
		changes, err := NewReader(pool).Changes(t.Context(), "u", 10, 100)
		if err != nil || len(changes) != want {
			t.Errorf("with tasks at %d: %d changes after 10, %v; want %d", shown, len(changes), err, want)
		}
	}
}

func inOrderOf(t *testing.T, name, index, plan string) {
	t.Helper()
	if !strings.Contains(plan, index) || strings.Contains(plan, "Sort") || strings.Contains(plan, "Seq Scan on tasks ") || strings.Contains(plan, "Seq Scan on task_history ") {
		t.Errorf("%s is not in the order of %s:\n%s", name, index, plan)
	}
}

// A list is the same whatever the page, and its seq is the read model's.
func TestPages(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 100)
	r := NewReader(pool)
	for _, f := range []TaskFilter{
		{Status: StatusAll, Sort: SortCreatedAt, Order: Descending},
		{Status: StatusCompleted, Sort: SortUpdatedAt, Order: Ascending},
		{Status: StatusPending, Sort: SortTitle, Order: Ascending, Search: "ASK"},
	} {
		whole, err := r.Tasks(t.Context(), "u", f)
		if err != nil || whole.More || whole.Seq != 100 || len(whole.Tasks) == 0 {
			t.Fatalf("%+v: %d tasks, more %t, seq %d, %v", f, len(whole.Tasks), whole.More, whole.Seq, err)
		}
		var paged []uuid.UUID
		f.Limit = 7
		for more := true; more; {
			page, err := r.Tasks(t.Context(), "u", f)
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range page.Tasks {
				paged = append(paged, task.ID)
			}
			after := f.Cursor(page.Tasks[len(page.Tasks)-1])
			f.After, more = &after, page.More
		}
		var want []uuid.UUID
		for _, task := range whole.Tasks {
			want = append(want, task.ID)
		}
		if !slices.Equal(paged, want) {
			t.Errorf("%+v: pages give %d tasks, the whole %d", f, len(paged), len(want))
		}
	}
}

func TestNobodysListIsEmptyAtZero(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 10)
	r := NewReader(pool)
	page, err := r.Tasks(t.Context(), "nobody", TaskFilter{Sort: SortCreatedAt})
	if err != nil || page.Tasks == nil || len(page.Tasks) != 0 || page.Seq != 0 {
		t.Errorf("%+v, %v", page, err)
	}
	empty, err := r.Tasks(t.Context(), "u", TaskFilter{Sort: SortCreatedAt, Search: "nothing like it"})
	if err != nil || len(empty.Tasks) != 0 || empty.Seq != 10 {
		t.Errorf("an empty list of a user at 10: %+v, %v", empty, err)
	}
}

// Row level security is a second lock: a query that forgot its user sees that user's rows and no others, and where nobody is named
// none at all. It holds for every read model, also after a rebuild (projections, TestARebuiltTableIsTheSameTable).
func TestAQueryThatForgetsItsUserSeesNobodyElse(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	fill(t, pool, 10)
	r := NewReader(pool)
	for _, table := range []string{"tasks", "tasks_users", "task_history", "task_history_users"} {
		for user, want := range map[string]string{"u": "u", "v": "v", "nobody": "", "": ""} {
			var seen string
			err := r.read(t.Context(), user, func(b *pgx.Batch) {
				b.Queue(`SELECT coalesce(string_agg(DISTINCT user_id, ' '), '') FROM ` + table).QueryRow(func(row pgx.Row) error { return row.Scan(&seen) })
			})
			if err != nil || seen != want {
				t.Errorf("%s for %q: sees %q, %v; want %q", table, user, seen, err, want)
			}
		}
		if _, err := pool.Exec(t.Context(), `BEGIN; SET LOCAL ROLE taskledger_reader; SELECT FROM `+table+`; COMMIT`); err != nil {
			t.Errorf("%s: %v", table, err)
		}
	}
	for _, forbidden := range []string{`SELECT FROM task_events`, `SELECT FROM projection_checkpoints`, `DELETE FROM tasks`, `UPDATE tasks SET title = 'x'`} {
		if _, err := pool.Exec(t.Context(), `BEGIN; SET LOCAL ROLE taskledger_reader; `+forbidden+`; COMMIT`); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %v", forbidden, err)
		}
	}
	// The role and the name last no longer than the question.
	var role, name string
	if err := pool.QueryRow(t.Context(), `SELECT current_user, coalesce(current_setting('app.user_id', true), '')`).Scan(&role, &name); err != nil || role == "taskledger_reader" || name != "" {
		t.Errorf("after it: %q, %q, %v", role, name, err)
	}
}

// What row level security costs: the same questions as the reader asks them, and as the owner of the tables would.
func BenchmarkRowLevelSecurity(b *testing.B) {
	pool := testdb.New(b)
	fill(b, pool, 1000)
	r := NewReader(pool)
	list, listArgs := TaskFilter{Status: StatusAll, Sort: SortCreatedAt, Order: Descending, Limit: 20}.sql("u")
	one, oneArgs := `SELECT `+taskColumns+` FROM tasks t WHERE t.user_id = $1 AND t.id = (SELECT id FROM tasks WHERE user_id = $1 LIMIT 1)`, []any{"u"}
	for name, ask := range map[string]func(batch *pgx.Batch){
		"get":  func(batch *pgx.Batch) { batch.Queue(one, oneArgs...) },
		"list": func(batch *pgx.Batch) { batch.Queue(list, listArgs...) },
	} {
		queue := func(batch *pgx.Batch) {
			queueHead(batch, "tasks", "u", &Head{})
			ask(batch)
		}
		b.Run(name+"/with", func(b *testing.B) {
			for b.Loop() {
				if err := r.read(b.Context(), "u", queue); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/without", func(b *testing.B) {
			for b.Loop() {
				batch := &pgx.Batch{}
				queue(batch)
				if err := pool.SendBatch(b.Context(), batch).Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
