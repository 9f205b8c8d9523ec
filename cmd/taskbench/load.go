package main

import (
	"context"
	"errors"
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

func (o *options) nextWindow() window {
	from := time.Now().Add(o.Warmup)
	return window{from: from, until: from.Add(o.Duration)}
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
	end := time.Now()
	if err == nil {
		t.count(start, end)
		return
	}
	t.errors[failureName(err)]++
	t.reach(end)
}

func (t *tally) count(start, end time.Time) {
	// Out of range cannot be: what takes longer than the request timeout is an error.
	_ = t.latency.RecordValue(end.Sub(start).Microseconds())
	t.reach(end)
}

func (t *tally) reach(end time.Time) {
	if end.After(t.last) {
		t.last = end
	}
}

func (t *tally) merge(from *tally) {
	t.latency.Merge(from.latency)
	for name, n := range from.errors {
		t.errors[name] += n
	}
	t.reach(from.last)
}

// rate is in requests a second.
func (t *tally) rate(from time.Time) float64 {
	if t.latency.TotalCount() == 0 {
		return 0
	}
	return float64(t.latency.TotalCount()) / t.last.Sub(from).Seconds()
}

// quantile is in milliseconds; q is a percentage.
func (t *tally) quantile(q float64) float64 { return float64(t.latency.ValueAtPercentile(q)) / 1000 }

func (o *options) runLoad(ctx context.Context, users []*user, stdout, progress io.Writer) error {
	fmt.Fprintf(progress, "seeding %d users with %d tasks each\n", len(users), o.Tasks)
	if err := o.seed(ctx, o.URL, users); err != nil {
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
			measured, err := o.measureOne(ctx, users, name, connections)
			if ctx.Err() != nil {
				return results, context.Cause(ctx)
			}
			if err != nil {
				return results, err
			}
			results = append(results, measured...)
		}
	}
	return results, nil
}

// measureOne returns a result, and with --freshness one more.
func (o *options) measureOne(ctx context.Context, users []*user, name string, connections int) ([]loadResult, error) {
	if o.Freshness {
		return o.measureFreshness(ctx, users, name, connections)
	}
	when := o.nextWindow()
	total := o.load(ctx, job{
		url:         o.URL,
		users:       users,
		connections: connections,
		when:        when,
		pace:        o.pace(when),
		step:        sendOne(operations[name]),
	})
	return []loadResult{newLoadResult(name, connections, total, when.from)}, nil
}

// job is a load: who does what over and over, where, over how many connections, and when.
type job struct {
	url         string
	users       []*user
	connections int
	when        window
	pace        pace
	step        step
}

// step is what a worker does over and over. What it returns counts as one request.
type step func(ctx context.Context, w *worker) error

// load returns when all that was sent is answered.
func (o *options) load(ctx context.Context, j job) *tally {
	tallies := make([]*tally, j.connections)
	var workers sync.WaitGroup
	for i := range tallies {
		w := &worker{
			users:    j.users,
			random:   rand.New(rand.NewPCG(uint64(i), 0)),
			conn:     newConn(j.url, o.RequestTimeout),
			readBack: newConn(j.url, o.RequestTimeout),
			tally:    newTally(),
		}
		tallies[i] = w.tally
		workers.Go(func() {
			defer w.conn.close()
			defer w.readBack.close()
			w.loop(ctx, j)
		})
	}
	workers.Wait()
	total := newTally()
	for _, t := range tallies {
		total.merge(t)
	}
	return total
}

// worker sends one request after the other over its connection. With another it can look at what it has written.
type worker struct {
	users          []*user
	random         *rand.Rand
	conn, readBack *conn
	tally          *tally
}

func (w *worker) loop(ctx context.Context, j job) {
	for ctx.Err() == nil {
		start, ok := j.pace(ctx)
		if !ok {
			return
		}
		err := w.take(ctx, j.step, start)
		if !start.Before(j.when.from) {
			w.tally.record(start, err)
		}
		pauseAfter(ctx, err)
	}
}

// take does a step, unless it waited so long for its turn that nobody would have waited for the answer.
func (w *worker) take(ctx context.Context, s step, start time.Time) error {
	if time.Since(start) > w.conn.timeout {
		return errNoTurn
	}
	return s(ctx, w)
}

func (w *worker) anyUser() *user { return w.users[w.random.IntN(len(w.users))] }

// anyTask returns one of the tasks that u had before the measurement.
func (w *worker) anyTask(u *user) string { return u.tasks[w.random.IntN(len(u.tasks))] }

// sendOne sends op, each time for a user and task drawn at random.
func sendOne(op operation) step {
	return func(ctx context.Context, w *worker) error { return w.send(ctx, op) }
}

func (w *worker) send(ctx context.Context, op operation) error {
	u := w.anyUser()
	return w.conn.do(ctx, u, op, w.anyTask(u))
}

// pauseAfter pauses after a failure of the server.
func pauseAfter(ctx context.Context, err error) {
	if err == nil || errors.Is(err, errNoTurn) {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(failurePause):
	}
}
