package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations/testdb"
)

func openLog(t testing.TB, pool *pgxpool.Pool) *Log {
	t.Helper()
	l := Open(pool, func(int64) {})
	t.Cleanup(l.Close)
	return l
}

// facts are data as the events of one command on a new task, from seq on.
func facts(user string, seq int64, data ...Data) []Event {
	task, command := uuid.New(), uuid.New()
	out := make([]Event, len(data))
	for i, d := range data {
		out[i] = Event{
			UserID: user, Seq: seq + int64(i), TaskID: task, EventID: uuid.New(), CommandID: command, Actor: user, RequestID: "r", Data: d,
		}
	}
	return out
}

func load(t testing.TB, l *Log, user string, after int64) []Event {
	t.Helper()
	var out []Event
	err := l.Load(t.Context(), user, after, func(e Event) error {
		out = append(out, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAppendedEventsAreLoaded(t *testing.T) {
	t.Parallel()
	var signalled atomic.Int64
	l := Open(testdb.New(t), func(position int64) { signalled.Store(position) })
	t.Cleanup(l.Close)
	sent := facts("u\u00e9/ 1", 1, TaskCreated{Title: "a <&> \u2028 b", Description: text("\"d\"\\")}, TaskCompleted{})
	before := time.Now()
	if err := l.Append(t.Context(), sent); err != nil {
		t.Fatal(err)
	}
	got := load(t, l, "u\u00e9/ 1", 0)
	if len(got) != 2 || got[0].Data.(TaskCreated).Title != "a <&> \u2028 b" || *got[0].Data.(TaskCreated).Description != "\"d\"\\" {
		t.Fatalf("loaded %+v", got)
	}
	for i, e := range got {
		if e.Position != sent[i].Position || !e.RecordedAt.Equal(sent[i].RecordedAt) || e.Seq != int64(i+1) || e.TaskID != sent[i].TaskID {
			t.Errorf("event %d: loaded %+v, appended %+v", i, e, sent[i])
		}
	}
	if !got[0].RecordedAt.Equal(got[1].RecordedAt) || got[0].RecordedAt.Before(before.Add(-time.Minute)) {
		t.Errorf("recorded at %v and %v", got[0].RecordedAt, got[1].RecordedAt)
	}
	if signalled.Load() != got[1].Position {
		t.Errorf("signalled %d, want %d", signalled.Load(), got[1].Position)
	}
	if rest := load(t, l, "u\u00e9/ 1", 1); len(rest) != 1 {
		t.Errorf("%d events behind seq 1, want 1", len(rest))
	}
}

// A batch in which some commands are refused stores the others whole, and gives each its own answer.
func TestEachCommandOfABatchGetsItsOwnAnswer(t *testing.T) {
	t.Parallel()
	l := openLog(t, testdb.New(t))
	if err := l.Append(t.Context(), facts("u", 1, TaskCreated{Title: "a"})); err != nil {
		t.Fatal(err)
	}
	keyed := facts("k", 1, TaskCreated{Title: "a"})
	keyed[0].IdempotencyKey, keyed[0].Fingerprint = "key", []byte{0, 255, 1}
	if err := l.Append(t.Context(), keyed); err != nil {
		t.Fatal(err)
	}
	again := facts("k", 2, TaskCreated{Title: "a"}, TaskCompleted{})
	again[0].IdempotencyKey, again[0].Fingerprint = "key", []byte{0, 255, 1}
	tooLong := facts(strings.Repeat("x", 256), 1, TaskCreated{Title: "a"})
	batch := []*pending{
		{events: facts("v", 1, TaskCreated{Title: "a"}, TaskCompleted{})},
		{events: facts("u", 1, TaskCreated{Title: "late"}, TaskCompleted{})},
		{events: again},
		{events: tooLong},
		{events: facts("w", 1, TaskCreated{Title: "a"})},
	}
	for _, p := range batch {
		p.result = make(chan error, 1)
	}
	l.flush(batch)
	for i, want := range []error{nil, ErrWrongSeq, ErrKeyUsed, nil, nil} {
		err := <-batch[i].result
		if i == 3 {
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.ConstraintName != "task_events_user_id_check" {
				t.Errorf("command 3: got %v, want its constraint", err)
			}
			continue
		}
		if !errors.Is(err, want) {
			t.Errorf("command %d: got %v, want %v", i, err, want)
		}
	}
	for user, want := range map[string]int{"v": 2, "u": 1, "k": 1, "w": 1} {
		if got := load(t, l, user, 0); len(got) != want {
			t.Errorf("%s has %d events, want %d", user, len(got), want)
		}
	}
}

func TestClosedLogTakesNothing(t *testing.T) {
	t.Parallel()
	l := openLog(t, testdb.New(t))
	l.Close()
	if err := l.Append(t.Context(), facts("u", 1, TaskCreated{Title: "a"})); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestLogIsAppendOnly(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	l := openLog(t, pool)
	for _, user := range []string{"u", "v"} {
		if err := l.Append(t.Context(), facts(user, 1, TaskCreated{Title: "a"})); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		`UPDATE task_events SET seq = 2`,
		`UPDATE task_events SET data = '{}'`,
		`DELETE FROM task_events`,
		`TRUNCATE task_events`,
		`BEGIN; SET LOCAL taskledger.erase_user = 'u'; DELETE FROM task_events; COMMIT`,
		`BEGIN; SET LOCAL taskledger.erase_user = 'u'; UPDATE task_events SET seq = 2 WHERE user_id = 'u'; COMMIT`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, err := pool.Exec(t.Context(), `BEGIN; SET LOCAL taskledger.erase_user = 'u'; DELETE FROM task_events WHERE user_id = 'u'; COMMIT`); err != nil {
		t.Errorf("the erasure path: %v", err)
	}
	if len(load(t, l, "u", 0)) != 0 || len(load(t, l, "v", 0)) != 1 {
		t.Error("the erasure took another user's events")
	}
}

// slowCommits makes commits take up to 20 ms, as a disk may: the time in which a reader could overtake them.
const slowCommits = `
	CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(random() * 0.02);
		RETURN NULL;
	END
	$$;
	CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON task_events
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.type = 'TaskCreated') EXECUTE FUNCTION slow_commit()`

// stress appends from several logs at once, as several processes do, while a reader follows by position. It returns how many
// events the reader saw, and how many it skipped: never saw although it read beyond them.
func stress(t *testing.T, insert string, until func(skipped int) bool) (seen, skipped int) {
	t.Helper()
	pool := testdb.New(t)
	if _, err := pool.Exec(t.Context(), slowCommits); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 6 {
		l := openLog(t, pool)
		l.insert = insert
		writers.Go(func() { appendUntil(ctx, t, l, fmt.Sprintf("u%d", w)) })
	}
	var last int64
	for !until(skipped) {
		for _, position := range positions(t, pool, last) {
			seen, last = seen+1, position
		}
		var there int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM task_events WHERE position <= $1`, last).Scan(&there); err != nil {
			t.Fatal(err)
		}
		skipped = there - seen
	}
	stop()
	writers.Wait()
	return seen, skipped
}

func appendUntil(ctx context.Context, t *testing.T, l *Log, user string) {
	data := make([]Data, 40)
	data[0] = TaskCreated{Title: "a"}
	for i := 1; i < len(data); i++ {
		data[i] = TaskRenamed{Title: fmt.Sprint(i)}
	}
	for seq := int64(1); ctx.Err() == nil; seq += int64(len(data)) {
		if err := l.Append(context.WithoutCancel(ctx), facts(user, seq, data...)); err != nil {
			t.Error(err)
			return
		}
	}
}

func positions(t *testing.T, pool *pgxpool.Pool, last int64) []int64 {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT position FROM task_events WHERE position > $1 ORDER BY position LIMIT 1000`, last)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNoReaderSkipsAnEvent(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(4 * time.Second)
	seen, skipped := stress(t, insertEvents, func(int) bool { return time.Now().After(deadline) })
	if seen < 1000 || skipped > 0 {
		t.Fatalf("the reader saw %d events and skipped %d; want many and none", seen, skipped)
	}
}

// The negative control: without the lock the same reader under the same load does skip, or the test above shows nothing.
func TestWithoutTheLockAReaderSkips(t *testing.T) {
	t.Parallel()
	unlocked := strings.Replace(insertEvents, "pg_advisory_xact_lock($1)", "$1::bigint", 1)
	if unlocked == insertEvents {
		t.Fatal("there was no lock to take out")
	}
	deadline := time.Now().Add(30 * time.Second)
	_, skipped := stress(t, unlocked, func(skipped int) bool { return skipped > 500 || time.Now().After(deadline) })
	if skipped <= 500 {
		t.Fatalf("the reader skipped %d in 30 seconds", skipped)
	}
}
