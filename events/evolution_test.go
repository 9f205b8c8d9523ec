package events_test

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
	"taskledger/migrations/testdb"
	"taskledger/projections"
)

// The worked example of an event that changes its form, end to end: one that an earlier program stored, and one that
// this one stores, mean the same to the fold, the projection, a rebuild and an export, and what is stored is never
// rewritten.
func TestATypeInItsSecondVersion(t *testing.T) {
	events.RenameTwice(t) // so it is not parallel
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	db := events.NewDB(testdb.New(t), testdb.Schema, "")
	log := events.Open(db)
	defer log.Close()
	task, created, renamed := uuid.New(), uuid.New(), uuid.New()
	appended := func(seq int64, after, id uuid.UUID, data events.Data) {
		t.Helper()
		if err := log.Append(ctx, &events.Commit{After: after, Events: []events.Event{{
			UserID: "u", Seq: seq, TaskID: task, EventID: id, CommandID: id, Actor: "u", RequestID: "r", Data: data,
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	title := func() (title string) {
		t.Helper()
		const show = `SELECT (body::jsonb)->>'title' FROM {schema}.tasks WHERE user_id = 'u'`
		if _, err := events.One(ctx, db, show, nil, &title); err != nil {
			t.Fatal(err)
		}
		return title
	}
	project := func(want string) {
		t.Helper()
		if err := projections.CatchUp(ctx, db, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if got := title(); got != want {
			t.Errorf("the read model shows %q, want %q", got, want)
		}
	}

	appended(1, uuid.Nil, created, events.TaskCreated{Title: "Buy milk"})
	sample, err := os.ReadFile("testdata/example/TaskRenamed.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(ctx, `
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('u', 2, $1, 'TaskRenamed', 1, $2::text::jsonb, $3, $3, 'u', 'r', clock_timestamp())`,
		[16]byte(task), string(sample), [16]byte(renamed)); err != nil {
		t.Fatal(err)
	}
	project("Buy oat milk")
	appended(3, renamed, uuid.New(), events.TaskRenamed{Title: "Buy rice milk"})
	project("Buy rice milk")

	batch, err := events.Read(ctx, db, 0, 10)
	if err != nil || len(batch.Events) != 3 {
		t.Fatal(batch, err)
	}
	for i, want := range []struct {
		version int
		title   string
		stored  string
	}{{1, "Buy oat milk", `{"name":"Buy oat milk"}`}, {2, "Buy rice milk", `{"title":"Buy rice milk"}`}} {
		e := batch.Events[i+1]
		again, err := events.ParseRecord(e.Record(nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []events.Event{e, again} {
			if d, ok := e.Data.(events.TaskRenamed); !ok || d.Title != want.title || e.SchemaVersion() != want.version {
				t.Errorf("version %d is read as version %d: %#v", want.version, e.SchemaVersion(), e.Data)
			}
		}
		var same bool
		const compare = `SELECT data = $2::text::jsonb FROM {schema}.task_events WHERE seq = $1`
		if _, err := events.One(ctx, db, compare, []any{e.Seq, want.stored}, &same); err != nil || !same {
			t.Errorf("version %d is not stored as %s: %v", want.version, want.stored, err)
		}
	}
	if _, err := projections.Rebuild(ctx, db, "", nil); err != nil {
		t.Fatal(err)
	}
	if got := title(); got != "Buy rice milk" {
		t.Errorf("after a rebuild the read model shows %q", got)
	}
	report, err := projections.Verify(ctx, db, "", func(d projections.Difference) { t.Error(d) })
	if err != nil || report.Events != 3 || report.Parked > 0 {
		t.Errorf("verify: %+v, %v", report, err)
	}
}
