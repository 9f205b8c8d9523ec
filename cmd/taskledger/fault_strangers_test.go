package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
)

// What strangers leave open, in this database or another of the cluster, holds nobody up: readers go by position and
// not by transaction ids.
func TestOpenTransactionsOfStrangersHoldNobodyUp(t *testing.T) {
	t.Parallel()
	url, other := testdb.URL(t), testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	writer, reader := startServer(t, env...), startServer(t, env...)
	writer.must(201, "u", "POST", "/api/tasks", `{"title":"before"}`)
	leaveOpen(t, url, `CREATE TABLE stranger (n integer); INSERT INTO stranger VALUES (1)`)
	leaveOpen(t, other, `CREATE TABLE stranger (n integer); INSERT INTO stranger VALUES (1)`)
	leaveOpen(t, url, `SELECT count(*) FROM taskledger.task_events; SELECT pg_current_xact_id()`)
	for range 20 {
		task := writer.must(201, "u", "POST", "/api/tasks", `{"title":"after"}`)
		found := reader.must(200, "u", "GET", "/api/tasks/"+task["id"].(string), "")
		if found["title"] != "after" {
			t.Errorf("found %v", found)
		}
	}
	if got := finish(t, program(t, env[:1], "verify")); got.code != 0 {
		t.Errorf("verify: %+v", got)
	}
}

// leaveOpen begins a transaction and leaves it idle until the end of the test.
func leaveOpen(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), `BEGIN; `+sql); err != nil {
		t.Fatal(err)
	}
}

// Anybody in the database may notify. Whatever they say, and however much, what is written is still heard of in another
// process, soon.
func TestNotificationsOfStrangersDoNoHarm(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	writer, reader := startServer(t, env...), startServer(t, env...)
	heard := reader.titles("u")
	write := func(title string) {
		t.Helper()
		writer.must(201, "u", "POST", "/api/tasks", fmt.Sprintf(`{"title":%q}`, title))
		begin := time.Now()
		select {
		case got := <-heard:
			if took := time.Since(begin); got != title || took > time.Second {
				t.Errorf("the task %q is heard of after %v, want %q", got, took, title)
			}
		case <-time.After(patience):
			t.Fatalf("the task %q is not heard of", title)
		}
	}
	write("before")
	role := "notifier_" + strings.ToLower(rand.Text())
	execute(t, url, `CREATE ROLE `+role)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), url)
		if err == nil {
			_, err = conn.Exec(context.Background(), `DROP ROLE `+role)
			err = errors.Join(err, conn.Close(context.Background()))
		}
		if err != nil {
			t.Error(err)
		}
	})
	for i, payload := range []string{
		"", "9223372036854775807", "-1", "18446744073709551616", "1e400", "NaN", `{"position":1e99}`, "\x01",
		strings.Repeat("9", 7999),
	} {
		onDatabase(t, url, func(ctx context.Context, conn *pgx.Conn) error {
			if _, err := conn.Exec(ctx, `SET ROLE `+role); err != nil {
				return err
			}
			_, err := conn.Exec(ctx, `SELECT pg_notify('taskledger_moved', $1) FROM generate_series(1, 20)`, payload)
			return err
		})
		write(fmt.Sprint("after payload ", i))
	}
	execute(t, url, `SELECT pg_notify('taskledger_moved', n::text) FROM generate_series(1, 20000) n`)
	write("after many")
	if got := finish(t, program(t, env[:1], "verify")); got.code != 0 {
		t.Errorf("verify: %+v", got)
	}
}

