package events

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Topic is the Watermill topic of the log and the name of its table. The same name is the NOTIFY channel on which each committed
// batch tells its last position.
const Topic = "task_events"

// appendLock is the key of the advisory lock under which positions are drawn and committed, so that commit order is position
// order and `position > n ORDER BY position` skips nothing. Any constant will do that nothing else in the database uses.
const appendLock = 7_405_316_120_001

// publish appends events by one Watermill Publish, which is one INSERT, and returns the position of the last.
func publish(to db, insert string, events []*Event) (position int64, err error) {
	messages := make(message.Messages, len(events))
	for i, e := range events {
		m, err := toMessage(e)
		if err != nil {
			return 0, err
		}
		messages[i] = m
	}
	exec := &executor{db: to}
	publisher, err := watermillsql.NewPublisher(exec, watermillsql.PublisherConfig{SchemaAdapter: insertAdapter{sql: insert}}, watermill.NopLogger{})
	if err != nil {
		return 0, fmt.Errorf("append: %w", err)
	}
	if err := publisher.Publish(Topic, messages...); err != nil {
		return 0, appendError(err)
	}
	// The database decided about these.
	if len(exec.appended) != len(events) {
		return 0, fmt.Errorf("append: %d events stored of %d", len(exec.appended), len(events))
	}
	for i, row := range exec.appended {
		events[i].Position, events[i].RecordedAt = row.Position, row.RecordedAt.UTC()
		position = row.Position
	}
	return position, nil
}

func appendError(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.ConstraintName {
		case "task_events_pkey":
			return ErrWrongSeq
		case "task_events_idempotency_key":
			return ErrKeyUsed
		}
	}
	return fmt.Errorf("append: %w", err)
}

// The metadata of a Watermill message of the log; its payload is the event's data, its UUID the event's id.
const (
	metaUser        = "user_id"
	metaSeq         = "seq"
	metaTask        = "task_id"
	metaType        = "type"
	metaVersion     = "schema_version"
	metaCommand     = "command_id"
	metaKey         = "idempotency_key"
	metaFingerprint = "request_fingerprint"
	metaActor       = "actor"
	metaRequest     = "request_id"
)

func toMessage(e *Event) (*message.Message, error) {
	version, data, err := Encode(e.Data)
	if err != nil {
		return nil, err
	}
	m := message.NewMessage(e.EventID.String(), data)
	m.Metadata = message.Metadata{
		metaUser:    e.UserID,
		metaSeq:     strconv.FormatInt(e.Seq, 10),
		metaTask:    e.TaskID.String(),
		metaType:    string(e.Data.Type()),
		metaVersion: strconv.Itoa(version),
		metaCommand: e.CommandID.String(),
		metaActor:   e.Actor,
		metaRequest: e.RequestID,
	}
	if e.IdempotencyKey != "" {
		m.Metadata[metaKey] = e.IdempotencyKey
		m.Metadata[metaFingerprint] = string(e.Fingerprint)
	}
	return m, nil
}

// insertAdapter is the SchemaAdapter of the log's publisher. The embedded interface is nil: a publisher only inserts.
type insertAdapter struct {
	watermillsql.SchemaAdapter
	sql string
}

// The lock comes before nextval: position is drawn for the rows of the join, and the join has no row before `locked` has one.
// recorded_at is read under the lock too, so it does not run backwards while position runs forwards.
const insertEvents = `
	WITH locked AS MATERIALIZED (
		SELECT pg_advisory_xact_lock($1)
	), stamped AS MATERIALIZED (
		SELECT clock_timestamp() AS recorded_at
		FROM locked
	), appended AS (
		INSERT INTO task_events (
			user_id, seq, task_id, type, schema_version, data, event_id, command_id,
			idempotency_key, request_fingerprint, actor, request_id, recorded_at
		)
		SELECT
			e.user_id, e.seq, e.task_id, e.type, e.schema_version, e.data, e.event_id, e.command_id,
			e.idempotency_key, e.request_fingerprint, e.actor, e.request_id, s.recorded_at
		FROM stamped s
		CROSS JOIN unnest(
			$2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::integer[], $7::jsonb[], $8::uuid[], $9::uuid[],
			$10::text[], $11::bytea[], $12::text[], $13::text[]
		) WITH ORDINALITY AS e(
			user_id, seq, task_id, type, schema_version, data, event_id, command_id,
			idempotency_key, request_fingerprint, actor, request_id, ordinality
		)
		ORDER BY e.ordinality
		RETURNING position, recorded_at
	), notified AS MATERIALIZED (
		SELECT pg_notify('` + Topic + `', max(position)::text)
		FROM appended
	)
	SELECT a.position, a.recorded_at
	FROM appended a
	CROSS JOIN notified
	ORDER BY a.position`

// InsertQuery implements watermill-sql's SchemaAdapter: all messages in one statement.
func (a insertAdapter) InsertQuery(_ string, messages message.Messages) (watermillsql.Query, error) {
	n := len(messages)
	var (
		users, tasks, types, data = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		ids, commands             = make([]string, n), make([]string, n)
		seqs, versions            = make([]int64, n), make([]int64, n)
		keys                      = make([]*string, n)
		fingerprints              = make([][]byte, n)
		actors, requests          = make([]string, n), make([]string, n)
	)
	for i, m := range messages {
		var seqErr, versionErr error
		seqs[i], seqErr = strconv.ParseInt(m.Metadata[metaSeq], 10, 64)
		versions[i], versionErr = strconv.ParseInt(m.Metadata[metaVersion], 10, 32)
		if err := errors.Join(seqErr, versionErr); err != nil {
			return watermillsql.Query{}, fmt.Errorf("message %s: %w", m.UUID, err)
		}
		users[i], tasks[i], types[i] = m.Metadata[metaUser], m.Metadata[metaTask], m.Metadata[metaType]
		ids[i], commands[i], data[i] = m.UUID, m.Metadata[metaCommand], string(m.Payload)
		actors[i], requests[i] = m.Metadata[metaActor], m.Metadata[metaRequest]
		if key, ok := m.Metadata[metaKey]; ok {
			keys[i], fingerprints[i] = &key, []byte(m.Metadata[metaFingerprint])
		}
	}
	return watermillsql.Query{Query: a.sql, Args: []any{
		int64(appendLock), users, seqs, tasks, types, versions, data, ids, commands, keys, fingerprints, actors, requests,
	}}, nil
}

// executor is the publisher's database. watermill-sql's Publish uses context.Background() and drops the result; this one gives
// both back: a deadline, and the positions. The embedded DB is nil: a publisher only calls ExecContext.
type executor struct {
	*sql.DB
	db       db
	appended []appendedRow
}

type appendedRow struct {
	Position   int64
	RecordedAt time.Time
}

// ExecContext runs the INSERT in one round trip. The two settings and the INSERT are one pipeline, which PostgreSQL takes as one
// implicit transaction: the limits hold for it alone, also behind a pooler that keeps no session state.
func (x *executor) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	batch := &pgx.Batch{}
	batch.Queue(`SELECT set_config('lock_timeout', '4s', true), set_config('statement_timeout', '5s', true)`)
	batch.Queue(query, args...)
	results := x.db.SendBatch(ctx, batch)
	_, err := results.Exec()
	if err == nil {
		rows, _ := results.Query()
		x.appended, err = pgx.CollectRows(rows, pgx.RowToStructByPos[appendedRow])
	}
	// The transaction commits at the end of the pipeline: only a clean Close says that it did.
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	return nil, err
}
