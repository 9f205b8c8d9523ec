package events_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

// However deep a failed connection is in an error, and however many there are: why is told, and nothing of a URL.
func TestSafeText(t *testing.T) {
	t.Parallel()
	here, err := pgx.ParseConfig(testdb.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	_, refused := pgx.Connect(t.Context(), "postgres://s3cret:s3cret@127.0.0.1:1,127.0.0.1:2/one?sslmode=disable")
	_, wrong := pgx.Connect(t.Context(),
		fmt.Sprintf("postgres://s3cret:s3cret@%s:%d/two?sslmode=disable", here.Host, here.Port))
	text := events.SafeText(fmt.Errorf("open: %w", errors.Join(refused, fmt.Errorf("close: %w", wrong))))
	want := `open: no connection to the database: connection refused
close: no connection to the database: the password is wrong (SQLSTATE 28P01)`
	if text != want {
		t.Errorf("%s\nwant %s", strings.ReplaceAll(text, "s3cret", "(a secret)"), want)
	}
	host := &net.DNSError{Err: "no such host", Name: "s3cret"}
	peer := &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 5432}
	for want, err := range map[string]error{
		"plain": errors.New("plain"),
		"read: connection reset by peer": fmt.Errorf(
			"read: %w",
			&net.OpError{Op: "read", Net: "tcp", Addr: peer, Err: os.NewSyscallError("read", syscall.ECONNRESET)},
		),
		"read: use of closed network connection": fmt.Errorf(
			"read: %w",
			&net.OpError{Op: "read", Addr: peer, Err: net.ErrClosed},
		),
		"no such host":       host,
		"dial: no such host": fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Net: "tcp", Err: host}),
		"tls: the certificate is for other hosts": fmt.Errorf(
			"tls: %w",
			x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"a"}}, Host: "s3cret"},
		),
	} {
		if text := events.SafeText(err); text != want {
			t.Errorf("%q, want %q", text, want)
		}
	}
}

// A write tells whether it gave a row, and why it did not, whatever way pgx has its statements.
func TestWriteTellsOfARow(t *testing.T) {
	t.Parallel()
	base := testdb.New(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
		cfg := base.Config()
		cfg.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		db := events.NewDB(pool, testdb.Schema, "")
		const text = `UPDATE {schema}.checkpoints SET position = $2 WHERE projection = $1 RETURNING position`
		for range 2 { // prepared, and again
			if row, err := db.Write(t.Context(), text, []any{"tasks", int64(0)}); !row || err != nil {
				t.Errorf("%v: %t, %v", mode, row, err)
			}
			if row, err := db.Write(t.Context(), text, []any{"nothing", int64(0)}); row || err != nil {
				t.Errorf("%v: %t, %v", mode, row, err)
			}
		}
		var refused *pgconn.PgError
		_, err = db.Write(t.Context(), `INSERT INTO {schema}.checkpoints (projection) VALUES ($1)`, []any{"tasks"})
		if !errors.As(err, &refused) || refused.Code != "23505" {
			t.Errorf("%v: %v", mode, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err = db.Write(ctx, `SELECT pg_sleep(60)`, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: %v", mode, err)
		}
		cancel()
	}
}