// A dump that is restored into a new cluster, whose transaction ids begin anew, goes on where it was.
func TestADumpGoesOnInAnotherCluster(t *testing.T) {
	t.Parallel()
	from, to := testdb.URL(t), testdb.Server(t).AdminURL()
	secret := "BETTER_AUTH_SECRET=" + serveSecret
	before := startServer(t, "DATABASE_URL="+from, secret)
	old := before.must(201, "u", "POST", "/api/tasks", `{"title":"old"}`)
	for range 50 {
		before.must(200, "u", "PATCH", "/api/tasks/"+old["id"].(string)+"/complete", "")
	}
	last := before.must(200, "u", "GET", "/api/tasks/"+old["id"].(string), "")
	before.terminate()
	moveDump(t, from, to)

	after := startServer(t, "DATABASE_URL="+to, secret)
	if found := after.must(
		200,
		"u",
		"GET",
		"/api/tasks/"+old["id"].(string),
		"",
	); found["updated_at"] != last["updated_at"] {
		t.Errorf("after the move the task is %v, it was %v", found, last)
	}
	changed := after.must(200, "u", "PATCH", "/api/tasks/"+old["id"].(string), `{"title":"new"}`)
	if changed["version"] != last["version"].(float64)+1 {
		t.Errorf("after version %v comes %v", last["version"], changed["version"])
	}
	task := after.must(201, "another", "POST", "/api/tasks", `{"title":"new"}`)
	after.must(200, "another", "GET", "/api/tasks/"+task["id"].(string), "")
	after.shown("u")
	after.shown("another")
	got := finish(t, program(t, []string{"DATABASE_URL=" + to}, "verify"))
	if want := "compared 2 users, 53 events, 57 rows; 0 parked\n"; got.code != 0 || got.stdout != want {
		t.Errorf("verify: %+v, want %q", got, want)
	}
}

// moveDump is pg_dump | psql, and psql has nothing to complain of. Where a PostgreSQL was downloaded these clients are
// missing; then the tables are copied one by one, into a database that was migrated before.
func moveDump(t *testing.T, from, to string) {
	t.Helper()
	dump := clientProgram(t, from, "pg_dump", from)
	restore := clientProgram(t, from, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", to)
	if dump == nil || restore == nil {
		t.Log("pg_dump and psql are not on this machine: tables are copied instead")
		copyTables(t, from, to)
		return
	}
	var script, stderr bytes.Buffer
	dump.Stdout, dump.Stderr = &script, &stderr
	if err := dump.Run(); err != nil {
		t.Fatalf("pg_dump: %v %s", err, &stderr)
	}
	restore.Stdin, restore.Stderr = &script, &stderr
	if err := restore.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("psql: %v %s", err, &stderr)
	}
}

func copyTables(t *testing.T, from, to string) {
	t.Helper()
	if got := finish(t, program(t, []string{"DATABASE_URL=" + to}, "migrate")); got.code != 0 {
		t.Fatalf("migrate: %+v", got)
	}
	var connections [2]*pgx.Conn
	for i, url := range []string{from, to} {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		connections[i] = conn
	}
	source, target := connections[0], connections[1]
	if _, err := target.Exec(t.Context(), `DELETE FROM taskledger.checkpoints`); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{
		"task_events", "skipped_events", "checkpoints", "tasks", "task_history", "users",
	} {
		var rows bytes.Buffer
		if _, err := source.PgConn().CopyTo(t.Context(), &rows, `COPY taskledger.`+table+` TO STDOUT`); err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		if _, err := target.PgConn().CopyFrom(t.Context(), &rows, `COPY taskledger.`+table+` FROM STDIN`); err != nil {
			t.Fatalf("%s: %v", table, err)
		}
	}
	const goOn = `
		SELECT setval(pg_get_serial_sequence('taskledger.task_events', 'position'),
			(SELECT max(position) FROM taskledger.task_events))`
	if _, err := target.Exec(t.Context(), goOn); err != nil {
		t.Fatal(err)
	}
}

// clientProgram finds a program of PostgreSQL: next to those of the server behind url, or on PATH; nil when it is
// nowhere.
func clientProgram(t *testing.T, url, name string, args ...string) *exec.Cmd {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var dir string
	if err := conn.QueryRow(t.Context(), `SELECT setting FROM pg_config WHERE name = 'BINDIR'`).Scan(&dir); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath(filepath.Join(filepath.FromSlash(dir), name))
	if err != nil {
		path, err = exec.LookPath(name)
	}
	if err != nil {
		return nil
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	return cmd
}
