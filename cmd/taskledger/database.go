package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
	"taskledger/migrations"
	"taskledger/migrations/postgres"
)

// database is a ledger in a PostgreSQL and, when this process runs that, the PostgreSQL too.
type database struct {
	url    databaseURL
	schema string
	config *pgxpool.Config // of any of our pools
	traits traits
	ledger *events.DB
	server *postgres.Server // nil when somebody else runs it
}

// traits are what the connections that a URL gives are like.
type traits struct {
	// pooled: behind a transaction pooler, where a connection keeps neither settings nor prepared statements.
	pooled bool
	// bypasses: row level security does not bind this role: a superuser, or one with BYPASSRLS.
	bypasses bool
	// switches: this role may act as readingRole, which it does bind.
	switches bool
}

// readingRole is a role of every PostgreSQL, which may read every table and which row level security binds.
const readingRole = "pg_read_all_data"

// openOwn opens the database for the server: the embedded PostgreSQL is then this process's to run, and another's is an
// error. One that is away is waited for.
func openOwn(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	if !cfg.embedded() {
		return patiently(
			ctx,
			startPatience,
			log,
			func(ctx context.Context) (*database, error) { return connectNamed(ctx, cfg, log) },
		)
	}
	dir, err := cfg.dataDir()
	if err != nil {
		return nil, err
	}
	return startOwn(ctx, dir, cfg.DatabaseSchema, log)
}

// openShared opens the database for a command next to a server: the embedded PostgreSQL is the one that runs, and only
// when there is none, one for the duration of the command.
func openShared(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	if !cfg.embedded() {
		return connectNamed(ctx, cfg, log)
	}
	dir, err := cfg.dataDir()
	if err != nil {
		return nil, err
	}
	db, err := attach(ctx, dir, cfg.DatabaseSchema)
	if !errors.Is(err, postgres.ErrNotRunning) {
		return db, err
	}
	db, err = startOwn(ctx, dir, cfg.DatabaseSchema, log)
	if _, held := errors.AsType[*postgres.HeldError](err); held {
		// Somebody started it in between.
		return attach(ctx, dir, cfg.DatabaseSchema)
	}
	return db, err
}

func connectNamed(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	db, err := connect(ctx, cfg.DatabaseURL, cfg.DatabaseSchema)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	db.url.tellUnknown(log, "DATABASE_URL")
	return db, nil
}

// openMigrated is openShared for a command that needs the schema of this program to be there.
func openMigrated(ctx context.Context, cfg *settings, log *slog.Logger) (*database, error) {
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	if err := migrations.Check(ctx, db.ledger.Pool(), db.schema); err != nil {
		return nil, errors.Join(err, db.close())
	}
	return db, nil
}

func attach(ctx context.Context, dir, schema string) (*database, error) {
	url, err := postgres.Attach(ctx, dir)
	if err != nil {
		return nil, err
	}
	return connect(ctx, url, schema)
}

func startOwn(ctx context.Context, dir, schema string, log *slog.Logger) (*database, error) {
	server, err := postgres.Start(ctx, postgres.Options{Dir: dir, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("DATA_DIR: %w", err)
	}
	db, err := connect(ctx, server.URL(), schema)
	if err != nil {
		return nil, errors.Join(err, server.Stop(context.WithoutCancel(ctx)))
	}
	db.server = server
	return db, nil
}

func connect(ctx context.Context, url, schema string) (*database, error) {
	read, err := readDatabaseURL(url)
	if err != nil {
		return nil, err
	}
	db := &database{url: read, schema: schema, config: read.poolConfig()}
	if db.traits, err = inspect(ctx, db.config); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	db.traits.pooled = db.traits.pooled || read.pooled
	// What an operator asks for takes as long as it takes.
	if db.ledger, err = db.openLedger(
		ctx,
		db.config.MaxConns,
		map[string]string{"statement_timeout": "0"},
	); err != nil {
		return nil, err
	}
	return db, nil
}

// protocolViolation is what a pooler calls a setting that it does not take.
const protocolViolation = "08P01"

// dial makes the first connection. Where a pooler refuses the options of a session, none of ours has any.
func dial(ctx context.Context, config *pgxpool.Config) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	refused, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || refused.Code != protocolViolation || config.ConnConfig.RuntimeParams["options"] == "" {
		return conn, err
	}
	delete(config.ConnConfig.RuntimeParams, "options")
	return pgx.ConnectConfig(ctx, config.ConnConfig)
}

