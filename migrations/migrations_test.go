package migrations_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
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
		if err := migrations.Up(t.Context(), pool, testdb.Schema); err != nil {
			t.Fatalf("Up: %v", err)
		}
		if err := migrations.Check(t.Context(), pool, testdb.Schema); err != nil {
			t.Fatalf("Check after Up: %v", err)
		}
	}
	if got := count(t, pool, `SELECT count(*) FROM taskledger.task_events`); got != 0 {
		t.Errorf("%d events in a new database", got)
	}
}

// A change of a task that neither deletes nor restores it touches no index: it can be a HOT update. A column that is in
// any index of the table, a partial one too, prevents that.
func TestChangesOfATaskTouchNoIndex(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	rows, err := pool.Query(t.Context(), `
		SELECT DISTINCT a.attname::text
		FROM pg_index i
		JOIN pg_attribute a ON a.attrelid = i.indrelid
		WHERE i.indrelid = 'taskledger.tasks'::regclass
		AND (a.attnum = ANY (i.indkey) OR pg_get_expr(i.indpred, i.indrelid) ~ ('\y' || a.attname || '\y'))
		ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"created_at", "deleted_at", "id", "user_id"}; !slices.Equal(got, want) {
		t.Errorf("the indexes have the columns %v, want %v", got, want)
	}
}

func TestUpRunsInManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	group, ctx := errgroup.WithContext(t.Context())
	for range 3 {
		own := openPool(t, pool.Config())
		group.Go(func() error { return migrations.Up(ctx, own, testdb.Schema) })
	}
	if err := group.Wait(); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if err := migrations.Check(t.Context(), pool, testdb.Schema); err != nil {
		t.Error(err)
	}
	applied := count(t, pool, `SELECT count(*) FROM taskledger.schema_versions WHERE version_id > 0`)
	if distinct := count(
		t,
		pool,
		`SELECT count(DISTINCT version_id) FROM taskledger.schema_versions WHERE version_id > 0`,
	); applied != distinct {
		t.Errorf("%d migrations were applied %d times", distinct, applied)
	}
}

// The modes in which pgx keeps nothing on a connection are those that survive a transaction pooler.
func TestUpInEveryModeOnOneConnection(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config := emptyDatabase(t).Config()
			config.MaxConns = 1
			config.ConnConfig.DefaultQueryExecMode = mode
			pool := openPool(t, config)
			if err := errors.Join(
				migrations.Up(t.Context(), pool, testdb.Schema),
				migrations.Check(t.Context(), pool, testdb.Schema),
			); err != nil {
				t.Error(err)
			}
		})
	}
}

// A newer schema is fine while it says that this program can work on it, and left alone in any case.
func TestANewerSchemaIsLeftAlone(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	execute(t, pool, `INSERT INTO taskledger.schema_versions (version_id, is_applied) VALUES (99999, true)`)
	errs := func() map[string]error {
		return map[string]error{
			"Up":    migrations.Up(t.Context(), pool, testdb.Schema),
			"Check": migrations.Check(t.Context(), pool, testdb.Schema),
		}
	}
	for name, err := range errs() {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	execute(t, pool, `
		CREATE OR REPLACE FUNCTION taskledger.oldest_program() RETURNS bigint LANGUAGE sql IMMUTABLE
			AS $$ SELECT 99999::bigint $$`)
	for name, err := range errs() {
		version, ok := errors.AsType[*migrations.VersionError](err)
		if !ok || version.Database != 99999 || version.Program != migrations.Latest() {
			t.Errorf("%s: %v, want a VersionError with version 99999", name, err)
		}
	}
}

// Tables of others with the names of ours, and their migration tools, stay as they are; and what search_path says
// changes nothing.
func TestOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	config := emptyDatabase(t).Config()
	config.ConnConfig.RuntimeParams["search_path"] = "strange, public, pg_catalog"
	pool := openPool(t, config)
	execute(t, pool, `CREATE SCHEMA strange`)
	for _, name := range []string{
		"tasks", "task", "users", "task_events", "goose_db_version", "schema_versions", "checkpoints",
	} {
		for _, schema := range []string{"public", "strange"} {
			execute(t, pool, `CREATE TABLE `+schema+`.`+name+` (strange text)`)
			execute(t, pool, `INSERT INTO `+schema+`.`+name+` VALUES ('x')`)
		}
	}
	const others = `SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
		WHERE nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('taskledger', 'information_schema')`
	before := count(t, pool, others)
	if err := errors.Join(
		migrations.Up(t.Context(), pool, testdb.Schema),
		migrations.Check(t.Context(), pool, testdb.Schema),
	); err != nil {
		t.Fatal(err)
	}
	if after := count(t, pool, others); after != before {
		t.Errorf("%d things of others were there, now %d", before, after)
	}
	for _, name := range []string{"public.tasks", "strange.goose_db_version", "public.users"} {
		if n := count(t, pool, `SELECT count(*) FROM `+name+` WHERE strange = 'x'`); n != 1 {
			t.Errorf("%s has %d rows", name, n)
		}
	}
}

// Nobody but the owner may use what is ours, whatever the default privileges of the database are; and it is mended at
// each start.
func TestOthersAreKeptOut(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	anon := "anon_" + strings.ToLower(rand.Text())
	execute(t, pool, `CREATE ROLE `+anon)
	t.Cleanup(func() {
		// Not t.Context(), which has ended.
		_, err := pool.Exec(
			context.Background(),
			`DROP OWNED BY `+anon+`; DROP ROLE `+anon,
			pgx.QueryExecModeSimpleProtocol,
		)
		if err != nil {
			t.Error(err)
		}
	})
	for _, what := range []string{"TABLES", "SEQUENCES", "SCHEMAS", "TYPES"} {
		execute(t, pool, `ALTER DEFAULT PRIVILEGES GRANT ALL ON `+what+` TO `+anon)
	}
	granted := func() int {
		t.Helper()
		return count(t, pool, `
			SELECT count(*)
			FROM (
				SELECT nspacl AS acl, nspowner AS owner FROM pg_namespace WHERE nspname = 'taskledger'
				UNION ALL
				SELECT relacl, relowner FROM pg_class WHERE relnamespace = 'taskledger'::regnamespace
			) x, aclexplode(acl)
			WHERE grantee <> owner`) + count(t, pool, `
			SELECT count(*)
			FROM pg_type, aclexplode(typacl)
			WHERE typnamespace = 'taskledger'::regnamespace AND typname ~ '^row_of' AND grantee NOT IN (typowner, 0)`)
	}
	for _, given := range []string{
		`SELECT 1`, `GRANT ALL ON SCHEMA taskledger TO PUBLIC`,
		`GRANT ALL ON ALL TABLES IN SCHEMA taskledger TO ` + anon,
	} {
		execute(t, pool, given)
		if err := migrations.Up(t.Context(), pool, testdb.Schema); err != nil {
			t.Fatal(err)
		}
		if n := granted(); n != 0 {
			t.Errorf("after %s: %d privileges of others", given, n)
		}
	}
	bound := count(
		t,
		pool,
		`SELECT count(*) FROM pg_class WHERE relnamespace = 'taskledger'::regnamespace AND relkind = 'r'
		AND NOT (relrowsecurity AND (relforcerowsecurity OR relname = 'schema_versions'))`,
	)
	if bound != 0 {
		t.Errorf("%d tables have no row level security", bound)
	}
}

// Two ledgers in one database are migrated each for itself.
func TestLedgersAreStrangers(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	if err := migrations.Check(t.Context(), pool, "other"); err == nil {
		t.Error("a ledger that is not there is up to date")
	}
	if err := errors.Join(
		migrations.Up(t.Context(), pool, "other"),
		migrations.Check(t.Context(), pool, "other"),
	); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM other.checkpoints`); n != 1 {
		t.Errorf("%d checkpoints", n)
	}
	for _, name := range []string{"user", "My Ledger"} {
		if err := migrations.Up(
			t.Context(),
			pool,
			name,
		); err == nil ||
			!strings.Contains(err.Error(), "choose another") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEarlierLedgersAreFound(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	if found, err := migrations.FindEarlier(t.Context(), pool); err != nil || found {
		t.Errorf("found %t, %v", found, err)
	}
	execute(t, pool, `CREATE TABLE public.task_events ()`)
	execute(t, pool, `CREATE TABLE public.projection_checkpoints ()`)
	if found, err := migrations.FindEarlier(t.Context(), pool); err != nil || !found {
		t.Errorf("found %t, %v", found, err)
	}
	if err := migrations.Check(t.Context(), pool, testdb.Schema); err != nil {
		t.Errorf("a ledger of this build: %v", err)
	}
	// Those had no such type.
	execute(t, pool, `DROP TYPE taskledger.row_of_task_events`)
	var earlier *migrations.EarlierError
	if err := migrations.Up(t.Context(), pool, testdb.Schema); !errors.As(err, &earlier) {
		t.Errorf("a ledger of an earlier build: %v", err)
	}
}

func TestUpWaitsForTheLockAndNotForEver(t *testing.T) {
	t.Parallel()
	pool := emptyDatabase(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(
		t.Context(),
		`SELECT pg_advisory_xact_lock($1)`,
		migrations.LockKey(testdb.Schema),
	); err != nil {
		t.Fatal(err)
	}
	err = migrations.UpWith(t.Context(), pool, testdb.Schema, oneMigration(`SELECT 1;`), 20*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "another process has been migrating") {
		t.Errorf("got %v, want that another process migrates", err)
	}

	waiting := make(chan error, 1)
	go func() {
		waiting <- migrations.UpWith(t.Context(), pool, testdb.Schema, oneMigration(`SELECT 1;`), time.Minute)
	}()
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
	err := migrations.UpWith(
		t.Context(),
		pool,
		testdb.Schema,
		oneMigration(`CREATE TABLE {schema}.half (); SELECT 1/0;`),
		time.Minute,
	)
	if err == nil || !strings.Contains(err.Error(), "division by zero") {
		t.Fatalf("got %v, want what PostgreSQL said", err)
	}
	if got := count(t, pool, `SELECT count(*) FROM pg_tables WHERE tablename = 'half'`); got != 0 {
		t.Error("half a migration stayed")
	}
	if err := migrations.UpWith(
		t.Context(),
		pool,
		testdb.Schema,
		oneMigration(`CREATE TABLE {schema}.whole ();`),
		time.Minute,
	); err != nil {
		t.Errorf("the mended migration: %v", err)
	}
}

func oneMigration(sql string) fstest.MapFS {
	return fstest.MapFS{"00001_test.sql": {Data: []byte("-- +goose Up\n" + sql + "\n")}}
}

func checkVersion(t *testing.T, pool *pgxpool.Pool, database int64) {
	t.Helper()
	err := migrations.Check(t.Context(), pool, testdb.Schema)
	version, ok := errors.AsType[*migrations.VersionError](err)
	if !ok || version.Database != database {
		t.Errorf("Check: %v, want a VersionError with version %d", err, database)
	}
}

func emptyDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := testdb.New(t)
	execute(t, pool, `DROP SCHEMA taskledger CASCADE`)
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

// awaitWaiter returns when somebody has asked for the lock in vain: nothing is held between two looks.
func awaitWaiter(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	const waiters = `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND state = 'idle' AND query = 'commit'`
	for count(t, pool, waiters) == 0 {
		select {
		case <-ctx.Done():
			t.Fatal("nobody waits for the lock")
		case <-tick.C:
		}
	}
}
