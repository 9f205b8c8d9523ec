package query

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// changedSince are the user's tasks that changed after a seq ($2), each once, in the order of their last changes, one
// more than asked for ($3). Deleted ones are told too, but not to who begins at 0, and who has nothing. Who stands
// before an erasure ($2 is of another life, and the stream does not begin at 1 any more) begins at 0 as well, and is
// told so; where it begins is asked of the log, for the reason that timeOf has.
var changedSince = `
	LEFT JOIN LATERAL (
		SELECT b.seq > 1 AND $2::bigint BETWEEN 1 AND b.seq - 1 AS reset
		FROM (SELECT e.seq FROM {schema}.task_events e WHERE e.user_id = s.user_id ORDER BY e.seq LIMIT 1) b
	) b ON true
	LEFT JOIN LATERAL (
		SELECT c.*
		FROM (SELECT CASE WHEN b.reset THEN 0 ELSE $2::bigint END AS seq) since` + timeOf(`since.seq`) + `
		CROSS JOIN LATERAL (
			(
				SELECT t.version, t.id, t.body
				FROM {schema}.tasks t
				WHERE t.user_id = s.user_id AND t.deleted_at IS NULL AND t.version > since.seq
				ORDER BY t.version
				LIMIT $3
			)
			UNION ALL
			(
				SELECT t.version, t.id, NULL
				FROM {schema}.tasks t
				WHERE t.user_id = s.user_id AND t.deleted_at >= moment.at AND t.version > since.seq AND since.seq > 0
				ORDER BY t.deleted_at, t.version
				LIMIT $3
			)
		) c
		ORDER BY c.version
		LIMIT $3
	) x ON true`

// Sync answers with what a copy of the user's tasks needs that reflects a seq of the user, or nothing when that is 0:
// at most limit changes, as {"changes":[…],"version":n,"has_more":b}. Where the user has been erased since,
// "reset":true tells to drop the copy before. ErrFuture: the user's stream has not come to that seq.
func (r *Reader) Sync(ctx context.Context, ask Ask, since int64, limit int) (Answer, error) {
	return r.answer(ctx, ask, question{
		key: fmt.Sprintf("sync %d %d", since, limit),
		sql: func() (string, []any) {
			return statement(`coalesce(b.reset, false), x.version, x.id, x.body`, changedSince), []any{since, limit + 1}
		},
		read: func(rows pgx.Rows, st state, a *Answer, w *writer) error {
			if since > max(st.shown, st.end.Seq) {
				return ErrFuture
			}
			return readChanges(rows, max(st.shown, since), limit, w)
		},
	})
}

func readChanges(rows pgx.Rows, through int64, limit int, w *writer) error {
	var (
		reset, more bool
		n           int
		last        int64
	)
	w.body = append(w.body, `{"changes":[`...)
	for next := true; next; next = rows.Next() {
		var (
			version *int64
			id      *[16]byte
		)
		if err := rows.Scan(places(&reset, &version, &id, nil)...); err != nil {
			return err
		}
		if version == nil {
			break
		}
		if n == limit {
			through, more = last, true
			break
		}
		if n++; n > 1 {
			w.body = append(w.body, separator...)
		}
		if body := lastColumn(rows); body == nil {
			w.body = fmt.Appendf(w.body, `{"op":"delete","id":"%s","version":%d}`, uuid.UUID(*id), *version)
		} else {
			w.body = append(append(append(w.body, `{"op":"upsert","task":`...), body...), '}')
		}
		last = *version
	}
	w.body = fmt.Appendf(w.body, `],"version":%d,"has_more":%t`, through, more)
	if reset {
		w.body = append(w.body, `,"reset":true`...)
	}
	w.body = append(w.body, '}')
	return rows.Err()
}

// linkAt is the link at a seq ($2), or the last one. The index is only used for a value: coalesce in its place is a
// filter, under row level security.
const linkAt = `
	LEFT JOIN LATERAL (
		SELECT h.recorded_at, h.hash
		FROM {schema}.task_history h
		WHERE h.user_id = s.user_id
		AND h.seq = (SELECT coalesce($2, (SELECT u.seq FROM {schema}.users u WHERE u.user_id = $1)))
		LIMIT 1
	) x ON true`

// Link answers with a link of the user's chain, that of an event or, where seq is nil, of the last one:
// {"seq":n,"hash":"…","recorded_at":"…"}. Before the first event the link is zero. ErrNotFound: the event is one from
// before an erasure.
func (r *Reader) Link(ctx context.Context, ask Ask, seq *int64) (a Answer, err error) {
	for range linkAttempts {
		// The last event may be erased while it is looked for. A read that begins behind that waits for the erasure.
		if a, err = r.link(ctx, ask, seq); seq != nil || !errors.Is(err, ErrNotFound) {
			return a, err
		}
	}
	return a, err
}

// linkAttempts bounds how often the last link is looked for.
const linkAttempts = 3

func (r *Reader) link(ctx context.Context, ask Ask, seq *int64) (Answer, error) {
	key := "link"
	if seq != nil {
		key = fmt.Sprintf("link %d", *seq)
	}
	return r.answer(ctx, ask, question{
		key: key,
		sql: func() (string, []any) { return statement(`x.recorded_at, x.hash`, linkAt), []any{seq} },
		read: func(rows pgx.Rows, st state, _ *Answer, w *writer) error {
			var (
				at   *time.Time
				hash []byte
				of   = st.shown
			)
			if err := rows.Scan(places(&at, &hash)...); err != nil {
				return err
			}
			if seq != nil {
				of = *seq
			}
			switch {
			case of > max(st.shown, st.end.Seq):
				return ErrFuture
			case at == nil && of > 0:
				return ErrNotFound
			case at == nil:
				w.body = fmt.Appendf(w.body, `{"seq":0,"hash":"%s","recorded_at":null}`, events.Hash{})
			default:
				w.body = fmt.Appendf(
					w.body,
					`{"seq":%d,"hash":"%x","recorded_at":"%s"}`,
					of,
					hash,
					at.UTC().Format(events.TimeLayout),
				)
			}
			return nil
		},
	})
}
