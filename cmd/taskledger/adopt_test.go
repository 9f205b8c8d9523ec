package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"taskledger/migrations/testdb"
)

// sqlModel is what a backend of FastAPI and SQLModel makes.
const sqlModel = `
	CREATE TABLE "user" (id varchar PRIMARY KEY, email varchar);
	CREATE TABLE task (
		id uuid PRIMARY KEY,
		title varchar NOT NULL,
		description varchar,
		is_completed boolean NOT NULL,
		user_id varchar REFERENCES "user" (id),
		created_at timestamp,
		updated_at timestamp
	);
	INSERT INTO "user" VALUES ('ann'), ('bob'), ('eve')`

// site is a database that another backend was on.
type site struct {
	t   *testing.T
	url string
	env []string
}

func openSite(t *testing.T, sql string) *site {
	t.Helper()
	s := &site{t: t, url: testdb.URL(t)}
	s.env = []string{"DATABASE_URL=" + s.url, "BETTER_AUTH_SECRET=" + serveSecret}
	s.exec(sql)
	return s
}

// public is the URL for statements whose tables are in public: the role's own schema, which would come first, is the
// ledger's.
func (s *site) public() string { return s.url + "&search_path=public" }

func (s *site) exec(sql string) {
	s.t.Helper()
	execute(s.t, s.public(), sql)
}

// ask gives the only value of a query, as text.
func (s *site) ask(sql string) string {
	s.t.Helper()
	return value[string](s.t, s.public(), `SELECT (`+sql+`)::text`)
}

// run runs a command, which must exit with code.
func (s *site) run(code int, args ...string) outcome {
	s.t.Helper()
	got := finish(s.t, program(s.t, s.env, args...))
	if got.code != code {
		s.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got.code, code, got.stdout, got.stderr)
	}
	return got
}

// adopt runs adopt and then verify, and wants these lines of what adopt prints.
func (s *site) adopt(args []string, want ...string) {
	s.t.Helper()
	got := s.run(0, append([]string{"adopt"}, args...)...)
	for _, line := range want {
		if !strings.Contains(got.stdout, line+"\n") {
			s.t.Errorf("adopt %v prints no line %q but\n%s", args, line, got.stdout)
		}
	}
	s.run(0, "verify")
}

// refuse runs adopt, which must exit with 1 and one line.
func (s *site) refuse(want string, args ...string) {
	s.t.Helper()
	got := s.run(exitFailed, append([]string{"adopt"}, args...)...)
	if got.stdout != "" || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, want) {
		s.t.Errorf("adopt %v: %q, %q, want one line with %q", args, got.stdout, got.stderr, want)
	}
}

// notice starts a server, stops it, and gives the lines it logged about another backend.
func (s *site) notice() (lines []string) {
	s.t.Helper()
	server := startServer(s.t, s.env...)
	server.terminate()
	for line := range strings.Lines(server.stderr.String()) {
		if strings.Contains(line, "another backend") {
			lines = append(lines, line)
		}
	}
	return lines
}

func (s *site) wantNotice(table string) {
	s.t.Helper()
	lines := s.notice()
	want := "table=" + table + ` command="taskledger adopt"`
	if len(lines) != 1 || !strings.Contains(lines[0], want) {
		s.t.Errorf("the start says %q, want one line with %s", lines, want)
	}
}

func (s *site) wantSilence() {
	s.t.Helper()
	if lines := s.notice(); len(lines) > 0 {
		s.t.Errorf("the start says %q", lines)
	}
}

// wantList reads a user's tasks, of which the named members must be as they are in want.
func (s *served) wantList(user string, want []map[string]any) {
	s.t.Helper()
	status, tasks, err := s.list(user)
	if err != nil || status != 200 || len(tasks) != len(want) {
		s.t.Fatalf("the list: %d %v %v", status, tasks, err)
	}
	for i := range want {
		for member, value := range want[i] {
			if tasks[i][member] != value {
				s.t.Errorf("task %d has %s %v, want %v", i, member, tasks[i][member], value)
			}
		}
	}
}

