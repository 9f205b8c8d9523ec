package query

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// HistoryFilter lists events, also those of deleted tasks.
type HistoryFilter struct {
	TaskID *uuid.UUID  // nil = of every task
	Type   events.Type // empty = every type
	Since  *Moment     // exclusive; nil = from the beginning
	Until  *Moment     // inclusive; nil = to the end
	Order  Order
}

func (f HistoryFilter) list() string { return "history" }

const historyColumns = `h.seq, h.type, h.task_id, h.recorded_at, h.actor, h.request_id, h.changes, h.hash`

func (f HistoryFilter) sql(page Page) (columns, from string, args []any) {
	q := clauses{next: 2}
	q.add(`
			SELECT ` + historyColumns + `
			FROM {schema}.task_history h
			WHERE h.user_id = s.user_id`)
	if f.TaskID != nil {
		q.add(` AND h.task_id = $?`, *f.TaskID)
	}
	if f.Type != "" {
		q.add(` AND h.type = $?`, string(f.Type))
	}
	if f.Since != nil {
		q.add(` AND h.seq > `)
		q.seqAt(*f.Since)
	}
	if f.Until != nil {
		q.add(` AND h.seq <= `)
		q.seqAt(*f.Until)
	}
	if page.After != nil {
		q.add(` AND h.seq `+f.Order.beyond()+` $?`, page.After.Seq)
	}
	q.add(` ORDER BY h.seq ` + f.Order.sql())
	q.limit(page)
	return `x.*`, q.lateral(), q.args
}

func (f HistoryFilter) read(rows pgx.Rows, _ state, page Page, a *Answer, w *writer) error {
	return readItems(rows, page, a, w, readEntry, func(item []byte) (Place, error) {
		var e struct {
			Seq int64 `json:"seq"`
		}
		err := json.Unmarshal(item, &e)
		return Place{Seq: e.Seq}, err
	})
}

func readEntry(b []byte, rows pgx.Rows) ([]byte, error) {
	var e entry
	if err := rows.Scan(places(e.columns()...)...); err != nil {
		return nil, err
	}
	return append(e.append(b), '}'), nil
}

// entry is one event as people read it.
type entry struct {
	seq              int64
	kind             events.Type
	task             uuid.UUID
	recorded         time.Time
	actor, requestID string
	changes, hash    []byte
}

func (e *entry) columns() []any {
	return []any{&e.seq, &e.kind, &e.task, &e.recorded, &e.actor, &e.requestID, &e.changes, &e.hash}
}

// append appends the entry as clients see it, but for the brace that closes it.
func (e *entry) append(b []byte) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendInt(b, e.seq, 10)
	b = append(b, `,"type":`...)
	b = events.AppendText(b, string(e.kind))
	b = append(b, `,"task_id":`...)
	if e.task == uuid.Nil {
		b = append(b, `null`...)
	} else {
		b = append(append(append(b, '"'), e.task.String()...), '"')
	}
	b = append(b, `,"recorded_at":"`...)
	b = events.AppendTime(b, e.recorded)
	b = append(b, `","actor":`...)
	b = events.AppendText(b, e.actor)
	b = append(b, `,"request_id":`...)
	b = events.AppendText(b, e.requestID)
	b = append(b, `,"changes":`...)
	b = append(b, e.changes...)
	b = append(b, `,"hash":"`...)
	b = hex.AppendEncode(b, e.hash)
	return append(b, '"')
}

// TaskHistory is List for a HistoryFilter of one task, deleted or not. A task that the user never had is ErrNotFound.
func (r *Reader) TaskHistory(ctx context.Context, ask Ask, l Listing) (Answer, error) {
	a, err := r.List(ctx, ask, l)
	if err != nil || string(a.Body) != "[]" {
		return a, err
	}
	known := false
	text := statement(`x.known`, `
	CROSS JOIN LATERAL (
		SELECT EXISTS (SELECT FROM {schema}.task_history h WHERE h.user_id = s.user_id AND h.task_id = $2) AS known
	) x`)
	args := []any{ask.UserID, l.Filter.(HistoryFilter).TaskID}
	if _, err := events.One(ctx, r.db, text, args, places(&known)...); err != nil {
		return Answer{}, fmt.Errorf("read history: %w", err)
	}
	if !known {
		return a, ErrNotFound
	}
	return a, nil
}

// Change is what a stream of live changes tells: the event's seq and type, and its entry with the task after it, in
// JSON.
type Change struct {
	Seq  int64
	Type events.Type
	JSON []byte
}

// changes are a statement of its own: what a stream shows is what the read model shows, whenever that is.
const changes = `
	WITH scope AS MATERIALIZED (
		SELECT set_config('taskledger.user_id', $1, true) COLLATE "C" AS user_id
	)
	SELECT ` + historyColumns + `, ` + events.HistoryTaskColumns + `
	FROM scope s
	CROSS JOIN LATERAL (
		SELECT *
		FROM {schema}.task_history h
		WHERE h.user_id = s.user_id AND h.seq > $2
		ORDER BY h.seq
		LIMIT $3
	) h
	ORDER BY h.seq`

// Changes lists the user's events behind seq after that the read model shows, oldest first, at most limit of them.
func (r *Reader) Changes(ctx context.Context, user string, after int64, limit int) ([]Change, error) {
	var found []Change
	err := r.db.Query(ctx, changes, []any{user, after, limit}, func(rows pgx.Rows) error {
		for rows.Next() {
			var e entry
			t, err := events.ScanHistoryTask(rows, user, e.columns()...)
			if err != nil {
				return err
			}
			b := append(e.append(nil), `,"task":`...)
			if t.Live() {
				b = t.AppendJSON(b)
			} else {
				b = append(b, `null`...)
			}
			found = append(found, Change{Seq: e.seq, Type: e.kind, JSON: append(b, '}')})
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read changes: %w", err)
	}
	return found, nil
}
