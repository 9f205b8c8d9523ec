package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

// projected is a process whose users have histories that the read models show.
func projected(t *testing.T, n int) *process {
	t.Helper()
	p := writer(t, testdb.New(t))
	p.run()
	var last int64
	for _, user := range users(n) {
		_, _, last = p.someHistory(user)
	}
	p.visible(last)
	return p
}

// broken are ways to break the read models by hand, and what verify must say of them.
var broken = map[string]struct {
	sql   string
	lines []string // a part of each line, in order
}{
	"a title": {`UPDATE tasks SET title = 'x' WHERE user_id = 'user-01' AND is_completed`,
		[]string{`tasks: user="user-01" task=% member=title expected="second" found="x"`}},
	"a search text": {`UPDATE tasks SET search = 'x' WHERE user_id = 'user-01' AND is_completed`, []string{`member=search expected="second" found="x"`}},
	"several members": {`UPDATE tasks SET version = 9, is_completed = false, description = '' WHERE user_id = 'user-01' AND is_completed`,
		[]string{`member=version expected=3 found=9`, `member=description expected=null found=""`, `member=is_completed expected=true found=false`}},
	"a time":       {`UPDATE tasks SET deleted_at = NULL WHERE user_id = 'user-01' AND deleted_at IS NOT NULL`, []string{`member=deleted_at expected=20% found=null`}},
	"a row lost":   {`DELETE FROM tasks WHERE user_id = 'user-01' AND is_completed`, []string{`tasks: user="user-01" task=% member=row expected=a row found=none`}},
	"a row added":  {`INSERT INTO tasks SELECT user_id, gen_random_uuid(), version, title, description, is_completed, created_at, updated_at, deleted_at, title_key, search FROM tasks WHERE user_id = 'user-01' AND is_completed`, []string{`user="user-01" task=% member=row expected=none found=a row`}},
	"a user's seq": {`UPDATE tasks_users SET seq = 5 WHERE user_id = 'user-01'`, []string{`tasks: user="user-01" task= member=seq expected=6 found=5`}},
	"a user lost":  {`DELETE FROM task_history_users WHERE user_id = 'user-01'`, []string{`task_history: user="user-01" task= member=seq expected=6 found=none`}},
	"a stranger": {`INSERT INTO tasks_users (user_id, seq) VALUES ('user-011', 1), ('zz', 2)`,
		[]string{`user="user-011" task= member=seq expected=none found=1`, `user="zz" task= member=seq expected=none found=2`}},
	"a stranger's rows": {`INSERT INTO task_history SELECT 'aa', seq, task_id, type, actor, request_id, recorded_at, changes, title, description, is_completed, created_at, deleted_at FROM task_history WHERE user_id = 'user-01' AND seq = 1`,
		[]string{`task_history: user="aa" task=% member=row expected=none found=a row`}},
	"a change": {`UPDATE task_history SET changes = '{}' WHERE user_id = 'user-01' AND seq = 4`,
		[]string{`task_history: user="user-01" task=% seq=4 member=changes expected="{\"title\":{\"from\":\"first of user-01\",\"to\":\"renamed\"}}" found="{}"`}},
	"the last entries": {`DELETE FROM task_history WHERE user_id = 'user-02' AND seq > 4`, []string{`seq=5 member=row expected=a row found=none`, `seq=6 member=row`}},
}

// matches tells whether the line has the pattern in it, where % is anything.
func matches(line, pattern string) bool {
	for _, part := range strings.Split(pattern, "%") {
		i := strings.Index(line, part)
		if i < 0 {
			return false
		}
		line = line[i+len(part):]
	}
	return true
}

func TestVerifyNamesWhatIsBrokenAndRebuildMendsIt(t *testing.T) {
	t.Parallel()
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := projected(t, 3)
			p.verified()
			if p.exec(b.sql) == 0 {
				t.Fatal("nothing was broken")
			}
			lines, report := p.differences("")
			if len(lines) != len(b.lines) || report.Differences != int64(len(lines)) {
				t.Fatalf("got %q, want %q", lines, b.lines)
			}
			for i, line := range lines {
				if !matches(line, b.lines[i]) {
					t.Errorf("got  %s\nwant %s", line, b.lines[i])
				}
			}
			if _, err := Rebuild(t.Context(), p.pool, "", nil); err != nil {
				t.Fatal(err)
			}
			p.verified()
			p.visible(p.append("user-01", uuid.New(), events.TaskCreated{Title: "goes on"}))
			p.verified()
		})
	}
}

func TestVerifyAndRebuildOfOneUser(t *testing.T) {
	t.Parallel()
	p := projected(t, 3)
	p.exec(`UPDATE tasks SET title = 'x' WHERE user_id <> 'user-00'`)
	p.exec(`DELETE FROM task_history WHERE user_id = 'user-01'`)
	if lines, report := p.differences("user-00"); len(lines) != 0 || report.Users != 1 || report.Events != 6 || report.Rows != 8 {
		t.Errorf("user-00: %q, %+v", lines, report)
	}
	if lines, _ := p.differences("user-01"); len(lines) != 2+6 {
		t.Errorf("user-01: %q", lines)
	}
	report, err := RebuildUser(t.Context(), p.pool, "", "user-01")
	if err != nil || report.Events != 12 {
		t.Fatalf("%+v, %v", report, err)
	}
	if lines, _ := p.differences(""); len(lines) != 2 || !strings.Contains(lines[0], "user-02") {
		t.Errorf("after the rebuild of user-01: %q", lines)
	}
	if _, err := RebuildUser(t.Context(), p.pool, "tasks", "nobody"); err != nil {
		t.Errorf("nobody: %v", err)
	}
}

