package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/term"

	"taskledger/command"
	"taskledger/events"
	"taskledger/projections"
)

// operator is who acts in an operator's command.
const operator = "system"

type eraseCmd struct {
	User string `required:"" placeholder:"ID" help:"Whom to erase."`
	Yes  bool   `help:"Do not ask. Only on a terminal it is asked at all."`
}

// Help implements kong.HelpProvider.
func (eraseCmd) Help() string {
	return "Every event of the user is deleted, and all that was derived of them, as by DELETE /api/me. One event " +
		"remains as the proof: UserErased, with the hash of the last event. Not reached are backups, exports, " +
		"replicas and WAL."
}

var errNotConfirmed = errors.New("not confirmed: nothing was erased")

// Run exits with 0 when nothing of the user is left.
func (c *eraseCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openMigrated(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	ledger := events.Open(db.ledger)
	defer ledger.Close()
	before, err := ledger.Head(ctx, c.User)
	if err != nil {
		return err
	}
	if before.Seq == 0 {
		return noSuchUser(c.User)
	}
	if !c.Yes && term.IsTerminal(int(os.Stdin.Fd())) {
		question := fmt.Sprintf(
			"Erase all of user %q for good (last event: %d)? Type the user's id: ",
			c.User,
			before.Seq,
		)
		if err := confirm(os.Stdin, os.Stderr, question, c.User); err != nil {
			return err
		}
	}
	handler := command.NewHandler(command.Config{
		Log:        ledger,
		Stored:     func(*events.Commit, []events.Task) {},
		Quota:      cfg.MaxTasksPerUser,
		CacheBytes: streamCache,
	})
	result, err := handler.Erase(ctx, command.Request{UserID: c.User, Actor: operator, RequestID: uuid.NewString()})
	if err != nil {
		return err
	}
	if err := projections.CatchUp(ctx, db.ledger, log); err != nil {
		return fmt.Errorf("the user is erased, but the read model does not show it yet: %w", err)
	}
	if result.Seq == before.Seq {
		_, err = fmt.Fprintf(
			stdout,
			"user %q was erased before, at event %d, and has no event since\n",
			c.User,
			result.Seq,
		)
		return err
	}
	_, err = fmt.Fprintf(stdout, "erased user %q; event %d is the proof\n", c.User, result.Seq)
	return err
}

// confirm asks for an answer, and takes no other.
func confirm(from io.Reader, to io.Writer, question, answer string) error {
	if _, err := fmt.Fprint(to, question); err != nil {
		return err
	}
	typed, err := bufio.NewReader(from).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimRight(typed, "\r\n") != answer {
		return errNotConfirmed
	}
	return nil
}
