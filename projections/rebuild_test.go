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
)

// projected is a process whose users have histories that the read models show.
func projected(t *testing.T, n int) *process {
	t.Helper()
	p := writer(t, newDB(t))
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
	"a title": {`UPDATE {schema}.tasks SET body = 'x' WHERE user_id = 'user-01' AND is_completed`,
		[]string{`tasks: user="user-01" task=% member=body expected="%second%" found="x"`}},
	"a search text": {`UPDATE {schema}.tasks SET search = 'x' WHERE user_id = 'user-01' AND is_completed`,
		[]string{`member=search expected="second" found="x"`}},
	"several members": {
		`UPDATE {schema}.tasks SET version = 9, is_completed = false WHERE user_id = 'user-01' AND is_completed`,
		[]string{`member=version expected=3 found=9`, `member=is_completed expected=true found=false`},
	},
	"a time": {`UPDATE {schema}.tasks SET deleted_at = NULL WHERE user_id = 'user-01' AND deleted_at IS NOT NULL`,
		[]string{`member=deleted_at expected=20% found=null`}},
	"a row lost": {`DELETE FROM {schema}.tasks WHERE user_id = 'user-01' AND is_completed`,
		[]string{`tasks: user="user-01" task=% member=row expected=a row found=none`}},
	"a row added": {
		`INSERT INTO {schema}.tasks SELECT user_id, gen_random_uuid(), version, is_completed, created_at, updated_at,
			deleted_at, title_key, search, body FROM {schema}.tasks WHERE user_id = 'user-01' AND is_completed`,
		[]string{`user="user-01" task=% member=row expected=none found=a row`},
	},
	"a user's seq": {`UPDATE {schema}.users SET seq = 5 WHERE user_id = 'user-01'`,
		[]string{`users: user="user-01" task= member=seq expected=6 found=5`}},
	"a user's live tasks": {`UPDATE {schema}.users SET live = 5 WHERE user_id = 'user-01'`,
		[]string{`users: user="user-01" task= member=live expected=1 found=5`}},
	"a user's hash": {`UPDATE {schema}.users SET hash = '\x00' WHERE user_id = 'user-01'`,
		[]string{`users: user="user-01" task= member=hash expected=% found=00`}},
	"a user lost": {`DELETE FROM {schema}.users WHERE user_id = 'user-01'`,
		[]string{`users: user="user-01" task= member=row expected=a row found=none`}},
	"strangers": {
		`INSERT INTO {schema}.users (user_id, seq, live, hash) VALUES ('user-011', 1, 0, ''), ('zz', 2, 0, '')`,
		[]string{
			`user="user-011" task= member=row expected=none found=a row`,
			`user="zz" task= member=row expected=none found=a row`,
		},
	},
	"a stranger's rows": {
		`INSERT INTO {schema}.task_history SELECT 'aa', seq, task_id, type, recorded_at, actor, request_id,
			changes, hash, version, title, description, is_completed, created_at, updated_at, deleted_at
			FROM {schema}.task_history WHERE user_id = 'user-01' AND seq = 1`,
		[]string{`task_history: user="aa" task=% seq=1 member=row expected=none found=a row`},
	},
	"a change": {
		`UPDATE {schema}.task_history SET changes = '{}' WHERE user_id = 'user-01' AND seq = 4`,
		[]string{
			`task_history: user="user-01" task=% seq=4 member=changes ` +
				`expected="{\"title\":{\"from\":\"first of user-01\",\"to\":\"renamed\"}}" found="{}"`,
		},
	},
	"a hash": {`UPDATE {schema}.task_history SET hash = '\x00' WHERE user_id = 'user-01' AND seq = 4`,
		[]string{`task_history: user="user-01" task=% seq=4 member=hash expected=% found=00`}},
	"the last entries": {`DELETE FROM {schema}.task_history WHERE user_id = 'user-02' AND seq > 4`,
		[]string{`seq=5 member=row expected=a row found=none`, `seq=6 member=row`}},
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
			if _, err := Rebuild(t.Context(), p.db, "", nil); err != nil {
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
	p.exec(`UPDATE {schema}.tasks SET body = 'x' WHERE user_id <> 'user-00'`)
	p.exec(`DELETE FROM {schema}.task_history WHERE user_id = 'user-01'`)
	if lines, report := p.differences(
		"user-00",
	); len(lines) != 0 || report.Users != 1 || report.Events != 6 ||
		report.Rows != 9 {
		t.Errorf("user-00: %q, %+v", lines, report)
	}
	if lines, _ := p.differences("user-01"); len(lines) != 2+6 {
		t.Errorf("user-01: %q", lines)
	}
	report, err := RebuildUser(t.Context(), p.db, "user-01")
	if err != nil || report.Events != 6 || report.Rows != 9 {
		t.Fatalf("%+v, %v", report, err)
	}
	if lines, _ := p.differences(""); len(lines) != 2 || !strings.Contains(lines[0], "user-02") {
		t.Errorf("after the rebuild of user-01: %q", lines)
	}
	if report, err := RebuildUser(t.Context(), p.db, "nobody"); !errors.Is(err, ErrUnknownUser) || report.Rows != 0 {
		t.Errorf("nobody: %+v, %v", report, err)
	}
	p.exec(`UPDATE {schema}.checkpoints SET position = 0`)
	p.exec(`DELETE FROM {schema}.tasks; DELETE FROM {schema}.task_history; DELETE FROM {schema}.users`)
	if report, err := RebuildUser(t.Context(), p.db, "user-01"); err != nil || report.Rows != 0 {
		t.Errorf("a user who is not shown yet: %+v, %v", report, err)
	}
	p.exec(`INSERT INTO {schema}.users (user_id, seq, live, hash) VALUES ('stray', 1, 0, '')`)
	if report, err := RebuildUser(t.Context(), p.db, "stray"); err != nil || report.Rows != 0 {
		t.Errorf("a row of nobody's: %+v, %v", report, err)
	}
}

// A user with more events than a chunk is written chunk by chunk.
func TestARebuildOfALongStream(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	task := uuid.New()
	p.append("user-00", task, events.TaskCreated{Title: "a"})
	var last int64
	for n := range 5 {
		data := make([]events.Data, 500)
		for i := range data {
			data[i] = events.TaskRenamed{Title: fmt.Sprint(n, i)}
		}
		last = p.append("user-00", task, data...)
	}
	p.visible(last)
	p.exec(`DELETE FROM {schema}.task_history; DELETE FROM {schema}.users; UPDATE {schema}.tasks SET body = 'x'`)
	if report, err := RebuildUser(t.Context(), p.db, "user-00"); err != nil || report.Events != 2507 {
		t.Fatalf("%+v, %v", report, err)
	}
	if report := p.verified(); report.Rows != 2507+3+1 {
		t.Errorf("%+v", report)
	}
}

func TestVerifyFindsAGapInTheLog(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	for gap, want := range []string{"expected=5 found=6", "expected=1 found=3"} {
		p.exec(`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER;
			DELETE FROM {schema}.task_events WHERE seq ` + []string{"= 5", "< 3"}[gap])
		lines, _ := p.differences("")
		if len(lines) == 0 || !matches(lines[0], `task_events: user="user-00" task= member=seq `+want) {
			t.Errorf("want %s, got %q", want, lines)
		}
	}
}

func TestBeingBehindIsNoDifference(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	for _, user := range users(3) {
		p.someHistory(user)
	}
	if report := p.verified(); report.Users != 3 || report.Events != 18 || report.Rows != 0 {
		t.Errorf("%+v", report)
	}
}

func TestRebuildTellsOfItsProgress(t *testing.T) {
	t.Parallel()
	p := projected(t, 2)
	var told []int64
	report, err := Rebuild(t.Context(), p.db, Name, func(done, total int64) { told = append(told, done, total) })
	if err != nil || report.Events != 12 || report.Rows != 2*9 || !slices.Equal(told, []int64{12, 12}) {
		t.Errorf("progress %v, %+v, %v", told, report, err)
	}
	if _, err := Rebuild(t.Context(), p.db, "none", nil); !errors.Is(err, ErrUnknownProjection) {
		t.Errorf("an unknown projection: %v", err)
	}
}

// What an operator does to the read model is done by one at a time, or one would undo the other's work.
func TestMaintenanceIsDoneByOneAtATime(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	all := map[string]func() error{
		"rebuild":        func() error { _, err := Rebuild(t.Context(), p.db, "", nil); return err },
		"rebuild --user": func() error { _, err := RebuildUser(t.Context(), p.db, "user-00"); return err },
		"parked retry":   func() error { _, err := RetryParked(t.Context(), p.db, ""); return err },
		"parked skip":    func() error { _, err := SkipParked(t.Context(), p.db, "user-00"); return err },
	}
	err := maintain(t.Context(), p.db, 1, func() error {
		for name, work := range all {
			if err := work(); !errors.Is(err, ErrMaintenance) {
				t.Errorf("%s beside another: %v", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, work := range all {
		if err := work(); err != nil && !errors.Is(err, ErrNotParked) {
			t.Errorf("%s after it: %v", name, err)
		}
	}
}

// Tables that were dropped or damaged are there again after a rebuild.
func TestARebuildBringsLostTablesBack(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"a table":        `DROP TABLE {schema}.tasks`,
		"all tables":     `DROP TABLE {schema}.tasks, {schema}.task_history, {schema}.users`,
		"a column":       `ALTER TABLE {schema}.tasks DROP COLUMN body`,
		"a column more":  `ALTER TABLE {schema}.users ADD COLUMN x text NOT NULL DEFAULT ''`,
		"an index":       `DROP INDEX {schema}.tasks_by_created_at`,
		"the protection": `ALTER TABLE {schema}.tasks DISABLE ROW LEVEL SECURITY`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := projected(t, 2)
			before := value[string](p, shape)
			p.exec(damage)
			if _, err := Rebuild(t.Context(), p.db, "", nil); err != nil {
				t.Fatal(err)
			}
			p.verified()
			if after := value[string](p, shape); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			p.visible(p.append("user-01", uuid.New(), events.TaskCreated{Title: "goes on"}))
			p.verified()
		})
	}
}

// shape is everything of the ledger's tables but their rows.
const shape = `
	SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT indexdef AS line FROM pg_indexes WHERE schemaname = 'taskledger'
		UNION ALL
		SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
		FROM pg_constraint WHERE connamespace = 'taskledger'::regnamespace
		UNION ALL
		SELECT table_name || ' ' || ordinal_position || ' ' || column_name || ' ' || data_type || ' '
			|| is_nullable || ' ' || coalesce(collation_name, '')
		FROM information_schema.columns WHERE table_schema = 'taskledger'
		UNION ALL
		SELECT relname || ' ' || relrowsecurity || ' ' || relforcerowsecurity || ' '
			|| coalesce(relacl::text, '') || ' ' || coalesce(reloptions::text, '')
		FROM pg_class WHERE relnamespace = 'taskledger'::regnamespace AND relkind = 'r'
		UNION ALL
		SELECT polrelid::regclass || ' ' || polname || ' ' || polcmd::text || ' ' || pg_get_expr(polqual, polrelid)
		FROM pg_policy
		UNION ALL
		SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%'
	) lines`

// The rows of a table are of a type with its columns, in the order in which they are written: or one would be taken for
// another.
func TestRowsHaveTheColumnsOfTheirType(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	for _, table := range readModelTables {
		columns := func(relation string) string {
			return value[string](p, fmt.Sprintf(`
				SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum)
				FROM pg_attribute
				WHERE attrelid = '{schema}.%s'::regclass AND attnum > 0`, relation))
		}
		if typ, stored := columns("row_of_"+table.name), columns(table.name); typ != stored {
			t.Errorf("%s:\n%s, its rows:\n%s", table.name, stored, typ)
		}
		var names []string
		for _, column := range strings.Split(columns("row_of_"+table.name), ", ") {
			name, _, _ := strings.Cut(column, " ")
			names = append(names, name)
		}
		if !slices.Equal(names, table.columns) {
			t.Errorf("%s: %v are written, of %v", table.name, table.columns, names)
		}
	}
}

// A rebuild leaves everything of the tables but their rows as it was: keys, indexes, constraints, row level security.
func TestARebuiltTableIsTheSameTable(t *testing.T) {
	t.Parallel()
	p := projected(t, 2)
	before := value[string](p, shape)
	if strings.Count(before, "taskledger.ledger") < 3 || strings.Count(before, "taskledger.user_id") < 3 {
		t.Fatalf("no policies:\n%s", before)
	}
	for range 2 {
		if _, err := Rebuild(t.Context(), p.db, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	if after := value[string](p, shape); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if n := value[int64](p, `SELECT count(*) FROM {schema}.checkpoints`); n != 1 {
		t.Errorf("%d checkpoints are left", n)
	}
}

// While a rebuild swaps, writers write and readers read: nobody sees less than there was before, and nothing is lost.
func TestNobodyNoticesARebuild(t *testing.T) {
	t.Parallel()
	p := projected(t, 20)
	p.visible(p.erase("user-01"))
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
				for _, table := range []string{"taskledger.tasks", "taskledger.task_history"} {
					if n := value[int64](p, `SELECT count(*) FROM `+table+` WHERE user_id = 'writer'`); n < atLeast {
						t.Errorf("%s shows %d rows, it has shown %d", table, n, atLeast)
					}
				}
			}
		})
	}
	for range 5 {
		if _, err := Rebuild(t.Context(), p.db, "", nil); err != nil {
			t.Error(err)
		}
		if _, err := RebuildUser(t.Context(), p.db, "writer"); err != nil {
			t.Error(err)
		}
	}
	stop()
	work.Wait()
	if report := p.verified(); report.Events < 120+5 {
		t.Errorf("%+v", report)
	}
	// Whatever was remembered of a user's rows before they were made anew is good for nothing any more.
	if n := value[int64](p, `
		SELECT count(*)
		FROM {schema}.users
		WHERE generation <> CASE user_id WHEN 'writer' THEN 10 ELSE 9 END`); n > 0 {
		t.Errorf("%d users have another generation than that of the last rebuild", n)
	}
}

// One snapshot: while writers write and two processes project, verify sees the read models where they stand, and
// nothing wrong.
func TestVerifyRaisesNoFalseAlarm(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p, other := writer(t, db), writer(t, db)
	p.run()
	other.run()
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for w, process := range []*process{p, other} {
		work.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				process.append(
					fmt.Sprintf("user %d of %d", n%7, w),
					uuid.New(),
					events.TaskCreated{Title: fmt.Sprint(n)},
					events.TaskCompleted{},
				)
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

// The checkpoint says which version of the code made the tables, and when rows of several versions are in them.
func TestTheVersionOfTheTables(t *testing.T) {
	t.Parallel()
	p := projected(t, 1)
	made := func() int {
		t.Helper()
		made, program, err := Versions(t.Context(), p.db)
		if err != nil || program != version {
			t.Fatal(program, err)
		}
		return made
	}
	if made() != version {
		t.Errorf("a new ledger is of version %d: a migration must say otherwise", made())
	}
	if _, err := RebuildOutdated(t.Context(), p.db, nil); !errors.Is(err, ErrCurrent) {
		t.Errorf("a rebuild without need: %v", err)
	}
	for name, write := range map[string]func(){
		"a batch":        func() { _, _, last := p.someHistory("v"); p.visible(last) },
		"rebuild --user": func() { _, _ = RebuildUser(t.Context(), p.db, "user-00") },
	} {
		p.exec(`UPDATE {schema}.checkpoints SET version = $1`, version+1)
		write()
		if made() != 0 {
			t.Errorf("after %s the tables are of version %d", name, made())
		}
		if _, err := RebuildOutdated(t.Context(), p.db, nil); err != nil || made() != version {
			t.Errorf("after a rebuild the tables are of version %d: %v", made(), err)
		}
	}
}
