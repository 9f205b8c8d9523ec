// Package query answers from the read models, and from nothing else. Every question is one round trip to PostgreSQL.
package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
)

// ErrNotFound: the user has no such task.
var ErrNotFound = errors.New("task not found")

// Reader answers questions of one user at a time. Its methods may be called from many goroutines at once.
type Reader struct {
	pool *pgxpool.Pool
}

// NewReader returns a Reader on pool; it does no I/O.
func NewReader(pool *pgxpool.Pool) *Reader {
	return &Reader{pool: pool}
}

// Status selects tasks by completion.
type Status string

// The statuses.
const (
	StatusAll       Status = "all"
	StatusPending   Status = "pending"
	StatusCompleted Status = "completed"
)

// Sort names what tasks are ordered by.
type Sort string

// The sort orders.
const (
	SortCreatedAt Sort = "created_at"
	SortTitle     Sort = "title"
	SortUpdatedAt Sort = "updated_at"
)

// Order is the direction of a list; ties follow it too.
type Order string

// The directions.
const (
	Ascending  Order = "asc"
	Descending Order = "desc"
)

func (o Order) sql() string {
	if o == Ascending {
		return "ASC"
	}
	return "DESC"
}

func (o Order) beyond() string {
	if o == Ascending {
		return ">"
	}
	return "<"
}

// TaskFilter says which live tasks to list, and how.
type TaskFilter struct {
	Status Status
	Sort   Sort
	Order  Order
	Search string      // found in title or description, literally, in any case; empty = all
	Limit  int         // 0 = no limit
	After  *TaskCursor // nil = from the beginning
}

// TaskCursor is the last task of a page: the value it was ordered by, of SortTitle or of a time, and its id.
type TaskCursor struct {
	Title []byte
	Time  time.Time
	ID    uuid.UUID
}

// Head is how far a read model has come for a user: the seq that an answer reflects, 0 without any event. A stale one goes no
// further, because an event could not be applied.
type Head struct {
	Seq   int64
	Stale bool
}

// TaskPage is an answer: the tasks, whether there are more, and what it reflects.
type TaskPage struct {
	Head
	Tasks []events.Task
	More  bool
}

// Cursor is where the next page of f begins.
func (f TaskFilter) Cursor(last events.Task) TaskCursor {
	switch f.Sort {
	case SortTitle:
		return TaskCursor{Title: events.TitleKey(last.Title), ID: last.ID}
	case SortUpdatedAt:
		return TaskCursor{Time: last.UpdatedAt, ID: last.ID}
	default:
		return TaskCursor{Time: last.CreatedAt, ID: last.ID}
	}
}

const taskColumns = `t.user_id, t.id, t.version, t.title, t.description, t.is_completed, t.created_at, t.updated_at, t.deleted_at`

// queueHead asks how far the read model has come.
func queueHead(b *pgx.Batch, readModel, user string, head *Head) {
	b.Queue(`
		SELECT coalesce(max(seq), 0), coalesce(bool_or(parked_error IS NOT NULL), false)
		FROM `+readModel+`_users
		WHERE user_id = $1`, user).QueryRow(func(row pgx.Row) error { return row.Scan(&head.Seq, &head.Stale) })
}

// Tasks lists the user's live tasks.
func (r *Reader) Tasks(ctx context.Context, user string, f TaskFilter) (TaskPage, error) {
	sql, args := f.sql(user)
	page := TaskPage{Tasks: []events.Task{}}
	err := r.read(ctx, user, func(b *pgx.Batch) {
		queueHead(b, "tasks", user, &page.Head)
		b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
			var t events.Task
			_, err := pgx.ForEachRow(rows, taskPlaces(&t), func() error {
				page.Tasks = append(page.Tasks, utc(t))
				t = events.Task{}
				return nil
			})
			return err
		})
	})
	if err != nil {
		return TaskPage{}, fmt.Errorf("list tasks: %w", err)
	}
	if f.Limit > 0 && len(page.Tasks) > f.Limit {
		page.Tasks, page.More = page.Tasks[:f.Limit], true
	}
	return page, nil
}

