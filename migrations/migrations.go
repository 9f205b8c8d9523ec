// Package migrations is the schema of the database, and the way to it from any earlier one. Everything of ours is in one schema of
// the database, whose name the caller chooses: a ledger of its own, which knows nothing of another one beside it.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

//go:embed *.sql
var files embed.FS

const (
	// versionTable is where goose notes what was done, in the ledger's schema.
	versionTable = "schema_versions"
	// lockWait is longer than any migration of ours may take.
	lockWait = 5 * time.Minute
	// lockPause is between two looks whether another process has migrated.
	lockPause = 50 * time.Millisecond
)

// VersionError says that the database has a schema that this program cannot work on.
type VersionError struct {
	Database int64 // 0: no schema at all
	Program  int64
}

func (e *VersionError) Error() string {
	if e.Database > e.Program {
		return fmt.Sprintf("the database has schema version %d, which a program of version %d can't use: use a newer program",
			e.Database, e.Program)
	}
	return fmt.Sprintf("the database has schema version %d, this program needs version %d: run taskledger migrate",
		e.Database, e.Program)
}

// Up brings the schema to the version of this program, and takes from other roles what they may have been given on it. Any number of
// processes may call it at once, also through a transaction pooler: one migrates, the others wait for it, for five minutes at most. A
// newer schema is left alone; where this program can't work on it, the error is a *VersionError.
func Up(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return up(ctx, pool, schema, files, lockWait)
}

func up(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS, wait time.Duration) error {
	if err := checkName(ctx, pool, schema); err != nil {
		return err
	}
	return locked(ctx, pool, schema, wait, func() error {
		have, err := current(ctx, pool, schema)
		if err != nil {
			return fmt.Errorf("read the schema version: %w", err)
		}
		if have > latest() {
			return Check(ctx, pool, schema)
		}
		if err := migrate(ctx, pool, schema, files); err != nil {
			return fmt.Errorf("migrate the database: %w", err)
		}
		return revoke(ctx, pool, schema)
	})
}

// checkName refuses a name that would need quotes: goose writes it without.
func checkName(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	var plain bool
	if err := pool.QueryRow(ctx, `SELECT pg_catalog.quote_ident($1) = $1`, schema).Scan(&plain); err != nil {
		return fmt.Errorf("check the name of the schema: %w", err)
	}
	if !plain {
		return fmt.Errorf("the schema %q has a name that is a word of SQL, or needs quotes: choose another", schema)
	}
	return nil
}

func migrate(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS) error {
	if _, err := pool.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{schema}.Sanitize()); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	steps, err := steps(files, schema)
	if err != nil {
		return err
	}
	store, err := database.NewStore(database.DialectPostgres, schema+"."+versionTable)
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider("", db, nil,
		goose.WithStore(store), goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// steps are the migrations of files, on the named schema. Each runs in a transaction.
func steps(files fs.FS, schema string) ([]*goose.Migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	var steps []*goose.Migration
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		statements := strings.ReplaceAll(string(text), "{schema}", pgx.Identifier{schema}.Sanitize())
		steps = append(steps, goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, statements, pgx.QueryExecModeSimpleProtocol)
			return err
		}}, nil))
	}
	return steps, nil
}

// revoke takes away what default privileges give to others on each new table (Supabase, for one, gives all to anon): the log and the
// read model are nobody's but their owner's.
func revoke(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	rows, err := pool.Query(ctx, `
		WITH granted AS (
			SELECT 'SCHEMA ' || quote_ident(nspname) AS object, nspacl AS acl, nspowner AS owner
			FROM pg_catalog.pg_namespace
			WHERE nspname = $1
			UNION ALL
			SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass, relacl, relowner
			FROM pg_catalog.pg_class c
			JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
			WHERE nspname = $1 AND relkind IN ('r', 'p', 'v', 'm', 'S')
		)
		SELECT DISTINCT 'REVOKE ALL ON ' || object || ' FROM '
			|| CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
		FROM granted
		CROSS JOIN LATERAL aclexplode(acl)
		WHERE grantee <> owner AND pg_has_role(owner, 'USAGE')`, schema)
	if err != nil {
		return fmt.Errorf("read who may use the schema: %w", err)
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read who may use the schema: %w", err)
	}
	for _, statement := range statements {
		if _, err := pool.Exec(ctx, statement); err != nil {
			return fmt.Errorf("keep others out of the schema: %w", err)
		}
	}
	return nil
}

