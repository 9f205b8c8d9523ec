package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
)

const (
	listLength = 20 // of the list that is asked again and again
	maxLimit   = 500
)

// workload is what a comparison measures. Each turn takes a step of its own from newStep.
type workload struct {
	name, title string
	// fresh workloads get users of their own each turn: they make lists longer, or must not have been asked before.
	fresh   bool
	newStep func(o *options) step
	// targets are what the ratio should be at least, by the number of connections. Where there is none for one
	// connection, it is not measured there.
	targets map[int]float64
}

// workloads are in the order of the report.
var workloads = []workload{
	{
		name: "list", title: "list of 20, asked before", newStep: (*options).listAgain,
		targets: map[int]float64{1: 1.2, 16: 1.7, 64: 2.0},
	},
	{
		name: "list-new", title: "list of 20, never asked before", fresh: true, newStep: (*options).listAnew,
		targets: map[int]float64{1: .8, 16: 1.0, 64: 1.0},
	},
	{
		name: "get", title: "get", newStep: always("get"),
		targets: map[int]float64{1: .8, 16: 1.3, 64: 1.5},
	},
	{
		name: "create", title: "create", fresh: true, newStep: always("create"),
		targets: map[int]float64{1: .5, 16: 1.0, 64: 1.4},
	},
	{
		name: "toggle", title: "toggle", newStep: always("toggle"),
		targets: map[int]float64{1: .5, 16: 1.1, 64: 1.5},
	},
	{
		name: "mixed", title: "90 % reads, 10 % writes", fresh: true,
		newStep: func(*options) step { return readsAndWrites },
		targets: map[int]float64{16: 1.1, 64: 1.4},
	},
	{
		name: "write-read-delete", title: "write, read it elsewhere, delete", fresh: true,
		newStep: func(*options) step { return writeReadDelete },
		targets: map[int]float64{16: .9, 64: 1.1},
	},
}

// chosen are the workloads that --workloads names.
func (o *options) chosen() []workload {
	return slices.DeleteFunc(slices.Clone(workloads), func(w workload) bool {
		return !slices.Contains(o.Workloads, w.name)
	})
}

func (w workload) measuredWith(connections int) bool { return connections > 1 || w.targets[1] > 0 }

func always(name string) func(*options) step {
	return func(*options) step { return sendOne(operations[name]) }
}

// listAgain asks for the same list of each user over and over.
func (o *options) listAgain() step {
	return func(ctx context.Context, w *worker) error {
		return w.list(ctx, w.anyUser(), operations["list"], min(o.Tasks, listLength))
	}
}

// listAnew asks each user for each list once, so that no kept answer can serve it. All of them have all tasks in them.
func (o *options) listAnew() step {
	var asked atomic.Int64
	return func(ctx context.Context, w *worker) error {
		n := int(asked.Add(1) - 1)
		path, ok := newList(n/len(w.users), o.Tasks)
		if !ok {
			return errAllAsked
		}
		op := operation{http.MethodGet, path, "", http.StatusOK}
		return w.list(ctx, w.users[n%len(w.users)], op, o.Tasks)
	}
}

// errAllAsked ends no measurement, but it makes it one that did not go as promised.
var errAllAsked = errors.New("no list left")

// newLists are the lists with all tasks of a user who has completed none, but for their limit; the usual one first.
var newLists = []string{
	"", "&status=pending", "&order=asc", "&sort=updated_at", "&sort=title", "&sort=updated_at&order=asc",
	"&sort=title&order=desc", "&status=pending&order=asc", "&status=pending&sort=updated_at",
	"&status=pending&sort=title", "&status=pending&sort=updated_at&order=asc", "&status=pending&sort=title&order=desc",
}

// newList is the nth list of a user with so many tasks; false when there is no more.
func newList(n, tasks int) (string, bool) {
	least := max(tasks, listLength) + 1
	limits := maxLimit - least
	if n >= limits*len(newLists) {
		return "", false
	}
	return fmt.Sprintf("/api/tasks?limit=%d%s", least+n%limits, newLists[n/limits]), true
}

// list sends op and counts the tasks of the answer.
func (w *worker) list(ctx context.Context, u *user, op operation, want int) error {
	if err := w.conn.do(ctx, u, op, ""); err != nil {
		return err
	}
	if got := bytes.Count(w.conn.body.Bytes(), []byte(`"version":`)); got != want {
		return &badAnswer{status: op.want, code: fmt.Sprintf("%d_tasks_not_%d", got, want)}
	}
	return nil
}

// readsAndWrites are 9 reads to a write, as many lists as gets and as many creates as toggles.
func readsAndWrites(ctx context.Context, w *worker) error {
	name := [...]string{"list", "get"}[w.random.IntN(2)]
	if w.random.IntN(10) == 0 {
		name = [...]string{"create", "toggle"}[w.random.IntN(2)]
	}
	return w.send(ctx, operations[name])
}

// writeReadDelete creates a task, looks on another connection whether it is there as written, and deletes it. The
// three count as one request.
func writeReadDelete(ctx context.Context, w *worker) error {
	u := w.anyUser()
	written, err := createTask(ctx, w.conn, u)
	if err != nil {
		return err
	}
	read, err := sendForTask(ctx, w.readBack, u, operations["get"], written.ID)
	if err := missed(written, read, err); err != nil {
		return err
	}
	if read.Title != title {
		return &miss{id: written.ID, written: written.Version}
	}
	return w.conn.do(ctx, u, operations["delete"], written.ID)
}
