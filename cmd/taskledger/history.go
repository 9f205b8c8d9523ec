package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"taskledger/events"
	"taskledger/projections"
	"taskledger/query"
)

type historyCmd struct {
	User  string `required:"" placeholder:"ID" help:"Whose history."`
	JSON  bool   `name:"json" help:"Entries as the API has them, one a line (NDJSON), instead of a table."`
	Task  string `placeholder:"ID" help:"Only this task, deleted or not: its id, or the end of it that the table shows."`
	Since string `placeholder:"WHEN" help:"Only what came after: a seq, an RFC 3339 time, or a local one: 2026-11-27, 2026-11-27T09:30."`
	Until string `placeholder:"WHEN" help:"Only what came before, or then."`
}

// Help implements kong.HelpProvider.
func (historyCmd) Help() string {
	return "Oldest first, deleted tasks too. On a terminal long texts are cut to its width, elsewhere not; control " +
		"characters are escaped. Times are those of the time zone here (TZ)."
}

// historyPage is how many entries are read at a time.
const historyPage = 500

// Run exits with 0 when the user is known, whether or not there is anything to show.
func (c *historyCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	filter, taskEnd, err := c.filter()
	if err != nil {
		return err
	}
	db, err := openMigrated(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	reader, err := db.openReader(ctx, db.config.MaxConns, events.Settings)
	if err != nil {
		return err
	}
	defer reader.Pool().Close()
	ledger := events.Open(db.ledger)
	defer ledger.Close()
	queries := query.NewReader(query.Config{DB: reader, Log: ledger, ReadModel: caughtUp{db.ledger, log}})
	print := printEntries
	if !c.JSON {
		print = newTable(stdout).print
	}
	return c.pages(ctx, queries, filter, func(entries []jsontext.Value) error {
		return print(stdout, entriesOf(entries, taskEnd))
	})
}

func (c *historyCmd) filter() (f query.HistoryFilter, taskEnd string, err error) {
	f.Order = query.Ascending
	if f.Since, err = parseMoment("--since", c.Since); err != nil {
		return f, "", err
	}
	if f.Until, err = parseMoment("--until", c.Until); err != nil {
		return f, "", err
	}
	if c.Task == "" {
		return f, "", nil
	}
	if len(c.Task) == shownID && strings.Trim(c.Task, "0123456789abcdef") == "" {
		return f, c.Task, nil
	}
	id, err := uuid.Parse(c.Task)
	if err != nil {
		return f, "", fmt.Errorf("--task must be the id of a task, or its last %d digits", shownID)
	}
	f.TaskID = &id
	return f, "", nil
}

// pages reads the history page by page.
func (c *historyCmd) pages(
	ctx context.Context, queries *query.Reader, filter query.HistoryFilter, print func([]jsontext.Value) error,
) error {
	list, err := query.NewListing(filter)
	if err != nil {
		return err
	}
	for list.Limit = historyPage; ; {
		page, err := queries.List(ctx, query.Ask{UserID: c.User}, list)
		if err != nil {
			return err
		}
		if page.Seq == 0 && !page.Stale {
			return noSuchUser(c.User)
		}
		var entries []jsontext.Value
		if err := json.Unmarshal(page.Body, &entries); err != nil {
			return fmt.Errorf("read a page: %w", err)
		}
		if err := print(entries); err != nil {
			return err
		}
		if list.After = page.Next; list.After != nil {
			continue
		}
		if page.Stale {
			return fmt.Errorf("not shown is what came after event %d: the read model does not follow this user; "+
				"see taskledger parked", page.Seq)
		}
		return nil
	}
}

// entriesOf are those that are about a task whose id has an end; an empty end is every task's.
func entriesOf(entries []jsontext.Value, taskEnd string) []jsontext.Value {
	if taskEnd == "" {
		return entries
	}
	var out []jsontext.Value
	for _, e := range entries {
		var of struct {
			TaskID string `json:"task_id"`
		}
		if json.Unmarshal(e, &of) == nil && strings.HasSuffix(of.TaskID, taskEnd) {
			out = append(out, e)
		}
	}
	return out
}

func printEntries(w io.Writer, entries []jsontext.Value) error {
	var b []byte
	for _, e := range entries {
		b = append(append(b, e...), '\n')
	}
	_, err := w.Write(b)
	return err
}

// localTimes are forms of a time where the terminal is.
var localTimes = []string{
	"2006-01-02",
	"2006-01-02T15:04",
	"2006-01-02 15:04",
	"2006-01-02T15:04:05",
	"2006-01-02 15:04:05",
}

// parseMoment reads a seq or a time; nil where the text is empty.
func parseMoment(flag, text string) (*query.Moment, error) {
	if text == "" {
		return nil, nil
	}
	if seq, err := strconv.ParseUint(text, 10, 63); err == nil {
		return &query.Moment{Seq: int64(seq)}, nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	for _, layout := range localTimes {
		if err != nil {
			at, err = time.ParseInLocation(layout, text, time.Local)
		}
	}
	if err != nil || at.IsZero() {
		return nil, fmt.Errorf("%s must be a seq, an RFC 3339 time, or a local one such as 2026-11-27T09:30", flag)
	}
	return &query.Moment{Time: at}, nil
}

// caughtUp is the read model for a command: no server may be there to bring it up to date.
type caughtUp struct {
	db  *events.DB
	log *slog.Logger
}

// Mark implements query.ReadModel.
func (caughtUp) Mark() uint64 { return 0 }

// Shown implements query.ReadModel.
func (caughtUp) Shown() int64 { return 0 }

// Await implements query.ReadModel.
func (m caughtUp) Await(ctx context.Context, _ int64, _ uint64) error {
	err := projections.CatchUp(ctx, m.db, m.log)
	if err != nil && ctx.Err() == nil {
		m.log.Warn("the read model cannot be brought up to date", "err", events.Cause(err))
		<-ctx.Done() // a server may do it meanwhile
	}
	return err
}
