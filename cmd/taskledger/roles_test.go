package main

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
)

// newRole makes a role that can log in to the database behind the URL, and returns its name and its URL.
func newRole(t *testing.T, database, attributes string) (name, roleURL string) {
	t.Helper()
	name = "role_" + strings.ToLower(rand.Text())
	execute(t, database, `CREATE ROLE `+name+` LOGIN PASSWORD 'pw' `+attributes)
	t.Cleanup(func() {
		execute(
			t,
			database,
			`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO CURRENT_USER', current_database()); END $$`,
			`DROP OWNED BY `+name+` CASCADE`,
			`DROP ROLE `+name,
		)
	})
	u := parseDatabase(t, database)
	u.User = url.UserPassword(name, "pw")
	return name, u.String()
}

// newOwner makes a role that owns the database.
func newOwner(t *testing.T, database, attributes string) (name, roleURL string) {
	t.Helper()
	name, roleURL = newRole(t, database, attributes)
	execute(t, database, `ALTER DATABASE `+strings.TrimPrefix(parseDatabase(t, database).Path, "/")+` OWNER TO `+name)
	return name, roleURL
}

func parseDatabase(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

const readAll = `GRANT pg_read_all_data TO `

// servingRoles are roles that a ledger can be served as. binds tells whether row level security binds what they read.
var servingRoles = []struct {
	name  string
	url   func(t *testing.T, database string) string
	binds bool
}{
	{"superuser", func(_ *testing.T, database string) string { return database }, true},
	{"owner", func(t *testing.T, database string) string { _, u := newOwner(t, database, ""); return u }, true},
	{
		"owner with CREATEROLE",
		func(t *testing.T, database string) string { _, u := newOwner(t, database, "CREATEROLE"); return u }, true,
	},
	{
		"owner with BYPASSRLS",
		func(t *testing.T, database string) string { _, u := newOwner(t, database, "BYPASSRLS"); return u }, false,
	},
	{"owner with BYPASSRLS who may read all", func(t *testing.T, database string) string {
		name, u := newOwner(t, database, "BYPASSRLS")
		execute(t, database, readAll+name)
		return u
	}, true},
	{"owner with BYPASSRLS who may not become who reads all", func(t *testing.T, database string) string {
		name, u := newOwner(t, database, "BYPASSRLS")
		if hasSetOption(t, database) {
			execute(t, database, readAll+name+` WITH SET FALSE`)
		}
		return u
	}, false},
	{"member of the owner", func(t *testing.T, database string) string {
		owner, _ := newOwner(t, database, "")
		name, u := newRole(t, database, "")
		execute(t, database, `GRANT `+owner+` TO `+name)
		return u
	}, true},
	{"role that was given all", func(t *testing.T, database string) string {
		_, owner := newOwner(t, database, "")
		if got := finish(t, program(t, []string{"DATABASE_URL=" + owner}, "migrate")); got.code != 0 {
			t.Fatalf("migrate: %+v", got)
		}
		name, u := newRole(t, database, "")
		execute(t, owner, `GRANT USAGE ON SCHEMA taskledger TO `+name,
			`GRANT ALL ON ALL TABLES IN SCHEMA taskledger TO `+name,
			`GRANT ALL ON ALL SEQUENCES IN SCHEMA taskledger TO `+name)
		return u
	}, true},
}

// Whatever the role may do besides, it serves; and the gauge shows whether row level security binds the connections
// that read.
func TestRolesAndTheSecondLock(t *testing.T) {
	t.Parallel()
	for _, tt := range servingRoles {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			roleURL := tt.url(t, testdb.EmptyURL(t))
			s := startServer(t, "DATABASE_URL="+roleURL, "BETTER_AUTH_SECRET="+serveSecret)
			task := s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
			if got := s.must(200, "u", "GET", "/api/tasks/"+task["id"].(string), ""); got["title"] != "a" {
				t.Errorf("read: %v", got)
			}
			s.must(404, "v", "GET", "/api/tasks/"+task["id"].(string), "")
			s.terminate()
			if told := strings.Count(s.stderr.String(), "second lock"); (told == 0) != tt.binds || told > 1 {
				t.Errorf("told %d times: %s", told, s.stderr)
			}
			if got := finish(t, program(t, []string{"DATABASE_URL=" + roleURL}, "verify")); got.code != 0 {
				t.Errorf("verify: %+v", got)
			}
			checkGauge(t, roleURL, tt.binds)
		})
	}
}