// inspect finds out what the connections are like. A pooler does not know the process that answers: it has told another
// one's id.
func inspect(ctx context.Context, config *pgxpool.Config) (t traits, err error) {
	conn, err := dial(ctx, config)
	if err != nil {
		return t, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var (
		pid      uint32
		encoding string
	)
	err = conn.QueryRow(ctx, `
		SELECT pg_catalog.pg_backend_pid(), pg_catalog.getdatabaseencoding(), r.rolsuper OR r.rolbypassrls,
			r.rolsuper OR pg_catalog.pg_has_role(r.oid, $1, CASE
				WHEN pg_catalog.current_setting('server_version_num')::int < 160000 THEN 'MEMBER'
				ELSE 'SET'
			END)
		FROM pg_catalog.pg_roles r
		WHERE r.rolname = current_user`, pgx.QueryExecModeExec, readingRole).
		Scan(&pid, &encoding, &t.bypasses, &t.switches)
	if err != nil {
		return t, err
	}
	if encoding != "UTF8" {
		return t, fmt.Errorf("the database has the encoding %s, it must be UTF8", encoding)
	}
	t.pooled = pid != conn.PgConn().PID()
	return t, nil
}

// openLedger opens connections that may do everything with the ledger. Settings are those of each of them, beside those
// that all of ours have; a pooler's have none.
func (d *database) openLedger(ctx context.Context, n int32, settings map[string]string) (*events.DB, error) {
	return d.open(ctx, "ledger", n, map[string]string{"taskledger.ledger": "on", "row_security": "on"}, settings)
}

// openReader opens connections that row level security binds, where that can be had.
func (d *database) openReader(ctx context.Context, n int32, settings map[string]string) (*events.DB, error) {
	who := map[string]string{"taskledger.ledger": "off", "row_security": "on"}
	if d.traits.bypasses && d.traits.switches {
		who["role"] = readingRole
	}
	return d.open(ctx, "reader", n, who, settings)
}

// open opens a pool whose connections act as who says: by settings of their own or, behind a pooler, of each
// transaction. What they are for is told in their name, unless the URL has one.
func (d *database) open(ctx context.Context, use string, n int32, who, settings map[string]string) (*events.DB, error) {
	config := d.config.Copy()
	config.MaxConns = n
	nameConnections(config, use)
	who["search_path"] = "pg_catalog" // whatever the URL, the role or the database has in its place
	config.PrepareConn = mayStillWrite
	prelude := ""
	if d.traits.pooled {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		var set []string
		for _, name := range slices.Sorted(maps.Keys(who)) {
			set = append(set, fmt.Sprintf("pg_catalog.set_config('%s', '%s', true)", name, who[name]))
		}
		prelude = "SELECT " + strings.Join(set, ", ")
	} else {
		maps.Copy(config.ConnConfig.RuntimeParams, plainSession)
		maps.Copy(config.ConnConfig.RuntimeParams, who)
		maps.Copy(config.ConnConfig.RuntimeParams, settings)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return events.NewDB(pool, d.schema, prelude), nil
}

// mayStillWrite has a connection used once only that was opened while the database, by a setting, took no writes: it
// would take none for as long as it lives.
func mayStillWrite(_ context.Context, conn *pgx.Conn) (bool, error) {
	if conn.PgConn().ParameterStatus("default_transaction_read_only") != "on" {
		return true, nil
	}
	const used = "used"
	data := conn.PgConn().CustomData()
	again := data[used] != nil
	data[used] = true
	return !again, nil
}

// plainSession is what our statements count on, whatever is set for the database or the role.
var plainSession = map[string]string{
	"default_transaction_isolation": "read committed",
	// Ours are idle only while this process is busy.
	"idle_in_transaction_session_timeout": "60s",
}

// Connections of a process: for requests, which wait for one when all are busy, and for the log and the projections. A
// pool_max_conns or connection_limit in the URL is for requests.
const (
	requestConnections = 16
	ledgerConnections  = 10
	// sessionConnections look up the sessions of Better Auth, each of which is then believed for some seconds.
	sessionConnections = 4
	// leastConnections is what a rebuild takes to get anywhere.
	leastConnections = 6
)

// lastWords is how long a statement whose context has ended may take to come to its own end. By default none: each
// client that went away in the middle of a read would take a connection of the pool along.
const lastWords = 250 * time.Millisecond

// pingTimeout bounds the look whether a connection that was idle is still there.
const pingTimeout = 500 * time.Millisecond

// connectTimeout bounds the way to one host, unless the URL does: of several, the next one must be tried within the
// time of a statement.
const connectTimeout = 4 * time.Second

const (
	applicationName = "application_name"
	programName     = "taskledger"
)

// nameConnections has PostgreSQL show what the connections are for, unless the URL names them.
func nameConnections(config *pgxpool.Config, use string) {
	if params := config.ConnConfig.RuntimeParams; params[applicationName] == programName {
		params[applicationName] = programName + " " + use
	}
}

// poolConfig is what all pools on a URL have in common.
func (d databaseURL) poolConfig() *pgxpool.Config {
	config := d.config.Copy()
	config.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn(), DeadlineDelay: lastWords}
	}
	if config.ConnConfig.RuntimeParams[applicationName] == "" {
		config.ConnConfig.RuntimeParams[applicationName] = programName
	}
	config.PingTimeout = pingTimeout
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	if !d.limited {
		config.MaxConns = requestConnections
	}
	config.MaxConns = max(config.MaxConns, leastConnections)
	return config
}

// close returns when connections are closed and the PostgreSQL of this process has stopped.
func (d *database) close() error {
	d.ledger.Pool().Close()
	if d.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return d.server.Stop(ctx)
}
