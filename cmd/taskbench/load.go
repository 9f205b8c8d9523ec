package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// failurePause keeps a server that is away from being asked in a busy loop.
const failurePause = 10 * time.Millisecond

// window is when the measurement begins and when no more requests are sent; what comes before from is warm-up.
type window struct {
	from, until time.Time
}

// tally is what one worker, or several merged, measured. Latencies are in microseconds, of promised answers only.
type tally struct {
	latency *hdrhistogram.Histogram
	errors  map[string]int64
	last    time.Time // the end of the last request that counts
}

func newTally() *tally {
	return &tally{
		latency: hdrhistogram.New(1, 2*maxRequestTimeout.Microseconds(), 3),
		errors:  map[string]int64{},
	}
}

func (t *tally) record(start time.Time, err error) {
	t.last = time.Now()
	if err != nil {
		t.errors[failureName(err)]++
		return
	}
	// Out of range cannot be: an answer that takes longer than the request timeout is an error.
	_ = t.latency.RecordValue(t.last.Sub(start).Microseconds())
}

func (t *tally) merge(from *tally) {
	t.latency.Merge(from.latency)
	for name, n := range from.errors {
		t.errors[name] += n
	}
	if from.last.After(t.last) {
		t.last = from.last
	}
}

func (o *options) runLoad(ctx context.Context, users []*user, stdout, progress io.Writer) error {
	fmt.Fprintf(progress, "seeding %d users with %d tasks each\n", len(users), o.Tasks)
	if err := o.seed(ctx, users); err != nil {
		return withHint(err)
	}
	results, stopped := o.measureAll(ctx, users, progress)
	if err := o.printLoad(stdout, results); err != nil {
		return err
	}
	if stopped != nil {
		return stopped
	}
	for _, r := range results {
		if len(r.Errors) > 0 {
			return errBroken
		}
	}
	return nil
}

// measureAll returns what it has, also with an error.
func (o *options) measureAll(ctx context.Context, users []*user, progress io.Writer) ([]loadResult, error) {
	var results []loadResult
	for _, name := range o.Ops {
		for _, connections := range o.Connections {
			fmt.Fprintf(progress, "%s with %d connections for %s\n", name, connections, o.Duration)
			result := o.measureOne(ctx, users, name, connections)
			if ctx.Err() != nil {
				return results, context.Cause(ctx)
			}
			results = append(results, result)
		}
	}
	return results, nil
}

func (o *options) measureOne(ctx context.Context, users []*user, name string, connections int) loadResult {
	from := time.Now().Add(o.Warmup)
	when := window{from: from, until: from.Add(o.Duration)}
	tallies := make([]*tally, connections)
	var workers sync.WaitGroup
	for i := range tallies {
		tallies[i] = newTally()
		w := &worker{users: users, random: rand.New(rand.NewPCG(uint64(i), 0)), tally: tallies[i]}
		workers.Go(func() {
			w.conn = newConn(o.URL, o.RequestTimeout)
			defer w.conn.close()
			w.loop(ctx, operations[name], when)
		})
	}
	workers.Wait()
	total := newTally()
	for _, t := range tallies {
		total.merge(t)
	}
	return newLoadResult(name, connections, total, total.last.Sub(when.from))
}

// worker sends one request after the other over its connection, each for a user and task drawn at random.
type worker struct {
	users  []*user
	random *rand.Rand
	conn   *conn
	tally  *tally
}

func (w *worker) loop(ctx context.Context, op operation, when window) {
	for ctx.Err() == nil {
		u := w.users[w.random.IntN(len(w.users))]
		id := u.tasks[w.random.IntN(len(u.tasks))]
		start := time.Now()
		if !start.Before(when.until) {
			return
		}
		err := w.conn.do(ctx, u, op, id)
		if !start.Before(when.from) {
			w.tally.record(start, err)
		}
		pauseAfter(ctx, err)
	}
}

func pauseAfter(ctx context.Context, err error) {
	if err == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(failurePause):
	}
}
