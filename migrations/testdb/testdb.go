// Package testdb gives every test a database of its own on a real PostgreSQL.
//
// A test binary has one server, started by the first test that asks for a database and stopped by Main. A database is a
// copy of one that was migrated once, which takes some ten milliseconds.
package testdb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations"
	"taskledger/migrations/postgres"
)

// Schema is the schema that the ledger of a test database is in.
const Schema = "taskledger"

const (
	prefix   = "taskledger-testdb-"
	template = "template_migrated"
	patience = 30 * time.Second
)

// settings are those that the program gives its connections (events.Settings, which this package must not import).
var settings = map[string]string{
	"enable_seqscan":    "off",
	"enable_bitmapscan": "off",
	"enable_hashjoin":   "off",
	"enable_mergejoin":  "off",
	"jit":               "off",
	"plan_cache_mode":   "force_generic_plan",
}

var shared cluster

// Main is the TestMain of a package whose tests use this one: func TestMain(m *testing.M) { testdb.Main(m) }.
func Main(m *testing.M) {
	code := m.Run()
	if err := shared.stop(); err != nil {
		slog.Error("stop the test database", "err", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// New returns a pool of ten connections at most to a new migrated database, which is dropped at the end of the test.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := open(t.Context(), URL(t))
	if err != nil {
		t.Fatalf("test database: %v", err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	return pool
}

// URL returns the URL of a new migrated database, which is dropped at the end of the test: for tests that start
// processes, or need pools of their own. The server takes 200 connections, those of all parallel tests together.
func URL(t testing.TB) string {
	t.Helper()
	return newDatabase(t, template)
}

// EmptyURL is URL with a database that nobody has migrated yet.
func EmptyURL(t testing.TB) string {
	t.Helper()
	return newDatabase(t, "template1")
}

func newDatabase(t testing.TB, from string) string {
	t.Helper()
	server, err := shared.start(t.Context())
	if err != nil {
		t.Fatalf("test database: %v", err)
	}
	name := "test_" + strings.ToLower(rand.Text())
	if err := execute(t.Context(), server, `CREATE DATABASE `+name+` TEMPLATE `+from); err != nil {
		t.Fatalf("test database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := execute(ctx, server, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Errorf("test database: %v", err)
		}
	})
	return withDatabase(server.AdminURL(), name)
}

// Server returns a server that is the test's alone, with an empty database, for a test that kills PostgreSQL. It is
// stopped at the end of the test.
func Server(t testing.TB) *postgres.Server {
	t.Helper()
	dir, err := makeDir()
	if err != nil {
		t.Fatalf("test server: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("test server: %v", err)
		}
	})
	server, err := postgres.Start(t.Context(), postgres.Options{Dir: dir, Ephemeral: true})
	if err != nil {
		t.Fatalf("test server: %v", err)
	}
	t.Cleanup(func() {
		if err := stop(server); err != nil {
			t.Errorf("test server: %v", err)
		}
	})
	return server
}

// cluster is the server of the test binary, once a test has asked for it.
type cluster struct {
	once   sync.Once
	dir    string
	server *postgres.Server
	err    error
}

func (c *cluster) start(ctx context.Context) (*postgres.Server, error) {
	// The server outlives the test that happens to be the first.
	c.once.Do(func() { c.err = c.open(context.WithoutCancel(ctx)) })
	return c.server, c.err
}

func (c *cluster) open(ctx context.Context) error {
	sweep(ctx)
	var err error
	if c.dir, err = makeDir(); err != nil {
		return err
	}
	c.server, err = postgres.Start(ctx, postgres.Options{Dir: c.dir, Ephemeral: true})
	if err != nil {
		return err
	}
	return makeTemplate(ctx, c.server)
}

func makeTemplate(ctx context.Context, server *postgres.Server) error {
	if err := execute(ctx, server, `CREATE DATABASE `+template); err != nil {
		return err
	}
	pool, err := open(ctx, withDatabase(server.AdminURL(), template))
	if err != nil {
		return err
	}
	defer pool.Close()
	return migrations.Up(ctx, pool, Schema)
}

// stop leaves nothing behind, on disk or running.
func (c *cluster) stop() error {
	var err error
	if c.server != nil {
		err = stop(c.server)
	}
	if c.dir != "" {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

func stop(server *postgres.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return server.Stop(ctx)
}

// makeDir does not use t.TempDir, whose parents are closed to the user that PostgreSQL runs as when the tests run as
// root.
func makeDir() (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

// sweep removes what killed test binaries have left. A young directory may be one whose server is just being started.
func sweep(ctx context.Context) {
	// The pattern is well-formed, which is all that Glob can complain of.
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil || time.Since(info.ModTime()) < 10*time.Minute {
			continue
		}
		if _, err := postgres.Attach(ctx, dir); errors.Is(err, postgres.ErrNotRunning) {
			// Another binary may be sweeping too, or it is another user's.
			_ = os.RemoveAll(dir)
		}
	}
}

func open(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 10
	maps.Copy(config.ConnConfig.RuntimeParams, settings)
	return pgxpool.NewWithConfig(ctx, config)
}

// closePool would wait for ever for a connection that the test has not given back.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Errorf("the test has not given back %d connections to its pool", pool.Stat().AcquiredConns())
	}
}

// execute runs a statement in no database of a test.
func execute(ctx context.Context, server *postgres.Server, sql string) error {
	conn, err := pgx.Connect(ctx, server.AdminURL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

func withDatabase(server, name string) string {
	// The server made the URL itself.
	u, _ := url.Parse(server)
	u.Path = "/" + name
	return u.String()
}
