package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

func TestReadModelsAreTheFoldOfTheLog(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.run()
	var last int64
	for _, user := range users(5) {
		_, _, last = p.someHistory(user)
	}
	p.visible(last)
	report := p.verified()
	if report.Users != 5 || report.Events != 30 || report.Rows != 5*(2+6+1) || report.Parked != 0 {
		t.Fatalf("compared %+v", report)
	}
}

// Two processes project one log: the checkpoint decides, and nothing is applied twice or left out.
func TestTwoProcessesShareTheWork(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	one, two := writer(t, db), writer(t, db)
	one.run()
	two.run()
	var work sync.WaitGroup
	for i, p := range []*process{one, two} {
		work.Go(func() {
			for n := range 40 {
				position := p.append(
					fmt.Sprintf("user of %d", i),
					uuid.New(),
					events.TaskCreated{Title: fmt.Sprint(n)},
					events.TaskCompleted{},
				)
				p.visible(position)
			}
		})
	}
	work.Wait()
	if report := one.verified(); report.Events != 160 {
		t.Fatalf("compared %+v", report)
	}
}

// What a process remembers of a user is not mixed with what another one has made of the user's tasks since.
func TestAnOldMemoryIsNotMixedWithNewRows(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := writer(t, db)
	a, b := uuid.New(), uuid.New()
	p.append("u", a, events.TaskCreated{Title: "a"})
	p.append("u", b, events.TaskCreated{Title: "b"})
	apply := func(f *follower, after int64) (to int64) {
		t.Helper()
		batch, err := events.Read(t.Context(), db, after, maxEvents)
		if err == nil {
			err = f.apply(t.Context(), &events.Delivery{Batch: batch})
		}
		if err != nil {
			t.Fatal(err)
		}
		return batch.To
	}
	one, two := newFollower(
		newReadModel(),
		Name,
		db,
		p.runner.log,
		nil,
	), newFollower(
		newReadModel(),
		Name,
		db,
		p.runner.log,
		nil,
	)
	at := apply(two, 0)
	p.append("u", a, events.TaskRenamed{Title: "a2"})
	at = apply(one, at) // one knows the user and the task a
	p.append("u", b, events.TaskRenamed{Title: "b2"})
	at = apply(two, at)
	p.append("u", b, events.TaskRenamed{Title: "b3"})
	apply(one, at)
	if report := p.verified(); report.Parked > 0 || report.Rows != 2+5+1 {
		t.Errorf("%+v", report)
	}
}

// What one process appends is applied by another one, when somebody waits for it there.
func TestAnotherProcessProjects(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	one, two := writer(t, db), writer(t, db)
	two.run()
	_, _, position := one.someHistory("u")
	two.visible(position)
	two.verified()
}

// A stranger's open write transaction holds nothing up, as it would under a rule of transaction ids.
func TestAStrangersTransactionHoldsNothingUp(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.run()
	tx, err := p.db.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `CREATE TABLE strange AS SELECT 1`); err != nil {
		t.Fatal(err)
	}
	_, _, position := p.someHistory("u")
	p.visible(position)
}

// damage stores an event of a known type that cannot be read.
func (p *process) damage(user string) {
	p.t.Helper()
	p.strange(user, "TaskRenamed")
}