// sql is the list as one statement, which an index gives in its order.
func (f TaskFilter) sql(user string) (string, []any) {
	q := newStatement(`SELECT `+taskColumns+` FROM tasks t WHERE t.user_id = $1 AND t.deleted_at IS NULL`, user)
	column := map[Sort]string{SortCreatedAt: "t.created_at", SortTitle: "t.title_key", SortUpdatedAt: "t.updated_at"}[f.Sort]
	switch f.Status {
	case StatusPending:
		q.add(` AND NOT t.is_completed`)
	case StatusCompleted:
		q.add(` AND t.is_completed`)
	}
	if f.Search != "" {
		q.add(` AND position($? IN t.search) > 0`, events.FoldCase(f.Search))
	}
	if f.After != nil {
		var value any = f.After.Time
		if f.Sort == SortTitle {
			value = f.After.Title
		}
		q.add(` AND (`+column+`, t.id) `+f.Order.beyond()+` ($?, $?)`, value, f.After.ID)
	}
	q.add(` ORDER BY ` + column + ` ` + f.Order.sql() + `, t.id ` + f.Order.sql())
	if f.Limit > 0 {
		q.add(` LIMIT $?`, f.Limit+1)
	}
	return q.text, q.args
}

// Task finds one live task of the user, and what the answer reflects, which is known when ErrNotFound is too.
func (r *Reader) Task(ctx context.Context, user string, id uuid.UUID) (events.Task, Head, error) {
	var (
		t    events.Task
		head Head
	)
	err := r.read(ctx, user, func(b *pgx.Batch) {
		queueHead(b, "tasks", user, &head)
		b.Queue(`SELECT `+taskColumns+` FROM tasks t WHERE t.user_id = $1 AND t.id = $2 AND t.deleted_at IS NULL`, user, id).
			QueryRow(func(row pgx.Row) error { return row.Scan(taskPlaces(&t)...) })
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return events.Task{}, head, ErrNotFound
	}
	if err != nil {
		return events.Task{}, Head{}, fmt.Errorf("read task: %w", err)
	}
	return utc(t), head, nil
}

// Shown is what every read model shows of the user: the seq that all have reached, stale if one is.
func (r *Reader) Shown(ctx context.Context, user string) (Head, error) {
	var tasks, history Head
	err := r.read(ctx, user, func(b *pgx.Batch) {
		queueHead(b, "tasks", user, &tasks)
		queueHead(b, "task_history", user, &history)
	})
	if err != nil {
		return Head{}, fmt.Errorf("read seqs: %w", err)
	}
	return Head{Seq: min(tasks.Seq, history.Seq), Stale: tasks.Stale || history.Stale}, nil
}

// read sends what queue adds as one pipeline: one round trip, one transaction, in which everything is of one moment. For its length
// the role is one that row level security binds, to the rows of this user: a query that forgot its WHERE would still see nobody else's.
func (r *Reader) read(ctx context.Context, user string, queue func(*pgx.Batch)) error {
	batch := &pgx.Batch{}
	batch.Queue(`BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY`)
	batch.Queue(`SELECT set_config('app.user_id', $1, true), set_config('role', 'taskledger_reader', true)`, user)
	queue(batch)
	batch.Queue(`COMMIT`)
	return r.pool.SendBatch(ctx, batch).Close()
}

func taskPlaces(t *events.Task) []any {
	return []any{&t.UserID, &t.ID, &t.Version, &t.Title, &t.Description, &t.Completed, &t.CreatedAt, &t.UpdatedAt, &t.DeletedAt}
}

func utc(t events.Task) events.Task {
	t.CreatedAt, t.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
	if t.DeletedAt != nil {
		at := t.DeletedAt.UTC()
		t.DeletedAt = &at
	}
	return t
}
