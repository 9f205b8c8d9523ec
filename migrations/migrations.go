// Package migrations is the schema of the database, and the way to it from any earlier one. Everything of ours is in
// one schema of the database, whose name the caller chooses: a ledger of its own, which knows nothing of another one
// beside it.
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
	// anotherWait is how long the connections of a pooler may all be in use.
	anotherWait = 5 * time.Second
)

// VersionError says that the database has a schema that this program cannot work on.
type VersionError struct {
	Database int64 // 0: no schema at all
	Program  int64
}

func (e *VersionError) Error() string {
	if e.Database > e.Program {
		return fmt.Sprintf(
			"the database has schema version %d, which a program of version %d can't use: use a newer program",
			e.Database,
			e.Program,
		)
	}
	return fmt.Sprintf("the database has schema version %d, this program needs version %d: run taskledger migrate",
		e.Database, e.Program)
}

// EarlierError says that the ledger was made by a build before version 1, whose first migration was another one.
type EarlierError struct{ Schema string }

func (e *EarlierError) Error() string {
	return fmt.Sprintf("the schema %q holds a ledger of a build before version 1, which is not carried over: "+
		"use another DATABASE_SCHEMA, or without a DATABASE_URL another DATA_DIR", e.Schema)
}

// RightsError says that the role may not do with the ledger what a server does.
type RightsError struct {
	Role, Schema string
	Lacks        []string // privileges, as a GRANT names them
}

func (e *RightsError) Error() string {
	schema := pgx.Identifier{e.Schema}.Sanitize()
	return fmt.Sprintf(
		"the role %q may not use the ledger in the schema %q, it lacks %s: as the owner grant that, "+
			"or grant USAGE ON SCHEMA %s and SELECT, INSERT ON %[4]s.task_events to a role that can log in "+
			"and run taskledger migrate, which adds the rest",
		e.Role,
		e.Schema,
		strings.Join(e.Lacks, ", "),
		schema,
	)
}

// Up brings the schema to the version of this program, and puts right who may use it, as far as the role of the pool
// may do both. Any number of processes may call it at once, also through a transaction pooler: one migrates, the others
// wait for it, for five minutes at most. A newer schema is left alone; the errors of Check are those of Up.
func Up(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	if err := checkName(ctx, pool, schema); err != nil {
		return err
	}
	return locked(ctx, pool, schema, lockWait, func() error {
		if err := migrate(ctx, pool, schema, files); err != nil {
			return err
		}
		if err := settle(ctx, pool, schema); err != nil {
			return err
		}
		return Check(ctx, pool, schema)
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

// migrate does nothing on a schema that is up to date, or newer.
func migrate(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS) error {
	have, err := current(ctx, pool, schema)
	if err != nil || have >= latest() {
		return err
	}
	err = makeSchema(ctx, pool, schema)
	if err == nil {
		err = runSteps(ctx, pool, schema, files)
	}
	if isDenied(err) {
		return fmt.Errorf("migrate the database: %w: run taskledger migrate as the owner of the database, "+
			"or have the owner run CREATE SCHEMA %s AUTHORIZATION and the name of this role",
			err, pgx.Identifier{schema}.Sanitize())
	}
	if err != nil {
		return fmt.Errorf("migrate the database: %w", err)
	}
	return nil
}

// makeSchema makes the schema if it is missing, and takes from it what default privileges give to others before anybody
// sees it.
func makeSchema(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var there bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)`, schema).
			Scan(&there)
		if err != nil || there {
			return err
		}
		if _, err := tx.Exec(ctx, `CREATE SCHEMA `+pgx.Identifier{schema}.Sanitize()); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::pg_catalog.regrole::text END
			FROM pg_catalog.pg_namespace
			CROSS JOIN LATERAL pg_catalog.aclexplode(nspacl)
			WHERE nspname = $1 AND grantee <> nspowner`, schema)
		if err != nil {
			return err
		}
		others, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(others) == 0 {
			return err
		}
		_, err = tx.Exec(
			ctx,
			`REVOKE ALL ON SCHEMA `+pgx.Identifier{schema}.Sanitize()+` FROM `+strings.Join(others, ", "),
		)
		return err
	})
}

func runSteps(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS) error {
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
		steps = append(
			steps,
			goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, statements, pgx.QueryExecModeSimpleProtocol)
				return err
			}}, nil),
		)
	}
	return steps, nil
}

// settle puts right whose the ledger is and who else may use it, where this role may: by the rule that the schema
// itself states. A database that takes no writes now is left as it is.
func settle(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	var may bool
	err := pool.QueryRow(ctx, `
		SELECT pg_catalog.current_setting('transaction_read_only') = 'off' AND pg_catalog.pg_has_role(relowner, 'USAGE')
		FROM pg_catalog.pg_class
		JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
		WHERE nspname = $1 AND relname = 'task_events'`, schema).Scan(&may)
	if err == nil && may {
		_, err = pool.Exec(ctx, `SELECT `+pgx.Identifier{schema}.Sanitize()+`.settle()`)
	}
	if err != nil {
		return fmt.Errorf("put right who may use the ledger: %w", err)
	}
	return nil
}