// The way of who replaces a backend: the start tells, a dry run tells more, adopt takes over, the frontend shows it.
func TestAdoptTakesOverTheTasksOfTheBackendBefore(t *testing.T) {
	t.Parallel()
	s := openSite(t, sqlModel+`;
		INSERT INTO task VALUES
			('0b000000-0000-4000-8000-000000000002', 'second', 'two', true, 'ann',
				'2024-03-01 10:00:00.5', '2024-03-02 11:00:00.123456'),
			('0b000000-0000-4000-8000-000000000009', 'first', NULL, false, 'ann',
				'2024-02-29 23:59:59.999999', '2024-03-05'),
			('0b000000-0000-4000-8000-000000000004', 'fourth', NULL, false, 'ann', '2024-03-01 10:00:01', '2024-03-02'),
			('0b000000-0000-4000-8000-000000000003', 'third', NULL, false, 'ann', '2024-03-01 10:00:01', '2024-03-02'),
			('0b000000-0000-4000-8000-000000000005', 'of bob', NULL, false, 'bob', '2024-03-01', '2024-03-01')`)
	s.wantNotice("public.task")
	server := startServer(t, s.env...)
	own := server.must(201, "ann", "POST", "/api/tasks", `{"title":"my own"}`)
	heard, stream := &lockedBuffer{}, server.stream("bob")
	go func() { _, _ = io.Copy(heard, stream) }() // until the end of the test
	s.adopt([]string{"--dry-run"}, "table          public.task", "rows           5, of 2 users",
		"to adopt       5", "there already  0", "left out       0")
	if n := s.ask(`SELECT count(*) FROM taskledger.task_events`); n != "1" {
		t.Errorf("a dry run left %s events", n)
	}
	const fingerprint = `SELECT md5(string_agg(t::text || ctid::text || xmin::text, '|' ORDER BY id)) FROM task t`
	before := s.ask(fingerprint)

	s.adopt(nil, "rows           5, of 2 users", "adopted        5")
	server.wantList("ann", []map[string]any{
		{"title": "my own", "id": own["id"], "version": 1.0},
		{"title": "fourth", "version": 5.0}, {"title": "third", "version": 4.0},
		{"title": "second", "version": 3.0, "id": "0b000000-0000-4000-8000-000000000002", "user_id": "ann",
			"description": "two", "is_completed": true,
			"created_at": "2024-03-01T10:00:00.500000Z", "updated_at": "2024-03-02T11:00:00.123456Z"},
		{"title": "first", "version": 2.0, "description": nil, "is_completed": false,
			"created_at": "2024-02-29T23:59:59.999999Z", "updated_at": "2024-03-05T00:00:00.000000Z"},
	})
	s.await(func() bool {
		return strings.Contains(heard.String(), "event: task.created") && strings.Contains(heard.String(), "of bob")
	})
	if n := s.ask(`SELECT count(*) FROM taskledger.task_history
		WHERE type = 'TaskImported' AND actor = 'system' AND request_id ~ '^adopt-[A-Za-z0-9._-]{1,58}$'
		AND changes LIKE '%"title":{"from":null%'`); n != "5" {
		t.Errorf("%s entries of the history tell how they came", n)
	}
	if s.ask(fingerprint) != before {
		t.Error("the old table has changed")
	}

	takesOnlyWhatIsNew(t, s, server)
	server.terminate()
}

// takesOnlyWhatIsNew adopts again: what was changed or deleted here since stays as it is.
func takesOnlyWhatIsNew(t *testing.T, s *site, server *served) {
	t.Helper()
	server.must(204, "ann", "DELETE", "/api/tasks/0b000000-0000-4000-8000-000000000009", "")
	server.must(200, "ann", "PATCH", "/api/tasks/0b000000-0000-4000-8000-000000000002", `{"title":"renamed here"}`)
	s.wantSilence()
	s.exec(`INSERT INTO task VALUES (gen_random_uuid(), 'late', NULL, false, 'ann', now(), now())`)
	s.wantNotice("public.task")
	s.adopt(nil, "adopted        1", "there already  5")
	s.adopt(nil, "adopted        0", "there already  6")
	server.must(404, "ann", "GET", "/api/tasks/0b000000-0000-4000-8000-000000000009", "")
	task := server.must(200, "ann", "GET", "/api/tasks/0b000000-0000-4000-8000-000000000002", "")
	if task["title"] != "renamed here" {
		t.Errorf("a task that was renamed here is %v", task)
	}
}

