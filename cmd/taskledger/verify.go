package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"taskledger/events"
	"taskledger/projections"
)

// maxDifferences is how many differences verify prints.
const maxDifferences = 100

type verifyCmd struct {
	User   string `placeholder:"ID" xor:"what" help:"Only this user's stream and rows."`
	Export string `placeholder:"FILE" xor:"what" help:"Check the chain of an export instead, without a database; - is the standard input."`
}

// Help implements kong.HelpProvider.
func (verifyCmd) Help() string {
	return "Exit 0: every row of the read models is the fold of the log, and each user's seqs have no gap; 1: not, " +
		"one line a difference. With --export: 0: the chain of hashes holds; 1: not, with the first line that is wrong."
}

// Run exits with 0 when every row is the fold of the log, with 1 when not.
func (c *verifyCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	if c.Export != "" {
		return verifyExport(c.Export, stdout)
	}
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
	if c.User != "" && report.Users == 0 && report.Differences == 0 {
		return noSuchUser(c.User)
	}
	if printed > maxDifferences {
		_, _ = fmt.Fprintf(stdout, "… and %d more\n", printed-maxDifferences)
	}
	_, err = fmt.Fprintf(
		stdout,
		"compared %d users, %d events, %d rows; %d parked\n",
		report.Users,
		report.Events,
		report.Rows,
		report.Parked,
	)
	if err == nil && report.Differences > 0 {
		err = fmt.Errorf("%d differences between the read model and the log", report.Differences)
	}
	return err
}

// verifyExport checks an export: the rules are those of events.Audit.
func verifyExport(name string, stdout io.Writer) (err error) {
	file := os.Stdin
	if name != "-" {
		if file, err = os.Open(name); err != nil {
			return err
		}
		defer file.Close()
	}
	audit := events.NewAudit(file)
	for err == nil {
		_, err = audit.Next()
	}
	if wrong, ok := errors.AsType[*events.LineError](err); ok {
		_, _ = fmt.Fprintln(stdout, wrong)
		return fmt.Errorf(
			"the export is wrong at line %d; the %s before it are right",
			wrong.Line,
			countOf(audit.Totals),
		)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if audit.Events == 0 {
		return errors.New("there is nothing in the export")
	}
	last := ""
	if user, seq, hash := audit.Head(); audit.Users == 1 {
		last = fmt.Sprintf("user %q ends with seq %d, hash %s\n", user, seq, hash)
	}
	_, err = fmt.Fprintf(
		stdout,
		"checked %s: the chain holds\n%s%s",
		countOf(audit.Totals),
		last,
		cutNote(audit.Whole()),
	)
	return err
}
