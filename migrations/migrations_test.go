package migrations_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"taskledger/migrations"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestUpMigratesOnce(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	checkVersion(t, pool, 0)
	for range 2 {
		if err := migrations.Up(t.Context(), pool); err != nil {
			t.Fatalf("Up: %v", err)
		}
		if err := migrations.Check(t.Context(), pool); err != nil {
			t.Fatalf("Check after Up: %v", err)
		}
	}
	if got := count(t, pool, `SELECT count(*) FROM task_events`); got != 0 {
		t.Errorf("%d events in a new database", got)
	}
}

func TestUpRunsInManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	group, ctx := errgroup.WithContext(t.Context())
	for range 3 {
		own := openPool(t, pool.Config())
		group.Go(func() error { return migrations.Up(ctx, own) })
	}
	if err := group.Wait(); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if err := migrations.Check(t.Context(), pool); err != nil {
		t.Error(err)
	}
	applied := count(t, pool, `SELECT count(*) FROM goose_db_version WHERE version_id > 0`)
	if distinct := count(t, pool, `SELECT count(DISTINCT version_id) FROM goose_db_version WHERE version_id > 0`); applied != distinct {
		t.Errorf("%d migrations were applied %d times", distinct, applied)
	}
}

// The modes in which pgx keeps nothing on a connection are those that survive a transaction pooler.
func TestUpInEveryModeOnOneConnection(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config := emptyDatabase(t).Config()
			config.MaxConns = 1
			config.ConnConfig.DefaultQueryExecMode = mode
			pool := openPool(t, config)
			if err := errors.Join(migrations.Up(t.Context(), pool), migrations.Check(t.Context(), pool)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDatabaseAheadIsLeftAlone(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	execute(t, pool, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`)
	for name, err := range map[string]error{
		"Up":    migrations.Up(t.Context(), pool),
		"Check": migrations.Check(t.Context(), pool),
	} {
		version, ok := errors.AsType[*migrations.VersionError](err)
		if !ok || version.Database != 99999 || version.Program != migrations.Latest() {
			t.Errorf("%s: %v, want a VersionError with version 99999", name, err)
		}
	}
}

func TestUpWaitsForTheLockAndNotForEver(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, migrations.LockKey); err != nil {
		t.Fatal(err)
	}
	err = migrations.UpWith(t.Context(), pool, oneMigration(`SELECT 1;`), 20*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "another process has been migrating") {
		t.Errorf("got %v, want that another process migrates", err)
	}

	waiting := make(chan error, 1)
	go func() { waiting <- migrations.UpWith(t.Context(), pool, oneMigration(`SELECT 1;`), time.Minute) }()
	awaitWaiter(t, pool)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("after the lock was free: %v", err)
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	err := migrations.UpWith(t.Context(), pool, oneMigration(`CREATE TABLE half (); SELECT 1/0;`), time.Second)
	if err == nil || !strings.Contains(err.Error(), "division by zero") {
		t.Fatalf("got %v, want what PostgreSQL said", err)
	}
	if got := count(t, pool, `SELECT count(*) FROM pg_tables WHERE tablename = 'half'`); got != 0 {
		t.Error("half a migration stayed")
	}
	if err := migrations.UpWith(t.Context(), pool, oneMigration(`CREATE TABLE whole ();`), time.Second); err != nil {
		t.Errorf("the mended migration: %v", err)
	}
}

func oneMigration(sql string) fstest.MapFS {
	return fstest.MapFS{"00001_test.sql": {Data: []byte("-- +goose Up\n" + sql + "\n")}}
}

func checkVersion(t *testing.T, pool *pgxpool.Pool, database int64) {
	t.Helper()
	err := migrations.Check(t.Context(), pool)
	version, ok := errors.AsType[*migrations.VersionError](err)
	if !ok || version.Database != database {
		t.Errorf("Check: %v, want a VersionError with version %d", err, database)
	}
}

func emptyDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := testdb.New(t)
	execute(t, pool, `DROP SCHEMA public CASCADE`)
	execute(t, pool, `CREATE SCHEMA public`)
	return pool
}

func openPool(t *testing.T, config *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func execute(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t *testing.T, pool *pgxpool.Pool, sql string) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// awaitWaiter returns when somebody waits for an advisory lock of the database.
func awaitWaiter(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	const waiters = `SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
		WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()`
	for count(t, pool, waiters) == 0 {
		select {
		case <-ctx.Done():
			t.Fatal("nobody waits for the lock")
		case <-tick.C:
		}
	}
}
