package main

import (
	"bufio"
	"context"
	"fmt"
	neturl "net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

// others makes tables of strangers, with names that ours have too, and functions with names of PostgreSQL's.
var others = []string{
	`CREATE SCHEMA strange`,
	`CREATE TABLE public.tasks (id serial PRIMARY KEY, title text); INSERT INTO public.tasks (title) VALUES ('theirs')`,
	`CREATE TABLE public.task (id serial PRIMARY KEY, title text); INSERT INTO public.task (title) VALUES ('theirs')`,
	`CREATE TABLE public.goose_db_version (id serial PRIMARY KEY, version_id bigint);
	INSERT INTO public.goose_db_version (version_id) VALUES (7)`,
	`CREATE TABLE strange.tasks (body text); INSERT INTO strange.tasks VALUES ('theirs')`,
	`CREATE TABLE strange.task_events (body text); INSERT INTO strange.task_events VALUES ('theirs')`,
	`CREATE TABLE strange.users (body text); INSERT INTO strange.users VALUES ('theirs')`,
	`CREATE TABLE strange.checkpoints (body text); INSERT INTO strange.checkpoints VALUES ('theirs')`,
	`CREATE FUNCTION strange.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$`,
	`CREATE FUNCTION strange.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT NULL::text $$`,
	`CREATE FUNCTION strange.pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS $$ SELECT $$`,
}

// strangeThings is all of it, as it is now, and whatever else is in no ledger.
const strangeThings = `
	SELECT string_agg(line, E'\n' ORDER BY line)
	FROM (
		SELECT n.nspname || '.' || c.relname AS line
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND n.nspname <> ALL ($1)
		UNION ALL SELECT 'public.tasks ' || t::text FROM public.tasks t
		UNION ALL SELECT 'public.task ' || t::text FROM public.task t
		UNION ALL SELECT 'public.goose ' || t::text FROM public.goose_db_version t
		UNION ALL SELECT 'strange.tasks ' || t::text FROM strange.tasks t
		UNION ALL SELECT 'strange.task_events ' || t::text FROM strange.task_events t
		UNION ALL SELECT 'strange.users ' || t::text FROM strange.users t
		UNION ALL SELECT 'strange.checkpoints ' || t::text FROM strange.checkpoints t
	) x`

// twoLedgers are two processes on a ledger, and one on another in the same database, beside tables of others.
type twoLedgers struct {
	t                 *testing.T
	url               string
	strange           string // what is not theirs, as it was before they came
	one, alsoOne, two *served
}

func startTwoLedgers(t *testing.T) *twoLedgers {
	t.Helper()
	l := &twoLedgers{t: t, url: testdb.EmptyURL(t)}
	execute(t, l.url, others...)
	l.strange = l.strangeNow()
	l.one = startServer(t, l.env("one")...)
	l.alsoOne = startServer(t, l.env("one")...)
	l.two = startServer(t, l.env("two")...)
	return l
}

func (l *twoLedgers) env(schema string) []string {
	return []string{"DATABASE_URL=" + l.url, "DATABASE_SCHEMA=" + schema, "BETTER_AUTH_SECRET=" + serveSecret}
}

func (l *twoLedgers) strangeNow() string {
	l.t.Helper()
	return value[string](l.t, l.url, strangeThings, []string{"one", "two"})
}

func (l *twoLedgers) generation(schema string) int {
	l.t.Helper()
	return value[int](l.t, l.url, `SELECT generation FROM `+schema+`.checkpoints`)
}

// areWell checks that both ledgers are right, with no fewer events in the first, and that nothing else has changed.
func (l *twoLedgers) areWell(events int) {
	l.t.Helper()
	for _, schema := range []string{"one", "two"} {
		if got := finish(l.t, program(l.t, l.env(schema), "verify")); got.code != 0 {
			l.t.Errorf("verify: %+v", got)
		}
	}
	if n := value[int](l.t, l.url, `SELECT count(*) FROM one.task_events`); n < events {
		l.t.Errorf("the first ledger has %d events, want %d", n, events)
	}
	if now := l.strangeNow(); now != l.strange {
		l.t.Errorf("what is not ours was\n%s\nand is\n%s", l.strange, now)
	}
}

// Two ledgers in one database, beside tables of others, know nothing of each other.
func TestTwoLedgersInOneDatabase(t *testing.T) {
	t.Parallel()
	l := startTwoLedgers(t)
	heardOfOne, heardOfTwo := l.alsoOne.titles("u"), l.two.titles("u")
	in := l.one.must(201, "u", "POST", "/api/tasks", `{"title":"in one"}`)
	if found := l.alsoOne.must(200, "u", "GET", "/api/tasks/"+in["id"].(string), ""); found["version"] != 1.0 {
		t.Errorf("found in the same ledger: %v", found)
	}
	l.two.must(404, "u", "GET", "/api/tasks/"+in["id"].(string), "")
	if task := l.two.must(201, "u", "POST", "/api/tasks", `{"title":"in two"}`); task["version"] != 1.0 {
		t.Errorf("the first task of the other ledger: %v", task)
	}
	for title, heard := range map[string]<-chan string{"in one": heardOfOne, "in two": heardOfTwo} {
		select {
		case got := <-heard:
			if got != title {
				t.Errorf("heard of the task %q, want %q", got, title)
			}
		case <-time.After(patience):
			t.Errorf("nothing is heard of the task %q", title)
		}
	}
	told := listenTo(t, l.url, "one_moved", "two_moved")
	l.one.must(201, "u", "POST", "/api/tasks", `{"title":"told in one"}`)
	select {
	case channel := <-told:
		if channel != "one_moved" {
			t.Errorf("told on %s", channel)
		}
	case <-time.After(patience):
		t.Error("nobody is told")
	}
	l.areWell(2)
}

// The locks of one ledger are not those of the other.
func TestTheLocksOfALedgerAreItsOwn(t *testing.T) {
	t.Parallel()
	l := startTwoLedgers(t)
	ledger := events.NewDB(nil, "one", "")
	release := holdLocks(t, l.url, ledger.LockKey("append"), ledger.LockKey("maintenance"))
	held := make(chan struct{})
	go func() {
		defer close(held)
		for status := 503; status != 201; {
			var err error
			status, _, err = l.one.call("u", "POST", "/api/tasks", `{"title":"held up"}`)
			if err != nil || status != 201 && status != 503 {
				t.Errorf("a write that was held up: %d %v", status, err)
				return
			}
		}
	}()
	l.one.await(1, func() (int, error) {
		return value[int](t, l.url, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`), nil
	})
	for range 20 {
		l.two.must(201, "u", "POST", "/api/tasks", `{"title":"not held up"}`)
	}
	if got := finish(t, program(t, l.env("two"), "rebuild")); got.code != 0 {
		t.Errorf("rebuild of the other ledger: %+v", got)
	}
	got := finish(t, program(t, l.env("one"), "rebuild"))
	if got.code != exitFailed || !strings.Contains(got.stderr, "another rebuild") {
		t.Errorf("rebuild beside another: %+v", got)
	}
	select {
	case <-held:
		t.Error("the lock held nobody up")
	default:
	}
	release()
	<-held
	if one, two := l.generation("one"), l.generation("two"); one != 0 || two != 1 {
		t.Errorf("the ledgers are of generations %d and %d, the other was made anew once", one, two)
	}
	l.areWell(1)
}

// One is made anew while the other is written.
func TestALedgerIsRebuiltAlone(t *testing.T) {
	t.Parallel()
	l := startTwoLedgers(t)
	for range 3 {
		l.one.must(201, "u", "POST", "/api/tasks", `{"title":"in one"}`)
	}
	var done atomic.Bool
	var work sync.WaitGroup
	for user := range 4 {
		work.Go(func() {
			for !done.Load() {
				task := l.two.must(201, fmt.Sprint("u", user), "POST", "/api/tasks", `{"title":"a"}`)
				l.two.must(200, fmt.Sprint("u", user), "GET", "/api/tasks/"+task["id"].(string), "")
			}
		})
	}
	for range 3 {
		if got := finish(t, program(t, l.env("one"), "rebuild")); got.code != 0 {
			t.Errorf("rebuild: %+v", got)
		}
	}
	done.Store(true)
	work.Wait()
	if one, two := l.generation("one"), l.generation("two"); one != 3 || two != 0 {
		t.Errorf("the ledgers are of generations %d and %d, one was made anew three times", one, two)
	}
	l.areWell(3)
}

// titles gives the titles of the user's tasks, as they are created.
func (s *served) titles(user string) <-chan string {
	s.t.Helper()
	lines := bufio.NewScanner(s.stream(user))
	titles := make(chan string, 100)
	go func() {
		for lines.Scan() {
			if _, rest, found := strings.Cut(lines.Text(), `"title":{"from":null,"to":"`); found {
				title, _, _ := strings.Cut(rest, `"`)
				titles <- title
			}
		}
	}()
	return titles
}

// listenTo gives the channels on which somebody is notified.
func listenTo(t *testing.T, url string, channels ...string) <-chan string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 100)
	for _, channel := range channels {
		if _, err := conn.Exec(t.Context(), `LISTEN `+channel); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		defer conn.Close(context.Background())
		for {
			notification, err := conn.WaitForNotification(t.Context())
			if err != nil {
				return
			}
			told <- notification.Channel
		}
	}()
	return told
}

