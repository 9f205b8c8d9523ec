package projections

import (
	"time"

	"github.com/go-json-experiment/json"

	"taskledger/events"
)

// taskHistory is every event as people read it, with the task as it was after it.
var taskHistory = &projection{
	name: "task_history",
	key:  "seq",
	columns: []column{
		col("user_id", "text", func(c change) string { return c.event.UserID }),
		col("seq", "bigint", func(c change) int64 { return c.event.Seq }),
		col("task_id", "uuid", func(c change) [16]byte { return c.event.TaskID }),
		col("type", "text", func(c change) string { return string(c.event.Data.Type()) }),
		col("actor", "text", func(c change) string { return c.event.Actor }),
		col("request_id", "text", func(c change) string { return c.event.RequestID }),
		col("recorded_at", "timestamptz", func(c change) time.Time { return c.event.RecordedAt }),
		col("changes", "json", func(c change) string { return changesJSON(c.before, c.after) }),
		col("title", "text", func(c change) string { return c.after.Title }),
		col("description", "text", func(c change) *string { return c.after.Description }),
		col("is_completed", "boolean", func(c change) bool { return c.after.Completed }),
		col("created_at", "timestamptz", func(c change) time.Time { return c.after.CreatedAt }),
		col("deleted_at", "timestamptz", func(c change) *time.Time { return c.after.DeletedAt }),
	},
	state: `
		SELECT user_id, task_id AS id, seq AS version, title, description, is_completed, created_at, recorded_at AS updated_at, deleted_at
		FROM task_history
		WHERE user_id = b.user_id AND task_id = b.task_id
		ORDER BY seq DESC
		LIMIT 1`,
}

// memberChange is one entry of "changes". From is null when the task is created.
type memberChange struct {
	From any `json:"from"`
	To   any `json:"to"`
}

// taskChanges has an entry for each member of a task that changed, under its name in JSON, in the order of the Task.
type taskChanges struct {
	Title       *memberChange `json:"title,omitzero"`
	Description *memberChange `json:"description,omitzero"`
	IsCompleted *memberChange `json:"is_completed,omitzero"`
	Deleted     *memberChange `json:"deleted,omitzero"`
}

// changesJSON tells what is different between two states of a task.
func changesJSON(before, after events.Task) string {
	created := before.Version == 0
	var c taskChanges
	if created {
		c.Title = &memberChange{nil, after.Title}
		c.IsCompleted = &memberChange{nil, after.Completed}
	}
	if !created && before.Title != after.Title {
		c.Title = &memberChange{before.Title, after.Title}
	}
	if !sameText(before.Description, after.Description) {
		c.Description = &memberChange{before.Description, after.Description}
	}
	if !created && before.Completed != after.Completed {
		c.IsCompleted = &memberChange{before.Completed, after.Completed}
	}
	if (before.DeletedAt == nil) != (after.DeletedAt == nil) {
		c.Deleted = &memberChange{before.DeletedAt != nil, after.DeletedAt != nil}
	}
	data, err := json.Marshal(c)
	if err != nil {
		// Strings of valid UTF-8 and booleans always have a JSON form; others never got into the log.
		panic(err)
	}
	return string(data)
}

func sameText(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
