// Package events remembers. It holds the event types and their stored form, the one fold that says what an event means,
// and the log: the table task_events, with a Watermill Publisher as the way in and a Subscriber as the way out.
//
// One stream a user: seq is 1, 2, 3, … without gaps, and PRIMARY KEY (user_id, seq) is the optimistic lock. Position is
// the order of commits over all users; it never leaves the server.
package events

import (
	"time"

	"github.com/google/uuid"
)

// Event is one fact in a user's stream. Position and RecordedAt are zero until it is appended, TaskID when it is about
// no task.
type Event struct {
	Position   int64
	UserID     string
	Seq        int64
	TaskID     uuid.UUID
	EventID    uuid.UUID // UUIDv7; also the UUID of the Watermill message
	CommandID  uuid.UUID // shared by all events of one command
	Actor      string    // who did it: the user's id, or "system"
	RequestID  string
	RecordedAt time.Time // of the append, UTC, microseconds; the same for all events of one command
	Data       Data

	version int    // schema_version of the stored form
	stored  []byte // Data as stored: a JSON object, in canonical form
	record  []byte // as AppendRecord writes it; nil = not written yet
}

// Type is the stored name of what happened. It is part of the stored form and never changes.
type Type string

// The stored names.
const (
	TypeTaskCreated   Type = "TaskCreated"
	TypeTaskRenamed   Type = "TaskRenamed"
	TypeTaskDescribed Type = "TaskDescribed"
	TypeTaskCompleted Type = "TaskCompleted"
	TypeTaskReopened  Type = "TaskReopened"
	TypeTaskDeleted   Type = "TaskDeleted"
	TypeTaskRestored  Type = "TaskRestored"
	TypeTaskImported  Type = "TaskImported"
	TypeUserErased    Type = "UserErased"
)

// Types lists every type this program can store, in the order of a task's life.
func Types() []Type {
	return []Type{
		TypeTaskCreated,
		TypeTaskImported,
		TypeTaskRenamed,
		TypeTaskDescribed,
		TypeTaskCompleted,
		TypeTaskReopened,
		TypeTaskDeleted,
		TypeTaskRestored,
		TypeUserErased,
	}
}

// Data is what an event of one type carries. The types of this package are all there are.
type Data interface {
	Type() Type
}

// The members of each stand in the order of their names in JSON: so what is encoded is in canonical form (RFC 8785).

// TaskCreated begins a task, live and open.
type TaskCreated struct {
	Description *string `json:"description"`
	Title       string  `json:"title"`
}

// TaskRenamed gives a task its new title.
type TaskRenamed struct {
	Title string `json:"title"`
}

// TaskDescribed gives a task its new description; nil clears it.
type TaskDescribed struct {
	Description *string `json:"description"`
}

// TaskCompleted closes an open task.
type TaskCompleted struct{}

// TaskReopened opens a completed task.
type TaskReopened struct{}

// TaskDeleted moves a task to the trash.
type TaskDeleted struct{}

// TaskRestored brings a task back from the trash as it was.
type TaskRestored struct{}

// TaskImported stands for TaskCreated where a task was taken over from elsewhere, with times of its own. What was cut,
// because it was longer than a task's texts may be, is kept whole in the two Full members.
type TaskImported struct {
	CreatedAt       time.Time `json:"created_at"`
	Description     *string   `json:"description"`
	FullDescription *string   `json:"full_description,omitzero"`
	FullTitle       *string   `json:"full_title,omitzero"`
	Completed       bool      `json:"is_completed"`
	Title           string    `json:"title"`
	UpdatedAt       time.Time `json:"updated_at"`
}

// UserErased ends all that was before it in its user's stream, whose events are gone from the log. It follows the last
// of them in seq, and brings along that one's link of the chain, so that the chain goes on behind it.
type UserErased struct {
	Hash Hash `json:"hash"`
}

// Type implements Data.
func (TaskCreated) Type() Type { return TypeTaskCreated }

// Type implements Data.
func (TaskRenamed) Type() Type { return TypeTaskRenamed }

// Type implements Data.
func (TaskDescribed) Type() Type { return TypeTaskDescribed }

// Type implements Data.
func (TaskCompleted) Type() Type { return TypeTaskCompleted }

// Type implements Data.
func (TaskReopened) Type() Type { return TypeTaskReopened }

// Type implements Data.
func (TaskDeleted) Type() Type { return TypeTaskDeleted }

// Type implements Data.
func (TaskRestored) Type() Type { return TypeTaskRestored }

// Type implements Data.
func (TaskImported) Type() Type { return TypeTaskImported }

// Type implements Data.
func (UserErased) Type() Type { return TypeUserErased }