// holdLocks takes advisory locks, until release is called.
func holdLocks(t *testing.T, url string, keys ...int64) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	t.Cleanup(release)
	for _, key := range keys {
		if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, key); err != nil {
			t.Fatal(err)
		}
	}
	return release
}

// Where a URL, a role or a database has PostgreSQL look for names changes nothing.
func TestSearchPathsChangeNothing(t *testing.T) {
	t.Parallel()
	url := testdb.EmptyURL(t)
	execute(t, url, others...)
	database := parseURL(t, url).Path[1:]
	execute(t, url, `ALTER DATABASE `+database+` SET search_path = strange, public, pg_catalog`)
	strange := func() string {
		return value[string](t, url+"&search_path=pg_catalog", strangeThings, []string{"taskledger"})
	}
	before := strange()
	t.Run("", func(t *testing.T) {
		for _, parameters := range []string{
			"", "search_path=strange", "search_path=", "search_path=strange,public,pg_catalog",
			`search_path="$user",strange`, "schema=strange",
			"options=-c search_path=strange,public,pg_catalog",
		} {
			for _, mode := range []string{"cache_statement", "exec"} {
				t.Run(parameters+" "+mode, func(t *testing.T) {
					t.Parallel()
					name, value, _ := strings.Cut(parameters, "=")
					url := url + "&default_query_exec_mode=" + mode
					if name != "" {
						url += "&" + name + "=" + strings.ReplaceAll(neturl.QueryEscape(value), "+", "%20")
					}
					s := startServer(t, "DATABASE_URL="+url, "BETTER_AUTH_SECRET="+serveSecret)
					task := s.must(201, parameters+mode, "POST", "/api/tasks", `{"title":"a"}`)
					found := s.must(200, parameters+mode, "GET", "/api/tasks/"+task["id"].(string), "")
					if found["created_at"] != task["created_at"] ||
						strings.HasPrefix(found["created_at"].(string), "1970") {
						t.Errorf("written %v, found %v", task, found)
					}
					if got := finish(t, program(t, []string{"DATABASE_URL=" + url}, "verify")); got.code != 0 {
						t.Errorf("verify: %+v", got)
					}
				})
			}
		}
	})
	for _, command := range []string{"rebuild", "verify"} {
		got := finish(t, program(t, []string{"DATABASE_URL=" + url + "&default_query_exec_mode=exec"}, command))
		if got.code != 0 {
			t.Errorf("%s: %+v", command, got)
		}
	}
	if after := strange(); after != before {
		t.Errorf("what is not ours was\n%s\nand is\n%s", before, after)
	}
}