func hasSetOption(t *testing.T, database string) bool {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var has bool
	if err := conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::integer >= 160000`).
		Scan(&has); err != nil {
		t.Fatal(err)
	}
	return has
}

// checkGauge looks at the metric, and at what a query that forgot its user would see.
func checkGauge(t *testing.T, url string, binds bool) {
	t.Helper()
	db, err := connect(t.Context(), url, testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	a, err := newApp(t.Context(), &settings{MaxTasksPerUser: 1}, db, []byte(serveSecret), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	shown := httptest.NewRecorder()
	a.admin.Handler.ServeHTTP(shown, httptest.NewRequest("GET", "http://localhost/metrics", nil))
	want, rows := "taskledger_row_level_security 0\n", 1
	if binds {
		want, rows = "taskledger_row_level_security 1\n", 0
	}
	if !strings.Contains(shown.Body.String(), want) {
		t.Errorf("no %q in %s", want, shown.Body)
	}
	for _, table := range []string{"tasks", "task_history", "users", "task_events"} {
		var n int
		if err := a.reader.Pool().
			QueryRow(t.Context(), `SELECT count(*) FROM taskledger.`+table).
			Scan(&n); err != nil ||
			n != rows {
			t.Errorf("a query of %s without a user sees %d rows, %v; want %d", table, n, err, rows)
		}
	}
}

// Who migrates and who serves are two roles. What the owner does to the ledger takes nothing from a server that runs.
func TestOneRoleMigratesAndAnotherServes(t *testing.T) {
	t.Parallel()
	database := testdb.EmptyURL(t)
	_, owner := newOwner(t, database, "")
	name, server := newRole(t, database, "")
	env := []string{"DATABASE_URL=" + owner}
	if got := finish(t, program(t, env, "migrate")); got.code != 0 {
		t.Fatalf("migrate: %+v", got)
	}
	serve := []string{"DATABASE_URL=" + server, "BETTER_AUTH_SECRET=" + serveSecret, "PORT=0", "ADMIN_ADDR="}
	got := finish(t, program(t, serve, "serve"))
	if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 ||
		!strings.Contains(got.stderr, "USAGE ON SCHEMA") {
		t.Errorf("without rights: %+v", got)
	}
	execute(
		t,
		owner,
		`GRANT USAGE ON SCHEMA taskledger TO `+name,
		`GRANT SELECT, INSERT ON taskledger.task_events TO `+name,
	)
	got = finish(t, program(t, env, "migrate"))
	if got.code != 0 || !strings.Contains(got.stderr, "other database roles may use the ledger") ||
		!strings.Contains(got.stderr, name) {
		t.Errorf("migrate: %+v", got)
	}
	s := startServer(t, serve...)
	for _, command := range []string{"migrate", "rebuild", "migrate"} {
		if got := finish(t, program(t, env, command)); got.code != 0 {
			t.Errorf("%s: %+v", command, got)
		}
		id := s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)["id"].(string)
		s.must(200, "u", "GET", "/api/tasks/"+id, "")
	}
	execute(t, owner, `REVOKE INSERT ON taskledger.task_events FROM `+name)
	got = finish(t, program(t, env, "migrate"))
	if got.code != 0 || !strings.Contains(got.stderr, "took from other database roles") ||
		!strings.Contains(got.stderr, name) {
		t.Errorf("migrate: %+v", got)
	}
	s.await(503, func() (int, error) { return s.status("/readyz") })
	s.terminate()
}

// Settings of the database, or of the role, that would change what our statements do.
func TestSettingsOfOthersChangeNothing(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{
		"client_encoding = 'LATIN1'", "row_security = off", "search_path = 'nowhere'",
		"default_transaction_isolation = 'serializable'",
		"idle_in_transaction_session_timeout = '1ms'", "statement_timeout = '3s'",
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			database := testdb.EmptyURL(t)
			_, owner := newOwner(t, database, "")
			execute(
				t,
				database,
				`ALTER DATABASE `+strings.TrimPrefix(parseDatabase(t, database).Path, "/")+` SET `+setting,
			)
			for _, url := range []string{owner, database} {
				env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
				s := startServer(t, env...)
				id := s.must(201, "u", "POST", "/api/tasks", `{"title":"café"}`)["id"].(string)
				if got := s.must(200, "u", "GET", "/api/tasks/"+id, ""); got["title"] != "café" {
					t.Errorf("read: %v", got)
				}
				for _, command := range []string{"rebuild", "verify"} {
					if got := finish(t, program(t, env, command)); got.code != 0 {
						t.Errorf("%s: %+v", command, got)
					}
				}
				s.terminate()
			}
			execute(t, database, `DO $$ BEGIN ASSERT (
				SELECT bool_and(convert_to(title, 'UTF8') = '\x636166c3a9') FROM taskledger.task_history); END $$`)
		})
	}
}

// A database of another encoding would store texts spoilt.
func TestADatabaseThatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		admin := testdb.EmptyURL(t)
		name := "other_" + strings.ToLower(rand.Text())
		execute(
			t,
			admin,
			`CREATE DATABASE `+name+` TEMPLATE template0 ENCODING '`+encoding+`' LC_COLLATE 'C' LC_CTYPE 'C'`,
		)
		t.Cleanup(func() { execute(t, admin, `DROP DATABASE `+name+` WITH (FORCE)`) })
		u := parseDatabase(t, admin)
		u.Path = "/" + name
		for _, command := range []string{"serve", "migrate"} {
			got := finish(
				t,
				program(
					t,
					[]string{
						"DATABASE_URL=" + u.String(),
						"BETTER_AUTH_SECRET=" + serveSecret,
						"PORT=0",
						"ADMIN_ADDR=",
					},
					command,
				),
			)
			if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 ||
				!strings.Contains(got.stderr, "encoding "+encoding) {
				t.Errorf("%s: %+v", command, got)
			}
		}
	}
}

// What is public's is others': the ledger stands beside it, and their tools find nothing of ours there.
func TestTheLedgerStandsBesideOthers(t *testing.T) {
	t.Parallel()
	database := testdb.EmptyURL(t)
	for _, name := range []string{"task", "tasks", "users", "task_events", "goose_db_version", "checkpoints"} {
		execute(
			t,
			database,
			`CREATE TABLE public.`+name+` (id integer PRIMARY KEY, title text)`,
			`INSERT INTO public.`+name+` VALUES (1, 'theirs')`,
		)
	}
	u := parseDatabase(t, database)
	u.RawQuery += "&search_path=public"
	env := []string{"DATABASE_URL=" + u.String(), "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"ours"}`)
	if status, tasks, err := s.list(
		"u",
	); status != 200 || err != nil || len(tasks) != 1 ||
		tasks[0]["title"] != "ours" {
		t.Errorf("list: %d %v %v", status, tasks, err)
	}
	if got := finish(t, program(t, env, "rebuild")); got.code != 0 {
		t.Errorf("rebuild: %+v", got)
	}
	for _, name := range []string{"task", "tasks", "users", "task_events", "goose_db_version", "checkpoints"} {
		execute(
			t,
			database,
			`DO $$ BEGIN ASSERT (SELECT count(*) = 1 AND max(title) = 'theirs' FROM public.`+name+`); END $$`,
		)
	}
	// What a tool does that wants public to be as its own schema says.
	execute(t, database, `DROP SCHEMA public CASCADE`, `CREATE SCHEMA public`)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"ours"}`)
	s.shown("u")
	s.terminate()
	got := finish(t, program(t, env, "verify"))
	if got.code != 0 || !strings.HasPrefix(got.stdout, "compared 1 users, 2 events, 5 rows") {
		t.Errorf("verify: %+v", got)
	}
}

// refusingInserts has each insert into the log fail with a code.
func refusingInserts(code string) string {
	return `CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '` + code + `'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON taskledger.task_events FOR EACH ROW EXECUTE FUNCTION public.refuse()`
}

const (
	takingInserts = `DROP FUNCTION public.refuse() CASCADE`
	reconnect     = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`
)

