// Package projections derives the read models from the log. Each projection follows the log through a Watermill Router and
// Subscriber of its own, batch by batch: the select brings the events and the rows they touch, the one fold of package events makes
// the new rows, and one statement writes them and moves the checkpoint, or does neither.
//
// The same projections, fed from the whole log, are rebuild and verify.
package projections

import (
	"fmt"
	"strings"

	"taskledger/events"
)

// change is one event and the task before and after it.
type change struct {
	event         events.Event
	before, after events.Task
}

// projection is one read model: a table, and how its rows come from changes. Beside it stands the table <name>_users, one row a
// user with the seq that was reached.
type projection struct {
	name string
	// key is the column that, with user_id, is the table's primary key.
	key string
	// columns of the table, user_id first.
	columns []column
	// state is a SELECT of the task b.task_id of the user b.user_id as this read model knows it, in the columns of taskState.
	state string
	// current says that only the last change of each task leaves a row, which takes the place of the one before; else each does.
	current bool
}

// all are the projections this program runs.
func all() []*projection {
	return []*projection{tasks, taskHistory}
}

// Names lists the projections.
func Names() []string {
	names := []string{}
	for _, p := range all() {
		names = append(names, p.name)
	}
	return names
}

// column is one column of a read model: its name, its PostgreSQL type and its value after a change.
type column struct {
	name, pgType string
	// array makes the values of many rows, for unnest.
	array func([]change) any
	// value makes the value of one row, for COPY.
	value func(change) any
	// scan gives a new place to scan the column to; read takes the value out again.
	scan func() any
	read func(any) any
}

func col[T any](name, pgType string, of func(change) T) column {
	return column{
		name:   name,
		pgType: pgType,
		array: func(changes []change) any {
			values := make([]T, len(changes))
			for i, c := range changes {
				values[i] = of(c)
			}
			return values
		},
		value: func(c change) any { return of(c) },
		scan:  func() any { return new(T) },
		read:  func(place any) any { return *place.(*T) },
	}
}

func names(columns []column) []string {
	out := make([]string, len(columns))
	for i, c := range columns {
		out[i] = c.name
	}
	return out
}

// selectBatch is the query for the next batch of at most $2 events. It always gives one row: the checkpoint, its generation, the
// position of the batch's last event and the batch as JSON; the last two are NULL when there is nothing new. LATERAL with LIMIT
// keeps each look-up an index scan, whatever the planner believes of the tables' sizes.
func (p *projection) selectBatch() string {
	return `
	WITH checkpoint AS MATERIALIZED (
		SELECT position, generation
		FROM projection_checkpoints
		WHERE projection = $1
	), batch AS MATERIALIZED (
		SELECT e.*
		FROM checkpoint c
		CROSS JOIN LATERAL (
			SELECT position, user_id, seq, task_id, type, schema_version, data, actor, request_id, recorded_at,
				EXISTS (SELECT FROM skipped_events s WHERE s.user_id = t.user_id AND s.seq = t.seq) AS skipped
			FROM task_events t
			WHERE position > c.position
			ORDER BY position
			LIMIT $2
		) e
	)
	SELECT c.position, c.generation, (SELECT max(position) FROM batch), (
		SELECT json_build_object(
			'events', json_agg(b ORDER BY b.position),
			'tasks', (
				SELECT json_agg(s)
				FROM (SELECT DISTINCT user_id, task_id FROM batch) b
				CROSS JOIN LATERAL (` + p.state + `) s
			),
			'users', (
				SELECT json_agg(u)
				FROM (SELECT DISTINCT user_id FROM batch) b
				CROSS JOIN LATERAL (
					SELECT user_id, seq, parked_error
					FROM ` + p.name + `_users
					WHERE user_id = b.user_id
					LIMIT 1
				) u
			)
		)
		FROM batch b
		HAVING count(*) > 0
	)
	FROM checkpoint c`
}

// writeBatch is the one statement that moves the checkpoint from $2 to $3, if it is still at $2 in generation $4, and only then
// writes the users ($5 to $7) and the rows. Its result has one row if it did, none if somebody else was first. The commit may be
// asynchronous: rows and checkpoint are lost together, and can be derived again.
func (p *projection) writeBatch() string {
	args := make([]string, len(p.columns))
	sets := make([]string, 0, len(p.columns))
	for i, c := range p.columns {
		args[i] = fmt.Sprintf("$%d::%s[]", i+8, c.pgType)
		if c.name != "user_id" && c.name != p.key {
			sets = append(sets, c.name+" = excluded."+c.name)
		}
	}
	list := strings.Join(names(p.columns), ", ")
	return `
	WITH moved AS (
		UPDATE projection_checkpoints
		SET position = $3
		WHERE projection = $1 AND position = $2 AND generation = $4
		RETURNING position, set_config('synchronous_commit', 'off', true)
	), users AS (
		INSERT INTO ` + p.name + `_users (user_id, seq, parked_error, parked_at)
		SELECT u.user_id, u.seq, u.parked_error, CASE WHEN u.parked_error IS NOT NULL THEN clock_timestamp() END
		FROM moved
		CROSS JOIN unnest($5::text[], $6::bigint[], $7::text[]) AS u(user_id, seq, parked_error)
		ON CONFLICT (user_id) DO UPDATE
		SET seq = excluded.seq, parked_error = excluded.parked_error, parked_at = excluded.parked_at
	), written AS (
		INSERT INTO ` + p.name + ` (` + list + `)
		SELECT r.*
		FROM moved
		CROSS JOIN unnest(` + strings.Join(args, ", ") + `) AS r(` + list + `)
		ON CONFLICT (user_id, ` + p.key + `) DO UPDATE
		SET ` + strings.Join(sets, ", ") + `
	)
	SELECT position
	FROM moved`
}

// writeArgs are the arguments of writeBatch.
func (p *projection) writeArgs(b *batch, f folded) []any {
	users, seqs, parked := f.userColumns()
	args := []any{p.name, b.from, b.to, b.generation, users, seqs, parked}
	rows := f.changes
	if p.current {
		rows = lastOfEachTask(rows)
	}
	for _, c := range p.columns {
		args = append(args, c.array(rows))
	}
	return args
}
