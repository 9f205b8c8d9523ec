package events

import (
	"errors"
	"fmt"
)

// FoldError says that an event cannot follow the state it was applied to.
type FoldError struct {
	UserID string
	Seq    int64
	Type   Type
	Reason string
	// Unknown: a newer program stored it, and can fold it.
	Unknown bool
}

// Error implements error. The user is left out: an error may be shown to a stranger.
func (e *FoldError) Error() string {
	return fmt.Sprintf("fold event %d (%s): %s", e.Seq, e.Type, e.Reason)
}

// Fold is what every event means: the state of a task and the next event of that task give the next state. It is the
// only such place; decisions, projections, rebuild and verify all use it. It returns a *FoldError for an event that
// cannot follow t.
func Fold(t Task, e Event) (Task, error) {
	if _, skipped := e.Data.(Skipped); skipped {
		return t, nil
	}
	if _, erased := e.Data.(UserErased); erased {
		return Task{}, nil
	}
	if err := foldable(t, e); err != nil {
		return t, err
	}
	t.Version, t.UpdatedAt = e.Seq, e.RecordedAt
	switch d := e.Data.(type) {
	case TaskCreated:
		t.UserID, t.ID, t.CreatedAt = e.UserID, e.TaskID, e.RecordedAt
		t.Title, t.Description = d.Title, d.Description
	case TaskImported:
		t.UserID, t.ID, t.CreatedAt, t.UpdatedAt = e.UserID, e.TaskID, d.CreatedAt.UTC(), d.UpdatedAt.UTC()
		t.Title, t.Description, t.Completed = d.Title, d.Description, d.Completed
	case TaskRenamed:
		t.Title = d.Title
	case TaskDescribed:
		t.Description = d.Description
	case TaskCompleted:
		t.Completed = true
	case TaskReopened:
		t.Completed = false
	case TaskDeleted:
		at := e.RecordedAt
		t.DeletedAt = &at
	case TaskRestored:
		t.DeletedAt = nil
	}
	return t, nil
}

func foldable(t Task, e Event) error {
	refuse := func(reason string) error {
		return &FoldError{UserID: e.UserID, Seq: e.Seq, Type: e.Data.Type(), Reason: reason}
	}
	switch d := e.Data.(type) {
	case Unreadable:
		return &FoldError{
			UserID:  e.UserID,
			Seq:     e.Seq,
			Type:    d.Stored,
			Reason:  d.Err.Error(),
			Unknown: errors.Is(d.Err, ErrUnknownForm),
		}
	case TaskCreated, TaskImported:
		if t.Version > 0 {
			return refuse("the task exists already")
		}
		return nil
	case TaskRestored:
		if t.Version == 0 || t.DeletedAt == nil {
			return refuse("the task is not deleted")
		}
	default:
		if !t.Live() {
			return refuse("there is no such live task")
		}
	}
	if e.Seq <= t.Version {
		return refuse(fmt.Sprintf("the task is at %d already", t.Version))
	}
	return nil
}

// LiveChange is by how many an event changes the number of its user's live tasks. After UserErased there are none.
func LiveChange(d Data) int {
	switch d.(type) {
	case TaskCreated, TaskImported, TaskRestored:
		return 1
	case TaskDeleted:
		return -1
	}
	return 0
}
