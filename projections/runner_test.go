package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
	"taskledger/migrations"
	"taskledger/migrations/testdb"
)

func TestReadModelsAreTheFoldOfTheLog(t *testing.T) {
	t.Parallel()
	p := writer(t, testdb.New(t))
	p.run()
	var last int64
	for _, user := range users(5) {
		_, _, last = p.someHistory(user)
	}
	p.visible(last)
	report := p.verified()
	if report.Users != 5 || report.Events != 30 || report.Rows != 5*2+30 || report.Parked != 0 {
		t.Fatalf("compared %+v", report)
	}
}

// Two processes project one log: the checkpoint decides, and nothing is applied twice or left out.
func TestTwoProcessesShareTheWork(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	one, two := writer(t, pool), writer(t, pool)
	one.run()
	two.run()
	var work sync.WaitGroup
	for i, p := range []*process{one, two} {
		work.Go(func() {
			for n := range 40 {
				position := p.append(fmt.Sprintf("user of %d", i), uuid.New(), events.TaskCreated{Title: fmt.Sprint(n)}, events.TaskCompleted{})
				p.visible(position)
			}
		})
	}
	work.Wait()
	if report := one.verified(); report.Events != 160 {
		t.Fatalf("compared %+v", report)
	}
}

// What one process appends becomes visible through another one, which learns of it by a notification.
func TestAnotherProcessProjects(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	one, two := writer(t, pool), writer(t, pool)
	two.run()
	_, _, position := one.someHistory("u")
	two.visible(position)
	two.verified()
}

