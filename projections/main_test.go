package projections

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// process is the writing and projecting part of one process.
type process struct {
	t      testing.TB
	pool   *pgxpool.Pool
	log    *events.Log
	runner *Runner
	seqs   map[string]int64
}

// writer is a process that appends and projects nothing.
func writer(t testing.TB, pool *pgxpool.Pool) *process {
	t.Helper()
	p := &process{t: t, pool: pool, runner: NewRunner(pool, slog.New(slog.DiscardHandler), nil), seqs: map[string]int64{}}
	p.log = events.Open(pool, p.runner.Signal)
	t.Cleanup(p.log.Close)
	return p
}

// run starts the projections of a process until the end of the test.
func (p *process) run() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.runner.Run(ctx) }()
	p.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			p.t.Errorf("run: %v", err)
		}
	})
}

// append appends data of one task as one command, behind what this process appended for the user before.
func (p *process) append(user string, task uuid.UUID, data ...events.Data) (position int64) {
	p.t.Helper()
	batch := make([]events.Event, len(data))
	for i, d := range data {
		batch[i] = events.Event{
			UserID: user, Seq: p.seqs[user] + int64(i) + 1, TaskID: task, EventID: uuid.New(), CommandID: uuid.New(), Actor: user, RequestID: "r", Data: d,
		}
	}
	if err := p.log.Append(p.t.Context(), batch); err != nil {
		p.t.Fatal(err)
	}
	p.seqs[user] += int64(len(data))
	return batch[len(batch)-1].Position
}

// visible waits until the projections of the process have reached position.
func (p *process) visible(position int64) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	p.runner.Visible(ctx, position)
	if ctx.Err() != nil {
		p.t.Fatalf("position %d is not visible", position)
	}
}

// exec runs SQL by hand and returns how many rows it changed.
func (p *process) exec(sql string, args ...any) int64 {
	p.t.Helper()
	tag, err := p.pool.Exec(p.t.Context(), sql, args...)
	if err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

func value[T any](p *process, sql string, args ...any) T {
	p.t.Helper()
	var v T
	if err := p.pool.QueryRow(p.t.Context(), sql, args...).Scan(&v); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// differences are the lines of Verify.
func (p *process) differences(user string) (lines []string, report VerifyReport) {
	p.t.Helper()
	report, err := Verify(p.t.Context(), p.pool, user, func(d Difference) { lines = append(lines, d.String()) })
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
