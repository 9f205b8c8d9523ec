package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"taskledger/projections"
)

// maxDifferences is how many differences verify prints.
const maxDifferences = 100

type verifyCmd struct {
	User string `placeholder:"ID" help:"Only this user's stream and rows."`
}

// Run exits with 0 when every row is the fold of the log, with 1 when not.
func (c *verifyCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openMigrated(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	printed := 0
	report, err := projections.Verify(ctx, db.ledger, c.User, func(d projections.Difference) {
		if printed++; printed <= maxDifferences {
			_, _ = fmt.Fprintln(stdout, d) // a reader that has gone has seen enough
		}
	})
	if err != nil {
		return err
	}
	if printed > maxDifferences {
		_, _ = fmt.Fprintf(stdout, "… and %d more\n", printed-maxDifferences)
	}
	_, err = fmt.Fprintf(stdout, "compared %d users, %d events, %d rows; %d parked\n", report.Users, report.Events, report.Rows, report.Parked)
	if err == nil && report.Differences > 0 {
		err = fmt.Errorf("%d differences between the read model and the log", report.Differences)
	}
	return err
}