// A stranger's open write transaction holds nothing up, as it would under a rule of transaction ids.
func TestAStrangersTransactionHoldsNothingUp(t *testing.T) {
	t.Parallel()
	p := writer(t, testdb.New(t))
	p.run()
	tx, err := p.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `CREATE TABLE strange (n int); INSERT INTO strange VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, _, position := p.someHistory("u")
	p.visible(position)
	if took := time.Since(begin); took > time.Second {
		t.Errorf("visible after %v", took)
	}
}

// poison stores an event that this program cannot read.
func (p *process) poison(user string) {
	p.t.Helper()
	p.seqs[user]++
	p.exec(`
		INSERT INTO task_events (user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ($1, $2, gen_random_uuid(), 'TaskArchived', 1, '{}', gen_random_uuid(), gen_random_uuid(), $1, 'r', clock_timestamp())`,
		user, p.seqs[user])
}

func TestAnUnreadableEventParksItsUserAlone(t *testing.T) {
	t.Parallel()
	p := writer(t, testdb.New(t))
	p.someHistory("u")
	p.poison("u")
	p.append("u", uuid.New(), events.TaskCreated{Title: "after"})
	_, _, last := p.someHistory("v")
	p.run() // all of it is one batch
	p.visible(last)
	last = p.append("u", uuid.New(), events.TaskCreated{Title: "still after"})
	p.visible(last)
	for _, name := range Names() {
		if got := value[string](p, `SELECT string_agg(user_id || seq || (parked_error IS NOT NULL), ' ' ORDER BY user_id) FROM `+name+`_users`); got != "u6true v6false" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if reason := value[string](p, `SELECT parked_error FROM tasks_users WHERE user_id = 'u'`); !strings.Contains(reason, "TaskArchived") {
		t.Errorf("parked for %q", reason)
	}
	if report := p.verified(); report.Parked != 2 {
		t.Errorf("verified %+v", report)
	}

	still, err := RetryParked(t.Context(), p.pool, "")
	if err != nil || len(still) != 2 || still[0].UserID != "u" || still[0].Seq != 7 || still[0].Since.IsZero() {
		t.Fatalf("a retry of what cannot be: %+v, %v", still, err)
	}
	if _, err := SkipParked(t.Context(), p.pool, "v"); !errors.Is(err, ErrNotParked) {
		t.Errorf("nothing to skip: %v", err)
	}
	if still, err := SkipParked(t.Context(), p.pool, "u"); err != nil || len(still) != 0 {
		t.Fatalf("after a skip: %+v, %v", still, err)
	}
	p.visible(p.append("u", uuid.New(), events.TaskCreated{Title: "goes on"}))
	if report := p.verified(); report.Parked != 0 {
		t.Errorf("verified %+v", report)
	}
	if got := value[string](p, `SELECT string_agg(title, ', ' ORDER BY version) FROM tasks WHERE user_id = 'u' AND version > 6`); got != "after, still after, goes on" {
		t.Errorf("after the skip: %s", got)
	}
	if _, err := Rebuild(t.Context(), p.pool, "", nil); err != nil {
		t.Fatal(err)
	}
	p.verified()
}

func TestARefusedRowParksItsUserAlone(t *testing.T) {
	t.Parallel()
	p := writer(t, testdb.New(t))
	p.exec(`ALTER TABLE tasks ADD CONSTRAINT no_poison CHECK (title <> 'poison')`)
	p.someHistory("u")
	p.append("u", uuid.New(), events.TaskCreated{Title: "poison"})
	p.append("u", uuid.New(), events.TaskCreated{Title: "after"})
	_, _, last := p.someHistory("v")
	p.run()
	p.visible(last)
	if got := value[string](p, `SELECT string_agg(user_id || seq || (parked_error IS NOT NULL), ' ' ORDER BY user_id) FROM tasks_users`); got != "u6true v6false" {
		t.Errorf("tasks: %s", got)
	}
	if got := value[string](p, `SELECT string_agg(user_id || seq, ' ' ORDER BY user_id) FROM task_history_users`); got != "u8 v6" {
		t.Errorf("task_history: %s", got)
	}
	if reason := value[string](p, `SELECT parked_error FROM tasks_users WHERE user_id = 'u'`); !strings.Contains(reason, "no_poison") || strings.Contains(reason, "after") {
		t.Errorf("parked for %q", reason)
	}
	p.exec(`ALTER TABLE tasks DROP CONSTRAINT no_poison`)
	if _, err := RebuildUser(t.Context(), p.pool, "", "u"); err != nil {
		t.Fatal(err)
	}
	if report := p.verified(); report.Parked != 0 {
		t.Errorf("a rebuild did not free the user: %+v", report)
	}
	p.visible(p.append("u", uuid.New(), events.TaskCreated{Title: "goes on"}))
	p.verified()
}

// The second net: where events were passed over, or rows are damaged, a user's next event has the whole stream folded anew.
func TestWhatDoesNotJoinOnIsFoldedAnew(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"events passed over": `UPDATE projection_checkpoints SET position = (SELECT max(position) FROM task_events)`,
		"rows lost":          `DELETE FROM tasks; DELETE FROM task_history`,
		"users lost":         `DELETE FROM tasks_users; DELETE FROM task_history_users`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := writer(t, testdb.New(t))
			_, second, last := p.someHistory("u")
			if name != "events passed over" {
				q := writer(t, p.pool)
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- q.runner.Run(ctx) }()
				q.visible(last)
				stop()
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
			p.exec(damage)
			p.run()
			if name == "events passed over" {
				p.visible(p.append("u", uuid.New(), events.TaskCreated{Title: "folds well, and yet"}))
				p.verified()
			}
			p.visible(p.append("u", second, events.TaskReopened{}))
			p.verified()
		})
	}
}

func TestALateProcessWritesNothing(t *testing.T) {
	t.Parallel()
	p := writer(t, testdb.New(t))
	_, _, last := p.someHistory("u")
	late := &batch{from: 0, to: last}
	for _, generation := range []int64{0, 1} { // somebody else was first; a rebuild was in between
		p.exec(`UPDATE projection_checkpoints SET position = $1, generation = $2`, 3*(1-generation), generation)
		late.generation = 0
		f := folded{users: map[string]*userFold{"u": newUserFold("u")}}
		if n := p.exec(tasks.writeBatch(), tasks.writeArgs(late, f)...); n != 0 {
			t.Errorf("generation %d: the checkpoint moved", generation)
		}
		if n := value[int64](p, `SELECT count(*) FROM tasks_users`); n != 0 {
			t.Errorf("generation %d: %d rows written", generation, n)
		}
	}
}

// Looking for more costs nothing that would have to be vacuumed or written.
func TestAnIdlePollTakesNoTransactionID(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), testdb.Server(t).URL()) // nobody else takes ids there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	p := writer(t, pool)
	const next = `SELECT pg_snapshot_xmax(pg_current_snapshot())::text`
	before := value[string](p, next)
	for range 10 {
		p.exec(tasks.selectBatch(), "tasks", maxEvents)
	}
	if after := value[string](p, next); after != before {
		t.Errorf("ten polls took transaction ids %s to %s", before, after)
	}
}

// Who watches a user hears of each of the user's events, and of nobody else's, when both read models show it, whichever process wrote
// and applied it; and nothing more after leaving.
func TestWatchersHearWhatTheReadModelsShow(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	one, two := writer(t, pool), writer(t, pool)
	one.run()
	two.run()
	const count = 60
	var work sync.WaitGroup
	for _, p := range []*process{one, two} {
		heard := make(chan int64, 10*count)
		leave := p.runner.Watch("u", func(seq int64) { heard <- seq })
		defer leave()
		work.Go(func() {
			for seq := int64(0); seq < count; {
				select {
				case seq = <-heard:
				case <-time.After(20 * time.Second):
					t.Errorf("nothing is heard behind event %d", seq)
					return
				}
				shown := value[int64](p, `SELECT least((SELECT seq FROM tasks_users WHERE user_id = 'u'), (SELECT seq FROM task_history_users WHERE user_id = 'u'))`)
				if seq > shown {
					t.Errorf("heard of event %d, and %d is shown", seq, shown)
				}
			}
		})
	}
	gone := one.runner.Watch("u", func(seq int64) { t.Errorf("heard of event %d after leaving", seq) })
	gone()
	stranger := one.runner.Watch("w", func(seq int64) { t.Errorf("heard of somebody else's event %d", seq) })
	defer stranger()
	for n := range count {
		writing, other := one, two
		if n%20 >= 10 {
			writing, other = two, one
		}
		writing.append("u", uuid.New(), events.TaskCreated{Title: "a"})
		other.seqs["u"] = writing.seqs["u"]
		writing.append(fmt.Sprint("v", n), uuid.New(), events.TaskCreated{Title: "b"})
	}
	work.Wait()
}

// A position that never comes, after a restore or because a stranger told of it, does not keep a projection from waiting.
func TestAPositionThatNeverComesIsNotSoughtInALoop(t *testing.T) {
	t.Parallel()
	f := newFollower(tasks, nil, slog.New(slog.DiscardHandler), nil, &broadcast{})
	f.signal(1_000_000_000)
	if !f.more(true) {
		t.Error("what was told after the select is not looked for")
	}
	f.sought = f.appended.Load() // it was, and is not there
	begin := time.Now()
	if f.await(); f.more(true) || time.Since(begin) < pollInterval/2 {
		t.Errorf("looked for again after %v", time.Since(begin))
	}
	f.signal(1_000_000_001)
	if f.await(); !f.more(true) {
		t.Error("what was told since is not looked for")
	}
}

// A fault of the program in the fold of one batch is told, and the projection tries again.
func TestAPanicInAProjectionIsTold(t *testing.T) {
	t.Parallel()
	logged := &logBuffer{}
	pool := testdb.New(t)
	p := writer(t, pool)
	p.runner = NewRunner(pool, slog.New(slog.NewTextHandler(logged, nil)), nil)
	f := p.runner.followers[0]
	broken := *f.projection
	broken.columns = slices.Clone(broken.columns)
	var mended atomic.Bool
	whole := broken.columns[0].array
	broken.columns[0].array = func(rows []change) any {
		if !mended.Load() {
			panic("private title")
		}
		return whole(rows)
	}
	f.projection = &broken
	p.run()
	position := p.append("u", uuid.New(), events.TaskCreated{Title: "a"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !strings.Contains(logged.String(), "panic: string") {
		if ctx.Err() != nil {
			t.Fatalf("nothing is logged: %s", logged)
		}
		<-time.After(pollInterval)
	}
	if strings.Contains(logged.String(), "private") {
		t.Errorf("a title is logged: %s", logged)
	}
	mended.Store(true)
	p.visible(position)
	p.verified()
}

// logBuffer is written to by a process and read by a test.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
