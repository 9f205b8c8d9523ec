package projections

import (
	"context"
	"time"

	"taskledger/events"
)

const (
	// surveyEvery is how often a process that has work looks for what only the database knows: who is parked,
	// and rebuilds.
	surveyEvery = 30 * time.Second
	// surveyRebuild is how often it does so while a rebuild is under way.
	surveyRebuild = 5 * time.Second
)

// survey keeps the metrics of what only the database knows. It looks when the projections have just done something, and
// never by the clock: nobody is to wake a database that sleeps, least of all who reads the metrics.
func (r *Runner) survey(ctx context.Context) {
	var last time.Time
	every := surveyEvery
	for {
		select {
		case <-r.active:
		case <-ctx.Done():
			return
		}
		if !r.due.Swap(false) && time.Since(last) < every {
			continue
		}
		last = time.Now()
		running, err := r.surveyOnce(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.Debug("parked users and rebuilds could not be looked for", "err", events.Cause(err))
		}
		if every = surveyEvery; running {
			every = surveyRebuild
		}
	}
}

func (r *Runner) surveyOnce(ctx context.Context) (running bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var parked int64
	_, err = events.One(ctx, r.db, `SELECT count(*) FROM {schema}.users WHERE parked_error IS NOT NULL`, nil, &parked)
	if err != nil {
		return false, err
	}
	rebuild, err := readRebuild(ctx, r.db, r.db)
	if err != nil {
		return false, err
	}
	m := r.metrics
	m.parkedUsers.Set(float64(parked))
	m.rebuilding.Set(0)
	m.rebuildDone.Set(0)
	m.rebuildEvents.Set(0)
	if running = rebuild != nil && rebuild.Running; running {
		m.rebuilding.Set(1)
		m.rebuildDone.Set(float64(rebuild.DoneEvents))
		m.rebuildEvents.Set(float64(rebuild.TotalEvents))
	}
	m.surveyed.SetToCurrentTime()
	return running, nil
}

// surveyNow has the next survey not wait: something has changed.
func (r *Runner) surveyNow() { r.due.Store(true) }

// confirmed is told the generation of each checkpoint that was read. A new one says that an operator has changed the
// read model.
func (r *Runner) confirmed(generation int64) {
	if r.generation.Swap(generation) != generation {
		r.surveyNow()
	}
	signal(r.active)
}
