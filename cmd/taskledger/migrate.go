package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"taskledger/migrations"
)

type migrateCmd struct{}

func (migrateCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	if err := migrations.Up(ctx, db.ledger.Pool(), db.schema); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, "the database has the schema of this program")
	return err
}
