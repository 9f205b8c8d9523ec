package projections

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"taskledger/events"
)

// erase erases a user, and returns the position of the proof.
func (p *process) erase(user string) int64 {
	p.t.Helper()
	e := events.Event{UserID: user, EventID: uuid.New(), CommandID: uuid.New(), Actor: user, RequestID: "r"}
	if err := p.log.Erase(p.t.Context(), &e, "", nil); err != nil {
		p.t.Fatal(err)
	}
	p.heads[user] = events.Head{Seq: e.Seq, Position: e.Position, EventID: e.EventID}
	return e.Position
}

// Between an erasure and its projection, what the read model still has of the user is no difference: it is of a life
// that is over.
func TestAnErasureThatIsNotShownYetIsNoDifference(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	stop := p.run()
	var last int64
	for _, user := range users(4) {
		_, _, last = p.someHistory(user)
	}
	p.visible(last)
	p.exec(`UPDATE {schema}.users SET parked_error = 'x', parked_at = now() WHERE user_id = 'user-02'`)
	stop()
	// What was on its way to the read model when its user was erased comes there behind the erasure.
	p.append("user-01", uuid.New(), events.TaskCreated{Title: "late"})
	for _, user := range []string{"user-01", "user-02", "user-03"} {
		p.erase(user)
	}
	var left int
	if _, err := events.One(t.Context(), p.db, `
		SELECT (SELECT count(*) FROM {schema}.tasks WHERE user_id <> 'user-00')
			+ (SELECT count(*) FROM {schema}.task_history WHERE user_id <> 'user-00')`, nil, &left); err != nil || left > 0 {
		t.Errorf("before its projection an erasure has left %d rows, %v", left, err)
	}
	p.exec(
		`INSERT INTO {schema}.tasks
		SELECT 'user-01', id, version, is_completed, created_at, updated_at, deleted_at, title_key, search, body
		FROM {schema}.tasks WHERE user_id = 'user-00';
		INSERT INTO {schema}.task_history
		SELECT 'user-01', seq, task_id, type, recorded_at, actor, request_id, changes, hash, version, title,
			description, is_completed, created_at, updated_at, deleted_at
		FROM {schema}.task_history WHERE user_id = 'user-00'`,
	)
	for _, user := range []string{"", "user-01", "user-02", "user-03"} {
		if lines, report := p.differences(user); len(lines) > 0 || report.Differences > 0 {
			t.Errorf("%q: %q", user, lines)
		}
	}
	last = p.append("user-03", uuid.New(), events.TaskCreated{Title: "a new life"})
	p.verified()
	p.run()
	p.visible(last)
	if report := p.verified(); report.Users != 4 || report.Events != 6+1+1+2 || report.Rows != 6+2+1+2*(1+1)+(2+1+1) ||
		report.Parked != 0 {
		t.Errorf("%+v", report)
	}
}

// Rows of an erased user that the read model should have dropped are a difference, and so is what stands before an
// erasure in the log.
func TestVerifyFindsWhatAnErasureLeft(t *testing.T) {
	t.Parallel()
	p := projected(t, 2)
	p.exec(`CREATE TABLE kept AS TABLE {schema}.task_history; CREATE TABLE log AS TABLE {schema}.task_events`)
	p.visible(p.erase("user-01"))
	p.verified()
	p.exec(`INSERT INTO {schema}.task_history SELECT * FROM kept WHERE user_id = 'user-01' AND seq = 2`)
	if lines, _ := p.differences(
		"",
	); len(lines) != 1 ||
		!matches(lines[0], `task_history: user="user-01" task=%seq=2 member=row expected=none found=a row`) {
		t.Errorf("got %q", lines)
	}
	p.exec(`DELETE FROM {schema}.task_history WHERE user_id = 'user-01' AND seq = 2;
		INSERT INTO {schema}.task_events OVERRIDING SYSTEM VALUE
		SELECT * FROM log WHERE user_id = 'user-01' AND seq < 3`)
	lines, _ := p.differences("")
	if !slices.ContainsFunc(lines, func(line string) bool {
		return matches(line, `task_events: user="user-01" task= member=seq expected=3 found=7`)
	}) {
		t.Errorf("got %q", lines)
	}
}

// Whatever a rebuild has folded of a user when the user is erased, it brings nothing back, and it comes to its end.
func TestARebuildBringsNoErasedUserBack(t *testing.T) {
	t.Parallel()
	p := projected(t, 3)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			// The user's events are the last of the log, time and again, and then they are gone.
			p.append("mortal", uuid.New(), events.TaskCreated{Title: "secret"}, events.TaskCompleted{})
			p.erase("mortal")
		}
	})
	for range 5 {
		if _, err := Rebuild(t.Context(), p.db, "", nil); err != nil {
			t.Error(err)
		}
		if _, err := RebuildUser(t.Context(), p.db, "mortal"); err != nil {
			t.Error(err)
		}
		p.verified()
	}
	stop()
	work.Wait()
	p.visible(p.heads["mortal"].Position)
	if report := p.verified(); report.Users != 4 || report.Events != 3*6+1 {
		t.Errorf("%+v", report)
	}
}