// Who was erased is not brought back, not even by rows that came later.
func TestAdoptDoesNotBringBackWhoWasErased(t *testing.T) {
	t.Parallel()
	s := openSite(t, sqlModel+`;
		INSERT INTO task
		SELECT gen_random_uuid(), 'a', NULL, false, u, now(), now() FROM unnest('{ann,bob}'::text[]) u`)
	s.adopt(nil, "adopted        2")
	server := startServer(t, s.env...)
	server.must(204, "ann", "DELETE", "/api/me", "")
	server.must(201, "ann", "POST", "/api/tasks", `{"title":"a new life"}`)
	s.exec(`INSERT INTO task VALUES (gen_random_uuid(), 'late', NULL, false, 'ann', now(), now())`)
	s.wantSilence()
	for _, args := range [][]string{{"--dry-run"}, nil} {
		s.adopt(args, "there already  1", "left out       2: 2 of users who were erased")
	}
	if _, tasks, err := server.list("ann"); err != nil || len(tasks) != 1 {
		t.Errorf("the list: %v %v", tasks, err)
	}
	server.terminate()
}

// A stream with an event that can't be read is left alone, and told of.
func TestAdoptLeavesOutWhoseStreamIsDamaged(t *testing.T) {
	t.Parallel()
	s := openSite(t, sqlModel+`;
		INSERT INTO task
		SELECT gen_random_uuid(), 'a', NULL, false, u, now(), now() FROM unnest('{ann,bob}'::text[]) u;
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'ann', seq, gen_random_uuid(), 'TaskCreated', 1, data::jsonb, gen_random_uuid(), gen_random_uuid(),
			'', '', now()
		FROM (VALUES (1, '{"title":"a","description":null}'), (2, '{"damaged":true}')) e(seq, data)`)
	const left = "left out       1: 1 of users whose stream this program can't read"
	s.adopt([]string{"--dry-run"}, "to adopt       1", left)
	s.adopt(nil, "adopted        1", left)
}

// looseRows are what the code before let through.
const looseRows = `
	CREATE TABLE task (
		id uuid PRIMARY KEY, title varchar, description varchar, is_completed boolean, user_id varchar,
		created_at timestamp, updated_at timestamp
	);
	INSERT INTO task
	SELECT ('0b000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, title, description, NULL, 'ann',
		created_at, created_at
	FROM (VALUES
		(1, '', 'd', timestamp '2024-01-01'),
		(2, U&'\200B \00AD', NULL, '2024-01-01'),
		(3, NULL, NULL, '2024-01-01'),
		(4, repeat('é', 100), repeat(U&'\+01F600', 1000), '2024-01-01'),
		(5, repeat('é', 101), repeat(U&'\+01F600', 1001), '2024-01-01'),
		(6, repeat(' ', 100) || 'far', repeat('d', 3000000), '2024-01-01'),
		(7, 'no time', NULL, NULL),
		(8, 'never', NULL, 'infinity'),
		(9, 'always', NULL, '-infinity'),
		(10, 'before Christ', NULL, '0044-03-15 BC'),
		(11, 'far away', NULL, '10000-01-01'),
		(12, 'the last moment', NULL, '9999-12-31 23:59:59.999999'),
		(13, 'the first one', NULL, '0001-01-01'),
		(14, E'line\nand "quotes" \\ \x7f', NULL, '2024-01-01')
	) rows(n, title, description, created_at);
	INSERT INTO task
	SELECT gen_random_uuid(), 'whose?', NULL, false, user_id, '2024-01-01', '2024-01-01'
	FROM unnest(ARRAY[NULL, '', repeat('u', 256), E'a\nb', U&'a\0085b']) user_id;
	INSERT INTO task VALUES
		('00000000-0000-0000-0000-000000000000', 'nil', NULL, false, 'ann', NULL, NULL),
		(gen_random_uuid(), 'long name', NULL, false, repeat('ü', 127) || 'u', NULL, NULL),
		(gen_random_uuid(), 'endless', repeat('x', 4194304), false, 'ann', NULL, NULL)`

