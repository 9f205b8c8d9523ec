// Package migrations is the schema of the database, and the way to it from any earlier one.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed *.sql
var files embed.FS

const (
	// lockKey is the advisory lock of whoever migrates: "ledger" in ASCII.
	lockKey = 0x6c6564676572
	// lockWait is longer than any migration of ours may take.
	lockWait = 5 * time.Minute
)

// VersionError says that the database has another schema than this program was made for.
type VersionError struct {
	Database int64 // 0: no schema at all
	Program  int64
}

func (e *VersionError) Error() string {
	if e.Database > e.Program {
		return fmt.Sprintf("the database has schema version %d, newer than version %d which this program knows: use a newer program",
			e.Database, e.Program)
	}
	return fmt.Sprintf("the database has schema version %d, this program needs version %d: run taskledger migrate",
		e.Database, e.Program)
}

// Up brings the schema to the version of this program. Any number of processes may call it at once, also through a transaction
// pooler: one migrates, the others wait for it, for five minutes at most. A database that is ahead of this program is left alone:
// the error is a *VersionError.
func Up(ctx context.Context, pool *pgxpool.Pool) error {
	return up(ctx, pool, files, lockWait)
}

func up(ctx context.Context, pool *pgxpool.Pool, files fs.FS, wait time.Duration) error {
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	return locked(ctx, pool, wait, func() error {
		// What goose makes of a database that is ahead: nothing to do.
		if err := check(ctx, pool, target(provider)); isAhead(err) {
			return err
		}
		if _, err := provider.Up(ctx); err != nil {
			return fmt.Errorf("migrate the database: %w", err)
		}
		return ensureReader(ctx, pool)
	})
}

func target(provider *goose.Provider) int64 {
	sources := provider.ListSources()
	return sources[len(sources)-1].Version
}

func isAhead(err error) bool {
	version, ok := errors.AsType[*VersionError](err)
	return ok && version.Database > version.Program
}

// locked calls work while a transaction on a connection outside of the pool has the lock: a pool of one connection would wait for
// itself, and behind a transaction pooler only a transaction has a session to keep a lock in.
func locked(ctx context.Context, pool *pgxpool.Pool, wait time.Duration, work func() error) error {
	conn, err := connect(ctx, pool)
	if err != nil {
		return fmt.Errorf("lock the migrations: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var workErr error
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := takeLock(ctx, tx, wait); err != nil {
			return err
		}
		workErr = work()
		return nil
	})
	if workErr != nil {
		return workErr
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "55P03" {
		return fmt.Errorf("lock the migrations: another process has been migrating for %v: %w", wait, err)
	}
	if err != nil {
		return fmt.Errorf("lock the migrations: %w", err)
	}
	return nil
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

// takeLock lifts the limits that a server may have for its sessions: this one is meant to wait, and then to be idle.
func takeLock(ctx context.Context, tx pgx.Tx, wait time.Duration) error {
	_, err := tx.Exec(ctx, `
		SELECT set_config('lock_timeout', $1, true),
		       set_config('statement_timeout', '0', true),
		       set_config('idle_in_transaction_session_timeout', '0', true)`,
		strconv.FormatInt(wait.Milliseconds(), 10))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey)
	return err
}

// Check returns nil when the database has exactly the schema of this program, else a *VersionError, or why it could not be asked.
// It is one small query: readiness may call it often.
func Check(ctx context.Context, pool *pgxpool.Pool) error {
	return check(ctx, pool, latest())
}

func check(ctx context.Context, pool *pgxpool.Pool, want int64) error {
	have, err := current(ctx, pool)
	if err != nil {
		return fmt.Errorf("read the schema version: %w", err)
	}
	if have != want {
		return &VersionError{Database: have, Program: want}
	}
	return nil
}

func current(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	var version int64
	err := pool.QueryRow(ctx, `
		SELECT coalesce(max(version_id), 0)
		FROM goose_db_version
		WHERE is_applied`).Scan(&version)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "42P01" {
		return 0, nil
	}
	return version, err
}

// latest is the version of the last embedded migration.
var latest = sync.OnceValue(func() int64 {
	var last int64
	names, _ := fs.Glob(files, "*.sql")
	for _, name := range names {
		// Up refuses a file without a number; here it does not count.
		if version, err := goose.NumericComponent(name); err == nil {
			last = max(last, version)
		}
	}
	return last
})
