package query

import (
	"errors"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

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

// TaskFilter lists live tasks.
type TaskFilter struct {
	Status Status
	Sort   Sort
	Order  Order
	Search string  // found in title or description, literally, in any case; empty = all
	AsOf   *Moment `json:",omitzero"` // nil = now
}

var sortColumns = map[Sort]string{
	SortCreatedAt: "t.created_at", SortTitle: "t.title_key", SortUpdatedAt: "t.updated_at",
}

func (f TaskFilter) list() string { return "tasks" }

func (f TaskFilter) sql(page Page) (columns, from string, args []any) {
	if f.AsOf != nil {
		return f.sqlAsOf()
	}
	column := sortColumns[f.Sort]
	q := clauses{next: 2}
	q.add(`
			SELECT t.body AS items
			FROM {schema}.tasks t
			WHERE t.user_id = s.user_id AND t.deleted_at IS NULL`)
	switch f.Status {
	case StatusPending:
		q.add(` AND NOT t.is_completed`)
	case StatusCompleted:
		q.add(` AND t.is_completed`)
	}
	if f.Search != "" {
		q.add(` AND position($? IN t.search) > 0`, events.FoldCase(f.Search))
	}
	if page.After != nil {
		var value any = page.After.Time
		if f.Sort == SortTitle {
			value = page.After.Title
		}
		q.add(` AND (`+column+`, t.id) `+f.Order.beyond()+` ($?, $?)`, value, page.After.ID)
	}
	q.add(` ORDER BY ` + column + ` ` + f.Order.sql() + `, t.id ` + f.Order.sql())
	q.limit(page)
	q.gather(page)
	return `x.items`, q.lateral(), q.args
}

func (f TaskFilter) read(rows pgx.Rows, st state, page Page, a *Answer, w *writer) error {
	if f.AsOf != nil {
		return f.readAsOf(rows, st, page, a, w)
	}
	return readItems(rows, page, a, w, readyItems, func(item []byte) (Place, error) {
		t, err := events.ParseTask(item)
		return f.placeOf(&t), err
	})
}

// readyItems are items that the read model has in JSON.
func readyItems(b []byte, rows pgx.Rows) ([]byte, error) { return append(b, lastColumn(rows)...), nil }

// placeOf is where a task stands in the list.
func (f TaskFilter) placeOf(t *events.Task) Place {
	switch f.Sort {
	case SortTitle:
		return Place{Title: events.TitleKey(t.Title), ID: t.ID}
	case SortUpdatedAt:
		return Place{Time: t.UpdatedAt, ID: t.ID}
	default:
		return Place{Time: t.CreatedAt, ID: t.ID}
	}
}

// TrashFilter lists deleted tasks, with the time of their deletion, those deleted last first.
type TrashFilter struct{}

var errNotDeleted = errors.New("a task of the trash has no deleted_at")

func (f TrashFilter) list() string { return "trash" }

func (f TrashFilter) sql(page Page) (columns, from string, args []any) {
	q := clauses{next: 2}
	q.add(`
			SELECT t.body AS items
			FROM {schema}.tasks t
			WHERE t.user_id = s.user_id AND t.deleted_at IS NOT NULL`)
	if page.After != nil {
		q.add(` AND (t.deleted_at, t.version) < ($?, $?)`, page.After.Time, page.After.Seq)
	}
	q.add(` ORDER BY t.deleted_at DESC, t.version DESC`)
	q.limit(page)
	q.gather(page)
	return `x.items`, q.lateral(), q.args
}

func (f TrashFilter) read(rows pgx.Rows, _ state, page Page, a *Answer, w *writer) error {
	return readItems(rows, page, a, w, readyItems, func(item []byte) (Place, error) {
		t, err := events.ParseTask(item)
		if err != nil || t.DeletedAt == nil {
			return Place{}, errors.Join(err, errNotDeleted)
		}
		return Place{Time: *t.DeletedAt, Seq: t.Version}, nil
	})
}
