package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations"
	"taskledger/migrations/postgres"
)

// database is the pool of a process and, when this process runs the PostgreSQL behind it, that too.
type database struct {
	pool   *pgxpool.Pool
	url    string
	server *postgres.Server // nil when somebody else runs it
}

// openOwn opens the database for the server: the embedded PostgreSQL is then this process's to run, and another's is an error.
func openOwn(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	if !cfg.embedded() {
		return connectNamed(ctx, cfg)
	}
	dir, err := cfg.dataDir()
	if err != nil {
		return nil, err
	}
	return startOwn(ctx, dir, log)
}

// openShared opens the database for a command next to a server: the embedded PostgreSQL is the one that runs, and only when there is
// none, one for the duration of the command.
func openShared(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	if !cfg.embedded() {
		return connectNamed(ctx, cfg)
	}
	dir, err := cfg.dataDir()
	if err != nil {
		return nil, err
	}
	db, err := attach(ctx, dir)
	if !errors.Is(err, postgres.ErrNotRunning) {
		return db, err
	}
	db, err = startOwn(ctx, dir, log)
	if _, held := errors.AsType[*postgres.HeldError](err); held {
		// Somebody started it in between.
		return attach(ctx, dir)
	}
	return db, err
}

func connectNamed(ctx context.Context, cfg *settings) (*database, error) {
	db, err := connect(ctx, cfg.DatabaseURL, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return db, nil
}

// openMigrated is openShared for a command that needs the schema of this program to be there.
func openMigrated(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	if err := migrations.Check(ctx, db.pool); err != nil {
		return nil, errors.Join(err, db.close())
	}
	return db, nil
}

func attach(ctx context.Context, dir string) (*database, error) {
	url, err := postgres.Attach(ctx, dir)
	if err != nil {
		return nil, err
	}
	return connect(ctx, url, pgx.QueryExecModeCacheStatement)
}

func startOwn(ctx context.Context, dir string, log *slog.Logger) (*database, error) {
	server, err := postgres.Start(ctx, postgres.Options{Dir: dir, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("DATA_DIR: %w", err)
	}
	db, err := connect(ctx, server.URL(), pgx.QueryExecModeCacheStatement)
	if err != nil {
		return nil, errors.Join(err, server.Stop(context.WithoutCancel(ctx)))
	}
	db.server = server
	return db, nil
}

func connect(ctx context.Context, url string, mode pgx.QueryExecMode) (*database, error) {
	config, err := poolConfig(url, mode)
	if err != nil {
		return nil, fmt.Errorf("database URL: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return &database{pool: pool, url: url}, nil
}

// Connections of a process: for requests, which wait for one when all are busy, and for the log and the projections. A pool_max_conns
// in the URL is for requests.
const (
	requestConnections = 16
	ledgerConnections  = 10
	// leastConnections is what rebuild and verify take to get anywhere.
	leastConnections = 4
)

// lastWords is how long a statement whose context has ended may take to come to its own end. By default none: each client that went
// away in the middle of a read would take a connection of the pool along.
const lastWords = 250 * time.Millisecond

// pingTimeout bounds the look whether a connection that was idle is still there.
const pingTimeout = 500 * time.Millisecond

// sized is a pool of at most n connections.
func sized(config *pgxpool.Config, n int32) *pgxpool.Config {
	config.MaxConns = n
	return config
}

// poolConfig uses mode unless the URL itself names one. QueryExecModeCacheDescribe leaves nothing behind on a connection and so
// survives PgBouncer in transaction mode; QueryExecModeCacheStatement is faster where connections are ours.
func poolConfig(url string, mode pgx.QueryExecMode) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(url, "default_query_exec_mode=") {
		config.ConnConfig.DefaultQueryExecMode = mode
	}
	delete(config.ConnConfig.RuntimeParams, "schema") // Other clients' word, for sessionSchema; PostgreSQL knows none.
	config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn(), DeadlineDelay: lastWords}
	}
	config.PingTimeout = pingTimeout
	if !strings.Contains(url, "pool_max_conns=") {
		config.MaxConns = requestConnections
	}
	config.MaxConns = max(config.MaxConns, leastConnections)
	return config, nil
}

// close returns when connections are closed and the PostgreSQL of this process has stopped.
func (d *database) close() error {
	d.pool.Close()
	if d.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return d.server.Stop(ctx)
}
