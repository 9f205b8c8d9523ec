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

// appendUnreadable stores the second event of the user u, which no read model can apply: its title is missing.
func appendUnreadable(t *testing.T, url string) {
	t.Helper()
	execute(t, url, `
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 2, gen_random_uuid(), 'TaskRenamed', 1, '{}', gen_random_uuid(), gen_random_uuid(), 'u', 'r',
			clock_timestamp())`)
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
