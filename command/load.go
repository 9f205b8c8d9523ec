package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// loadStream is what a decision needs, in one statement: what the read model shows of the user, the tasks as of that,
// and the events behind it. So it costs the same on a stream of ten events and of ten million. Its first rows have no
// event; each of them has one of the tasks, or, when there is none of them, no task.
const loadStream = `
	WITH shown AS MATERIALIZED (
		SELECT coalesce(max(u.seq), 0) AS seq, coalesce(max(u.live), 0) AS live,
			coalesce(max(u.generation), 0) AS user_generation,
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
	SELECT NULL::bigint, NULL::text, NULL::bigint AS seq, NULL::uuid, NULL::text, NULL::integer, NULL::jsonb,
		NULL::uuid, NULL::uuid, NULL::text, NULL::text, NULL::timestamptz, NULL::boolean,
		s.live, s.generation, s.user_generation, h.seq, h.position, h.event_id, t.body
	FROM shown s
	LEFT JOIN head h ON true
	LEFT JOIN {schema}.tasks t ON t.user_id = $1 AND t.id = ANY ($2::uuid[])
	UNION ALL
	SELECT ` + events.Columns + `, NULL, NULL, NULL, NULL, NULL, NULL, NULL
	FROM shown s
	JOIN {schema}.task_events e ON e.user_id = $1 AND e.seq > s.seq
	ORDER BY 3 NULLS FIRST`

// load reads the user's stream, with the tasks named.
func load(ctx context.Context, from events.Querier, user string, quota int, tasks []uuid.UUID) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	s := newStream(quota)
	for _, id := range tasks {
		s.know(id, events.Task{})
	}
	err := from.Query(ctx, loadStream, []any{user, tasks}, func(rows pgx.Rows) error {
		var end events.Head
		n := 0
		for ; rows.Next(); n++ {
			if first := rows.RawValues()[0] == nil; first {
				var err error
				if end, err = s.begin(rows); err != nil {
					return err
				}
				continue
			}
			e, err := events.ScanEvent(rows, nil, nil, nil, nil, nil, nil, nil)
			if err != nil {
				return err
			}
			if err := s.apply(&e); err != nil {
				return err
			}
		}
		s.head = end
		if n == 0 {
			return errors.Join(rows.Err(), errors.New("there is no read model"))
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("load a stream: %w", err)
	}
	return s, nil
}

// begin reads a row of what the read model shows. It returns the end of the stream.
func (s *stream) begin(rows pgx.Rows) (end events.Head, err error) {
	var (
		seq, position *int64
		id            *[16]byte
		body          []byte
	)
	places := append(make([]any, 13), &s.live, &s.generation, &s.userGeneration, &seq, &position, &id, &body)
	if err := rows.Scan(places...); err != nil {
		return end, err
	}
	if seq != nil {
		end = events.Head{Seq: *seq, Position: *position, EventID: *id}
	}
	if body == nil {
		return end, nil
	}
	t, err := events.ParseTask(body)
	if err == nil {
		s.know(t.ID, t)
	}
	return end, err
}

// moment is a task as of a seq of its user.
type moment struct {
	task uuid.UUID
	seq  int64
}

// readAsOf finds tasks as they were, as far as the read model shows them.
const readAsOf = `
	SELECT m.n, s.seq, h.seq IS NOT NULL, coalesce(h.task_id, m.task_id), coalesce(h.version, 0),
		coalesce(h.title, ''), h.description, coalesce(h.is_completed, false), coalesce(h.created_at, now()),
		coalesce(h.updated_at, h.recorded_at, now()), h.deleted_at
	FROM unnest($2::uuid[], $3::bigint[]) WITH ORDINALITY m(task_id, seq, n)
	CROSS JOIN (SELECT coalesce(max(u.seq), 0) AS seq FROM {schema}.users u WHERE u.user_id = $1) s
	LEFT JOIN LATERAL (
		SELECT *
		FROM {schema}.task_history h
		WHERE h.user_id = $1 AND h.task_id = m.task_id AND h.seq <= m.seq AND h.seq <= s.seq
		ORDER BY h.seq DESC
		LIMIT 1
	) h ON true`

// asOf gives tasks as they were, from what the read model keeps of the past and the log behind it. It also returns how
// far that goes: at least to the last of the moments, if the stream goes so far.
func asOf(
	ctx context.Context,
	from events.Querier,
	user string,
	moments []moment,
) (tasks []events.Task, end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	ids, seqs, last := make([]uuid.UUID, len(moments)), make([]int64, len(moments)), int64(0)
	for i, m := range moments {
		ids[i], seqs[i], last = m.task, m.seq, max(last, m.seq)
	}
	tasks = make([]events.Task, len(moments))
	err = from.Query(ctx, readAsOf, []any{user, ids, seqs}, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				n     int
				there bool
			)
			t, err := events.ScanHistoryTask(rows, user, &n, &end, &there)
			if err != nil {
				return err
			}
			if there {
				tasks[n-1] = t
			}
		}
		return rows.Err()
	})
	if err == nil && end < last {
		err = events.ReadStream(ctx, from, user, end, last, func(e events.Event) error {
			end = e.Seq
			for i, m := range moments {
				if _, erased := e.Data.(events.UserErased); e.Seq > m.seq || e.TaskID != m.task && !erased {
					continue
				}
				after, err := events.Fold(tasks[i], e)
				if err != nil {
					return err
				}
				tasks[i] = after
			}
			return nil
		})
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read tasks as they were: %w", err)
	}
	return tasks, end, nil
}