func TestVerifyFindsAGapInTheLog(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	p.seqs["user-00"]++
	p.append("user-00", uuid.New(), events.TaskCreated{Title: "after a gap"})
	lines, _ := p.differences("")
	if len(lines) == 0 || !matches(lines[0], `task_events: user="user-00" task= member=seq expected=7 found=8`) {
		t.Errorf("got %q", lines)
	}
}

func TestBeingBehindIsNoDifference(t *testing.T) {
	t.Parallel()
	p := writer(t, testdb.New(t))
	for _, user := range users(3) {
		p.someHistory(user)
	}
	if report := p.verified(); report.Users != 3 || report.Events != 18 || report.Rows != 0 {
		t.Errorf("%+v", report)
	}
}

func TestRebuildOfOneProjection(t *testing.T) {
	t.Parallel()
	p := projected(t, 2)
	p.exec(`UPDATE tasks SET title = 'x'`)
	p.exec(`UPDATE task_history SET title = 'x' WHERE seq = 1`)
	var told []int64
	if _, err := Rebuild(t.Context(), p.pool, "tasks", func(done, total int64) { told = append(told, done, total) }); err != nil {
		t.Fatal(err)
	}
	if lines, _ := p.differences(""); len(lines) != 2 || !strings.Contains(lines[0], "task_history") {
		t.Errorf("got %q", lines)
	}
	if !slices.Equal(told, []int64{12, 12}) {
		t.Errorf("progress %v", told)
	}
	if _, err := Rebuild(t.Context(), p.pool, "none", nil); !errors.Is(err, ErrUnknownProjection) {
		t.Errorf("an unknown projection: %v", err)
	}
}

func TestOneRebuildAtATime(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	release, err := lockRebuild(t.Context(), p.pool)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Rebuild(t.Context(), p.pool, "", nil); !errors.Is(err, ErrRebuildRunning) {
		t.Errorf("a second rebuild: %v", err)
	}
	release()
	if _, err := Rebuild(t.Context(), p.pool, "", nil); err != nil {
		t.Error(err)
	}
}

// A rebuild leaves everything of the tables but their rows as it was: keys, indexes, constraints, defaults.
func TestARebuiltTableIsTheSameTable(t *testing.T) {
	t.Parallel()
	p := projected(t, 2)
	const shape = `
		SELECT string_agg(line, E'\n' ORDER BY line) FROM (
			SELECT indexdef AS line FROM pg_indexes WHERE schemaname = 'public'
			UNION ALL
			SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
			UNION ALL
			SELECT table_name || ' ' || ordinal_position || ' ' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(collation_name, '')
			FROM information_schema.columns WHERE table_schema = 'public'
			UNION ALL
			SELECT relname || ' ' || relrowsecurity || ' ' || coalesce(array_to_string(ARRAY(SELECT acl::text FROM unnest(relacl) acl ORDER BY 1), ','), '')
			FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
			UNION ALL
			SELECT polrelid::regclass || ' ' || polname || ' ' || polcmd::text || ' ' || pg_get_expr(polqual, polrelid) FROM pg_policy
			UNION ALL
			SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%'
		) lines`
	before := value[string](p, shape)
	if !strings.Contains(before, "taskledger_reader") || !strings.Contains(before, "app.user_id") {
		t.Fatalf("no grants or policies:\n%s", before)
	}
	for range 2 {
		if _, err := Rebuild(t.Context(), p.pool, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	if after := value[string](p, shape); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// While a rebuild swaps, writers write and readers read: nobody sees less than there was before, and nothing is lost.
func TestNobodyNoticesARebuild(t *testing.T) {
	t.Parallel()
	p := projected(t, 20)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var shown atomic.Int64
	work.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			p.visible(p.append("writer", uuid.New(), events.TaskCreated{Title: fmt.Sprint(n)}))
			shown.Add(1)
		}
	})
	for range 2 {
		work.Go(func() {
			for ctx.Err() == nil {
				atLeast := shown.Load()
				for _, table := range []string{"tasks", "task_history"} {
					if n := value[int64](p, `SELECT count(*) FROM `+table+` WHERE user_id = 'writer'`); n < atLeast {
						t.Errorf("%s shows %d rows, it has shown %d", table, n, atLeast)
					}
				}
			}
		})
	}
	for range 5 {
		if _, err := Rebuild(t.Context(), p.pool, "", nil); err != nil {
			t.Error(err)
		}
		if _, err := RebuildUser(t.Context(), p.pool, "", "writer"); err != nil {
			t.Error(err)
		}
	}
	stop()
	work.Wait()
	if report := p.verified(); report.Events < 120+5 {
		t.Errorf("%+v", report)
	}
}

// One snapshot: while writers write and two processes project, verify sees the read models where they stand, and nothing wrong.
func TestVerifyRaisesNoFalseAlarm(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	p, other := writer(t, pool), writer(t, pool)
	p.run()
	other.run()
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for w, process := range []*process{p, other} {
		work.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				process.append(fmt.Sprintf("user %d of %d", n%7, w), uuid.New(), events.TaskCreated{Title: fmt.Sprint(n)}, events.TaskCompleted{})
			}
		})
	}
	behind := 0
	for range 20 {
		report := p.verified()
		if report.Rows < report.Events+report.Events/2 { // two events a task: so many rows when all is projected
			behind++
		}
	}
	stop()
	work.Wait()
	if behind == 0 {
		t.Log("the read models were never behind")
	}
}