// strange stores an event by hand, without any data.
func (p *process) strange(user, typ string) {
	p.t.Helper()
	head := p.heads[user]
	head.Seq, head.EventID = head.Seq+1, uuid.New()
	p.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ($1, $2, gen_random_uuid(), $3, 1, '{}', $4, gen_random_uuid(), $1, 'r', clock_timestamp())`,
		user, head.Seq, typ, head.EventID)
	p.heads[user] = head
}

// parked is each user with the seq that is shown, and whether the user is parked.
func (p *process) parked() string {
	p.t.Helper()
	return value[string](p, `
		SELECT string_agg(user_id || ' ' || seq || ' ' || (parked_error IS NOT NULL), ', ' ORDER BY user_id)
		FROM {schema}.users`)
}

func TestAUserWhoseFirstEventIsDamagedIsNoDifference(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.damage("u")
	_, _, last := p.someHistory("v")
	p.run()
	p.visible(last)
	if got := p.parked(); got != "u 0 true, v 6 false" {
		t.Errorf("got %s", got)
	}
	if report := p.verified(); report.Parked != 1 {
		t.Errorf("verified %+v", report)
	}
}

func TestADamagedEventParksItsUserAlone(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.someHistory("u")
	p.damage("u")
	p.append("u", uuid.New(), events.TaskCreated{Title: "after"})
	_, _, last := p.someHistory("v")
	p.run() // all of it is one batch
	p.visible(last)
	since := value[time.Time](p, `SELECT parked_at FROM {schema}.users WHERE user_id = 'u'`)
	p.visible(p.append("u", uuid.New(), events.TaskCreated{Title: "still after"}))
	if got := p.parked(); got != "u 6 true, v 6 false" {
		t.Errorf("got %s", got)
	}
	still, err := RetryParked(t.Context(), p.db, "nobody")
	if err != nil || len(still) != 0 {
		t.Errorf("nobody: %+v, %v", still, err)
	}
	if parked, err := ListParked(
		t.Context(),
		p.db,
		"",
	); err != nil || len(parked) != 1 ||
		!parked[0].Since.Equal(since) {
		t.Errorf("since %v a user is parked, now %+v, %v", since, parked, err)
	}
	if report := p.verified(); report.Parked != 1 {
		t.Errorf("verified %+v", report)
	}
	still, err = RetryParked(t.Context(), p.db, "")
	if err != nil || len(still) != 1 || still[0].UserID != "u" || still[0].Seq != 7 ||
		!strings.Contains(still[0].Reason, "TaskRenamed") {
		t.Fatalf("a retry of what cannot be: %+v, %v", still, err)
	}
	if _, err := SkipParked(t.Context(), p.db, "v"); !errors.Is(err, ErrNotParked) {
		t.Errorf("nothing to skip: %v", err)
	}
	if _, err := SkipParkedAt(t.Context(), p.db, "u", 6); !errors.Is(err, ErrNotParked) {
		t.Errorf("a skip of an event that nobody is parked at: %v", err)
	}
	if still, err := SkipParkedAt(t.Context(), p.db, "u", 7); err != nil || len(still) != 0 {
		t.Fatalf("after a skip: %+v, %v", still, err)
	}
	p.visible(p.append("u", uuid.New(), events.TaskCreated{Title: "goes on"}))
	if report := p.verified(); report.Parked != 0 || report.Events != 6+1+3+6 {
		t.Errorf("verified %+v", report)
	}
	const seqs = `SELECT string_agg(version::text, ' ' ORDER BY version)
		FROM {schema}.tasks WHERE user_id = 'u' AND version > 6`
	if got := value[string](p, seqs); got != "8 9 10" {
		t.Errorf("after the skip: %s", got)
	}
	if _, err := Rebuild(t.Context(), p.db, "", nil); err != nil {
		t.Fatal(err)
	}
	p.verified()
}

// A row that the database refuses, or that is not where it should be, parks its user alone.
func TestARefusedRowParksItsUserAlone(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.exec(`ALTER TABLE {schema}.tasks ADD CONSTRAINT no_poison CHECK (search <> 'poison')`)
	p.someHistory("u")
	p.append("u", uuid.New(), events.TaskCreated{Title: "poison"})
	p.append("u", uuid.New(), events.TaskCreated{Title: "after"})
	_, second, last := p.someHistory("v")
	p.run()
	p.visible(last)
	if got := p.parked(); got != "u 6 true, v 6 false" {
		t.Errorf("got %s", got)
	}
	reason := value[string](p, `SELECT parked_error FROM {schema}.users WHERE user_id = 'u'`)
	if !strings.Contains(reason, "no_poison") || strings.Contains(reason, "after") {
		t.Errorf("parked for %q", reason)
	}
	p.exec(`ALTER TABLE {schema}.tasks DROP CONSTRAINT no_poison`)
	if _, err := RebuildUser(t.Context(), p.db, "u"); err != nil {
		t.Fatal(err)
	}
	if report := p.verified(); report.Parked != 0 {
		t.Errorf("a rebuild did not free the user: %+v", report)
	}
	p.visible(p.append("u", uuid.New(), events.TaskCreated{Title: "goes on"}))
	p.verified()

	p.exec(`DELETE FROM {schema}.tasks WHERE user_id = 'v'`)
	if _, err := RebuildUser(t.Context(), p.db, "u"); err != nil { // so that what is remembered of v is forgotten
		t.Fatal(err)
	}
	p.visible(p.append("v", second, events.TaskReopened{}))
	if got := p.parked(); got != "u 9 false, v 6 true" {
		t.Errorf("got %s", got)
	}
	if still, err := RetryParked(t.Context(), p.db, "v"); err != nil || len(still) > 0 {
		t.Errorf("%+v, %v", still, err)
	}
	p.verified()
}

// An event of a newer program parks nobody: this program applies what comes before it, and stops until a newer one has
// gone on.
func TestAnEventOfANewerProgramStopsTheProjection(t *testing.T) {
	t.Parallel()
	logged := &logBuffer{}
	p := writer(t, newDB(t))
	f := p.runner.main()
	f.log = slog.New(slog.NewTextHandler(logged, nil))
	_, _, last := p.someHistory("u")
	p.strange("u", "TaskArchived")
	_, _, after := p.someHistory("v")
	p.run()
	p.visible(last)
	eventually(
		t,
		"it says that it has stopped",
		func() bool { return strings.Contains(logged.String(), "TaskArchived") },
	)
	if got := p.parked(); got != "u 6 false" {
		t.Errorf("got %s", got)
	}
	// The newer program, beside this one.
	p.exec(`ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
	p.exec(`UPDATE {schema}.task_events SET type = 'TaskReopened', task_id = t.id
		FROM {schema}.tasks t WHERE t.user_id = 'u' AND task_events.type = 'TaskArchived' AND t.deleted_at IS NULL`)
	p.visible(after)
	if got := p.parked(); got != "u 7 false, v 6 false" {
		t.Errorf("got %s", got)
	}
}

