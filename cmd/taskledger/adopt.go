package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"taskledger/command"
	"taskledger/events"
	"taskledger/migrations"
	"taskledger/projections"
)

const (
	// adoptLanes is how many users' tasks are taken over at once: those of a hundred rows fill a batch of the log.
	adoptLanes = 16
	// adoptRows and adoptBytes bound what is taken over of one user at a time.
	adoptRows, adoptBytes = 500, 1 << 20
	// adoptMemory bounds the texts that are on their way in bytes; it is more than one chunk has.
	adoptMemory = 2 * (adoptBytes + maxOldText)
	// adoptLead is how long the read model is waited for, before more is appended for it to follow.
	adoptLead = time.Second
	// dryRunConnections are the one that reads the table, and one for all that look what is there already.
	dryRunConnections = 2
	// lookTimeout bounds the look for a table to adopt when the server starts.
	lookTimeout = 3 * time.Second
)

type adoptCmd struct {
	Table  string `placeholder:"TABLE" help:"The table or view to read, or schema.table; by default task, then tasks."`
	DryRun bool   `help:"Tell what would be taken over, and write nothing."`
}

// Run exits with 0 when every row that can be taken over is, by this run or one before.
func (c *adoptCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openShared(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	old, err := c.find(ctx, db)
	if err != nil {
		return err
	}
	there := true
	if c.DryRun {
		there, err = hasLedger(ctx, db)
	} else {
		err = db.migrate(ctx, log)
	}
	if err != nil {
		return err
	}
	a := &adoption{
		old: old, db: db, room: semaphore.NewWeighted(adoptMemory), unfit: map[string]int{},
		into: command.Adoption{RequestID: "adopt-" + uuid.NewString(), DryRun: c.DryRun},
	}
	if there {
		ledger, err := db.openLedger(ctx, ledgerConnections, events.Settings)
		if err != nil {
			return err
		}
		defer ledger.Pool().Close()
		a.into.Log = events.Open(ledger)
		defer a.into.Log.Close()
	}
	began := time.Now()
	if c.DryRun {
		if there {
			err = a.into.Log.DB().Spare(ctx, dryRunConnections)
		}
		if err == nil {
			err = a.run(ctx, nil)
		}
	} else {
		err = projections.Bulk(ctx, a.into.Log, log, func(shown *projections.Runner) error { return a.run(ctx, shown) })
	}
	if err != nil && ctx.Err() != nil {
		err = errors.New("stopped before the end: run adopt again for the rest")
	}
	if err != nil {
		return err
	}
	return a.report(stdout, time.Since(began))
}

// hasLedger tells whether the database has a ledger: who tries a dry run first has none yet. One that another version
// made is an error.
func hasLedger(ctx context.Context, db *database) (bool, error) {
	err := migrations.Check(ctx, db.ledger.Pool(), db.schema)
	if v, other := errors.AsType[*migrations.VersionError](err); other && v.Database == 0 {
		return false, nil
	}
	return err == nil, err
}

// find finds the table, which this role may read.
func (c *adoptCmd) find(ctx context.Context, db *database) (old *predecessor, err error) {
	if c.Table != "" {
		old, err = namedPredecessor(ctx, db, c.Table)
	} else {
		old, err = findPredecessor(ctx, db)
		if err == nil && old != nil {
			err = old.check()
		}
	}
	if err == nil && old == nil {
		err = errors.New("there is nothing to adopt: beside the ledger the database has no table task or tasks; " +
			"--table names another one")
	}
	if err == nil {
		err = old.readable()
	}
	return old, err
}

// adoption is one run of adopt.
type adoption struct {
	old   *predecessor
	db    *database
	into  command.Adoption
	rows  int64 // of the table
	users int   // whom they are of
	room  *semaphore.Weighted

	mu       sync.Mutex // guards what follows
	done     int64      // rows
	adopted  command.Adopted
	unfit    map[string]int // rows that are left out, by the reason
	progress projections.Progress
}

// Why rows are left out for what the ledger has of their user.
const (
	erasedUsers   = "of users who were erased"
	unreadStreams = "of users whose stream this program can't read"
)

// chunk is rows of one user, in order.
type chunk struct {
	user  string
	tasks []command.OldTask
	bytes int64
}

// run reads the table in one snapshot, and takes over what is new. The rows of a user go through one lane, in their
// order. shown is who follows what is appended; nil in a dry run.
func (a *adoption) run(ctx context.Context, shown *projections.Runner) error {
	progress, finish := showProgress(os.Stderr, "adopt", "rows")
	defer finish()
	a.progress = progress
	group, ctx := errgroup.WithContext(ctx)
	var lanes [adoptLanes]chan chunk
	for i := range lanes {
		lanes[i] = make(chan chunk, 1)
		group.Go(func() error {
			for c := range lanes[i] {
				if err := a.take(ctx, c, shown); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer func() {
			for _, lane := range lanes {
				close(lane)
			}
		}()
		return a.old.begin(ctx, a.db.ledger, 0, func(tx *events.Tx) error { return a.read(ctx, tx, lanes[:]) })
	})
	return group.Wait()
}

// read cuts the table into chunks.
func (a *adoption) read(ctx context.Context, tx *events.Tx, lanes []chan chunk) error {
	var now time.Time
	_, err := events.One(ctx, tx, `SELECT count(*), clock_timestamp() FROM `+a.old.name, nil, &a.rows, &now)
	if err != nil {
		return err
	}
	if a.rows == 0 {
		return fmt.Errorf("there is nothing to adopt: %s has no rows", a.old.name)
	}
	var next chunk
	send := func() error {
		if len(next.tasks) == 0 {
			return nil
		}
		if err := a.room.Acquire(ctx, next.bytes); err != nil {
			return err
		}
		select {
		case lanes[a.users%len(lanes)] <- next:
			next = chunk{user: next.user}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err = a.old.read(ctx, tx, now, func(r oldRow) error {
		if r.unfit != "" {
			a.leaveOut(1, r.unfit)
			return nil
		}
		if r.user != next.user || len(next.tasks) >= adoptRows || next.bytes >= adoptBytes {
			if err := send(); err != nil {
				return err
			}
		}
		if r.user != next.user {
			next.user = r.user
			a.users++
		}
		next.tasks, next.bytes = append(next.tasks, r.task), next.bytes+r.bytes()
		return nil
	})
	if err != nil {
		return err
	}
	return send()
}

// take takes over a chunk.
func (a *adoption) take(ctx context.Context, c chunk, shown *projections.Runner) error {
	defer a.room.Release(c.bytes)
	var mark uint64
	if shown != nil {
		mark = shown.Mark()
	}
	done, err := a.into.Adopt(ctx, c.user, c.tasks)
	_, unread := errors.AsType[*events.FoldError](err)
	switch {
	case errors.Is(err, command.ErrErased):
		a.leaveOut(len(c.tasks), erasedUsers)
		return nil
	case unread:
		a.leaveOut(len(c.tasks), unreadStreams)
		return nil
	case err != nil:
		return fmt.Errorf("adopt tasks of the user %q: %w", c.user, err)
	}
	a.count(done, len(c.tasks))
	if done.Position == 0 {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, adoptLead)
	defer cancel()
	if err := shown.Await(waiting, done.Position, mark); err != nil && ctx.Err() != nil {
		return err
	}
	return nil // a read model that can't follow now will do so later: what counts is in the log
}

func (a *adoption) leaveOut(rows int, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unfit[why] += rows
	a.advance(rows)
}

func (a *adoption) count(done command.Adopted, rows int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.adopted.New += done.New
	a.adopted.There += done.There
	a.adopted.Cut += done.Cut
	a.advance(rows)
}

// advance shows the progress. The caller holds mu.
func (a *adoption) advance(rows int) {
	a.done += int64(rows)
	a.progress(a.done, a.rows)
}

// report prints what became of the rows.
func (a *adoption) report(w io.Writer, took time.Duration) error {
	adopted := "adopted"
	if a.into.DryRun {
		adopted = "to adopt"
	}
	left, why := 0, []string(nil)
	for _, reason := range slices.Sorted(maps.Keys(a.unfit)) {
		left += a.unfit[reason]
		why = append(why, fmt.Sprintf("%d %s", a.unfit[reason], reason))
	}
	leftOut := strings.TrimSuffix(fmt.Sprintf("%d: %s", left, strings.Join(why, ", ")), ": ")
	lines := []string{
		"table          " + a.old.name,
		fmt.Sprintf("rows           %d, of %d users", a.rows, a.users),
		fmt.Sprintf("%-14s %d", adopted, a.adopted.New),
		fmt.Sprintf("texts cut of   %d", a.adopted.Cut),
		fmt.Sprintf("there already  %d", a.adopted.There),
		"left out       " + leftOut,
	}
	if a.into.DryRun {
		lines = append(lines, "a dry run: nothing was written")
	} else {
		lines = append(lines, fmt.Sprintf("done in %s; the request_id in their history is %s",
			took.Round(time.Millisecond), a.into.RequestID))
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// tellPredecessor says in one line that there is a table of the backend before this one with tasks that are not taken
// over. It is no more than a look, beside the start: what keeps it from looking is no reason not to serve.
func tellPredecessor(ctx context.Context, db *database, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout) // a stop can wait for so short a look
	defer cancel()
	old, err := findPredecessor(ctx, db)
	if err == nil && old != nil && old.check() == nil && old.readable() == nil {
		var found bool
		if found, err = old.unadopted(ctx, db, lookTimeout); found {
			log.Warn("there are tasks of another backend that are not taken over",
				"table", old.name, "command", "taskledger adopt")
		}
	}
	if err != nil {
		log.Debug("no look whether there are tasks of another backend", "err", events.Cause(err))
	}
}
