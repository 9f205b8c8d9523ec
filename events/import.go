package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// ahead is how far ahead of the log's end the positions of an import begin: more than is appended while it is being
	// stored.
	ahead = 1 << 24
	// importEvents and importBytes bound the lines that are stored at a time.
	importEvents = 1000
	importBytes  = 4 << 20
)

// ErrWritten refuses an import when somebody writes for one of its users meanwhile.
var ErrWritten = errors.New(
	"a user of the export is being written for on this ledger: keep that user's clients away until it is done")

// Import stores an export in the log, in one transaction, and in a way that holds up the appends of others for a moment
// only: its events get positions ahead of the log's end and need no lock, until at last Join moves that end behind
// them. So commit order is position order all the same.
type Import struct {
	*Audit
	// Position is that of the event stored last.
	Position int64

	tx   *Tx
	base int64 // the positions begin behind it
	end  int64 // the position through which it is known who was appended for since the beginning
}

// beginImport lifts the limits that a server may have for its sessions, and tells where the log ends.
const beginImport = `
	SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true),
		coalesce(pg_sequence_last_value('{schema}.task_events_position_seq'::regclass), 0)`

// BeginImport begins the import of an export in a transaction, which must not be a snapshot. There must be one at a
// time, and the export must come without delay: who writes for one of its users waits, and others may wait behind.
func BeginImport(ctx context.Context, tx *Tx, export io.Reader) (*Import, error) {
	im := &Import{Audit: NewAudit(export), tx: tx}
	if _, err := One(ctx, tx, beginImport, nil, nil, nil, &im.end); err != nil {
		return nil, fmt.Errorf("begin an import: %w", err)
	}
	im.base = im.end + ahead
	im.Position = im.base
	return im, nil
}

// Store stores the next lines of the export and returns them; none behind the last. It returns a *LineError for the
// first line that is wrong, or about a user who is in the log.
func (im *Import) Store(ctx context.Context) ([]Line, error) {
	lines, err := im.next()
	if err != nil || len(lines) == 0 {
		return nil, err
	}
	if err := im.checkUsers(ctx, lines); err != nil {
		return nil, err
	}
	if err := im.insert(ctx, lines); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return lines, nil
}

func (im *Import) next() (lines []Line, err error) {
	for size := 0; len(lines) < importEvents && size < importBytes; {
		l, err := im.Next()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		if err := l.Readable(); err != nil {
			return nil, err
		}
		im.Position++
		l.Position = im.Position
		size += len(l.stored)
		lines = append(lines, l)
	}
	return lines, nil
}

// Readable is a *LineError for an event of a type or version that this program does not know, or whose data does not
// fit them.
func (l *Line) Readable() error {
	if d, ok := l.Data.(Unreadable); ok {
		return &LineError{Line: l.Number, Err: d.Err}
	}
	return nil
}

// checkUsers refuses users who are in the log, and gives way to somebody who waits for this transaction: that can only
// be for what it has stored of one of its users, and others may be waiting behind.
func (im *Import) checkUsers(ctx context.Context, lines []Line) error {
	begins := map[string]int64{}
	var users []string
	for i := range lines {
		if _, erased := lines[i].Data.(UserErased); erased || lines[i].Seq == 1 {
			begins[lines[i].UserID] = lines[i].Number
			users = append(users, lines[i].UserID)
		}
	}
	var waiting bool
	var there *string
	_, err := One(ctx, im.tx, `
		SELECT EXISTS (
			SELECT
			FROM pg_locks
			WHERE locktype = 'transactionid' AND NOT granted AND transactionid = pg_current_xact_id()::xid
		), (
			SELECT u.user_id
			FROM unnest($1::text[]) WITH ORDINALITY u(user_id, n)
			WHERE EXISTS (SELECT FROM {schema}.task_events e WHERE e.user_id = u.user_id)
			ORDER BY u.n
			LIMIT 1
		)`, []any{users}, &waiting, &there)
	switch {
	case err != nil:
		return fmt.Errorf("import: %w", err)
	case there != nil:
		return &LineError{Line: begins[*there], Err: fmt.Errorf("user %q is in this ledger already", *there)}
	case waiting:
		return ErrWritten
	}
	return nil
}