func TestAdoptOfRowsThatNoTaskMayBe(t *testing.T) {
	t.Parallel()
	s := openSite(t, looseRows)
	left := "left out       7: 1 with texts over 4 MiB, 1 without a usable id, 5 without a usable user_id"
	s.adopt([]string{"--dry-run"}, "to adopt       15", "texts cut of   5", left)
	began := time.Now()
	s.adopt(nil, "rows           22, of 2 users", "adopted        15", "texts cut of   5", left)
	s.adopt(nil, "adopted        0", "there already  15", left)

	server := startServer(t, s.env...)
	get := func(n int) map[string]any {
		return server.must(200, "ann", "GET", fmt.Sprintf("/api/tasks/0b000000-0000-4000-8000-%012d", n), "")
	}
	for n, title := range map[int]string{
		1: "Untitled", 2: "Untitled", 3: "Untitled", 6: "Untitled",
		4: strings.Repeat("é", 100), 5: strings.Repeat("é", 100), 14: "line\nand \"quotes\" \\ \x7f",
	} {
		if got := get(n)["title"]; got != title {
			t.Errorf("task %d has the title %q, want %q", n, got, title)
		}
	}
	if get(4)["description"] != strings.Repeat("😀", 1000) || get(5)["description"] != strings.Repeat("😀", 1000) {
		t.Error("descriptions are not cut at a thousand code points")
	}
	for n, at := range map[int]string{12: "9999-12-31T23:59:59.999999Z", 13: "0001-01-01T00:00:00.000000Z"} {
		if got := get(n); got["created_at"] != at || got["updated_at"] != at {
			t.Errorf("task %d is of %v", n, got)
		}
	}
	for _, n := range []int{7, 8, 9, 10, 11} {
		at, err := time.Parse(time.RFC3339Nano, get(n)["created_at"].(string))
		if err != nil || at.Before(began.Add(-time.Minute)) || at.After(time.Now().Add(time.Minute)) {
			t.Errorf("task %d is of %v %v, want the time of the adoption", n, at, err)
		}
	}
	whole := s.ask(`
		SELECT string_agg(
			concat_ws(' ', substring(task_id::text FROM 35),
				length(data->>'full_title'), length(data->>'full_description')),
			', ' ORDER BY task_id)
		FROM taskledger.task_events WHERE data ?| '{full_title,full_description}'`)
	if whole != "01 0, 02 3, 05 101 1001, 06 103 3000000" {
		t.Errorf("kept whole are %s", whole)
	}
	server.must(200, "ann", "PATCH", "/api/tasks/0b000000-0000-4000-8000-000000000006", `{"is_completed":true}`)
	server.terminate()
	s.wantSilence()
}

// The kin of SQLModel's table: other names, types and columns.
func TestAdoptOfOtherTables(t *testing.T) {
	t.Parallel()
	s := openSite(t, `
		CREATE TABLE task (id integer PRIMARY KEY, title text, user_id text); -- somebody else's
		CREATE DOMAIN stamp AS timestamptz;
		CREATE TABLE tasks (id text PRIMARY KEY, user_id uuid, title text, created_at stamp);
		INSERT INTO tasks
		SELECT id, '0a000000-0000-4000-8000-000000000000', 'of tasks', '2024-03-01 12:00+02'
		FROM (VALUES
			('0b000000-0000-4000-8000-000000000001'), ('0B000000-0000-4000-8000-000000000001'),
			('17'), ('0c0000000000400080000000000000aa')
		) ids(id);

		CREATE SCHEMA "My App";
		CREATE TABLE "My App"."Todo List" (id uuid, user_id bigint, title varchar(20), is_completed boolean, x jsonb);
		INSERT INTO "My App"."Todo List" VALUES (gen_random_uuid(), 7, 'quoted', true, '{}');
		CREATE VIEW twice AS SELECT * FROM "My App"."Todo List" UNION ALL SELECT * FROM "My App"."Todo List";
		CREATE TABLE parts (id uuid, user_id text, title text) PARTITION BY HASH (user_id);
		CREATE TABLE part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
		INSERT INTO parts VALUES (gen_random_uuid(), 'p', 'in a part')`)
	s.wantNotice("public.tasks")
	s.adopt(nil, "table          public.tasks", "rows           4, of 1 users",
		"adopted        2", "there already  1",
		"left out       1: 1 without a usable id")
	s.wantSilence()
	s.adopt([]string{"--table", `"My App"."Todo List"`}, `table          "My App"."Todo List"`,
		"adopted        1")
	s.adopt(
		[]string{"--table", `TWICE`},
		"table          public.twice",
		"rows           2, of 1 users",
		"there already  2",
	)
	s.adopt([]string{"--table", "parts"}, "adopted        1")

	server := startServer(t, s.env...)
	const user, id = "0a000000-0000-4000-8000-000000000000", "0b000000-0000-4000-8000-000000000001"
	task := server.must(200, user, "GET", "/api/tasks/"+id, "")
	if task["created_at"] != "2024-03-01T10:00:00.000000Z" || task["is_completed"] != false ||
		task["description"] != nil {
		t.Errorf("a task of tasks: %v", task)
	}
	if _, tasks, err := server.list("7"); err != nil || len(tasks) != 1 || tasks[0]["is_completed"] != true {
		t.Errorf("a user with a number: %v %v", tasks, err)
	}
	server.terminate()

	// The schema that the URL names comes first, whatever else there is.
	s.exec(`
		CREATE SCHEMA app; CREATE TABLE app.tasks (id uuid, user_id text, title text);
		INSERT INTO app.tasks VALUES (gen_random_uuid(), 'x', 'y');
		CREATE SCHEMA aaa; CREATE TABLE aaa.task (id uuid, user_id text, title text)`)
	s.adopt(nil, "table          public.tasks")
	s.env[0] += "&schema=app"
	s.adopt(nil, "table          app.tasks", "adopted        1")
}