// The second net: events that were passed over, whatever the reason, are found missing by the next one of their user.
func TestWhatWasPassedOverIsLoaded(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"events passed over": `UPDATE {schema}.checkpoints
			SET position = (SELECT max(position) FROM {schema}.task_events)`,
		"a user lost": `DELETE FROM {schema}.users`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := writer(t, newDB(t))
			_, second, last := p.someHistory("u")
			if name == "a user lost" {
				stop := writer(t, p.db).run()
				p.exec(damage)
				stop()
			}
			p.exec(damage)
			p.run()
			p.visible(last)
			p.visible(p.append("u", second, events.TaskReopened{}))
			if report := p.verified(); report.Rows != 2+7+1 {
				t.Errorf("%+v", report)
			}
		})
	}
}

// A batch that the database has no time for is written in halves.
func TestABatchThatTakesTooLongIsHalved(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.exec(`
		CREATE FUNCTION too_long() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF (SELECT count(*) FROM written) > 4 THEN
				RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
			END IF;
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER too_long AFTER INSERT ON {schema}.task_history
		REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION too_long()`)
	var last int64
	for _, user := range users(5) {
		_, _, last = p.someHistory(user)
	}
	p.run()
	p.visible(last)
	if report := p.verified(); report.Parked != 0 {
		t.Errorf("%+v", report)
	}
}

