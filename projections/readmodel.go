package projections

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"taskledger/events"
)

// Name is the name of the read model that the queries read.
const Name = "tasks"

// version is that of the read model's code. Whoever changes what its rows are raises it, here and, for ledgers that are
// still empty, by a migration: tables that another version made are told of at start, and made anew by a rebuild.
const version = 1

// writtenTo is what whoever writes rows does to the checkpoint's version: it stays while all rows are of this one, and
// is 0 when they are of several, as when a program of another version works beside this one.
var writtenTo = fmt.Sprintf(`version = CASE version WHEN %[1]d THEN %[1]d ELSE 0 END`, version)

// change is one event, and the task before and after it.
type change struct {
	event         *events.Event
	before, after events.Task
	hash          events.Hash
}

// taskColumns are the columns of the table tasks: the current state of every task.
var taskColumns = columns[events.Task]{
	col("user_id", func(t *events.Task) string { return t.UserID }),
	col("id", func(t *events.Task) [16]byte { return t.ID }),
	col("version", func(t *events.Task) int64 { return t.Version }),
	col("is_completed", func(t *events.Task) bool { return t.Completed }),
	col("created_at", func(t *events.Task) time.Time { return t.CreatedAt }),
	col("updated_at", func(t *events.Task) time.Time { return t.UpdatedAt }),
	col("deleted_at", func(t *events.Task) *time.Time { return t.DeletedAt }),
	col("title_key", func(t *events.Task) []byte { return events.TitleKey(t.Title) }),
	col("search", func(t *events.Task) string { return events.SearchText(t.Title, t.Description) }),
	col("body", func(t *events.Task) string { return string(t.AppendJSON(nil)) }),
}

// historyColumns are the columns of the table task_history: every event as people read it, and the task after it.
var historyColumns = columns[change]{
	col("user_id", func(c *change) string { return c.event.UserID }),
	col("seq", func(c *change) int64 { return c.event.Seq }),
	col("task_id", func(c *change) pgtype.UUID {
		return pgtype.UUID{Bytes: c.event.TaskID, Valid: c.event.TaskID != uuid.Nil}
	}),
	col("type", func(c *change) string { return string(c.event.Data.Type()) }),
	col("recorded_at", func(c *change) time.Time { return c.event.RecordedAt }),
	col("actor", func(c *change) string { return c.event.Actor }),
	col("request_id", func(c *change) string { return c.event.RequestID }),
	col("changes", func(c *change) string { return string(appendChanges(nil, c.before, c.after)) }),
	col("hash", func(c *change) []byte { return c.hash[:] }),
	col("version", func(c *change) int64 { return c.after.Version }),
	col("title", func(c *change) string { return c.after.Title }),
	col("description", func(c *change) *string { return c.after.Description }),
	col("is_completed", func(c *change) bool { return c.after.Completed }),
	col("created_at", func(c *change) time.Time { return c.after.CreatedAt }),
	col("updated_at", func(c *change) *time.Time {
		if c.after.UpdatedAt.Equal(c.event.RecordedAt) {
			return nil
		}
		return &c.after.UpdatedAt
	}),
	col("deleted_at", func(c *change) *time.Time { return c.after.DeletedAt }),
}

// userColumns are the columns of the table users: how far each user is shown.
var userColumns = columns[userState]{
	col("user_id", func(u *userState) string { return u.user }),
	col("seq", func(u *userState) int64 { return u.seq }),
	col("live", func(u *userState) int32 { return u.live }),
	col("hash", func(u *userState) []byte { return u.hash[:] }),
	col("parked_error", func(u *userState) *string { return u.parked }),
	col("parked_at", func(u *userState) *time.Time { return u.parkedAt }),
	col("generation", func(u *userState) int64 { return u.generation }),
}

// The tables of the read model.
var (
	taskTable       = taskColumns.table("tasks", "user_id", "id")
	historyTable    = historyColumns.table("task_history", "user_id", "seq")
	userTable       = userColumns.table("users", "user_id")
	readModelTables = []*table{taskTable, historyTable, userTable}
)

// userState is what the read model shows of a user.
type userState struct {
	user     string
	seq      int64 // of the last event folded
	live     int32 // tasks that are not deleted
	hash     events.Hash
	parked   *string // why no more is folded
	parkedAt *time.Time
	// generation is that of the read model when the row is written. What was remembered of the user under another one
	// does not hold any more.
	generation int64
}

// userFold folds one user's events in order. It stops for good at the first event that cannot follow: the user is
// parked.
type userFold struct {
	userState
	tasks map[uuid.UUID]events.Task // those that are known
	buf   []byte                    // for records
}

func newUserFold(user string) *userFold {
	return &userFold{userState: userState{user: user}, tasks: map[uuid.UUID]events.Task{}}
}

// apply folds the user's next event and appends what it changed. Events of a parked user, and those folded before,
// change nothing. The error is that of an event of a newer program, which parks nobody. What was before an erasure, and
// whether that could be folded, is of no account any more.
func (u *userFold) apply(changes []change, e *events.Event) ([]change, error) {
	if _, erased := e.Data.(events.UserErased); erased && e.Seq > u.seq {
		u.userState = userState{user: u.user, seq: e.Seq - 1, generation: u.generation}
		clear(u.tasks)
	}
	if u.parked != nil || e.Seq <= u.seq {
		return changes, nil
	}
	before := u.tasks[e.TaskID]
	after, err := events.Fold(before, *e)
	var refused *events.FoldError
	switch {
	case errors.As(err, &refused) && refused.Unknown:
		return changes, fmt.Errorf("user %q: %w", u.user, err)
	case err == nil && e.Seq != u.seq+1:
		err = fmt.Errorf("event %d does not follow event %d", e.Seq, u.seq)
	}
	if err != nil {
		u.park(err.Error())
		return changes, nil
	}
	u.seq = e.Seq
	u.hash, u.buf = e.Link(u.hash, u.buf)
	u.live += live(after) - live(before)
	if after.Version > 0 {
		u.tasks[e.TaskID] = after
	}
	return append(changes, change{event: e, before: before, after: after, hash: u.hash}), nil
}

func (u *userFold) park(reason string) {
	now := time.Now()
	u.parked, u.parkedAt = &reason, &now
}

func live(t events.Task) int32 {
	if t.Live() {
		return 1
	}
	return 0
}

// current are the tasks in order of id.
func (u *userFold) current() []events.Task {
	out := make([]events.Task, 0, len(u.tasks))
	for _, t := range u.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b events.Task) int { return compareIDs(a.ID, b.ID) })
	return out
}

func compareIDs(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
