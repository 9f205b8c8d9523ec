package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
)

// statusOf runs taskledger status --json.
func statusOf(t *testing.T, env ...string) (s status, got outcome) {
	t.Helper()
	got = finish(t, program(t, env, "status", "--json"))
	if err := json.Unmarshal([]byte(got.stdout), &s); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	return s, got
}

// hasLine tells whether one of the lines has the text.
func hasLine(lines []string, text string) bool {
	return strings.Contains(strings.Join(lines, "\n"), text)
}

// An operator sees on one screen that nothing needs anybody: of the embedded database, with and without the server.
func TestStatusOfAServiceThatIsWell(t *testing.T) {
	t.Parallel()
	env := []string{"DATA_DIR=" + dataDir(t)}
	s := startServer(t, env...)
	token := shownToken.FindStringSubmatch(s.banner)[1]
	for _, method := range []string{"POST", "GET"} { // the read waits for the read model
		if code, _, err := s.callAs(token, method, "/api/tasks", `{"title":"a"}`); code >= 300 || err != nil {
			t.Fatal(method, code, err)
		}
	}
	for _, running := range []bool{true, false} {
		if !running {
			s.terminate()
		}
		st, got := statusOf(t, env...)
		if got.code != 0 || got.stderr != "" && running || len(st.Problems) > 0 {
			t.Errorf("exit code %d, problems %q, stderr %s", got.code, st.Problems, got.stderr)
		}
		l := st.Ledger
		if l == nil || l.Log.Events != 1 || l.Log.Estimated || l.Log.LastDay != 1 || l.Log.LastHour != 1 ||
			l.Log.Bytes == 0 {
			t.Fatalf("the log: %s", got.stdout)
		}
		if l.ReadModel.Version != l.ReadModel.ProgramVersion || l.ReadModel.LagEvents != 0 ||
			l.Rebuild != nil || len(l.Tables) != 4 {
			t.Errorf("the read model: %s", got.stdout)
		}
		if !st.Rows.On || !st.Rows.Binds || !st.Sessions.Reachable || st.Sessions.Tables || st.JWKS != nil {
			t.Errorf("who may do what: %s", got.stdout)
		}
		named := false
		for _, c := range l.Connections {
			named = named || c.Application == "taskledger ledger"
		}
		if named != running {
			t.Errorf("running %v, connections %+v", running, l.Connections)
		}
	}
	screen := finish(t, program(t, env, "status"))
	for _, want := range []string{
		"1 events", "nobody waits", "nothing needs anybody", "fsync on", "none is configured", "version 1",
	} {
		if screen.code != 0 || !strings.Contains(screen.stdout, want) {
			t.Errorf("exit code %d, no %q in\n%s", screen.code, want, screen.stdout)
		}
	}
}

// What needs a person is named, and is the exit code.
func TestStatusTellsWhatNeedsAPerson(t *testing.T) {
	t.Parallel()
	keys := httptest.NewServer(http.NotFoundHandler())
	defer keys.Close()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	empty, got := statusOf(t, append(env, "DATABASE_SCHEMA=elsewhere")...)
	if got.code != exitFailed || empty.Ledger != nil || !hasLine(empty.Problems, "run taskledger migrate") {
		t.Errorf("without a schema: %+v", got)
	}
	execute(
		t,
		url,
		`
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 1, gen_random_uuid(), 'TaskRenamed', 1, '{}', gen_random_uuid(), gen_random_uuid(), 'u', 'r',
			now() - interval '2 hours')`,
		`INSERT INTO taskledger.users VALUES ('v', 6, 1, '\x00', 'the reason', now())`,
		`UPDATE taskledger.checkpoints SET version = 0`,
		`SELECT taskledger.create_read_model('_rebuild')`,
		// Nothing is written: the database takes nothing.
		`DO $$ BEGIN
			EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
		END $$`,
	)
	s, got := statusOf(t, append(env, "JWKS_URL="+keys.URL)...)
	for _, want := range []string{
		"fsync off", "users are parked: 1", "does not move", "made by version 0",
		"the JWKS can't be read: fetch jwks: status 404",
	} {
		if got.code != exitFailed || !hasLine(s.Problems, want) {
			t.Errorf("exit code %d, no %q in %q", got.code, want, s.Problems)
		}
	}
	if !hasLine(s.Notes, "interrupted rebuild") || s.Ledger.Rebuild == nil || s.Ledger.Rebuild.Running {
		t.Errorf("what a rebuild has left: %q %+v", s.Notes, s.Ledger.Rebuild)
	}
	if l := s.Ledger; l.ReadModel.LagEvents != 1 || l.ReadModel.LagSeconds < 7000 || !l.ReadModel.Stuck ||
		l.Log.LastHour != 0 || l.Log.LastDay != 1 {
		t.Errorf("lag: %s", got.stdout)
	}
	if p := s.Ledger.Parked; p.Users != 1 || p.First[0].UserID != "v" || p.First[0].Seq != 7 ||
		p.First[0].Reason != "the reason" {
		t.Errorf("parked: %+v", p)
	}
	screen := finish(t, program(t, env, "status"))
	if screen.code != exitFailed || !strings.Contains(screen.stdout, `user="v" event=7`) ||
		strings.Count(screen.stderr, "\n") != 1 {
		t.Errorf("%+v", screen)
	}
}

// Who waits for a lock is named with who holds it, and a rebuild with how far it is.
func TestStatusTellsOfLocksAndRebuilds(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	s.must(200, "u", "GET", "/api/tasks", "")
	rebuild := program(t, env, "rebuild")
	onDatabase(t, url, func(ctx context.Context, conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(ctx)
		// The rebuild gets as far as a checkpoint of its own.
		if _, err := tx.Exec(
			ctx,
			`INSERT INTO taskledger.checkpoints (projection) VALUES ('tasks_rebuild')`,
		); err != nil {
			return err
		}
		if err := rebuild.Start(); err != nil {
			return err
		}
		for value[int](t, url, `
			SELECT count(*)
			FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 {
			if !tick(ctx) {
				return ctx.Err()
			}
		}
		st, got := statusOf(t, env...)
		if r := st.Ledger.Rebuild; r == nil || !r.Running || r.Phase != "index" || r.Seconds <= 0 {
			t.Errorf("the rebuild: %s", got.stdout)
		}
		holder := int32(conn.PgConn().PID())
		if w := st.Ledger.LockWaits; len(w) != 1 || !slices.Contains(w[0].BlockedBy, holder) ||
			w[0].Application != "taskledger ledger" {
			t.Errorf("the lock: %s", got.stdout)
		}
		// Nor does it wait for who has locked all others out.
		if _, err := tx.Exec(ctx, `LOCK TABLE taskledger.task_events IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		st, got = statusOf(t, env...)
		if l := st.Ledger; got.code != exitFailed || !l.Locked || !slices.Contains(l.LockedBy, holder) {
			t.Errorf("a table that is locked: %+v", got)
		}
		return nil
	})
	if err := rebuild.Wait(); err != nil {
		t.Errorf("the rebuild: %v", err)
	}
	if st, got := statusOf(t, env...); st.Ledger.Rebuild != nil || len(st.Ledger.LockWaits) > 0 {
		t.Errorf("afterwards: %s", got.stdout)
	}
}