// Others are the roles that have been granted something on the ledger and are not its owner. After Up by the owner they
// are those that serve it.
func Others(ctx context.Context, pool *pgxpool.Pool, schema string) ([]string, error) {
	rows, err := pool.Query(ctx, `
		SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(grantee) END::text
		FROM `+pgx.Identifier{schema}.Sanitize()+`.grants()
		WHERE grantee <> (
			SELECT relowner
			FROM pg_catalog.pg_class
			JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
			WHERE nspname = $1 AND relname = 'task_events'
		)
		ORDER BY 1`, schema)
	var others []string
	if err == nil {
		others, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if isNotThere(err) || isDenied(err) {
		return nil, nil // Check tells
	}
	if err != nil {
		return nil, fmt.Errorf("read who may use the ledger: %w", err)
	}
	return others, nil
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
				if workErr = another(ctx, pool); workErr == nil {
					workErr = work()
				}
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

// another returns nil when there is a connection besides the one that has the lock.
func another(ctx context.Context, pool *pgxpool.Pool) error {
	waiting, cancel := context.WithTimeout(ctx, anotherWait)
	defer cancel()
	err := pool.Ping(waiting)
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return errors.New("migrate: there is no second connection to PostgreSQL, which this takes: " +
			"use a URL that goes to PostgreSQL directly, or raise the pooler's pool size")
	}
	return err
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

// Check returns nil when this program can work on the schema of the database as the role that it is, else a
// *VersionError, an *EarlierError, a *RightsError, or why it could not be asked. A newer schema than the program's is
// fine, unless it says that it needs a newer program. It is two small queries.
func Check(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	have, err := current(ctx, pool, schema)
	if err != nil {
		return err
	}
	oldest := have
	if have > latest() {
		err := pool.QueryRow(ctx, `SELECT `+pgx.Identifier{schema}.Sanitize()+`.oldest_program()`).Scan(&oldest)
		if err != nil {
			return rightsError(ctx, pool, schema, err)
		}
	}
	if have < latest() || oldest > latest() {
		return &VersionError{Database: have, Program: latest()}
	}
	return checkRights(ctx, pool, schema)
}

// Versions are the versions of the schema that the database has, 0 = none, and that this program makes.
func Versions(ctx context.Context, pool *pgxpool.Pool, schema string) (database, program int64, err error) {
	database, err = current(ctx, pool, schema)
	return database, latest(), err
}

func current(ctx context.Context, pool *pgxpool.Pool, schema string) (int64, error) {
	var version int64
	err := pool.QueryRow(ctx, `
		SELECT coalesce(max(version_id), 0)
		FROM `+pgx.Identifier{schema, versionTable}.Sanitize()+`
		WHERE is_applied`).Scan(&version)
	if isNotThere(err) {
		return 0, nil
	}
	return version, rightsError(ctx, pool, schema, err)
}

func checkRights(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	rights := &RightsError{Schema: schema}
	var made bool
	err := pool.QueryRow(ctx, `
		SELECT rolname, ARRAY(
			SELECT l.privilege || ' ON ' || l.object
			FROM `+pgx.Identifier{schema}.Sanitize()+`.lacking(oid) l
		), EXISTS (
			SELECT
			FROM pg_catalog.pg_type t
			JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
			WHERE n.nspname = $1 AND t.typname = 'row_of_task_events'
		)
		FROM pg_catalog.pg_roles
		WHERE rolname = current_user`, schema).Scan(&rights.Role, &rights.Lacks, &made)
	if err != nil {
		return rightsError(ctx, pool, schema, err)
	}
	if !made {
		return &EarlierError{schema}
	}
	if len(rights.Lacks) > 0 {
		return rights
	}
	return nil
}

// rightsError makes a *RightsError of what PostgreSQL says to a role without rights.
func rightsError(ctx context.Context, pool *pgxpool.Pool, schema string, err error) error {
	if err == nil {
		return nil
	}
	if !isDenied(err) {
		return fmt.Errorf("read the schema version: %w", err)
	}
	rights, enters := &RightsError{Schema: schema}, false
	askErr := pool.QueryRow(ctx, `
		SELECT current_user::text, pg_catalog.has_schema_privilege(oid, 'USAGE')
		FROM pg_catalog.pg_namespace
		WHERE nspname = $1`, schema).Scan(&rights.Role, &enters)
	if askErr != nil {
		return fmt.Errorf("read the schema version: %w", errors.Join(err, askErr))
	}
	rights.Lacks = []string{"USAGE ON SCHEMA " + schema}
	if enters {
		rights.Lacks = []string{"rights on what is in it (" + err.Error() + ")"}
	}
	return rights
}

// isDenied says that this role may not do what it tried.
func isDenied(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "42501"
}

// isNotThere says that a schema, a table or a function is missing.
func isNotThere(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "3F000" || pgErr.Code == "42P01" || pgErr.Code == "42883")
}

// FindEarlier tells whether the database holds a ledger of the builds before version 1, in the schema public. It is
// left as it is.
func FindEarlier(ctx context.Context, pool *pgxpool.Pool) (bool, error) {
	var found bool
	err := pool.QueryRow(ctx, `
		SELECT to_regclass('public.task_events') IS NOT NULL
			AND to_regclass('public.projection_checkpoints') IS NOT NULL`).
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
