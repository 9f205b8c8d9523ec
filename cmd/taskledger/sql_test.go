package main

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// onDatabase does something on a connection of a stranger's.
func onDatabase(t *testing.T, url string, do func(conn *pgx.Conn) error) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := do(conn); err != nil {
		t.Fatal(err)
	}
}

// execute runs SQL by hand, each text in a transaction of its own.
func execute(t *testing.T, url string, texts ...string) {
	t.Helper()
	onDatabase(t, url, func(conn *pgx.Conn) error {
		for _, text := range texts {
			if _, err := conn.Exec(t.Context(), text); err != nil {
				return err
			}
		}
		return nil
	})
}

// value is the one value that a query gives.
func value[T any](t *testing.T, url, text string, args ...any) (v T) {
	t.Helper()
	onDatabase(t, url, func(conn *pgx.Conn) error { return conn.QueryRow(t.Context(), text, args...).Scan(&v) })
	return v
}
