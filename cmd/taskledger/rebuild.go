package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"taskledger/events"
	"taskledger/projections"
)

type rebuildCmd struct {
	Projection string `placeholder:"NAME" help:"Only this read model; there is one, tasks."`
	User       string `placeholder:"ID" help:"Only this user's rows, at once."`
}

// Run exits with 0 when the new read model serves.
func (c *rebuildCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	db, err := openMigrated(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	var report projections.RebuildReport
	if c.User != "" {
		report, err = rebuildUser(ctx, db, c.User)
	} else {
		progress, finish := showProgress(os.Stderr, "rebuild", "events")
		folded := sync.OnceFunc(func() {
			finish()
			_, _ = fmt.Fprintln(os.Stderr, "all is folded: indexes, what came in meanwhile and a sample are next")
		})
		report, err = projections.Rebuild(ctx, db.ledger, c.Projection, func(done, total int64) {
			if progress(done, total); done >= total {
				folded()
			}
		})
		finish()
	}
	if err != nil && ctx.Err() != nil {
		return errors.New("rebuild: interrupted: readers have noticed nothing, and it can be run again")
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(
		stdout,
		"rebuilt: %d events folded into %d rows in %s, %.0f events/s; swapped in and verified\n",
		report.Events,
		report.Rows,
		report.Took.Round(time.Millisecond),
		float64(report.Events)/report.Took.Seconds(),
	)
	return err
}

func rebuildUser(ctx context.Context, db *database, user string) (projections.RebuildReport, error) {
	report, err := projections.RebuildUser(ctx, db.ledger, user)
	if errors.Is(err, projections.ErrUnknownUser) {
		return report, noSuchUser(user)
	}
	if err != nil {
		return report, err
	}
	checked, err := projections.Verify(ctx, db.ledger, user, func(projections.Difference) {})
	if err == nil && checked.Differences > 0 {
		err = fmt.Errorf("%d differences are left: taskledger verify --user shows them", checked.Differences)
	}
	return report, err
}

// tellOutdated says in one line that another version of the code has made the read model.
func tellOutdated(ctx context.Context, cfg *settings, db *database, log *slog.Logger) (outdated bool, err error) {
	made, program, err := projections.Versions(ctx, db.ledger)
	if err != nil || made == program {
		return false, err
	}
	log.Warn("the read model was made by another version of its code: it serves, and should be made anew",
		"made_by", made, "program", program, "command", "taskledger rebuild", "rebuild_on_start", cfg.RebuildOnStart)
	return true, nil
}

// The times between two tries for the lock that maintenance is done under.
const (
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
)

// rebuildOutdated makes the read model anew beside the service, unless another process does: that one is waited for, it
// may fail.
func rebuildOutdated(ctx context.Context, db *database, log *slog.Logger) {
	began := sync.OnceFunc(func() { log.Info("the read model is being made anew") })
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		report, err := projections.RebuildOutdated(ctx, db.ledger, func(_, _ int64) { began() })
		switch {
		case err == nil:
			log.Info("the read model was made anew",
				"events", report.Events, "rows", report.Rows, "took", report.Took.Round(time.Millisecond).String())
			return
		case errors.Is(err, projections.ErrCurrent):
			log.Info("the read model was made anew by another process")
			return
		case ctx.Err() != nil:
			return
		case !errors.Is(err, projections.ErrMaintenance):
			log.Warn("the read model could not be made anew: it serves as it is",
				"err", events.Cause(err), "command", "taskledger rebuild")
			return
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return
		}
	}
}

// showProgress is a bar on a terminal, and a line every few seconds elsewhere.
func showProgress(w *os.File, what, items string) (progress projections.Progress, finish func()) {
	if !term.IsTerminal(int(w.Fd())) {
		return progressLines(w, items, 2*time.Second), func() {}
	}
	var bar *progressbar.ProgressBar
	progress = func(done, total int64) {
		if bar == nil {
			bar = progressbar.NewOptions64(total,
				progressbar.OptionSetWriter(w),
				progressbar.OptionSetDescription(what),
				progressbar.OptionShowCount(),
				progressbar.OptionShowIts(),
				progressbar.OptionSetItsString(items),
				progressbar.OptionSetPredictTime(true),
				progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionClearOnFinish(),
			)
		}
		_ = bar.Set64(done) // a bar that can't be drawn stops nothing
	}
	return progress, func() {
		if bar != nil {
			_ = bar.Finish()
		}
	}
}

// progressLines tells rate and time left.
func progressLines(w io.Writer, items string, every time.Duration) projections.Progress {
	start := time.Now()
	last := start
	return func(done, total int64) {
		now := time.Now()
		if now.Sub(last) < every || done == 0 {
			return
		}
		last = now
		rate := float64(done) / now.Sub(start).Seconds()
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		_, _ = fmt.Fprintf(
			w,
			"%d of %d %s, %.0f %s/s, %s left\n",
			done,
			total,
			items,
			rate,
			items,
			left.Round(time.Second),
		)
	}
}
