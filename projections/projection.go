// Package projections derives the read models from the log. Each projection follows the log through a handler of a
// Watermill Router: a message is the next batch behind its checkpoint, the one fold of package events makes the new
// rows, and one statement writes them and moves the checkpoint, or does neither. Any number of processes may do so on
// one ledger, without a leader: the checkpoint decides who applied a batch, and who was late has lost nothing.
//
// The same fold, fed from the whole log, is rebuild and verify.
package projections

import (
	"context"
	"fmt"
	"strings"

	"taskledger/events"
)

// projection is one read model. Its name is that of its checkpoint.
type projection interface {
	name() string
	// derive returns what the events of a batch make of each table. It may remember what it made of earlier batches,
	// and asks from for what it does not. A refusal, if there is one, says why the database refused the rows of this
	// one event: its user is to be followed no more. A *heldError tells how much of the batch can be applied.
	derive(ctx context.Context, from events.Querier, d *events.Delivery, refusal string) (derived, error)
	// forget drops what was remembered: it may not be what the tables hold.
	forget()
}

// derived is what a batch makes of a read model.
type derived struct {
	rows   []rows
	parked []userState // the users who are followed no more from now on
	// doubtful: rows that should be new may be there, because earlier events of their users were missed.
	doubtful bool
}

// heldError says that an event was stored by a newer program, which this one can't fold. The events before it can be
// applied.
type heldError struct {
	before int
	err    error
}

func (e *heldError) Error() string {
	return fmt.Sprintf("a newer program is needed to apply the log: %v", e.err)
}

// table is a table of a read model: its key, which its columns begin with, and the names of those. Rows of it are of
// the composite type that is named after it, and that a migration makes with the same columns.
type table struct {
	name    string
	key     []string
	columns []string
}

// rows are what a batch makes of one table.
type rows struct {
	*events.Rows
	table  *table
	erased string // the user whose rows are all deleted instead
	fresh  bool   // none of them is in the table
}

// column is a column of a table, and its value in the row that is made of a T.
type column[T any] struct {
	events.Column[T]
	value func(*T) any
	// place gives a new place to scan the column to; taken takes the value out of it.
	place func() any
	taken func(any) any
}

func col[T, V any](name string, of func(*T) V) column[T] {
	return column[T]{
		Column: events.NewColumn(name, of),
		value:  func(item *T) any { return of(item) },
		place:  func() any { return new(V) },
		taken:  func(place any) any { return *place.(*V) },
	}
}

// columns are those of a table whose rows are made of a T.
type columns[T any] []column[T]

func (cs columns[T]) table(name string, key ...string) *table {
	t := &table{name: name, key: key}
	for _, c := range cs {
		t.columns = append(t.columns, c.Name)
	}
	return t
}

// encoded are the columns as a row is written.
func (cs columns[T]) encoded() []events.Column[T] {
	out := make([]events.Column[T], len(cs))
	for i, c := range cs {
		out[i] = c.Column
	}
	return out
}

// rows makes a row of each item.
func (cs columns[T]) rows(t *table, items []T) rows {
	return rows{Rows: events.NewRows(cs.encoded(), items), table: t}
}

// fresh makes rows that are not in the table.
func (cs columns[T]) fresh(t *table, items []T) rows {
	out := cs.rows(t, items)
	out.fresh = true
	return out
}

// writeBatch is the one statement that moves a checkpoint from $2 to $3, if it is still at $2 in generation $4, and
// only then writes the rows. It gives one row if it did, none if not.
//
// The log must hold the last event of the batch ($5 to $7), and the last one that what is remembered rests on ($8 to
// $10): after a failover to a standby that was behind it may not, although this process was told that they were stored.
// The commit may be asynchronous: rows and checkpoint are lost together, and can be derived again.
func writeBatch(made derived) (text string, args []any) {
	text = `
	WITH moved AS MATERIALIZED (
		UPDATE {schema}.checkpoints
		SET position = $3, ` + writtenTo + `
		WHERE projection = $1 AND position = $2 AND generation = $4
		AND EXISTS (SELECT FROM {schema}.task_events WHERE user_id = $5 AND seq = $6 AND event_id = $7)
		AND EXISTS (SELECT FROM {schema}.task_events WHERE user_id = $8 AND seq = $9 AND event_id = $10)
		RETURNING position, set_config('synchronous_commit', 'off', true)
	)`
	for i, r := range made.rows {
		if r.erased != "" {
			text += fmt.Sprintf(`, erased_%d AS (
		DELETE FROM {schema}.%s t
		USING moved
		WHERE t.user_id = $%d
	)`, i, r.table.name, headArgs+len(args)+1)
			args = append(args, r.erased)
			continue
		}
		if r.Len() == 0 {
			continue
		}
		text += fmt.Sprintf(`, written_%d AS (`, i) + r.write(made.doubtful, `
		SELECT r.*
		FROM moved
		CROSS JOIN `+r.table.unnest(headArgs+len(args)+1)+` AS r`) + `
	)`
		args = append(args, r.Rows)
	}
	return text + `
	SELECT position
	FROM moved`, args
}

// headArgs is how many parameters writeBatch has before those of the rows.
const headArgs = 10

// unnest is the rows of the parameter of this number.
func (t *table) unnest(parameter int) string {
	return fmt.Sprintf(`unnest($%d::{schema}.row_of_%s[])`, parameter, t.name)
}

// write writes the rows that a query gives. Those that are fresh are inserted: ON CONFLICT would cost half as much
// again.
func (r rows) write(doubtful bool, from string) string {
	t := r.table
	insert := `
		INSERT INTO {schema}.` + t.name + ` (` + strings.Join(t.columns, ", ") + `)` + from
	if r.fresh && !doubtful {
		return insert
	}
	var sets []string
	for _, name := range t.columns[len(t.key):] {
		sets = append(sets, name+" = excluded."+name)
	}
	return insert + `
		ON CONFLICT (` + strings.Join(t.key, ", ") + `) DO UPDATE
		SET ` + strings.Join(sets, ", ")
}
