package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"taskledger/events"
)

type exportCmd struct {
	User string `placeholder:"ID" help:"Only this user."`
}

// Help implements kong.HelpProvider.
func (exportCmd) Help() string {
	return "Each line is the record of an event with its hash, oldest first, user by user, all of one moment. " +
		"For import a line may also have idempotency_key and request_fingerprint (with the first event of a " +
		"command), skipped, and the first line export, which says how many events of how many users there are. " +
		"None of these is in the hash."
}

// Run exits with 0 when the whole export was written.
func (c *exportCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openMigrated(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	written, err := events.WriteExport(ctx, db.ledger, c.User, stdout)
	if err != nil {
		return err
	}
	if c.User != "" && written.Events == 0 {
		return noSuchUser(c.User)
	}
	_, err = fmt.Fprintf(os.Stderr, "exported %s\n", countOf(written))
	return err
}

// noSuchUser says that a user has no events.
func noSuchUser(user string) error { return fmt.Errorf("there is no user %q in this ledger", user) }

// countOf is how much there is in an export, for people.
func countOf(t events.Totals) string {
	number := func(n int64, one string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %ss", n, one)
	}
	return number(t.Events, "event") + " of " + number(t.Users, "user")
}
