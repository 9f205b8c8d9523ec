package query

import (
	"fmt"

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
	Search string // found in title or description, literally, in any case; empty = all
}

func (f TaskFilter) list() string { return "tasks" }

func (f TaskFilter) sql(page Page) (columns, from string, args []any) {
	column := map[Sort]string{SortCreatedAt: "t.created_at", SortTitle: "t.title_key", SortUpdatedAt: "t.updated_at"}[f.Sort]
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
	q.add(fmt.Sprintf(` ORDER BY %s %s, t.id %s`, column, f.Order.sql(), f.Order.sql()))
	q.limit(page)
	if page.Limit > 0 { // one row costs less than many, here and there
		q.text = `
			SELECT string_agg(i.items, '` + separator + `') AS items FROM (` + q.text + `) i`
	}
	return `x.items`, q.lateral(), q.args
}

func (f TaskFilter) items(b []byte, rows pgx.Rows) ([]byte, error) {
	values := rows.RawValues()
	return append(b, values[len(values)-1]...), nil
}

func (f TaskFilter) place(item []byte) (Place, error) {
	t, err := events.ParseTask(item)
	switch f.Sort {
	case SortTitle:
		return Place{Title: events.TitleKey(t.Title), ID: t.ID}, err
	case SortUpdatedAt:
		return Place{Time: t.UpdatedAt, ID: t.ID}, err
	default:
		return Place{Time: t.CreatedAt, ID: t.ID}, err
	}
}
