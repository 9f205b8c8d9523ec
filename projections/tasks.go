package projections

import (
	"time"

	"taskledger/events"
)

// tasks is the current state of every task, for lists and single reads.
var tasks = &projection{
	name: "tasks",
	key:  "id",
	columns: []column{
		col("user_id", "text", func(c change) string { return c.after.UserID }),
		col("id", "uuid", func(c change) [16]byte { return c.after.ID }),
		col("version", "bigint", func(c change) int64 { return c.after.Version }),
		col("title", "text", func(c change) string { return c.after.Title }),
		col("description", "text", func(c change) *string { return c.after.Description }),
		col("is_completed", "boolean", func(c change) bool { return c.after.Completed }),
		col("created_at", "timestamptz", func(c change) time.Time { return c.after.CreatedAt }),
		col("updated_at", "timestamptz", func(c change) time.Time { return c.after.UpdatedAt }),
		col("deleted_at", "timestamptz", func(c change) *time.Time { return c.after.DeletedAt }),
		col("title_key", "bytea", func(c change) []byte { return events.TitleKey(c.after.Title) }),
		col("search", "text", func(c change) string { return events.SearchText(c.after.Title, c.after.Description) }),
	},
	state: `
		SELECT user_id, id, version, title, description, is_completed, created_at, updated_at, deleted_at
		FROM tasks
		WHERE user_id = b.user_id AND id = b.task_id
		LIMIT 1`,
	current: true,
}

func lastOfEachTask(changes []change) []change {
	type task struct {
		user string
		id   [16]byte
	}
	seen := make(map[task]bool, len(changes))
	last := make([]change, 0, len(changes))
	for i := len(changes) - 1; i >= 0; i-- {
		key := task{changes[i].after.UserID, changes[i].after.ID}
		if !seen[key] {
			seen[key] = true
			last = append(last, changes[i])
		}
	}
	return last
}
