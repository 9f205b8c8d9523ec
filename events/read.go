package events

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"go.opentelemetry.io/otel/trace"
)

// Batch is a stretch of the log: the events behind position From, through position To.
type Batch struct {
	From, To int64
	Events   []Event
	// Appends are the spans that its events were appended in, of those that are traced. The log does not store them: a
	// batch that was read from it has those only that were handed over in memory.
	Appends []trace.Span
}

func (b *Batch) len() int { return len(b.Events) }

// Columns are those of an event in the log e that ScanEvent reads.
const Columns = `e.position, e.user_id, e.seq, e.task_id, e.type, e.schema_version, e.data, e.event_id, e.command_id,
	e.actor, e.request_id, e.recorded_at,
	(e.user_id, e.seq) IN (SELECT s.user_id, s.seq FROM {schema}.skipped_events s)`

// batchBytes bounds a batch of the log by the bytes of its data: with the event that reaches it, the batch is full.
const batchBytes = 16 << 20

// nextBatch joins the next batch e behind c.position to c: $2 events, or as few as have the bytes of $3. Those end at
// x.position, which is null where there are fewer; the search for that reads no further.
const nextBatch = `
	LEFT JOIN LATERAL (
		SELECT s.position
		FROM (
			SELECT n.position,
				sum(CASE
					WHEN pg_column_compression(n.data) IS NULL THEN pg_column_size(n.data)
					ELSE octet_length(n.data::text)
				END) OVER (ORDER BY n.position ROWS UNBOUNDED PRECEDING) AS bytes
			FROM (
				SELECT position, data
				FROM {schema}.task_events
				WHERE position > c.position
				ORDER BY position
				LIMIT $2
			) n
		) s
		WHERE s.bytes >= $3
		ORDER BY s.position
		LIMIT 1
	) x ON true
	LEFT JOIN LATERAL (
		SELECT *
		FROM {schema}.task_events t
		WHERE t.position > c.position AND t.position <= coalesce(x.position, 9223372036854775807)
		ORDER BY t.position
		LIMIT $2
	) e ON true`

// Read reads the log behind position after, in the order of commits, at most limit events and about 16 MiB; none at the
// end of the log. No reader ever skips one: commit order is position order.
func Read(ctx context.Context, from Querier, after int64, limit int) (Batch, error) {
	return readBatch(ctx, from, after, limit, batchBytes)
}

func readBatch(ctx context.Context, from Querier, after int64, limit, bytes int) (Batch, error) {
	b := Batch{From: after, To: after}
	err := from.Query(ctx, `
		SELECT `+Columns+`
		FROM (SELECT $1::bigint AS position) c`+nextBatch+`
		WHERE e.position IS NOT NULL
		ORDER BY e.position`, []any{after, limit, bytes}, func(rows pgx.Rows) error {
		return visitEvents(rows, func(e Event) error {
			b.Events, b.To = append(b.Events, e), e.Position
			return nil
		})
	})
	if err != nil {
		return Batch{}, fmt.Errorf("read log: %w", err)
	}
	return b, nil
}

// ReadStream calls visit with the user's events behind seq after, through another one, oldest first, and stops at
// visit's first error.
func ReadStream(ctx context.Context, from Querier, user string, after, through int64, visit func(Event) error) error {
	err := from.Query(ctx, `
		SELECT `+Columns+`
		FROM {schema}.task_events e
		WHERE e.user_id = $1 AND e.seq > $2 AND e.seq <= $3
		ORDER BY e.seq`, []any{user, after, through}, func(rows pgx.Rows) error { return visitEvents(rows, visit) })
	if err != nil {
		return fmt.Errorf("read stream: %w", err)
	}
	return nil
}

// ReadStreams calls visit with every event up to position through, user by user and each user's in order, and stops at
// visit's first error. An empty user means all users.
func ReadStreams(ctx context.Context, from Querier, user string, through int64, visit func(Event) error) error {
	where, args := `e.position <= $1`, []any{through}
	if user != "" {
		where, args = `e.position <= $1 AND e.user_id = $2`, []any{through, user}
	}
	err := from.Query(
		ctx,
		`SELECT `+Columns+` FROM {schema}.task_events e WHERE `+where+` ORDER BY e.user_id, e.seq`,
		args,
		func(rows pgx.Rows) error { return visitEvents(rows, visit) },
	)
	if err != nil {
		return fmt.Errorf("read streams: %w", err)
	}
	return nil
}

func visitEvents(rows pgx.Rows, visit func(Event) error) error {
	for rows.Next() {
		e, err := ScanEvent(rows)
		if err != nil {
			return err
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return rows.Err()
}

// ScanEvent reads an event from the columns of this package, and then more columns into places. It scans into what pgx
// knows best: a uuid.UUID it would make a text of, and read that.
func ScanEvent(rows pgx.Rows, places ...any) (Event, error) {
	var (
		e       Event
		typ     Type
		version int
		data    pgtype.DriverBytes // good until the next row
		task    pgtype.UUID
		at      time.Time
		skipped bool
	)
	err := rows.Scan(append([]any{
		&e.Position, &e.UserID, &e.Seq, &task, (*string)(&typ), &version, &data,
		(*[16]byte)(&e.EventID), (*[16]byte)(&e.CommandID), &e.Actor, &e.RequestID, &at, &skipped,
	}, places...)...)
	if err != nil {
		return Event{}, err
	}
	e.TaskID, e.RecordedAt = task.Bytes, at.UTC()
	return e, e.read(typ, version, data, skipped)
}
