package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	neturl "net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

// A host that does not answer is passed by for the next one of the URL.
func TestAHostThatDoesNotAnswerIsPassedBy(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	url := parseURL(t, testdb.URL(t))
	url.Host = silent.Addr().String() + "," + url.Host
	s := startServer(t, "DATABASE_URL="+url.String(), "BETTER_AUTH_SECRET="+serveSecret)
	s.await(201, func() (int, error) {
		status, _, err := s.call("u", "POST", "/api/tasks", `{"title":"a"}`)
		return status, err
	})
	s.must(200, "u", "GET", "/api/tasks", "")
}

// shows reads every way to a task, each of which must show its title, and nothing stale.
func (s *served) shows(token, id, title string) {
	s.t.Helper()
	for _, path := range []string{
		"/api/tasks/" + id, "/api/tasks", "/api/tasks?q=" + neturl.QueryEscape(title), "/api/history",
		"/api/tasks/" + id + "/history",
	} {
		got, err := s.send(token, "GET", path, "")
		if err != nil || got.status != 200 || !strings.Contains(string(got.body), title) ||
			got.header.Get("X-Stale") != "" {
			s.t.Errorf("GET %s: %d %s %v %v", path, got.status, got.body, got.header, err)
		}
	}
}

// works uses all of a database: two servers on it, and the commands of an operator beside them.
func works(t *testing.T, url string) {
	t.Helper()
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	writer, reader := startServer(t, env...), startServer(t, env...)
	heard := reader.titles("u")
	token := openAccount(t, "u").token
	write := func(title string) (id string) {
		t.Helper()
		var first reply
		for range 2 {
			body := fmt.Sprintf(`{"title":%q,"is_completed":true}`, title)
			got, err := writer.send(token, "POST", "/api/tasks", body, "Idempotency-Key", title)
			if err != nil || got.status != 201 || first.body != nil && string(got.body) != string(first.body) {
				t.Fatalf("a write: %d %s %v, before it %s", got.status, got.body, err, first.body)
			}
			first = got
		}
		task, err := readTask(string(first.body))
		if err != nil {
			t.Fatal(err)
		}
		writer.shows(token, task.ID, title)
		reader.shows(token, task.ID, title)
		select {
		case got := <-heard:
			if got != title {
				t.Errorf("heard of the task %q, want %q", got, title)
			}
		case <-time.After(patience):
			t.Errorf("nothing is heard of the task %q", title)
		}
		return task.ID
	}
	id := write("before")
	for _, command := range [][]string{
		{"migrate"}, {"rebuild"}, {"rebuild", "--user=u"}, {"parked", "retry"}, {"parked"}, {"verify"},
	} {
		if got := finish(t, program(t, env[:1], command...)); got.code != 0 {
			t.Errorf("%v: %+v", command, got)
		}
	}
	writer.must(200, "u", "PATCH", "/api/tasks/"+id+"/complete", "")
	writer.must(404, "v", "GET", "/api/tasks/"+id, "")
	write("after")
	got := finish(t, program(t, env[:1], "verify"))
	if got.code != 0 || got.stdout != "compared 1 users, 5 events, 8 rows; 0 parked\n" {
		t.Errorf("verify: %+v", got)
	}
	for _, s := range []*served{writer, reader} {
		s.terminate()
		if strings.Contains(s.stderr.String(), "level=WARN") {
			t.Errorf("a server complains: %s", s.stderr)
		}
	}
}

// However a URL has statements run, what is written is shown.
func TestEveryModeOfStatementsWorks(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			works(t, testdb.EmptyURL(t)+"&default_query_exec_mode="+mode)
		})
	}
}

// ownedBy makes a role without any rights, which owns the database, until the end of the test. The URL returned is of
// that role.
func ownedBy(t *testing.T, base string) (owned string) {
	t.Helper()
	name, password := "owner_"+strings.ToLower(rand.Text()), rand.Text()
	u := parseURL(t, base)
	execute(t, base,
		`CREATE ROLE `+name+` LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD '`+password+`'`,
		`ALTER DATABASE `+u.Path[1:]+` OWNER TO `+name)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), base)
		for _, text := range []string{
			`REASSIGN OWNED BY ` + name + ` TO CURRENT_USER`, `DROP OWNED BY ` + name, `DROP ROLE ` + name,
		} {
			if err == nil {
				_, err = conn.Exec(context.Background(), text)
			}
		}
		if err = errors.Join(err, conn.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	u.User = neturl.UserPassword(name, password)
	return u.String()
}

// An owner of the database without any other right is enough, and row level security binds that role too: a connection
// that reads sees nobody's rows, and those of a user who is named.
func TestAnOrdinaryOwnerIsEnough(t *testing.T) {
	t.Parallel()
	base := testdb.EmptyURL(t)
	url := ownedBy(t, base)
	works(t, url)
	s := startServer(t, "DATABASE_URL="+url, "BETTER_AUTH_SECRET="+serveSecret)
	s.must(201, "v", "POST", "/api/tasks", `{"title":"a"}`)
	s.must(200, "v", "GET", "/api/tasks", "")
	db, err := connect(t.Context(), url, testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	if db.traits.bypasses || db.traits.pooled {
		t.Errorf("%+v", db.traits)
	}
	reader, err := db.openReader(t.Context(), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Pool().Close()
	for _, table := range []string{"tasks", "task_history", "users", "task_events"} {
		for user, want := range map[string]string{"": "", "u": "u", "v": "v", "w": ""} {
			var seen string
			_, err := events.One(t.Context(), reader, `
				WITH scope AS MATERIALIZED (SELECT set_config('taskledger.user_id', $1, true) AS user_id)
				SELECT coalesce(string_agg(DISTINCT x.user_id, ' '), '')
				FROM scope s
				CROSS JOIN LATERAL (SELECT user_id FROM {schema}.`+table+` WHERE s.user_id IS NOT NULL) x`,
				[]any{user}, &seen)
			if err != nil || seen != want {
				t.Errorf("%s for %q: sees %q, %v", table, user, seen, err)
			}
		}
		for _, text := range []string{
			`DELETE FROM {schema}.` + table, `UPDATE {schema}.` + table + ` SET user_id = 'x'`,
		} {
			if changed, err := reader.Exec(t.Context(), text); changed > 0 {
				t.Errorf("%s: %d rows, %v", text, changed, err)
			}
		}
	}
	// Another role gets nowhere.
	stranger := parseURL(t, ownedBy(t, testdb.EmptyURL(t)))
	stranger.Path = parseURL(t, base).Path
	onDatabase(t, stranger.String(), func(ctx context.Context, conn *pgx.Conn) error {
		for _, table := range []string{"tasks", "task_events", "schema_versions"} {
			_, err := conn.Exec(ctx, `SELECT FROM taskledger.`+table)
			if err == nil || !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("%s, for a stranger: %v", table, err)
			}
		}
		return nil
	})
}
