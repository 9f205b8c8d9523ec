package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// maxExamples is how many misses are described one by one.
const maxExamples = 10

// miss is a read that did not see the acknowledged write before it. read is 0 when the task was not there at all.
type miss struct {
	id            string
	written, read int64
}

func (m *miss) Error() string {
	return fmt.Sprintf("task %s: version %d written, version %d read", m.id, m.written, m.read)
}

// pairs counts finished pairs, and collects what went wrong. It is shared by the workers.
type pairs struct {
	wanted  int64
	started atomic.Int64

	mu     sync.Mutex
	result pairsResult
}

func (p *pairs) record(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var missed *miss
	switch {
	case err == nil:
		p.result.Pairs++
	case errors.As(err, &missed):
		p.result.Pairs++
		p.result.Misses++
		if len(p.result.Examples) < maxExamples {
			p.result.Examples = append(p.result.Examples, missed.Error())
		}
	default:
		p.result.Errors[failureName(err)]++
	}
}

func (o *options) runPairs(ctx context.Context, users []*user, stdout, progress io.Writer) error {
	var results []pairsResult
	for _, connections := range o.Connections {
		fmt.Fprintf(progress, "%d pairs with %d connections\n", o.Pairs, connections)
		results = append(results, o.pairsWith(ctx, users, connections))
	}
	if err := o.printPairs(stdout, results); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, r := range results {
		if r.Misses > 0 || len(r.Errors) > 0 {
			return errBroken
		}
	}
	return nil
}

func (o *options) pairsWith(ctx context.Context, users []*user, connections int) pairsResult {
	all := &pairs{
		wanted: int64(o.Pairs),
		result: pairsResult{Connections: connections, Errors: map[string]int64{}},
	}
	var workers sync.WaitGroup
	for i := range connections {
		w := &pairWorker{
			user:  users[i%len(users)],
			write: newConn(o.URL, o.RequestTimeout),
			read:  newConn(o.ReadURL, o.RequestTimeout),
		}
		workers.Go(func() { w.loop(ctx, all) })
	}
	workers.Wait()
	return all.result
}

// pairWorker creates a task and reads it, then toggles that task and reads it again, and so on.
type pairWorker struct {
	user        *user
	write, read *conn
	toggle      string // the task to toggle next; empty: create one
}

func (w *pairWorker) loop(ctx context.Context, all *pairs) {
	defer w.write.close()
	defer w.read.close()
	for ctx.Err() == nil && all.started.Add(1) <= all.wanted {
		err := w.pair(ctx)
		if ctx.Err() != nil {
			return
		}
		all.record(err)
		var missed *miss
		if !errors.As(err, &missed) {
			pauseAfter(ctx, err)
		}
	}
}

func (w *pairWorker) pair(ctx context.Context) error {
	written, err := w.writeOne(ctx)
	if err != nil {
		return err
	}
	read, err := sendForTask(ctx, w.read, w.user, operations["get"], written.ID)
	return missed(written, read, err)
}

// missed is a *miss when a read, which may have failed, did not see what was written before.
func missed(written, read task, err error) error {
	if bad, ok := errors.AsType[*badAnswer](err); ok && bad.status == http.StatusNotFound {
		return &miss{id: written.ID, written: written.Version}
	}
	if err != nil {
		return err
	}
	if read.Version < written.Version {
		return &miss{id: written.ID, written: written.Version, read: read.Version}
	}
	return nil
}

func (w *pairWorker) writeOne(ctx context.Context) (task, error) {
	id := w.toggle
	w.toggle = ""
	if id != "" {
		return sendForTask(ctx, w.write, w.user, operations["toggle"], id)
	}
	created, err := createTask(ctx, w.write, w.user)
	w.toggle = created.ID
	return created, err
}
