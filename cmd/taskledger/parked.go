package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"taskledger/events"
	"taskledger/projections"
)

type parkedCmd struct {
	List  parkedListCmd  `cmd:"" default:"withargs" help:"List the users whom the read model no longer follows, and why (the default)."`
	Retry parkedRetryCmd `cmd:"" help:"Apply their events again, after the reason is gone."`
	Skip  parkedSkipCmd  `cmd:"" help:"Pass over the event that a user is parked at, for good, and apply the rest."`
}

type parkedListCmd struct {
	User *string `placeholder:"ID" help:"Only this user."`
}

type parkedRetryCmd struct {
	User *string `placeholder:"ID" help:"Only this user."`
}

type parkedSkipCmd struct {
	User string `required:"" placeholder:"ID" help:"Whose event to pass over."`
}

var errParked = errors.New("somebody is parked")

// Run exits with 0 when nobody is parked, so that a script can ask.
func (c *parkedListCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) error {
	return onParked(ctx, cfg, log, stdout, c.User, projections.ListParked)
}

// Run exits with 0 when nobody is parked any more.
func (c *parkedRetryCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) error {
	return onParked(ctx, cfg, log, stdout, c.User, projections.RetryParked)
}

// Run exits with 0 when the user is not parked any more.
func (c *parkedSkipCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) error {
	return onParked(ctx, cfg, log, stdout, &c.User, projections.SkipParked)
}

// onParked does something about parked users and prints who is parked after it, a line each; that is an error.
func onParked(
	ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer, about *string,
	do func(context.Context, *events.DB, string) ([]projections.Parked, error),
) (err error) {
	user, err := oneOrAll(about)
	if err != nil {
		return err
	}
	db, err := openMigrated(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	parked, err := do(ctx, db.ledger, user)
	if err != nil {
		return err
	}
	for _, p := range parked {
		line := fmt.Sprintf(
			"user=%q event=%d since=%s reason=%q",
			p.UserID,
			p.Seq,
			p.Since.UTC().Format(time.RFC3339),
			p.Reason,
		)
		if _, err := fmt.Fprintln(stdout, line); err != nil {
			return err
		}
	}
	if len(parked) == 0 {
		_, err = fmt.Fprintln(stdout, "nobody is parked")
		return err
	}
	return errParked
}