func TestAdoptWithNothingToTakeOver(t *testing.T) {
	t.Parallel()
	s := openSite(t, `CREATE TABLE other (id uuid, title text)`)
	s.wantSilence()
	s.refuse("nothing to adopt")
	s.refuse("nothing to adopt: the database has no table missing", "--table", "missing")
	s.refuse("nothing to adopt: the database has no table taskledger.tasks", "--table", "taskledger.tasks")
	s.refuse("public.other has no column user_id", "--table", "other")
	s.refuse(`--table must be`, "--table", "a.b.c")
	s.refuse(`--table must be`, "--table", `"a`)
	s.exec(`CREATE TABLE task (id uuid, title text, user_id text, created_at bigint)`)
	s.wantSilence()
	for _, args := range [][]string{nil, {"--table", "task"}} {
		s.refuse("column created_at has the type integer, it must be timestamp or timestamptz", args...)
	}
	s.exec(`DROP TABLE task; CREATE TABLE task (id uuid, title text, user_id text)`)
	s.wantSilence()
	s.refuse("public.task has no rows")
	s.refuse("public.task has no rows", "--dry-run")

	url := testdb.EmptyURL(t)
	unmigrated := &site{t: t, url: url, env: []string{"DATABASE_URL=" + url}}
	unmigrated.refuse("nothing to adopt")
	execute(t, url, sqlModel, `
		INSERT INTO task VALUES
			(gen_random_uuid(), 'a', NULL, false, 'ann', now(), now()),
			(gen_random_uuid(), '', NULL, false, 'ann', now(), now()),
			(gen_random_uuid(), 'nobody''s', NULL, false, NULL, now(), now())`)
	dry := unmigrated.run(0, "adopt", "--dry-run")
	for _, line := range []string{"to adopt       2", "texts cut of   1", "left out       1: 1 without a usable user_id"} {
		if !strings.Contains(dry.stdout, line+"\n") {
			t.Errorf("a dry run before there is a ledger prints no line %q but\n%s", line, dry.stdout)
		}
	}
	if value[bool](t, url, `SELECT to_regnamespace('taskledger') IS NOT NULL`) {
		t.Error("a dry run has made the schema")
	}
	unmigrated.adopt(nil, "adopted        2")
}

// Of a table that is large, the start looks at both ends only; and it does not wait for one that is locked.
func TestTheStartLooksAtALargeTable(t *testing.T) {
	t.Parallel()
	s := openSite(t, `
		CREATE TABLE task (id uuid, title text, user_id text, description text);
		ALTER TABLE task ALTER description SET STORAGE PLAIN;
		INSERT INTO task SELECT gen_random_uuid(), 'a row a page', 'u', repeat('x', 5000) FROM generate_series(1, 100)`)
	s.wantNotice("public.task")
	s.adopt(nil, "adopted        100", "texts cut of   100")
	s.wantSilence()
	s.exec(`INSERT INTO task VALUES (gen_random_uuid(), 'late', 'u', repeat('x', 5000))`)
	s.wantNotice("public.task")
	leaveOpen(t, s.url, `LOCK TABLE public.task IN ACCESS EXCLUSIVE MODE`)
	s.wantSilence()
}