// Who stops has applied what it has appended, whether that was waited for, is being applied or waits for more.
func TestDrainAppliesWhatWasAppended(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.run()
	for n := range 60 {
		last := p.append(fmt.Sprintf("user-%d", n), uuid.New(), events.TaskCreated{Title: "a"})
		switch n % 3 {
		case 1:
			p.visible(last)
		case 2:
			p.runner.main().subscriber.Hurry(last)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := p.runner.Drain(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if at := value[int64](p, `SELECT position FROM {schema}.checkpoints WHERE projection = 'tasks'`); at < last {
			t.Fatalf("the checkpoint is at %d, %d was appended", at, last)
		}
	}
}

// Who was late writes nothing: somebody else has moved the checkpoint, or made the tables anew, or the log does not
// hold what is remembered.
func TestALateProcessWritesNothing(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	_, _, last := p.someHistory("u")
	b, err := events.Read(t.Context(), p.db, 0, maxEvents)
	if err != nil || b.To != last {
		t.Fatalf("%+v, %v", b, err)
	}
	strange := b.Events[0]
	strange.EventID = uuid.New()
	for name, late := range map[string]struct {
		sql  string
		last *events.Event
	}{
		"somebody else was first": {sql: `UPDATE {schema}.checkpoints SET position = 3`},
		"a rebuild was between":   {sql: `UPDATE {schema}.checkpoints SET position = 0, generation = 1`},
		"the log is another": {
			sql: `UPDATE {schema}.checkpoints SET position = 0, generation = 0`, last: &strange,
		},
	} {
		p.exec(late.sql)
		f := newFollower(newReadModel(), Name, p.db, slog.New(slog.DiscardHandler), nil)
		f.last = late.last
		if err := f.write(t.Context(), &events.Delivery{Batch: b}, "", false); !errors.Is(err, errOvertaken) {
			t.Errorf("%s: %v", name, err)
		}
		if n := value[int64](p, `SELECT count(*) FROM {schema}.users`); n != 0 {
			t.Errorf("%s: %d rows written", name, n)
		}
	}
	p.run()
	p.visible(last)
	p.verified()
}

// counts is a second projection: how many events of each type there are.
type counts struct{}

var countColumns = columns[count]{
	col("type", func(c *count) string { return c.typ }),
	col("n", func(c *count) int64 { return c.n }),
}

type count struct {
	typ string
	n   int64
}

var countTable = countColumns.table("counts", "type")

func (*counts) name() string { return "counts" }
func (*counts) forget()      {}

func (*counts) derive(ctx context.Context, from events.Querier, d *events.Delivery, _ string) (derived, error) {
	n := map[string]int64{}
	for _, e := range d.Events {
		n[string(e.Data.Type())]++
	}
	var all []count
	for typ, more := range n {
		var before int64
		if _, err := events.One(
			ctx,
			from,
			`SELECT n FROM {schema}.counts WHERE type = $1`,
			[]any{typ},
			&before,
		); err != nil {
			return derived{}, err
		}
		all = append(all, count{typ, before + more})
	}
	return derived{rows: []rows{countColumns.rows(countTable, all)}}, nil
}

// A second projection stands beside the first, with a table and a checkpoint of its own, and is held up by nobody.
func TestProjectionsStandBesideEachOther(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := writer(t, db, &counts{})
	p.exec(`
		CREATE TABLE {schema}.counts (type text PRIMARY KEY, n bigint NOT NULL);
		CREATE TYPE {schema}.row_of_counts AS (type text, n bigint);
		INSERT INTO {schema}.checkpoints (projection) VALUES ('counts')`)
	p.run()
	var last int64
	for _, user := range users(20) {
		_, _, last = p.someHistory(user)
	}
	p.strange("zz", "TaskArchived") // holds up the first one only
	after := p.append("zz", uuid.New(), events.TaskCreated{Title: "a"})
	p.visible(last)
	f := p.runner.followers[1]
	if err := f.progress.await(t.Context(), after, 0, f.subscriber.Hurry); err != nil {
		t.Fatal(err)
	}
	const seen = `SELECT string_agg(type || ' ' || n, ', ' ORDER BY type COLLATE "C") FROM {schema}.counts`
	want := "TaskArchived 1, TaskCompleted 20, TaskCreated 41, TaskDeleted 20, TaskDescribed 20, TaskRenamed 20"
	if got := value[string](p, seen); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	p.verified()
}

// A process to which nothing happens asks the database nothing, so that a serverless one can go to sleep.
// Nor does it when its metrics are read.
func TestAnIdleProcessIsSilent(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := writer(t, db)
	p.run()
	_, _, last := p.someHistory("u")
	p.visible(last)
	outside, err := pgx.ConnectConfig(t.Context(), db.Pool().Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close(context.WithoutCancel(t.Context()))
	busy := func() (n int64, last time.Time) {
		err := outside.QueryRow(t.Context(), `
			SELECT count(*) FILTER (WHERE state <> 'idle'), max(state_change)
			FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&n, &last)
		if err != nil {
			t.Fatal(err)
		}
		return n, last
	}
	eventually(t, "silence", func() bool {
		_, before := busy()
		for range 5 {
			<-time.After(time.Second / 5) // a time in which something could happen
			p.metric("taskledger_projection_lag_seconds")
		}
		n, after := busy()
		return n == 0 && after.Equal(before)
	})
}

// Who watches a user hears of each of the user's events, and of nobody else's, when the read model shows it, whichever
// process wrote and applied it; and nothing more after leaving.
func TestWatchersHearWhatTheReadModelsShow(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	one, two := writer(t, db), writer(t, db)
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
				case <-time.After(time.Minute):
					t.Errorf("nothing is heard behind event %d", seq)
					return
				}
				shown := value[int64](p, `SELECT seq FROM {schema}.users WHERE user_id = 'u'`)
				if seq > shown {
					t.Errorf("heard of event %d, and %d is shown", seq, shown)
				}
			}
		})
	}
	gone := one.runner.Watch("u", func(seq int64) { t.Errorf("heard of event %d after leaving", seq) })
	gone()
	stranger := one.runner.Watch("w", func(seq int64) {
		if seq != 0 { // which is no event, but a reason to look
			t.Errorf("heard of somebody else's event %d", seq)
		}
	})
	defer stranger()
	for n := range count {
		writing, other := one, two
		if n%20 >= 10 {
			writing, other = two, one
		}
		writing.append("u", uuid.New(), events.TaskCreated{Title: "a"})
		other.heads["u"] = writing.heads["u"]
		writing.append(fmt.Sprint("v", n), uuid.New(), events.TaskCreated{Title: "b"})
	}
	work.Wait()
}

// hearing has somebody watch a user, and tells whether they have heard since the last time it was asked.
func (p *process) hearing(user string) (heard func() bool) {
	var n atomic.Int64
	p.t.Cleanup(p.runner.Watch(user, func(int64) { n.Add(1) }))
	return func() bool { return n.Swap(0) > 0 }
}

// listens waits until a process hears others, and has had its first look.
func (p *process) listens(heard func() bool) {
	p.t.Helper()
	eventually(p.t, "it listens", func() bool { return p.runner.listener.Load() > 0 })
	p.visible(p.append("somebody", uuid.New(), events.TaskCreated{Title: "a"}))
	heard()
}

// Who writes gathers events for long only while nobody watches, in whatever process.
func TestWatchersElsewhereAreNotKeptWaiting(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	writing, watching := writer(t, db), writer(t, db)
	writing.run()
	stop := watching.run()
	lingers := func(want time.Duration) func() bool {
		return func() bool {
			writing.visible(writing.append("u", uuid.New(), events.TaskCreated{Title: "a"}))
			return writing.runner.linger() == want
		}
	}
	eventually(t, "it gathers while nobody watches", lingers(linger))
	watching.listens(watching.hearing("u"))
	eventually(t, "it hurries while another process listens", lingers(watchedLinger))
	stop()
	eventually(t, "it gathers again", lingers(linger))
}

// What a process appended and could not apply before it ended is heard of elsewhere, although nobody tells.
func TestWatchersHearWhatNobodyTells(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	ended, p := writer(t, db), writer(t, db)
	p.run()
	heard := p.hearing("u")
	p.listens(heard)
	ended.append("u", uuid.New(), events.TaskCreated{Title: "a"})
	eventually(t, "the watcher hears", heard)
}

// After a failover positions stand for other events than before: who has been told of the old ones is told of the new.
func TestWatchersHearAfterAFailover(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p, other := writer(t, db), writer(t, db)
	p.run()
	heard := p.hearing("u")
	p.listens(heard)
	kept := p.append("v", uuid.New(), events.TaskCreated{Title: "kept"})
	p.append("v", uuid.New(), events.TaskCreated{Title: "lost"})
	last := p.append("v", uuid.New(), events.TaskCreated{Title: "lost"})
	p.visible(last)
	eventually(t, "nobody is told any more", func() bool { a, b := p.runner.watch.pending(); return a == b })
	// The other process writes and applies more than was lost, before this one hears anything.
	p.exec(`
		BEGIN;
		ALTER TABLE {schema}.task_events DISABLE TRIGGER USER;
		DELETE FROM {schema}.task_events WHERE position > ` + fmt.Sprint(kept) + `;
		ALTER TABLE {schema}.task_events ENABLE TRIGGER USER;
		DELETE FROM {schema}.tasks WHERE user_id = 'v' AND version > 1;
		DELETE FROM {schema}.task_history WHERE user_id = 'v' AND seq > 1;
		UPDATE {schema}.users SET seq = 1, live = 1, hash = (SELECT hash FROM {schema}.task_history WHERE user_id = 'v')
		WHERE user_id = 'v';
		UPDATE {schema}.checkpoints SET position = ` + fmt.Sprint(kept) + `;
		SELECT setval('{schema}.task_events_position_seq', ` + fmt.Sprint(kept) + `);
		COMMIT`)
	heard()
	other.append("u", uuid.New(), events.TaskCreated{Title: "a"})
	stop := other.run()
	for n := range 3 {
		other.visible(other.append(fmt.Sprint("w", n), uuid.New(), events.TaskCreated{Title: "b"}))
	}
	stop()
	p.exec(`SELECT pg_terminate_backend(` + fmt.Sprint(p.runner.listener.Load()) + `)`)
	eventually(t, "the watcher hears", heard)
	p.verified()
}

// A fault of the program in the fold of one batch is told, and the projection tries again.
func TestAPanicInAProjectionIsTold(t *testing.T) {
	t.Parallel()
	logged := &logBuffer{}
	p := writer(t, newDB(t))
	f := p.runner.main()
	f.log = slog.New(slog.NewTextHandler(logged, nil))
	broken := &panicking{projection: f.projection}
	broken.broken.Store(true)
	f.projection = broken
	p.run()
	position := p.append("u", uuid.New(), events.TaskCreated{Title: "a"})
	eventually(t, "the panic is logged", func() bool { return strings.Contains(logged.String(), "panic: string") })
	if strings.Contains(logged.String(), "private") {
		t.Errorf("a title is logged: %s", logged)
	}
	broken.broken.Store(false)
	p.visible(position)
	p.verified()
}

// panicking is a projection with a fault.
type panicking struct {
	projection
	broken atomic.Bool
}

func (p *panicking) derive(
	ctx context.Context,
	from events.Querier,
	d *events.Delivery,
	refusal string,
) (derived, error) {
	if p.broken.Load() {
		panic("private title")
	}
	return p.projection.derive(ctx, from, d, refusal)
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
