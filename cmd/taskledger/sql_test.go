package main

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
)

// onDatabase does something on a connection of a stranger's; a cleanup may use it too.
func onDatabase(t *testing.T, url string, do func(ctx context.Context, conn *pgx.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["default_transaction_read_only"] = "off"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(do(ctx, conn), conn.Close(ctx)); err != nil {
		t.Fatal(err)
	}
}

// execute runs SQL by hand, each text in a transaction of its own.
func execute(t *testing.T, url string, texts ...string) {
	t.Helper()
	onDatabase(t, url, func(ctx context.Context, conn *pgx.Conn) error {
		for _, text := range texts {
			if _, err := conn.Exec(ctx, text); err != nil {
				return err
			}
		}
		return nil
	})
}

// value is the one value that a query gives.
func value[T any](t *testing.T, url, text string, args ...any) (v T) {
	t.Helper()
	onDatabase(
		t,
		url,
		func(ctx context.Context, conn *pgx.Conn) error { return conn.QueryRow(ctx, text, args...).Scan(&v) },
	)
	return v
}
