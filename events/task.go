package events

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Task is the state of one task after some prefix of its user's stream. The zero Task is a task that never was.
type Task struct {
	UserID      string
	ID          uuid.UUID
	Version     int64 // seq of the last event that changed it; 0 = never created
	Title       string
	Description *string
	Completed   bool
	CreatedAt   time.Time
	UpdatedAt   time.Time
	DeletedAt   *time.Time // nil = live
}

// Live tells whether the task exists and is not in the trash.
func (t Task) Live() bool { return t.Version > 0 && t.DeletedAt == nil }

// TaskForm is the version of the form that AppendJSON writes. Answers that were made in another form must not be taken
// for this one.
const TaskForm = 1

// AppendJSON appends the Task as clients see it; a deleted one also has deleted_at.
func (t Task) AppendJSON(b []byte) []byte {
	b = slices.Grow(b, t.Bytes())
	b = append(b, `{"id":"`...)
	b = appendID(b, t.ID)
	b = append(b, `","user_id":`...)
	b = AppendText(b, t.UserID)
	b = append(b, `,"title":`...)
	b = AppendText(b, t.Title)
	b = append(b, `,"description":`...)
	if t.Description == nil {
		b = append(b, `null`...)
	} else {
		b = AppendText(b, *t.Description)
	}
	b = append(b, `,"is_completed":`...)
	b = strconv.AppendBool(b, t.Completed)
	b = append(b, `,"created_at":"`...)
	b = AppendTime(b, t.CreatedAt)
	b = append(b, `","updated_at":"`...)
	b = AppendTime(b, t.UpdatedAt)
	b = append(b, `","version":`...)
	b = strconv.AppendInt(b, t.Version, 10)
	if t.DeletedAt != nil {
		b = append(b, `,"deleted_at":"`...)
		b = append(AppendTime(b, *t.DeletedAt), '"')
	}
	return append(b, '}')
}

// ParseTask reads what AppendJSON wrote.
func ParseTask(text []byte) (Task, error) {
	var t struct {
		ID          uuid.UUID  `json:"id"`
		UserID      string     `json:"user_id"`
		Title       string     `json:"title"`
		Description *string    `json:"description"`
		Completed   bool       `json:"is_completed"`
		CreatedAt   time.Time  `json:"created_at"`
		UpdatedAt   time.Time  `json:"updated_at"`
		Version     int64      `json:"version"`
		DeletedAt   *time.Time `json:"deleted_at"`
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return Task{}, fmt.Errorf("read a task: %w", err)
	}
	return Task{
		UserID:      t.UserID,
		ID:          t.ID,
		Version:     t.Version,
		Title:       t.Title,
		Description: t.Description,
		Completed:   t.Completed,
		CreatedAt:   t.CreatedAt,
		UpdatedAt:   t.UpdatedAt,
		DeletedAt:   t.DeletedAt,
	}, nil
}

// HistoryTaskColumns are the columns of the table task_history h that ScanHistoryTask reads.
const HistoryTaskColumns = `h.task_id, h.version, h.title, h.description, h.is_completed, h.created_at,
	coalesce(h.updated_at, h.recorded_at), h.deleted_at`

// ScanHistoryTask reads more columns into places, and then a task as it was after an event of the user, from
// HistoryTaskColumns.
func ScanHistoryTask(rows pgx.Rows, user string, places ...any) (Task, error) {
	t := Task{UserID: user}
	err := rows.Scan(append(places,
		&t.ID, &t.Version, &t.Title, &t.Description, &t.Completed, &t.CreatedAt, &t.UpdatedAt, &t.DeletedAt)...)
	t.CreatedAt, t.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
	if t.DeletedAt != nil {
		at := t.DeletedAt.UTC()
		t.DeletedAt = &at
	}
	return t, err
}

// Bytes is about what the task takes in memory.
func (t Task) Bytes() int {
	n := 256 + len(t.Title)
	if t.Description != nil {
		n += len(*t.Description)
	}
	return n
}
