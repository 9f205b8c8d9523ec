package query

import (
	"context"
	"fmt"
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

// Filter says what a list lists, and in which order: a TaskFilter or a HistoryFilter. Its JSON is its fingerprint, so that whatever
// tells two lists apart is in it.
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

// Fingerprint names the list that a filter gives of a user.
func Fingerprint(user string, f Filter) (string, error) {
	text, err := json.Marshal(f, json.Deterministic(true))
	if err != nil {
		return "", fmt.Errorf("fingerprint of a list: %w", err)
	}
	return f.list() + " " + string(text) + " " + user, nil
}

// List answers with a JSON array.
func (r *Reader) List(ctx context.Context, ask Ask, f Filter, page Page) (Answer, error) {
	fingerprint, err := Fingerprint("", f)
	if err != nil {
		return Answer{}, err
	}
	place, err := json.Marshal(page, json.Deterministic(true))
	if err != nil {
		return Answer{}, fmt.Errorf("read a page: %w", err)
	}
	columns, from, args := f.sql(page)
	return r.answer(ctx, ask, question{
		key:  fingerprint + string(place),
		text: statement(columns, from),
		args: args,
		read: func(rows pgx.Rows, a *Answer, w *writer) error { return readList(rows, f, page, a, w) },
	})
}

// readList reads the items; rows stands on the first one. Where there is none, its last column is null.
func readList(rows pgx.Rows, f Filter, page Page, a *Answer, w *writer) (err error) {
	if last := rows.RawValues(); last[len(last)-1] == nil {
		w.body = append(w.body, '[', ']')
		return nil
	}
	w.body = append(w.body, '[')
	for n := 1; ; n++ {
		if w.body, err = f.item(w.body, rows); err != nil {
			return err
		}
		var place Place
		if n == page.Limit {
			if place, err = f.place(rows); err != nil {
				return err
			}
		}
		if !rows.Next() {
			break
		}
		if n == page.Limit {
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
