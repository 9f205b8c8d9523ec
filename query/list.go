package query

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
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

// Filter says what a list lists, and in which order: a TaskFilter, a TrashFilter or a HistoryFilter. Its JSON names the
// list, so that whatever tells two lists apart is in cursors, in entity tags and in what answers are kept by.
type Filter interface {
	// list names the list.
	list() string
	// sql is the list as a LATERAL subquery x; where that has no row, the last of the columns is null.
	sql(page Page) (columns, from string, args []any)
	// read reads the list; rows stands on the first row.
	read(rows pgx.Rows, st state, page Page, a *Answer, w *writer) error
}

// separator stands between the items of a list. A line break is in no item: JSON escapes those in its texts.
const separator = ",\n"

// Page says which part of a list is asked for.
type Page struct {
	Limit int    // 0 = no limit
	After *Place // nil = from the beginning
}

// Place is what an item of a list is ordered by.
type Place struct {
	Time  time.Time `json:"t,omitzero"`
	Title []byte    `json:"k,omitempty"` // a title key
	ID    uuid.UUID `json:"i,omitzero"`
	Seq   int64     `json:"s,omitzero"`
}

// Listing is a page of a list.
type Listing struct {
	Filter
	Page
	name string
}

// usualNames are the names of TaskFilters of nothing but words, by filter: those are few, and asked for most.
var usualNames sync.Map

// NewListing returns a listing without a page; it fails for a filter with a text that is not UTF-8.
func NewListing(f Filter) (Listing, error) {
	t, usual := f.(TaskFilter)
	if usual = usual && t == (TaskFilter{Status: t.Status, Sort: t.Sort, Order: t.Order}); usual {
		if name, known := usualNames.Load(t); known {
			return Listing{Filter: f, name: name.(string)}, nil
		}
	}
	text, err := json.Marshal(f, json.Deterministic(true))
	if err != nil {
		return Listing{}, fmt.Errorf("name a list: %w", err)
	}
	l := Listing{Filter: f, name: f.list() + string(text)}
	if usual {
		usualNames.Store(t, l.name)
	}
	return l, nil
}

// Name tells the list from all others of a user, whatever the page.
func (l Listing) Name() string { return l.name }

// key tells the page from all others of a user.
func (l Listing) key() string {
	b := strconv.AppendInt(append([]byte(l.name), ' '), int64(l.Limit), 10)
	if p := l.After; p != nil {
		b = fmt.Appendf(b, " %d %x %s %d", p.Time.UnixNano(), p.Title, p.ID, p.Seq)
	}
	return string(b)
}

// ofThePast tells a list that is put in order here: all of it is read, whatever the page.
func (l Listing) ofThePast() bool {
	f, ok := l.Filter.(TaskFilter)
	return ok && f.AsOf != nil
}

// gathered is how many items of a list without a limit are asked for at first: lists are seldom longer, and a page is
// one row.
const gathered = 500

// List answers with a JSON array.
func (r *Reader) List(ctx context.Context, ask Ask, l Listing) (Answer, error) {
	if l.Limit == 0 && !l.ofThePast() {
		first, gather := l, ask
		first.Limit, gather.Stream = gathered, nil
		if a, err := r.List(ctx, gather, first); err != nil || a.Next == nil {
			return a, err
		}
	}
	q := l.question()
	q.key = l.key()
	if f, ok := l.Filter.(TaskFilter); ok && f.AsOf == nil && l.Limit > 0 {
		q.list, q.of = true, func(live liveTasks, a *Answer) error { return f.pick(live, l.Page, a) }
	}
	return r.answer(ctx, ask, q)
}

// question is the list as a question whose answer is not kept.
func (l Listing) question() question {
	return question{
		sql: func() (string, []any) {
			columns, from, args := l.sql(l.Page)
			return statement(columns, from), args
		},
		read: func(rows pgx.Rows, st state, a *Answer, w *writer) error { return l.read(rows, st, l.Page, a, w) },
	}
}

// askLive reads all live tasks of the user, and keeps them; nil = they are too many.
func (r *Reader) askLive(ctx context.Context, ask Ask, written int64, deadline time.Time) (Answer, liveTasks, error) {
	l := Listing{Filter: TaskFilter{Order: Ascending, Sort: SortCreatedAt}, Page: Page{Limit: maxKeptTasks}}
	ask.Stream = nil
	a, err := r.ask(ctx, ask, l.question(), written, deadline)
	if err != nil {
		return a, nil, err
	}
	var live liveTasks
	if a.Next == nil {
		if live, err = parseTasks(a.Body); err != nil {
			return a, nil, err
		}
	}
	if a.EventID != uuid.Nil {
		r.kept.putLive(ask.UserID, a.Head, live)
	}
	return a, live, nil
}

// parseTasks reads a list of tasks.
func parseTasks(body []byte) (liveTasks, error) {
	live := make(liveTasks, 0, bytes.Count(body, []byte(separator))+1)
	for item := range bytes.SplitSeq(body[1:len(body)-1], []byte(separator)) {
		if len(item) == 0 {
			break // of an empty list
		}
		t, err := events.ParseTask(item)
		if err != nil {
			return nil, err
		}
		live = append(live, &t)
	}
	return live, nil
}

// lastColumn is the last column of the row, as the server sent it.
func lastColumn(rows pgx.Rows) []byte {
	values := rows.RawValues()
	return values[len(values)-1]
}

// readItems reads a list. items appends the items of a row to b, with a separator between them; place reads where an
// item stands in the list.
func readItems(
	rows pgx.Rows, page Page, a *Answer, w *writer,
	items func(b []byte, rows pgx.Rows) ([]byte, error), place func(item []byte) (Place, error),
) (err error) {
	size := len(lastColumn(rows))
	w.body = append(make([]byte, 0, size+size/8+2), '[')
	for size > 0 {
		if w.body, err = items(w.body, rows); err != nil {
			return err
		}
		if !rows.Next() {
			break
		}
		w.body = append(w.body, separator...)
		if err := w.flush(); err != nil {
			return err
		}
	}
	if page.Limit > 0 && bytes.Count(w.body, []byte(separator)) == page.Limit { // one item more than the page has
		w.body = w.body[:bytes.LastIndex(w.body, []byte(separator))]
		last := w.body[max(1, bytes.LastIndex(w.body, []byte(separator))+len(separator)):]
		next, err := place(last)
		if err != nil {
			return fmt.Errorf("read where a page ends: %w", err)
		}
		a.Next = &next
	}
	w.body = append(w.body, ']')
	if err := w.end(); err != nil {
		return err
	}
	return rows.Err()
}
