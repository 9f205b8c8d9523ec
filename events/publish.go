package events

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Topic is the Watermill topic of the log, and the name of its table.
const Topic = "task_events"

// lockLog is run before the INSERT, in one pipeline, which PostgreSQL takes as one implicit transaction: the settings
// hold for it alone, also behind a transaction pooler.
//
// Positions are drawn and committed under the lock, so that commit order is position order, and `position > n ORDER BY
// position` skips nothing. And the INSERT, a statement of its own, has a snapshot of after it took the lock: it sees
// all that others appended.
const lockLog = `
	SELECT pg_catalog.set_config('search_path', 'pg_catalog', true),
	       pg_catalog.set_config('lock_timeout', '4s', true),
	       pg_catalog.set_config('statement_timeout', '5s', true),
	       pg_catalog.set_config('idle_in_transaction_session_timeout', '5s', true),
	       pg_catalog.set_config('taskledger.ledger', 'on', true),
	       pg_catalog.set_config('row_security', 'on', true),
	       pg_catalog.pg_advisory_xact_lock($1)`

// announce is put behind lockLog when other processes listen. A NOTIFY at the commit of a batch costs nothing that can
// be measured.
const announce = `,
	       pg_catalog.pg_notify($2, '` + Appended + `')`

// insertEvents stores those commits of a batch whose stream ends at the event that they, or the one they are chained
// to, were decided on. That is asked by the event's id and not by its seq: after a failover to a standby that was
// behind, another event may have that seq. It keeps streams without holes too, whatever anybody remembers. The
// condition is the same for all events of a commit, so they are stored together or not. Rows come back in the order in
// which they were stored.
//
// It is written for few nodes in its plan: making them ready costs more than a row does.
const (
	insertEvents = `
	INSERT INTO {schema}.task_events (
		user_id, seq, task_id, type, schema_version, data, event_id, command_id,
		idempotency_key, request_fingerprint, actor, request_id, recorded_at
	)
	SELECT
		e.user_id, e.seq, e.task_id, e.type, e.schema_version, e.data, e.event_id, e.command_id,
		e.idempotency_key, e.request_fingerprint, e.actor, e.request_id,
		greatest((SELECT clock_timestamp()), head.recorded_at)
	FROM ROWS FROM (
		jsonb_to_recordset($1::jsonb) AS (
			user_id text, seq bigint, task_id uuid, type text, schema_version integer, data jsonb, event_id uuid,
			command_id uuid, idempotency_key text, request_fingerprint bytea, actor text, request_id text,
			after uuid, generation bigint, command_key text
		)
	) WITH ORDINALITY AS e
	LEFT JOIN LATERAL (
		SELECT t.event_id, t.recorded_at
		FROM {schema}.task_events t
		WHERE t.user_id = e.user_id
		ORDER BY t.seq DESC
		LIMIT 1
	) head ON true
	WHERE head.event_id IS NOT DISTINCT FROM e.after
	AND e.generation = (SELECT generation FROM {schema}.checkpoints WHERE projection = 'tasks')`
	// unlessKeyed is there when a commit has an idempotency key.
	unlessKeyed = `
	AND (e.command_key IS NULL OR NOT EXISTS (
		SELECT FROM {schema}.task_events k WHERE k.user_id = e.user_id AND k.idempotency_key = e.command_key
	))`
	inOrder = `
	ORDER BY e.ordinality
	RETURNING position, recorded_at, event_id`
)

