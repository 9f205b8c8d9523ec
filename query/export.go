package query

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

const (
	// exportEvents and exportBytes bound what is read at a time of an export, and so the memory that it takes.
	exportEvents = 1000
	exportBytes  = 256 << 10
	// exportTime bounds the time for that.
	exportTime = 5 * time.Second
)

// Export is the user's part of the log, as far as the read model shows it, on its way out. It holds no connection of
// the database: its reader may be slow.
type Export struct {
	r       *Reader
	user    string
	through int64 // seq
	lines   events.Exporter
}

// Export begins an export; Answer is its head, and has no Body.
func (r *Reader) Export(ctx context.Context, ask Ask) (Answer, *Export, error) {
	a, err := r.answer(ctx, ask, question{
		key:  "export",
		sql:  func() (string, []any) { return statement(`1`, ``), nil },
		read: func(pgx.Rows, state, *Answer, *writer) error { return nil },
	})
	return a, &Export{r: r, user: ask.UserID, through: a.Seq}, err
}

const exportLines = `
	WITH scope AS MATERIALIZED (
		SELECT set_config('taskledger.user_id', $1, true) COLLATE "C" AS user_id
	)
	SELECT ` + events.Columns + `
	FROM scope s
	CROSS JOIN LATERAL (
		SELECT *
		FROM {schema}.task_events e
		WHERE e.user_id = s.user_id AND e.seq > $2 AND e.seq <= $3
		ORDER BY e.seq
		LIMIT $4
	) e
	ORDER BY e.seq`

// Next appends the next lines to b; io.EOF behind the last one. events.ErrBroken: the user was erased meanwhile, or
// events are missing in the log.
func (x *Export) Next(ctx context.Context, b []byte) ([]byte, error) {
	if x.lines.Seq >= x.through {
		return b, io.EOF
	}
	ctx, cancel := context.WithTimeout(ctx, exportTime)
	defer cancel()
	before := x.lines.Seq
	err := x.r.db.Query(
		ctx,
		exportLines,
		[]any{x.user, before, x.through, exportEvents},
		func(rows pgx.Rows) (err error) {
			for len(b) < exportBytes && rows.Next() {
				var l events.Line
				if l.Event, err = events.ScanEvent(rows); err != nil {
					return err
				}
				if b, err = x.lines.Append(b, &l); err != nil {
					return err
				}
			}
			return rows.Err()
		},
	)
	if err == nil && x.lines.Seq == before {
		err = fmt.Errorf("%w behind event %d", events.ErrBroken, before)
	}
	if err != nil {
		return b, fmt.Errorf("export: %w", err)
	}
	return b, nil
}
