package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"taskledger/migrations"
)

type migrateCmd struct{}

func (migrateCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	if err := db.migrate(ctx, log); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, "the database has the schema of this program")
	return err
}

// migrate brings the schema up to date, and tells who else was granted something on it: from whom it was taken, and who
// serves.
func (d *database) migrate(ctx context.Context, log *slog.Logger) error {
	pool := d.ledger.Pool()
	before, err := migrations.Others(ctx, pool, d.schema)
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, pool, d.schema); err != nil {
		return err
	}
	serving, err := migrations.Others(ctx, pool, d.schema)
	if err != nil {
		return err
	}
	if len(serving) > 0 {
		log.Info("other database roles may use the ledger", "schema", d.schema, "roles", serving)
	}
	taken := slices.DeleteFunc(before, func(role string) bool { return slices.Contains(serving, role) })
	if len(taken) > 0 {
		log.Warn(
			"took from other database roles what they had been granted on the ledger",
			"schema",
			d.schema,
			"roles",
			taken,
		)
	}
	return nil
}
