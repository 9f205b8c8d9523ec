package query

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
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

// Filter says what a list lists, and in which order: a TaskFilter or a HistoryFilter. Its JSON names the list, so that whatever tells
// two lists apart is in cursors, in entity tags and in what answers are kept by.
type Filter interface {
	// list names the list.
	list() string
	// sql is the list as a LATERAL subquery x of columns, the items' places and then the items.
	sql(page Page) (columns, from string, args []any)
	// item appends the item of a row to b.
	item(b []byte, rows pgx.Rows) ([]byte, error)
	// place reads where the item of a row stands in the list.
	place(rows pgx.Rows) (Place, error)
}

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

// NewListing returns a listing without a page; it fails for a filter with a text that is not UTF-8.
func NewListing(f Filter) (Listing, error) {
	text, err := json.Marshal(f, json.Deterministic(true))
	if err != nil {
		return Listing{}, fmt.Errorf("name a list: %w", err)
	}
	return Listing{Filter: f, name: f.list() + string(text)}, nil
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

// sizeOfItem is about how many bytes an item of a list takes.
const sizeOfItem = 320

// List answers with a JSON array.
func (r *Reader) List(ctx context.Context, ask Ask, l Listing) (Answer, error) {
	columns, from, args := l.sql(l.Page)
	return r.answer(ctx, ask, question{
		key:  l.key(),
		text: statement(columns, from),
		args: args,
		read: func(rows pgx.Rows, a *Answer, w *writer) error { return readList(rows, l, a, w) },
	})
}

// readList reads the items; rows stands on the first one. Where there is none, its last column is null.
func readList(rows pgx.Rows, l Listing, a *Answer, w *writer) (err error) {
	if last := rows.RawValues(); last[len(last)-1] == nil {
		w.body = append(w.body, '[', ']')
		return nil
	}
	w.body = append(make([]byte, 0, sizeOfItem*min(max(l.Limit, 1), 24)), '[')
	for n := 1; ; n++ {
		if w.body, err = l.item(w.body, rows); err != nil {
			return err
		}
		var place Place
		if n == l.Limit {
			if place, err = l.place(rows); err != nil {
				return err
			}
		}
		if !rows.Next() {
			break
		}
		if n == l.Limit {
			a.Next = &place
			break
		}
		w.body = append(w.body, ',')
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.body = append(w.body, ']')
	if err := w.end(); err != nil {
		return err
	}
	return rows.Err()
}