// A role that may not read the table, or not all of its rows, is told so; the start is silent then.
func TestAdoptByARoleThatMayNotReadTheTable(t *testing.T) {
	t.Parallel()
	s := openSite(t, sqlModel+`; INSERT INTO task VALUES (gen_random_uuid(), 'a', NULL, false, 'ann', now(), now())`)
	s.exec(`DROP SCHEMA taskledger CASCADE`)
	own := &site{t: t, url: s.url, env: []string{"DATABASE_URL=" + asOwner(t, s.url), s.env[1]}}
	as, err := url.Parse(strings.TrimPrefix(own.env[0], "DATABASE_URL="))
	if err != nil {
		t.Fatal(err)
	}
	role := as.User.Username()
	own.run(0, "migrate")
	own.refuse("GRANT SELECT ON public.task TO " + role)
	own.wantSilence()
	s.exec(`CREATE SCHEMA closed; CREATE TABLE closed.task AS SELECT * FROM task`)
	own.refuse("GRANT USAGE ON SCHEMA closed TO "+role, "--table=closed.task")
	s.exec(`GRANT SELECT (id, title) ON task TO ` + role)
	own.refuse("GRANT SELECT ON public.task TO " + role)
	s.exec(`GRANT SELECT ON task TO ` + role + `; ALTER TABLE task ENABLE ROW LEVEL SECURITY;
		CREATE POLICY others ON task FOR SELECT USING (user_id <> 'ann')`)
	own.refuse("row-level security")
	own.wantSilence()
	s.exec(`ALTER TABLE task DISABLE ROW LEVEL SECURITY`)
	own.wantNotice("public.task")
	own.adopt(nil, "adopted        1")
	own.wantSilence()
}

// manyTasks are n old tasks of so many users.
func manyTasks(n, users int) string {
	return fmt.Sprintf(`;
		INSERT INTO "user" SELECT 'u' || n FROM generate_series(0, %[2]d - 1) n;
		INSERT INTO task
		SELECT gen_random_uuid(), 'Task ' || n, CASE n %% 2 WHEN 0 THEN 'About ' || n END, n %% 3 = 0,
			'u' || n %% %[2]d,
			timestamp '2024-01-01' + n * interval '1 minute', timestamp '2024-02-01' + n * interval '1 minute'
		FROM generate_series(1, %[1]d) n`, n, users)
}

// wantAll wants every old task once, as it was, each user's in their old order.
func (s *site) wantAll() {
	s.t.Helper()
	if n := s.ask(`
		SELECT count(*)
		FROM task o
		FULL JOIN (SELECT * FROM taskledger.task_events WHERE type = 'TaskImported') e
			ON e.task_id = o.id AND e.user_id = o.user_id
		WHERE o.id IS NULL OR e.task_id IS NULL OR e.data->>'title' <> o.title
		OR (e.data->>'created_at')::timestamptz <> o.created_at AT TIME ZONE 'UTC'`); n != "0" {
		s.t.Errorf("%s tasks are not as they were", n)
	}
	if n := s.ask(`
		SELECT count(*) - count(DISTINCT (user_id, task_id))
		FROM taskledger.task_events WHERE type = 'TaskImported'`); n != "0" {
		s.t.Errorf("%s tasks came twice", n)
	}
	if n := s.ask(`
		SELECT count(*) FROM (
			SELECT data->>'created_at' AS at,
				lag(data->>'created_at') OVER (PARTITION BY user_id ORDER BY seq) AS before
			FROM taskledger.task_events WHERE type = 'TaskImported'
		) e WHERE at < before`); n != "0" {
		s.t.Errorf("%s tasks are not in their old order", n)
	}
}

// The program is killed in the middle, again and again, and once asked to stop; in the end each task is there once.
func TestAdoptThatIsKilled(t *testing.T) {
	t.Parallel()
	const tasks, users = 6000, 7 // so each user's come in several parts
	s := openSite(t, sqlModel+manyTasks(tasks, users))
	const count = `SELECT count(*) FROM taskledger.task_events`
	for _, end := range []os.Signal{os.Kill, os.Kill, syscall.SIGTERM, os.Kill} {
		var said string
		// the session of one that was killed may still hold the lock
		for before := s.ask(count); s.ask(count) == before; {
			said = s.endAdopt(end, func() bool { return s.ask(count) != before })
		}
		if end == syscall.SIGTERM &&
			!strings.HasSuffix(said, "taskledger: stopped before the end: run adopt again for the rest\n") {
			t.Errorf("after %v: %q", end, said)
		}
	}
	if n := s.ask(count); n == strconv.Itoa(tasks) {
		t.Error("nothing is left to take over: the test kills too late")
	}
	s.await(func() bool { return s.adoptUnlessLocked() })
	s.adopt(nil, fmt.Sprintf("there already  %d", tasks))
	s.wantAll()
}

