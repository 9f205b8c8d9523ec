package events

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"taskledger/migrations/testdb"
)

func openLog(t testing.TB, db *DB) *Log {
	t.Helper()
	l := Open(db)
	t.Cleanup(l.Close)
	return l
}

func newDB(t testing.TB) *DB {
	t.Helper()
	return NewDB(testdb.New(t), testdb.Schema, "")
}

// facts are data as one command on a new task, behind the event after at seq-1.
func facts(user string, seq int64, after uuid.UUID, data ...Data) *Commit {
	task, command := uuid.New(), uuid.New()
	c := &Commit{After: after}
	for i, d := range data {
		c.Events = append(c.Events, Event{
			UserID:    user,
			Seq:       seq + int64(i),
			TaskID:    task,
			EventID:   uuid.New(),
			CommandID: command,
			Actor:     user,
			RequestID: "r",
			Data:      d,
		})
	}
	return c
}

func (c *Commit) last() uuid.UUID { return c.Events[len(c.Events)-1].EventID }

func store(t testing.TB, l *Log, c *Commit) *Commit {
	t.Helper()
	if err := l.Append(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return c
}

func stored(t testing.TB, l *Log, user string) []Event {
	t.Helper()
	var out []Event
	err := ReadStream(t.Context(), l.DB(), user, 0, math.MaxInt64, func(e Event) error {
		out = append(out, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func exec(t testing.TB, db *DB, text string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), text, args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within 20 seconds: %s", what)
		}
	}
}

func TestAppendedEventsAreRead(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	user := "u\u00e9/ 1"
	before := time.Now()
	sent := store(
		t,
		l,
		facts(user, 1, uuid.Nil, TaskCreated{Title: "a <&> \u2028 b", Description: text("\"d\"\\")}, TaskCompleted{}),
	)
	got := stored(t, l, user)
	if len(got) != 2 || got[0].Data.(TaskCreated).Title != "a <&> \u2028 b" ||
		*got[0].Data.(TaskCreated).Description != "\"d\"\\" {
		t.Fatalf("read %+v", got)
	}
	for i, e := range got {
		if string(e.AppendRecord(nil)) != string(sent.Events[i].AppendRecord(nil)) ||
			e.Position != sent.Events[i].Position {
			t.Errorf("event %d: read %+v, appended %+v", i, e, sent.Events[i])
		}
	}
	if !got[0].RecordedAt.Equal(got[1].RecordedAt) || got[0].RecordedAt.Before(before.Add(-time.Minute)) {
		t.Errorf("recorded at %v and %v", got[0].RecordedAt, got[1].RecordedAt)
	}
	b, err := Read(t.Context(), l.DB(), got[0].Position, 10)
	if err != nil || len(b.Events) != 1 || b.From != got[0].Position || b.To != got[1].Position {
		t.Errorf("behind the first: %+v, %v", b, err)
	}
	look, err := l.Head(t.Context(), user)
	if want := (Head{Seq: 2, Position: got[1].Position, EventID: got[1].EventID}); err != nil || look.Head != want {
		t.Errorf("the stream ends at %+v, %v", look, err)
	}
}

// An append joins on to the event that it was decided on, or is refused: it leaves no hole, and forks no stream.
func TestAnAppendJoinsOn(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	first := store(t, l, facts("u", 1, uuid.Nil, TaskCreated{Title: "a"}))
	generation := facts("u", 2, first.last(), TaskCompleted{})
	generation.Generation = 7
	for name, c := range map[string]*Commit{
		"at the beginning of a stream that has one": facts("u", 1, uuid.Nil, TaskCreated{Title: "b"}),
		"behind an event that is not there":         facts("u", 2, uuid.New(), TaskCreated{Title: "b"}),
		"leaving a hole":                            facts("u", 5, uuid.New(), TaskCreated{Title: "b"}),
		"behind nothing, leaving a hole":            facts("v", 2, uuid.New(), TaskCreated{Title: "b"}),
		"on another generation of the read model":   generation,
	} {
		if err := l.Append(t.Context(), c); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	store(t, l, facts("u", 2, first.last(), TaskCreated{Title: "b"}, TaskCompleted{}))
	if n := len(stored(t, l, "u")); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

// A batch in which some commands are refused stores the others whole, and gives each its own answer.
func TestEachCommandOfABatchGetsItsOwnAnswer(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	store(t, l, facts("u", 1, uuid.Nil, TaskCreated{Title: "a"}))
	keyed := facts("k", 1, uuid.Nil, TaskCreated{Title: "a"})
	keyed.IdempotencyKey, keyed.Fingerprint = "key", []byte{0, 255, 1}
	store(t, l, keyed)
	again := facts("k", 2, keyed.last(), TaskCreated{Title: "a"}, TaskCompleted{})
	again.IdempotencyKey, again.Fingerprint = "key", []byte{0, 255, 1}
	commits := []*Commit{
		facts("v", 1, uuid.Nil, TaskCreated{Title: "a"}, TaskCompleted{}),
		facts("u", 1, uuid.Nil, TaskCreated{Title: "late"}, TaskCompleted{}),
		again,
		facts("w", 1, uuid.Nil, TaskCreated{Title: "a"}),
	}
	for i, err := range flush(l, commits...) {
		if want := []error{nil, ErrConflict, ErrConflict, nil}[i]; !errors.Is(err, want) {
			t.Errorf("command %d: got %v, want %v", i, err, want)
		}
	}
	for user, want := range map[string]int{"v": 2, "u": 1, "k": 1, "w": 1} {
		if got := len(stored(t, l, user)); got != want {
			t.Errorf("%s has %d events, want %d", user, got, want)
		}
	}
}

// flush appends commits as one batch, or as many as they need, and returns what came of each.
func flush(l *Log, commits ...*Commit) []error {
	results := make([]error, len(commits))
	queue := make(chan *pending, len(commits))
	for i, c := range commits {
		queue <- &pending{Commit: c, after: c.After, done: func(err error) { results[i] = err }}
	}
	gathering := &Log{queue: queue}
	for len(queue) > 0 {
		for next := <-queue; next != nil; {
			var batch []*pending
			batch, next = gathering.gather(next)
			l.flush(batch)
		}
	}
	return results
}

// What the database refuses costs the rest of its batch nothing.
func TestARefusedCommandCostsTheOthersNothing(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	results := flush(l, facts(strings.Repeat("x", 256), 1, uuid.Nil, TaskCreated{Title: "a"}),
		facts("u", 1, uuid.Nil, TaskCreated{Title: "a"}, TaskCompleted{}))
	var pgErr *pgconn.PgError
	if !errors.As(results[0], &pgErr) || pgErr.ConstraintName != "task_events_check" {
		t.Errorf("got %v, want its constraint", results[0])
	}
	if results[1] != nil || len(stored(t, l, "u")) != 2 {
		t.Errorf("the other: %v", results[1])
	}
}

// One user's commands are chained: each is decided on the one before, whose outcome is not known yet, and none is
// stored without it.
func TestCommandsOfAUserAreChained(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	first := facts("u", 1, uuid.Nil, TaskCreated{Title: "a"})
	second := facts("u", 2, first.last(), TaskCreated{Title: "b"}, TaskCompleted{})
	third := facts("u", 4, second.last(), TaskCreated{Title: "c"})
	for i, err := range flush(l, first, facts("v", 1, uuid.Nil, TaskCreated{Title: "a"}), second, third) {
		if err != nil {
			t.Errorf("command %d: %v", i, err)
		}
	}
	if n := len(stored(t, l, "u")); n != 4 {
		t.Fatalf("%d events, want 4", n)
	}
	late := facts("u", 4, second.last(), TaskCreated{Title: "late"})
	keyed := facts("k", 1, uuid.Nil, TaskCreated{Title: "a"})
	keyed.IdempotencyKey, keyed.Fingerprint = "key", []byte{1}
	store(t, l, keyed)
	again := facts("k", 2, keyed.last(), TaskCreated{Title: "a"})
	again.IdempotencyKey, again.Fingerprint = "key", []byte{1}
	otherwise := facts("w", 1, uuid.Nil, TaskCreated{Title: "a"})
	otherwise.Generation = 7
	for i, err := range flush(l,
		late, facts("u", 5, late.last(), TaskCompleted{}), facts("u", 6, uuid.New(), TaskCompleted{}),
		again, facts("k", 3, again.last(), TaskCompleted{}),
		otherwise, facts("w", 2, otherwise.last(), TaskCompleted{}),
	) {
		if !errors.Is(err, ErrConflict) {
			t.Errorf("command %d: %v", i, err)
		}
	}
	for user, want := range map[string]int{"u": 4, "k": 1, "w": 0} {
		if got := len(stored(t, l, user)); got != want {
			t.Errorf("%s has %d events, want %d", user, got, want)
		}
	}
}

func TestABatchIsBounded(t *testing.T) {
	t.Parallel()
	l := &Log{queue: make(chan *pending, 1)}
	large := func(user string) *pending {
		return &pending{Commit: &Commit{Events: slices.Repeat([]Event{{UserID: user}}, maxBatch)}}
	}
	first, second := large("u"), large("v")
	l.queue <- second
	if batch, rest := l.gather(first); len(batch) != 1 || rest != second {
		t.Errorf("a batch of %d commands of %d events each", len(batch), maxBatch)
	}
}

// Behind a transaction pooler each append sets what its connection would have.
func TestAnAppendHasItsPrelude(t *testing.T) {
	t.Parallel()
	plain := newDB(t)
	for _, text := range []string{
		`CREATE FUNCTION {schema}.pooled() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF current_setting('taskledger.pooled', true) IS DISTINCT FROM 'on' THEN
				RAISE EXCEPTION 'without the prelude';
			END IF;
			RETURN NEW;
		END
		$$`,
		`CREATE TRIGGER pooled BEFORE INSERT ON {schema}.task_events FOR EACH ROW EXECUTE FUNCTION {schema}.pooled()`,
	} {
		exec(t, plain, text)
	}
	l := openLog(t, NewDB(plain.Pool(), plain.Schema(), `SELECT set_config('taskledger.pooled', 'on', true)`))
	first := store(t, l, facts("u", 1, uuid.Nil, TaskCreated{Title: "a"}))
	l.Announce("somewhere")
	second := store(t, l, facts("u", 2, first.last(), TaskCreated{Title: "b"}))
	err := l.Exclusively(t.Context(), func(x *Exclusive) error {
		c := facts("u", 3, second.last(), TaskCreated{Title: "c"})
		return x.Submit(t.Context(), c, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
	})
	if err != nil || len(stored(t, l, "u")) != 3 {
		t.Errorf("%d events are stored, and %v", len(stored(t, l, "u")), err)
	}
	if err := openLog(t, plain).Append(t.Context(), facts("v", 1, uuid.Nil, TaskCreated{Title: "a"})); err == nil {
		t.Error("an append without the prelude is stored too")
	}
}

func TestAFullQueueIsLeftInTime(t *testing.T) {
	t.Parallel()
	l := &Log{queue: make(chan *pending)}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	done := func(error) { t.Error("there is an outcome") }
	c := facts("u", 1, uuid.Nil, TaskCreated{})
	if err := l.Submit(gone, c, done); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who is gone gets %v", err)
	}
	c.Until = time.Now()
	if err := l.Submit(t.Context(), c, done); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller whose time is up gets %v", err)
	}
}

func TestClosedLogTakesNothing(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	l.Close()
	if err := l.Append(t.Context(), facts("u", 1, uuid.Nil, TaskCreated{Title: "a"})); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestLogIsAppendOnly(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	l := openLog(t, db)
	for _, user := range []string{"u", "v"} {
		store(t, l, facts(user, 1, uuid.Nil, TaskCreated{Title: "a"}))
	}
	run := func(text string) error {
		_, err := db.Pool().Exec(t.Context(), db.SQL(text), pgx.QueryExecModeSimpleProtocol)
		return err
	}
	for _, text := range []string{
		`UPDATE {schema}.task_events SET seq = 2`,
		`UPDATE {schema}.task_events SET data = '{}'`,
		`DELETE FROM {schema}.task_events`,
		`TRUNCATE {schema}.task_events`,
		`BEGIN; SET LOCAL taskledger.erase_user = 'u'; DELETE FROM {schema}.task_events; COMMIT`,
		`BEGIN; SET LOCAL taskledger.erase_user = 'u';
			UPDATE {schema}.task_events SET seq = 2 WHERE user_id = 'u'; COMMIT`,
	} {
		if err := run(text); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := run(
		`BEGIN; SET LOCAL taskledger.erase_user = 'u'; DELETE FROM {schema}.task_events WHERE user_id = 'u'; COMMIT`,
	); err != nil {
		t.Errorf("the erasure path: %v", err)
	}
	if len(stored(t, l, "u")) != 0 || len(stored(t, l, "v")) != 1 {
		t.Error("the erasure took another user's events")
	}
}

// Time does not run backwards in a stream, even where the clock does.
func TestTimesOfAStreamDoNotRunBackwards(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	l := openLog(t, db)
	first := store(t, l, facts("u", 1, uuid.Nil, TaskCreated{Title: "a"}))
	exec(t, db, `ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
	exec(t, db, `UPDATE {schema}.task_events SET recorded_at = recorded_at + interval '1 hour'`)
	second := store(t, l, facts("u", 2, first.last(), TaskCreated{Title: "b"}))
	if got, want := second.Events[0].RecordedAt, first.Events[0].RecordedAt.Add(time.Hour); !got.Equal(want) {
		t.Errorf("recorded at %v, behind an event of %v", got, want)
	}
}

// All who ask while a look is under way share the next one, and each gets its own answer, of after it asked.
func TestLooksAreShared(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	l := openLog(t, db)
	for i := range 20 {
		store(t, l, facts(fmt.Sprint("u", i), 1, uuid.Nil, slices.Repeat([]Data{TaskCreated{Title: "a"}}, i+1)...))
	}
	if _, _, mine := l.looks.join("u0"); !mine {
		t.Fatal("the first look is not the caller's own")
	}
	l.looks.begin()
	var work sync.WaitGroup
	for i := range 60 {
		work.Go(func() {
			user := fmt.Sprint("u", i%21) // u20 has no events
			want := int64(i%21+1) % 21
			look, err := l.Head(t.Context(), user)
			if err != nil || look.Seq != want || (look.EventID == uuid.Nil) != (want == 0) {
				t.Errorf("%s: %+v, %v, want seq %d", user, look, err, want)
			}
		})
	}
	gathered := func() int {
		l.looks.mu.Lock()
		defer l.looks.mu.Unlock()
		if l.looks.next == nil {
			return 0
		}
		return len(l.looks.next.users)
	}
	eventually(t, "21 users share the next look", func() bool { return gathered() == 21 })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Head(gone, "u0"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
	if !l.looks.end() {
		t.Error("nobody runs the next look")
	}
	l.look()
	work.Wait()
}

// Two ledgers in one database know nothing of each other: not even their locks are the same.
func TestLedgersAreStrangers(t *testing.T) {
	t.Parallel()
	a, b := NewDB(nil, "a", ""), NewDB(nil, "b", "")
	if a.LockKey("append") == b.LockKey("append") || a.LockKey("append") == a.LockKey("maintenance") {
		t.Error("locks are shared")
	}
	if a.SQL("{schema}.x {schema}") != `"a".x "a"` {
		t.Error(a.SQL("{schema}.x {schema}"))
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
	CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON {schema}.task_events
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.type = 'TaskCreated') EXECUTE FUNCTION slow_commit()`

// Six logs append at once, as several processes do, while a reader follows by position.
func TestNoReaderSkipsAnEvent(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	if _, err := db.Pool().Exec(t.Context(), db.SQL(slowCommits), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers sync.WaitGroup
	for w := range 6 {
		l := openLog(t, db)
		writers.Go(func() { appendUntil(ctx, t, l, fmt.Sprintf("u%d", w)) })
	}
	var seen int
	var last int64
	read := func() int {
		b, err := Read(t.Context(), db, last, 1000)
		if err != nil {
			t.Fatal(err)
		}
		seen, last = seen+len(b.Events), b.To
		return len(b.Events)
	}
	for begin := time.Now(); time.Since(begin) < 4*time.Second || seen < 1000; {
		read()
	}
	stop()
	writers.Wait()
	for read() > 0 {
	}
	var stored int
	if _, err := One(t.Context(), db, `SELECT count(*) FROM {schema}.task_events`, nil, &stored); err != nil {
		t.Fatal(err)
	}
	if seen != stored {
		t.Fatalf("the reader saw %d events of %d", seen, stored)
	}
}

func appendUntil(ctx context.Context, t *testing.T, l *Log, user string) {
	data := make([]Data, 40)
	data[0] = TaskCreated{Title: "a"}
	for i := 1; i < len(data); i++ {
		data[i] = TaskRenamed{Title: fmt.Sprint(i)}
	}
	after := uuid.Nil
	for seq := int64(1); ctx.Err() == nil; seq += int64(len(data)) {
		c := facts(user, seq, after, data...)
		if err := l.Append(context.WithoutCancel(ctx), c); err != nil {
			t.Error(err)
			return
		}
		after = c.last()
	}
}

// heldCommits holds the commits of the user "held" until the test gives its lock back.
const heldCommits = `
	CREATE FUNCTION held_commit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM set_config('lock_timeout', '0', true);
		PERFORM pg_advisory_xact_lock(hashtext('{schema} held'));
		RETURN NULL;
	END
	$$;
	CREATE CONSTRAINT TRIGGER held_commit AFTER INSERT ON {schema}.task_events
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.user_id = 'held') EXECUTE FUNCTION held_commit()`

// An append waits for one that drew its positions before and has not committed. The negative control takes the lock
// out: then it does not wait, and a reader steps over the events of the first.
func TestPositionsAreCommittedInTheirOrder(t *testing.T) {
	t.Parallel()
	for name, locked := range map[string]bool{"locked": true, "negative control": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			if _, err := db.Pool().Exec(t.Context(), db.SQL(heldCommits), pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			hold, err := db.Pool().Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = hold.Exec(t.Context(), db.SQL(`SELECT pg_advisory_xact_lock(hashtext('{schema} held'))`))
			if err != nil {
				t.Fatal(err)
			}
			appended := func(user string) <-chan error {
				l := openLog(t, db)
				if !locked {
					l.lock = strings.Replace(lockLog, "pg_catalog.pg_advisory_xact_lock($1)", "$1::bigint", 1)
				}
				if locked != (l.lock == lockLog) {
					t.Fatal("there was no lock to take out")
				}
				done := make(chan error, 1)
				go func() { done <- l.Append(t.Context(), facts(user, 1, uuid.Nil, TaskCreated{Title: "a"})) }()
				return done
			}
			waiting := func(n int) {
				t.Helper()
				eventually(t, fmt.Sprint(n, " appends wait for a lock"), func() bool {
					var waiters int
					_, err := One(t.Context(), db, `
						SELECT count(*) FROM pg_locks
						WHERE locktype = 'advisory' AND NOT granted
						AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, nil, &waiters)
					return err == nil && waiters == n
				})
			}
			held := appended("held")
			waiting(1)
			other := appended("other")
			if locked {
				waiting(2)
			} else if err := <-other; err != nil {
				t.Fatal(err)
			}
			first, err := Read(t.Context(), db, 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			if err := hold.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-held; err != nil {
				t.Fatal(err)
			}
			if locked {
				if err := <-other; err != nil {
					t.Fatal(err)
				}
			}
			second, err := Read(t.Context(), db, first.To, 10)
			if err != nil {
				t.Fatal(err)
			}
			seen, want := len(first.Events)+len(second.Events), 1
			if locked {
				want = 2
			}
			if seen != want {
				t.Errorf("the reader saw %d events of 2, want %d", seen, want)
			}
		})
	}
}
