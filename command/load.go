package command

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// loadStream is what a decision needs, in one statement: what the read model shows of the user, the task as of that, and the events
// behind it. So it costs the same on a stream of ten events and of ten million. Its first row has no event, and no task if there is
// none.
const loadStream = `
	WITH shown AS MATERIALIZED (
		SELECT coalesce(max(u.seq), 0) AS seq, coalesce(max(u.live), 0) AS live,
			(SELECT c.generation FROM {schema}.checkpoints c WHERE c.projection = 'tasks') AS generation
		FROM {schema}.users u
		WHERE u.user_id = $1
	), head AS MATERIALIZED (
		SELECT e.seq, e.position, e.event_id
		FROM {schema}.task_events e
		WHERE e.user_id = $1
		ORDER BY e.seq DESC
		LIMIT 1
	)
	SELECT NULL::bigint, NULL::text, NULL::bigint AS seq, NULL::uuid, NULL::text, NULL::integer, NULL::jsonb, NULL::uuid, NULL::uuid,
		NULL::text, NULL::text, NULL::timestamptz, NULL::boolean,
		s.live, s.generation, h.seq, h.position, h.event_id, t.body, t.deleted_at
	FROM shown s
	LEFT JOIN head h ON true
	LEFT JOIN {schema}.tasks t ON t.user_id = $1 AND t.id = $2
	UNION ALL
	SELECT ` + events.Columns + `, NULL, NULL, NULL, NULL, NULL, NULL, NULL
	FROM shown s
	JOIN {schema}.task_events e ON e.user_id = $1 AND e.seq > s.seq AND e.seq <= $3
	ORDER BY 3 NULLS FIRST`

// load reads the user's stream, with one task if one is named, through a seq at most.
func load(ctx context.Context, from events.Querier, user string, quota int, task *uuid.UUID, through int64) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	s := newStream(quota)
	if task != nil {
		s.know(*task, events.Task{})
	}
	err := from.Query(ctx, loadStream, []any{user, task, through}, func(rows pgx.Rows) error {
		if !rows.Next() {
			return errors.Join(rows.Err(), errors.New("there is no read model"))
		}
		end, err := s.begin(rows)
		if err != nil {
			return err
		}
		for rows.Next() {
			e, err := events.ScanEvent(rows, nil, nil, nil, nil, nil, nil, nil)
			if err != nil {
				return err
			}
			if err := s.apply(&e); err != nil {
				return err
			}
		}
		s.head = end
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("load a stream: %w", err)
	}
	return s, nil
}

// begin reads the first row: what the read model shows. It returns the end of the stream.
func (s *stream) begin(rows pgx.Rows) (end events.Head, err error) {
	var (
		seq, position *int64
		id            *[16]byte
		body          *string
	)
	places := append(make([]any, 13), &s.live, &s.generation, &seq, &position, &id, &body, nil)
	if err := rows.Scan(places...); err != nil {
		return end, err
	}
	if seq != nil {
		end = events.Head{Seq: *seq, Position: *position, EventID: *id}
	}
	if body == nil {
		return end, nil
	}
	t, err := events.ScanTask(rows, make([]any, 18)...)
	if err == nil {
		s.know(t.ID, t)
	}
	return end, err
}

// findKey finds the command that an idempotency key was used for, and the task as that left it, if the read model shows that.
const findKey = `
	SELECT f.task_id, f.request_fingerprint, l.seq, h.seq IS NOT NULL,
		coalesce(h.task_id, f.task_id), l.seq, coalesce(h.recorded_at, f.recorded_at), coalesce(h.title, ''), h.description,
		coalesce(h.is_completed, false), coalesce(h.created_at, f.recorded_at), h.deleted_at
	FROM {schema}.task_events f
	CROSS JOIN LATERAL (
		SELECT e.seq
		FROM {schema}.task_events e
		WHERE e.user_id = f.user_id AND e.seq BETWEEN f.seq AND f.seq + $3 AND e.command_id = f.command_id
		ORDER BY e.seq DESC
		LIMIT 1
	) l
	LEFT JOIN LATERAL (
		SELECT * FROM {schema}.task_history h WHERE h.user_id = f.user_id AND h.seq = l.seq
	) h ON true
	WHERE f.user_id = $1 AND f.idempotency_key = $2`

// maxCommandEvents is more events than any command has.
const maxCommandEvents = 1000

// replayAttempts is how often the read model may go past what is looked for.
const replayAttempts = 3

// replay answers with what an earlier command with the same key left behind; nil when there was none. It needs nothing but the log and
// what is derived of it, and so holds for ever, also where the first answer never left.
func replay(ctx context.Context, from events.Querier, req Request, print []byte) (*Result, error) {
	if req.Key == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	result, err := findReplay(ctx, from, req, print)
	if err == nil && result != nil {
		err = events.Durable(ctx, from)
	}
	return result, err
}

func findReplay(ctx context.Context, from events.Querier, req Request, print []byte) (*Result, error) {
	for range replayAttempts {
		var (
			task   uuid.UUID
			used   []byte
			last   int64
			shown  bool
			result = Result{Replayed: true}
			found  bool
		)
		err := from.Query(ctx, findKey, []any{req.UserID, req.Key, maxCommandEvents}, func(rows pgx.Rows) (err error) {
			if found = rows.Next(); !found {
				return rows.Err()
			}
			result.Task, err = events.ScanHistoryTask(rows, req.UserID, &task, &used, &last, &shown)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("find an idempotency key: %w", err)
		}
		if !found {
			return nil, nil
		}
		if string(used) != string(print) {
			return nil, ErrKeyReused
		}
		result.Seq = last
		if shown {
			return &result, nil
		}
		s, err := load(ctx, from, req.UserID, math.MaxInt, &task, last)
		if err != nil {
			return nil, err
		}
		if t := s.tasks[task]; t.Version == last {
			result.Task = *t
			return &result, nil
		}
		// The read model has gone past it in between, and so shows it now.
	}
	return nil, errors.New("find an idempotency key: the read model does not hold what its command did")
}
