package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"taskledger/projections"
)

type importCmd struct {
	File string `arg:"" placeholder:"FILE" help:"The export; - is the standard input."`
}

// Help implements kong.HelpProvider.
func (importCmd) Help() string {
	return "The export, of this ledger or of another, is checked first: its chain, its order, its types. Then all of " +
		"it is stored, exactly as it was, with its hashes and idempotency keys, or nothing. None of its users may " +
		"be in this ledger. Servers may go on running; clients of the users that are imported should not write " +
		"meanwhile."
}

// Run exits with 0 when all of the export is stored and shown.
func (c *importCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	export, err := openTwice(c.File)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, export.Close()) }()
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	if err := db.migrate(ctx, log); err != nil {
		return err
	}
	report, err := projections.Import(ctx, db.ledger, log, export)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "imported %s in %s, %.0f events/s\n%s", countOf(report.Totals),
		report.Took.Round(time.Millisecond), float64(report.Events)/report.Took.Seconds(), cutNote(report.Whole))
	return err
}

// cutNote says what cannot be known of an export.
func cutNote(whole bool) string {
	if whole {
		return ""
	}
	return "the export does not say how much should be in it: " +
		"whether lines are missing at its end, only a hash kept elsewhere can tell\n"
}

// openTwice opens a file that can be read more than once: the standard input is copied to one first, which has no name.
func openTwice(name string) (*os.File, error) {
	file, err := os.Stdin, error(nil)
	if name != "-" {
		if file, err = os.Open(name); err != nil {
			return nil, err
		}
	}
	if _, err := file.Seek(0, io.SeekCurrent); err == nil {
		return file, nil
	}
	defer file.Close()
	spool, err := os.CreateTemp("", "taskledger-import-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(spool.Name()); err != nil {
		return nil, errors.Join(err, spool.Close())
	}
	if _, err := io.Copy(spool, file); err != nil {
		return nil, errors.Join(fmt.Errorf("read the export: %w", err), spool.Close())
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, spool.Close())
	}
	return spool, nil
}