// endAdopt runs adopt, and sends it the signal when it is time. It returns what it said at its end.
func (s *site) endAdopt(signal os.Signal, time func() bool) string {
	s.t.Helper()
	var stderr lockedBuffer
	cmd, ended := program(s.t, s.env, "adopt"), make(chan struct{})
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.await(func() bool {
		select {
		case <-ended:
			return true
		default:
			return time()
		}
	})
	_ = cmd.Process.Signal(signal) // it may have ended
	<-ended
	return stderr.String()
}

// await waits for a condition.
func (s *site) await(done func() bool) {
	s.t.Helper()
	for began := time.Now(); !done(); {
		if time.Since(began) > patience {
			s.t.Fatal("it does not come to pass")
		}
		tick(s.t.Context())
	}
}

// adoptUnlessLocked tells whether adopt went to its end: the session of one that was killed may still hold the lock.
func (s *site) adoptUnlessLocked() bool {
	s.t.Helper()
	got := finish(s.t, program(s.t, s.env, "adopt"))
	if got.code != 0 && !strings.Contains(got.stderr, "is running on this ledger") {
		s.t.Fatalf("adopt: %+v", got)
	}
	return got.code == 0
}

// Two run at once, while servers write to the same users: one of the two says that the other is running, and nothing is
// lost or there twice.
func TestAdoptBesideWriters(t *testing.T) {
	t.Parallel()
	const tasks, users, writers = 8000, 8, 4
	s := openSite(t, sqlModel+manyTasks(tasks, users))
	servers := []*served{startServer(t, s.env...), startServer(t, s.env...)}
	var work sync.WaitGroup
	ended := make(chan struct{})
	wrote := make([]int, writers)
	for w := range writers {
		work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-ended:
					return
				default:
				}
				user := fmt.Sprintf("u%d", n%users)
				status, answer, err := servers[w%2].call(user, "POST", "/api/tasks", `{"title":"meanwhile"}`)
				if err != nil || status != 201 {
					t.Errorf("a write: %d %v %v", status, answer, err)
					return
				}
				wrote[w]++
			}
		})
	}
	var both [2]*exec.Cmd
	var got [2]outcome
	var runs sync.WaitGroup
	for i := range both {
		both[i] = program(t, s.env, "adopt")
		runs.Go(func() { got[i] = finish(t, both[i]) })
	}
	runs.Wait()
	close(ended)
	work.Wait()
	for i := range got {
		if got[i].code != 0 && !strings.Contains(got[i].stderr, "is running on this ledger") {
			t.Errorf("adopt: %+v", got[i])
		}
	}
	if got[0].code != 0 && got[1].code != 0 {
		t.Errorf("neither adopted: %+v", got)
	}
	s.adopt(nil, fmt.Sprintf("there already  %d", tasks))
	s.wantAll()
	written := 0
	for _, n := range wrote {
		written += n
	}
	n := s.ask(`SELECT count(*) FROM taskledger.task_events WHERE type = 'TaskCreated'`)
	if n != fmt.Sprint(written) || written == 0 {
		t.Errorf("%s tasks were created, %d answered", n, written)
	}
	for _, server := range servers {
		server.terminate()
	}
}

// A transaction pooler keeps no settings and no prepared statements.
func TestAdoptBehindPgBouncer(t *testing.T) {
	t.Parallel()
	s := openSite(t, sqlModel+manyTasks(1000, 3))
	_, pooled := startPooler(t, s.url)
	s.env[0] = "DATABASE_URL=" + pooled
	s.wantNotice("public.task")
	s.adopt([]string{"--dry-run"}, "to adopt       1000")
	s.adopt(nil, "rows           1000, of 3 users", "adopted        1000")
	s.wantAll()
	s.wantSilence()
}