// locked calls work while a transaction on a connection outside of the pool has the lock: a pool of one connection
// would wait for itself, and behind a transaction pooler only a transaction has a session to keep a lock in. Who waits
// for the lock asks again and again, and keeps nothing meanwhile: a pooler may have fewer connections than there are
// processes that start.
func locked(ctx context.Context, pool *pgxpool.Pool, schema string, wait time.Duration, work func() error) error {
	conn, err := connect(ctx, pool)
	if err != nil {
		return fmt.Errorf("lock the migrations: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for begin := time.Now(); ; {
		var workErr error
		done := false
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
			if done, err = takeLock(ctx, tx, schema); done && err == nil {
				workErr = work()
			}
			return err
		})
		switch {
		case workErr != nil:
			return workErr
		case err == nil && !done && time.Since(begin) >= wait:
			return fmt.Errorf("lock the migrations: another process has been migrating for %v", wait)
		case err == nil && !done:
			err = pause(ctx, lockPause)
		}
		if err != nil {
			return fmt.Errorf("lock the migrations: %w", err)
		}
		if done {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func connect(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	config := pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	return pgx.ConnectConfig(ctx, config.ConnConfig)
}

// takeLock tells whether the lock could be had. It lifts the limits that a server may have for its sessions: who has it
// is idle while the work is done elsewhere.
func takeLock(ctx context.Context, tx pgx.Tx, schema string) (taken bool, err error) {
	_, err = tx.Exec(ctx, `
		SELECT set_config('statement_timeout', '0', true),
		       set_config('idle_in_transaction_session_timeout', '0', true)`)
	if err != nil {
		return false, err
	}
	err = tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, lockKey(schema)).Scan(&taken)
	return taken, err
}

// lockKey is the advisory lock of whoever migrates the schema.
func lockKey(schema string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("taskledger migrate " + schema))
	return int64(h.Sum64())
}

// Check returns nil when this program can work on the schema of the database, else a *VersionError, or why it could not be asked. A
// newer schema than the program's is fine, unless it says that it needs a newer program. It is one small query.
func Check(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	have, err := current(ctx, pool, schema)
	if err == nil && have > latest() {
		var oldest int64
		err = pool.QueryRow(ctx, `SELECT `+pgx.Identifier{schema}.Sanitize()+`.oldest_program()`).Scan(&oldest)
		if err == nil && oldest <= latest() {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("read the schema version: %w", err)
	}
	if have != latest() {
		return &VersionError{Database: have, Program: latest()}
	}
	return nil
}

func current(ctx context.Context, pool *pgxpool.Pool, schema string) (int64, error) {
	var version int64
	err := pool.QueryRow(ctx, `
		SELECT coalesce(max(version_id), 0)
		FROM `+pgx.Identifier{schema, versionTable}.Sanitize()+`
		WHERE is_applied`).Scan(&version)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == "42P01" || pgErr.Code == "3F000") {
		return 0, nil
	}
	return version, err
}

// FindEarlier tells whether the database holds a ledger of the builds before version 1, in the schema public. It is left as it is.
func FindEarlier(ctx context.Context, pool *pgxpool.Pool) (bool, error) {
	var found bool
	err := pool.QueryRow(ctx, `
		SELECT to_regclass('public.task_events') IS NOT NULL AND to_regclass('public.projection_checkpoints') IS NOT NULL`).
		Scan(&found)
	if err != nil {
		return false, fmt.Errorf("look for an earlier ledger: %w", err)
	}
	return found, nil
}

// latest is the version of the last embedded migration.
var latest = sync.OnceValue(func() int64 {
	var last int64
	names, _ := fs.Glob(files, "*.sql") // the pattern is well-formed
	for _, name := range names {
		// Up refuses a file without a number; here it does not count.
		if version, err := goose.NumericComponent(name); err == nil {
			last = max(last, version)
		}
	}
	return last
})
