package query

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// HistoryEntry is one event as people read it. Changes is JSON: each changed member of the task with its value before and after.
type HistoryEntry struct {
	Seq        int64
	Type       events.Type
	TaskID     uuid.UUID
	RecordedAt time.Time
	Actor      string
	RequestID  string
	Changes    []byte
}

// Moment is a point in a user's stream: a seq, or a time when Time is not zero.
type Moment struct {
	Seq  int64
	Time time.Time
}

// HistoryFilter says which of a user's events to list, and how.
type HistoryFilter struct {
	TaskID *uuid.UUID  // nil = of every task
	Type   events.Type // empty = every type
	Since  *Moment     // exclusive; nil = from the beginning
	Until  *Moment     // inclusive; nil = to the end
	Order  Order
	Limit  int   // 0 = no limit
	After  int64 // the seq of the last entry of the page before; 0 = none
}

// HistoryPage is an answer: the entries, whether there are more, and what it reflects.
type HistoryPage struct {
	Head
	Entries []HistoryEntry
	More    bool
}

// History lists the user's events, also those of deleted tasks.
func (r *Reader) History(ctx context.Context, user string, f HistoryFilter) (HistoryPage, error) {
	return r.history(ctx, user, f, func(*pgx.Batch) {})
}

// TaskHistory lists the events of one task of the user, deleted or not. It returns ErrNotFound, with the page's Head, for a task
// that the user never had.
func (r *Reader) TaskHistory(ctx context.Context, user string, id uuid.UUID, f HistoryFilter) (HistoryPage, error) {
	f.TaskID = &id
	known := false
	page, err := r.history(ctx, user, f, func(b *pgx.Batch) {
		b.Queue(`SELECT EXISTS (SELECT FROM task_history WHERE user_id = $1 AND task_id = $2)`, user, id).
			QueryRow(func(row pgx.Row) error { return row.Scan(&known) })
	})
	if err == nil && !known {
		return HistoryPage{Head: page.Head}, ErrNotFound
	}
	return page, err
}

func (r *Reader) history(ctx context.Context, user string, f HistoryFilter, first func(*pgx.Batch)) (HistoryPage, error) {
	sql, args := f.sql(user)
	page := HistoryPage{Entries: []HistoryEntry{}}
	err := r.read(ctx, user, func(b *pgx.Batch) {
		first(b)
		queueHead(b, "task_history", user, &page.Head)
		b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
			var e HistoryEntry
			places := []any{&e.Seq, &e.Type, &e.TaskID, &e.RecordedAt, &e.Actor, &e.RequestID, &e.Changes}
			_, err := pgx.ForEachRow(rows, places, func() error {
				e.RecordedAt = e.RecordedAt.UTC()
				page.Entries = append(page.Entries, e)
				e = HistoryEntry{}
				return nil
			})
			return err
		})
	})
	if err != nil {
		return HistoryPage{}, fmt.Errorf("list history: %w", err)
	}
	if f.Limit > 0 && len(page.Entries) > f.Limit {
		page.Entries, page.More = page.Entries[:f.Limit], true
	}
	return page, nil
}

func (f HistoryFilter) sql(user string) (string, []any) {
	q := newStatement(`
		SELECT h.seq, h.type, h.task_id, h.recorded_at, h.actor, h.request_id, h.changes
		FROM task_history h
		WHERE h.user_id = $1`, user)
	if f.TaskID != nil {
		q.add(` AND h.task_id = $?`, *f.TaskID)
	}
	if f.Type != "" {
		q.add(` AND h.type = $?`, string(f.Type))
	}
	q.moment(f.Since, ">")
	q.moment(f.Until, "<=")
	if f.After > 0 {
		q.add(` AND h.seq `+f.Order.beyond()+` $?`, f.After)
	}
	q.add(` ORDER BY h.seq ` + f.Order.sql())
	if f.Limit > 0 {
		q.add(` LIMIT $?`, f.Limit+1)
	}
	return q.text, q.args
}

func (s *statement) moment(m *Moment, operator string) {
	switch {
	case m == nil:
	case m.Time.IsZero():
		s.add(` AND h.seq `+operator+` $?`, m.Seq)
	default:
		s.add(` AND h.recorded_at `+operator+` $?`, m.Time)
	}
}

// Change is a history entry, and the task as it was after it.
type Change struct {
	HistoryEntry
	Task events.Task
}

const changesAfter = `
	SELECT h.seq, h.type, h.task_id, h.recorded_at, h.actor, h.request_id, h.changes,
		h.title, h.description, h.is_completed, h.created_at, h.deleted_at
	FROM task_history h
	WHERE h.user_id = $1 AND h.seq > $2 AND h.seq <= (SELECT seq FROM tasks_users WHERE user_id = $1)
	ORDER BY h.seq
	LIMIT $3`

// Changes lists the user's events behind seq after, oldest first, at most limit of them: those that every read model shows.
func (r *Reader) Changes(ctx context.Context, user string, after int64, limit int) ([]Change, error) {
	var changes []Change
	err := r.read(ctx, user, func(b *pgx.Batch) {
		b.Queue(changesAfter, user, after, limit).Query(func(rows pgx.Rows) (err error) {
			changes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Change, error) { return scanChange(row, user) })
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list changes: %w", err)
	}
	return changes, nil
}

func scanChange(row pgx.CollectableRow, user string) (Change, error) {
	c := Change{Task: events.Task{UserID: user}}
	e, t := &c.HistoryEntry, &c.Task
	err := row.Scan(&e.Seq, &e.Type, &e.TaskID, &e.RecordedAt, &e.Actor, &e.RequestID, &e.Changes,
		&t.Title, &t.Description, &t.Completed, &t.CreatedAt, &t.DeletedAt)
	e.RecordedAt = e.RecordedAt.UTC()
	t.ID, t.Version, t.UpdatedAt = e.TaskID, e.Seq, e.RecordedAt
	c.Task = utc(c.Task)
	return c, err
}