// refusingDatabases are ways in which a database does not work, and what ends them.
var refusingDatabases = []struct{ name, refuse, relent string }{
	{"read-only", `ALTER DATABASE {database} SET default_transaction_read_only = on; ` + reconnect,
		`ALTER DATABASE {database} RESET default_transaction_read_only`},
	{
		"no right to insert", `REVOKE INSERT ON taskledger.task_events FROM {owner}`,
		`GRANT INSERT ON taskledger.task_events TO {owner}`,
	},
	{
		"no right to apply", `REVOKE UPDATE ON taskledger.checkpoints FROM {owner}`,
		`GRANT UPDATE ON taskledger.checkpoints TO {owner}`,
	},
	{
		"no right to read", `REVOKE SELECT ON taskledger.tasks FROM {owner}`,
		`GRANT SELECT ON taskledger.tasks TO {owner}`,
	},
	{
		"no right to enter", `REVOKE USAGE ON SCHEMA taskledger FROM {owner}`,
		`GRANT USAGE ON SCHEMA taskledger TO {owner}`,
	},
	{"no right to connect", `ALTER ROLE {owner} NOLOGIN; ` + reconnect, `ALTER ROLE {owner} LOGIN`},
	{"an append is ended", refusingInserts("25P03"), takingInserts},
	{"a full disk", refusingInserts("53100"), takingInserts},
	{
		"a table is away", `ALTER TABLE taskledger.tasks RENAME TO elsewhere`,
		`ALTER TABLE taskledger.elsewhere RENAME TO tasks`,
	},
	{
		"the schema is away", `ALTER SCHEMA taskledger RENAME TO elsewhere`,
		`ALTER SCHEMA elsewhere RENAME TO taskledger`,
	},
}

