package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// process is the writing and projecting part of one process.
type process struct {
	t       testing.TB
	db      *events.DB
	log     *events.Log
	runner  *Runner
	metrics *prometheus.Registry
	heads   map[string]events.Head // of what this process appended
}

func newDB(t testing.TB) *events.DB {
	t.Helper()
	return events.NewDB(testdb.New(t), testdb.Schema, "")
}

// writer is a process that appends and projects nothing.
func writer(t testing.TB, db *events.DB, more ...projection) *process {
	t.Helper()
	p := &process{
		t:       t,
		db:      db,
		log:     events.Open(db),
		metrics: prometheus.NewRegistry(),
		heads:   map[string]events.Head{},
	}
	metrics := NewMetrics(p.metrics)
	p.runner = newRunner(
		p.log,
		slog.New(slog.DiscardHandler),
		metrics,
		append([]projection{newReadModel()}, more...)...)
	t.Cleanup(p.log.Close)
	return p
}

// run starts the projections of a process until the end of the test, or until stop is called.
func (p *process) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.runner.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Errorf("run: %v", err)
		}
	})
	p.t.Cleanup(stop)
	return stop
}

// append appends data of one task as one command, behind what this process appended for the user before.
func (p *process) append(user string, task uuid.UUID, data ...events.Data) (position int64) {
	p.t.Helper()
	head := p.heads[user]
	c := &events.Commit{After: head.EventID}
	for i, d := range data {
		c.Events = append(c.Events, events.Event{
			UserID:    user,
			Seq:       head.Seq + int64(i) + 1,
			TaskID:    task,
			EventID:   uuid.New(),
			CommandID: uuid.New(),
			Actor:     user,
			RequestID: "r",
			Data:      d,
		})
	}
	err := events.ErrConflict
	for n := 0; errors.Is(err, events.ErrConflict) && n < 10; n++ { // a rebuild may be between
		c.Generation = p.generation()
		err = p.log.Append(p.t.Context(), c)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	last := c.Events[len(c.Events)-1]
	p.heads[user] = events.Head{Seq: last.Seq, Position: last.Position, EventID: last.EventID}
	return last.Position
}

func (p *process) generation() int64 {
	p.t.Helper()
	return value[int64](p, `SELECT generation FROM {schema}.checkpoints WHERE projection = 'tasks'`)
}

// visible waits until the read model of the process shows the position.
func (p *process) visible(position int64) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	if err := p.runner.Await(ctx, position, 0); err != nil {
		p.t.Fatalf("position %d is not visible: %v", position, err)
	}
}

// exec runs SQL by hand, one or more statements, and returns how many rows the last one changed.
func (p *process) exec(text string, args ...any) int64 {
	p.t.Helper()
	if len(args) == 0 {
		args = []any{pgx.QueryExecModeSimpleProtocol}
	}
	tag, err := p.db.Pool().Exec(p.t.Context(), p.db.SQL(text), args...)
	if err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
	return tag.RowsAffected()
}

func value[T any](p *process, text string, args ...any) T {
	p.t.Helper()
	var v T
	if _, err := events.One(p.t.Context(), p.db, text, args, &v); err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
	return v
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within 20 seconds: %s", what)
		}
	}
}

// metric is the sum of a metric over its labels; of a histogram, the count of what was observed.
func (p *process) metric(name string) (sum float64) {
	p.t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		return sum
	}
	p.t.Fatalf("there is no metric %s", name)
	return 0
}

// differences are the lines of Verify.
func (p *process) differences(user string) (lines []string, report VerifyReport) {
	p.t.Helper()
	report, err := Verify(p.t.Context(), p.db, user, func(d Difference) { lines = append(lines, d.String()) })
	if err != nil {
		p.t.Fatal(err)
	}
	return lines, report
}

func (p *process) verified() VerifyReport {
	p.t.Helper()
	lines, report := p.differences("")
	if len(lines) > 0 {
		p.t.Fatalf("the read models are not the fold of the log: %q", lines)
	}
	return report
}

// someHistory gives a user two tasks and a history of seven events.
func (p *process) someHistory(user string) (first, second uuid.UUID, position int64) {
	p.t.Helper()
	first, second = uuid.New(), uuid.New()
	description := "d of " + user
	p.append(user, first, events.TaskCreated{Title: "first of " + user, Description: &description})
	p.append(user, second, events.TaskCreated{Title: "second"}, events.TaskCompleted{})
	p.append(user, first, events.TaskRenamed{Title: "renamed"}, events.TaskDescribed{})
	return first, second, p.append(user, first, events.TaskDeleted{})
}

func users(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("user-%02d", i)
	}
	return out
}
