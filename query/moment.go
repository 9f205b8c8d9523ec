package query

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// Moment is a point in a user's stream: a seq, or a time when Time is not zero.
type Moment struct {
	Seq  int64
	Time time.Time
}

// seqAt adds the last seq at a moment. That of a time is found by halving: seqs rise with time, and no index has the
// times.
func (c *clauses) seqAt(m Moment) {
	if m.Time.IsZero() {
		c.add(`$?::bigint`, m.Seq)
		return
	}
	c.add(`(
				WITH RECURSIVE search (low, high) AS (
					SELECT 0::bigint, coalesce((SELECT u.seq FROM {schema}.users u WHERE u.user_id = $1), 0)
					UNION ALL
					SELECT CASE WHEN h.recorded_at <= m.at THEN h.seq ELSE b.low END,
						CASE WHEN h.recorded_at <= m.at THEN b.high ELSE (b.low + b.high + 1) / 2 - 1 END
					FROM search b
					CROSS JOIN (SELECT $?::timestamptz AS at) m
					CROSS JOIN LATERAL (
						SELECT h.seq, h.recorded_at
						FROM {schema}.task_history h
						WHERE h.user_id = $1 AND h.seq >= (b.low + b.high + 1) / 2
						ORDER BY h.seq
						LIMIT 1
					) h
					WHERE b.low < b.high
				)
				SELECT max(low) FROM search
			)`, m.Time)
}

// timeOf is the time of the last event up to a seq: what was deleted after that was deleted then or later, which an
// index has in order. It is the log's, because a read that has locked a table of the read model before tasks would
// stand in the way of a swap. OFFSET makes it a value: row level security lets no subquery into the condition of an
// index.
func timeOf(seq string) string {
	return `
	CROSS JOIN LATERAL (
		SELECT coalesce((
			SELECT e.recorded_at
			FROM {schema}.task_events e
			WHERE e.user_id = s.user_id AND e.seq <= ` + seq + `
			ORDER BY e.seq DESC
			LIMIT 1
		), '-infinity') AS at
		OFFSET 0
	) moment`
}

// isFuture adds whether a moment is still to come, as the database's clock has it; a seq is compared when the answer is
// there.
func (c *clauses) isFuture(m Moment) {
	if m.Time.IsZero() {
		c.add(`false`)
		return
	}
	c.add(`$?::timestamptz > clock_timestamp()`, m.Time)
}

// isFuture tells whether the moment is still to come.
func (st state) isFuture(m Moment, byClock bool) bool {
	return byClock || m.Time.IsZero() && m.Seq > max(st.shown, st.end.Seq)
}

// sqlAsOf has a row for each task that was live. Filtering and ordering the few that a user has is left to readAsOf:
// the past has no columns for it.
func (f TaskFilter) sqlAsOf() (columns, from string, args []any) {
	q := clauses{next: 2}
	q.add(`
	CROSS JOIN (SELECT `)
	q.seqAt(*f.AsOf)
	q.add(` AS seq, `)
	q.isFuture(*f.AsOf)
	q.add(` AS future) m
	` + timeOf(`m.seq`) + `
	LEFT JOIN LATERAL (
		SELECT h.*
		FROM (
			SELECT t.id
			FROM {schema}.tasks t
			WHERE t.user_id = s.user_id AND t.deleted_at IS NULL
			UNION ALL
			SELECT t.id
			FROM {schema}.tasks t
			WHERE t.user_id = s.user_id AND t.deleted_at >= moment.at AND t.version > m.seq
		) t
		CROSS JOIN LATERAL (
			SELECT ` + events.HistoryTaskColumns + `
			FROM {schema}.task_history h
			WHERE h.user_id = s.user_id AND h.task_id = t.id AND h.seq <= m.seq
			ORDER BY h.seq DESC
			LIMIT 1
		) h
		WHERE h.version > 0 AND h.deleted_at IS NULL
	) x ON true`)
	return `m.future, x.task_id, x.*`, string(q.text), q.args
}

func (f TaskFilter) readAsOf(rows pgx.Rows, st state, page Page, a *Answer, w *writer) error {
	p := newPicker(f, page)
	if err := f.visitAsOf(rows, st, func(t events.Task) { p.add(&t) }); err != nil {
		return err
	}
	w.body = p.list(a)
	return nil
}

// visitAsOf calls visit with the tasks of the rows.
func (f TaskFilter) visitAsOf(rows pgx.Rows, st state, visit func(events.Task)) error {
	var future bool
	if err := rows.Scan(places(&future, nil, nil, nil, nil, nil, nil, nil, nil, nil)...); err != nil {
		return err
	}
	if st.isFuture(*f.AsOf, future) {
		return ErrFuture
	}
	for there := rows.RawValues()[headColumns+1] != nil; there; there = rows.Next() {
		t, err := events.ScanHistoryTask(rows, st.user, places(nil, nil)...)
		if err != nil {
			return err
		}
		visit(t)
	}
	return rows.Err()
}

// taskAsOf finds a task as it was, if it was live.
func (r *Reader) taskAsOf(ctx context.Context, ask Ask, id uuid.UUID, m Moment) (Answer, error) {
	q := clauses{next: 3}
	q.add(`
	CROSS JOIN (SELECT `)
	q.isFuture(m)
	q.add(` AS future) m
	LEFT JOIN LATERAL (
		SELECT ` + events.HistoryTaskColumns + `
		FROM {schema}.task_history h
		WHERE h.user_id = s.user_id AND h.task_id = $2 AND h.seq <= `)
	q.seqAt(m)
	q.add(`
		ORDER BY h.seq DESC
		LIMIT 1
	) x ON true`)
	return r.answer(ctx, ask, question{
		key: fmt.Sprintf("as of %[2]d %[3]d: task %[1]s", id, m.Seq, m.Time.UnixNano()),
		sql: func() (string, []any) {
			return statement(`m.future, x.task_id, x.*`, string(q.text)), append([]any{[16]byte(id)}, q.args...)
		},
		read: func(rows pgx.Rows, st state, a *Answer, w *writer) error {
			err := ErrNotFound
			visitErr := TaskFilter{AsOf: &m}.visitAsOf(rows, st, func(t events.Task) {
				if t.Live() {
					err, a.Version, w.body = nil, t.Version, t.AppendJSON(nil)
				}
			})
			return cmp.Or(visitErr, err)
		},
	})
}