// insertImport stores lines, each at its position.
const insertImport = `
	WITH line AS MATERIALIZED (
		SELECT *
		FROM unnest(
			$1::bigint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::integer[], $7::text[], $8::uuid[],
			$9::uuid[], $10::text[], $11::bytea[], $12::text[], $13::text[], $14::timestamptz[], $15::boolean[]
		) AS line (
			position, user_id, seq, task_id, type, schema_version, data, event_id, command_id,
			idempotency_key, request_fingerprint, actor, request_id, recorded_at, skipped
		)
	), skipped AS (
		INSERT INTO {schema}.skipped_events (user_id, seq)
		SELECT user_id, seq
		FROM line
		WHERE skipped
	)
	INSERT INTO {schema}.task_events (
		position, user_id, seq, task_id, type, schema_version, data, event_id, command_id,
		idempotency_key, request_fingerprint, actor, request_id, recorded_at
	)
	OVERRIDING SYSTEM VALUE
	SELECT
		position, user_id, seq, task_id, type, schema_version, data::jsonb, event_id, command_id,
		idempotency_key, request_fingerprint, actor, request_id, recorded_at
	FROM line
	ORDER BY position`

func (im *Import) insert(ctx context.Context, lines []Line) error {
	_, err := im.tx.Exec(
		ctx,
		insertImport,
		column(lines, func(l *Line) int64 { return l.Position }),
		column(lines, func(l *Line) string { return l.UserID }),
		column(lines, func(l *Line) int64 { return l.Seq }),
		column(
			lines,
			func(l *Line) pgtype.UUID { return pgtype.UUID{Bytes: l.TaskID, Valid: l.Data.Type() != TypeUserErased} },
		),
		column(lines, func(l *Line) string { return string(l.Data.Type()) }),
		column(lines, func(l *Line) int32 { return int32(l.version) }),
		column(lines, func(l *Line) string { return string(l.stored) }),
		column(lines, func(l *Line) [16]byte { return l.EventID }),
		column(lines, func(l *Line) [16]byte { return l.CommandID }),
		column(
			lines,
			func(l *Line) pgtype.Text { return pgtype.Text{String: l.IdempotencyKey, Valid: l.IdempotencyKey != ""} },
		),
		column(lines, func(l *Line) []byte {
			if l.IdempotencyKey == "" {
				return nil
			}
			return l.Fingerprint
		}),
		column(lines, func(l *Line) string { return l.Actor }),
		column(lines, func(l *Line) string { return l.RequestID }),
		column(lines, func(l *Line) time.Time { return l.RecordedAt }),
		column(lines, func(l *Line) bool { return l.Skipped }),
	)
	return err
}

// column is one column of many lines.
func column[V any](lines []Line, of func(*Line) V) []V {
	values := make([]V, len(lines))
	for i := range lines {
		values[i] = of(&lines[i])
	}
	return values
}

// Join makes what was stored the end of the log. Until the transaction ends nobody else can append.
func (im *Import) Join(ctx context.Context) error {
	if _, err := im.tx.Exec(ctx, lockLog, im.tx.db.LockKey("append")); err != nil {
		return fmt.Errorf("lock the log: %w", err)
	}
	if err := im.Check(ctx); err != nil {
		return err
	}
	var last int64
	_, err := One(ctx, im.tx, `
		SELECT s.last, setval('{schema}.task_events_position_seq'::regclass, greatest(s.last, $1))
		FROM (SELECT coalesce(pg_sequence_last_value('{schema}.task_events_position_seq'::regclass), 0) AS last) s`,
		[]any{im.Position}, &last, nil)
	if err == nil && last > im.base {
		err = errors.New("too much was appended meanwhile")
	}
	if err != nil {
		return fmt.Errorf("move the end of the log: %w", err)
	}
	return nil
}

// Check looks for whom others have appended since the beginning, or since it looked last: ErrWritten when the export is
// about one of them.
func (im *Import) Check(ctx context.Context) error {
	written := false
	err := im.tx.Query(ctx, `
		SELECT user_id, position
		FROM {schema}.task_events
		WHERE position > $1 AND position <= $2
		ORDER BY position`, []any{im.end, im.base}, func(rows pgx.Rows) error {
		var user string
		_, err := pgx.ForEachRow(rows, []any{&user, &im.end}, func() error {
			written = written || im.Has(user)
			return nil
		})
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("look at what was appended meanwhile: %w", err)
	case written:
		return ErrWritten
	}
	return nil
}