// publish appends commits by one Watermill Publish, which is one INSERT. A message is an event: its payload is the
// record, its UUID the event's id. It returns what was stored; those events have their Position and RecordedAt.
func (l *Log) publish(to sender, commits []*pending) (*Batch, error) {
	messages := make(message.Messages, 0, len(commits))
	insert := insertEvents + inOrder
	for _, c := range commits {
		if c.IdempotencyKey != "" {
			insert = insertEvents + unlessKeyed + inOrder
		}
		for i := range c.Events {
			e := &c.Events[i]
			if err := e.encode(); err != nil {
				return nil, err
			}
			messages = append(messages, message.NewMessage(e.EventID.String(), e.AppendRecord(nil)))
		}
	}
	exec := &executor{DB: l.sql, to: to, lock: l.lock, args: []any{l.db.LockKey("append")}}
	if channel := l.announced.Load(); channel != nil {
		exec.lock, exec.args = l.lock+announce, append(exec.args, *channel)
	}
	publisher, err := watermillsql.NewPublisher(exec, watermillsql.PublisherConfig{
		SchemaAdapter: insertAdapter{insert: l.db.SQL(insert), commits: commits},
	}, watermill.NopLogger{})
	if err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	start := time.Now()
	err = publisher.Publish(Topic, messages...)
	l.metrics.appended(len(exec.rows), time.Since(start), err)
	if err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	return exec.batch(commits), nil
}

// insertAdapter is the SchemaAdapter of the log's publisher, for one batch.
type insertAdapter struct {
	watermillsql.DefaultPostgreSQLSchema
	insert  string
	commits []*pending
}

// InsertQuery implements watermill-sql's SchemaAdapter: all messages in one statement, as one JSON array of their
// records, with what their commits say beside.
func (a insertAdapter) InsertQuery(_ string, messages message.Messages) (watermillsql.Query, error) {
	rows := make([]byte, 0, 640*len(messages))
	for _, c := range a.commits {
		for i := range c.Events {
			record := messages[i].Payload
			rows = append(rows, ',')
			rows = c.appendRow(append(rows, record[:len(record)-1]...), i == 0)
		}
		messages = messages[len(c.Events):]
	}
	rows[0] = '['
	return watermillsql.Query{Query: a.insert, Args: []any{string(append(rows, ']'))}}, nil
}

// appendRow appends what a row has beside its record, and the brace that closes it. The first event of a commit keeps
// its key.
func (c *pending) appendRow(b []byte, first bool) []byte {
	b = strconv.AppendInt(append(b, `,"generation":`...), c.Generation, 10)
	if c.after != uuid.Nil {
		b = append(appendID(append(b, `,"after":"`...), c.after), '"')
	}
	if c.IdempotencyKey == "" {
		return append(b, '}')
	}
	b = AppendText(append(b, `,"command_key":`...), c.IdempotencyKey)
	if first {
		b = AppendText(append(b, `,"idempotency_key":`...), c.IdempotencyKey)
		b = append(b, `,"request_fingerprint":"\\x`...)
		b = append(hex.AppendEncode(b, c.Fingerprint), '"')
	}
	return append(b, '}')
}

// executor is the publisher's database. watermill-sql's Publish uses context.Background() and drops the result; this
// one gives both back: a deadline, and the rows.
type executor struct {
	*sql.DB
	to   sender
	lock string
	args []any // of lock
	rows []appendedRow
}

type appendedRow struct {
	Position   int64
	RecordedAt time.Time
	EventID    [16]byte
}

// ExecContext takes the lock and runs the INSERT, in one round trip.
func (x *executor) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return nil, pipeline(ctx, x.to, x.lock, x.args, query, args, func(rows pgx.Rows) (err error) {
		x.rows, err = pgx.CollectRows(rows, pgx.RowToStructByPos[appendedRow])
		return err
	})
}

// batch gives the events that were stored what the database decided about them, and returns those.
func (x *executor) batch(commits []*pending) *Batch {
	b := &Batch{Events: make([]Event, 0, len(x.rows))}
	for _, c := range commits {
		before := len(b.Events)
		for i := range c.Events {
			e, n := &c.Events[i], len(b.Events)
			if n == len(x.rows) || x.rows[n].EventID != e.EventID {
				continue
			}
			row := x.rows[n]
			e.Position, e.RecordedAt = row.Position, row.RecordedAt.UTC()
			b.To = row.Position
			b.Events = append(b.Events, *e)
		}
		if c.span != nil && len(b.Events) > before {
			b.Appends = append(b.Appends, c.span)
		}
	}
	if len(x.rows) > 0 {
		b.From = x.rows[0].Position - 1 // whoever drew that one has committed, or never will: this one had the lock
	}
	return b
}