// A database that refuses writes, or us, makes 503 and a server that is not ready, until it is mended; then all is well
// by itself.
func TestADatabaseThatRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range refusingDatabases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			database := testdb.EmptyURL(t)
			name, owner := newOwner(t, database, "")
			names := strings.NewReplacer(
				"{owner}",
				name,
				"{database}",
				strings.TrimPrefix(parseDatabase(t, database).Path, "/"),
			)
			s := startServer(t, "DATABASE_URL="+owner, "BETTER_AUTH_SECRET="+serveSecret)
			id := s.must(201, "u", "POST", "/api/tasks", `{"title":"before"}`)["id"].(string)
			s.must(200, "u", "GET", "/api/tasks/"+id, "")

			execute(t, database, names.Replace(tt.refuse))
			if tt.name != "no right to apply" && s.refusals("u", id) == 0 { // reads are stale there
				t.Error("nothing was refused")
			}
			s.await(503, func() (int, error) { return s.status("/readyz") })
			if status, err := s.status("/livez"); status != 200 || err != nil {
				t.Errorf("livez: %d %v", status, err)
			}

			execute(t, database, names.Replace(tt.relent))
			mended := time.Now()
			s.await(200, func() (int, error) { return s.status("/readyz") })
			for range 20 { // on each connection
				id = s.must(201, "u", "POST", "/api/tasks", `{"title":"after"}`)["id"].(string)
			}
			s.must(200, "u", "GET", "/api/tasks/"+id, "")
			if took := time.Since(mended); took > recovery {
				t.Errorf("back after %v", took)
			}
			s.terminate()
		})
	}
}

// refusals writes and reads, and counts what was refused: with 503 and nothing else.
func (s *served) refusals(user, id string) (n int) {
	s.t.Helper()
	for i := range 10 {
		for _, request := range [][3]string{
			{"POST", "/api/tasks", fmt.Sprintf(`{"title":"%d"}`, i)}, {"GET", "/api/tasks/" + id, ""},
			{"GET", "/api/tasks", ""}, {"GET", "/api/history", ""},
		} {
			status, answer, err := s.call(user, request[0], request[1], request[2])
			if err != nil || status >= 300 && (status != 503 || answer["code"] != "unavailable") {
				s.t.Errorf("%s %s: %d %v %v", request[0], request[1], status, answer, err)
			}
			if status == 503 {
				n++
			}
		}
	}
	return n
}
