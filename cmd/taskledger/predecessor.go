package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"taskledger/command"
	"taskledger/events"
	"taskledger/httpapi/auth"
)

// maxOldText is how many bytes the texts of an old task may have: it is one event, whatever it has in it.
const maxOldText = 4 << 20

// predecessor is the table of tasks of the backend that was there before this one. It is only ever read.
type predecessor struct {
	name    string // as it stands in SQL
	oid     uint32
	columns map[string]oldColumn
	usable  bool   // this role may use its schema
	role    string // this role, as it stands in SQL
}

// oldColumn is a column of it that has a name which means something.
type oldColumn struct {
	kind     string // what its type is to us, else the name of the type
	readable bool
}

// oldColumns are the columns that mean something, and the kinds of type that each may have.
var oldColumns = map[string][]string{
	"id":           {"uuid", "text"},
	"user_id":      {"text", "uuid", "integer"},
	"title":        {"text"},
	"description":  {"text"},
	"is_completed": {"boolean"},
	"created_at":   {"timestamp", "timestamptz"},
	"updated_at":   {"timestamp", "timestamptz"},
}

// neededColumns are those without which a table is none of tasks.
var neededColumns = []string{"id", "title", "user_id"}

// findOldTables finds the tables of some names, with their columns, in the order in which they are looked for.
const findOldTables = `
	SELECT format('%I.%I', n.nspname, c.relname), c.oid, has_schema_privilege(n.oid, 'USAGE'),
		quote_ident(current_user), a.attname,
		CASE
			WHEN t.typcategory = 'S' THEN 'text'
			WHEN b.typname IN ('int2', 'int4', 'int8') THEN 'integer'
			WHEN b.typname IN ('uuid', 'timestamp', 'timestamptz') THEN b.typname
			WHEN b.typname = 'bool' THEN 'boolean'
			ELSE format_type(a.atttypid, a.atttypmod)
		END,
		has_column_privilege(c.oid, a.attnum, 'SELECT')
	FROM pg_class c
	JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	JOIN pg_type t ON t.oid = a.atttypid
	JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
	WHERE c.relname = ANY ($1::text[])
	AND c.relkind::text = ANY ($2::text[])
	AND $3::text IN ('', n.nspname)
	AND n.nspname <> $4
	AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
	ORDER BY n.nspname <> $5, n.nspname <> 'public', n.nspname, array_position($1::text[], c.relname::text), c.oid`

// oldTables finds the tables that may be a predecessor's: of the schema, or of all but ours, the URL's first.
func oldTables(
	ctx context.Context, db *database, schema string, names, kinds []string,
) (found []*predecessor, err error) {
	args := []any{names, kinds, schema, db.schema, db.url.schema}
	err = db.ledger.Query(ctx, findOldTables, args, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				p      predecessor
				column string
				c      oldColumn
			)
			if err := rows.Scan(&p.name, &p.oid, &p.usable, &p.role, &column, &c.kind, &c.readable); err != nil {
				return err
			}
			if n := len(found); n == 0 || found[n-1].oid != p.oid {
				p.columns = map[string]oldColumn{}
				found = append(found, &p)
			}
			if oldColumns[column] != nil {
				found[len(found)-1].columns[column] = c
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("look for the table of another backend: %w", err)
	}
	return found, nil
}

// findPredecessor finds the table by itself: task, then tasks, of the first schema that has one that can be taken over.
// Where none can be, it is the first that is not, whose check says why; nil = there is none.
func findPredecessor(ctx context.Context, db *database) (*predecessor, error) {
	found, err := oldTables(ctx, db, "", []string{"task", "tasks"}, []string{"r", "p"})
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		if p.check() == nil {
			return p, nil
		}
	}
	if len(found) > 0 {
		return found[0], nil
	}
	return nil, nil
}

// namedPredecessor finds the table, view or foreign table that an operator has named, as SQL would read the name.
func namedPredecessor(ctx context.Context, db *database, name string) (*predecessor, error) {
	var parts []string
	_, err := events.One(ctx, db.ledger, `SELECT parse_ident($1)`, []any{name}, &parts)
	if _, refused := errors.AsType[*pgconn.PgError](err); refused || err == nil && len(parts) > 2 {
		return nil, fmt.Errorf("--table must be a table or schema.table, quoted where SQL needs it, not %q", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read the name of the table: %w", err)
	}
	schema, table := "", parts[len(parts)-1]
	if len(parts) == 2 {
		schema = parts[0]
	}
	found, err := oldTables(ctx, db, schema, []string{table}, []string{"r", "p", "v", "m", "f"})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("there is nothing to adopt: the database has no table %s beside the ledger", name)
	}
	return found[0], found[0].check()
}

// check returns why the table is none that can be taken over.
func (p *predecessor) check() error {
	for _, name := range neededColumns {
		if _, there := p.columns[name]; !there {
			return fmt.Errorf("there is nothing to adopt: %s has no column %s", p.name, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.columns)) {
		if kind, may := p.columns[name].kind, oldColumns[name]; !slices.Contains(may, kind) {
			return fmt.Errorf("%s can't be adopted: its column %s has the type %s, it must be %s",
				p.name, name, kind, strings.Join(may, " or "))
		}
	}
	return nil
}

// readable returns what this role must be granted first.
func (p *predecessor) readable() error {
	if !p.usable {
		schema, _, _ := strings.Cut(p.name, ".")
		return fmt.Errorf("the role %[2]s may not use the schema of %[3]s: GRANT USAGE ON SCHEMA %[1]s TO %[2]s",
			schema, p.role, p.name)
	}
	for _, c := range p.columns {
		if !c.readable {
			return fmt.Errorf("the role %[2]s may not read %[1]s: GRANT SELECT ON %[1]s TO %[2]s", p.name, p.role)
		}
	}
	return nil
}

// begin runs work in a transaction that changes nothing, and in which row level security is an error instead of hiding
// rows. The timeout is that of a statement; zero is as long as it takes.
func (p *predecessor) begin(
	ctx context.Context, db *events.DB, timeout time.Duration, work func(*events.Tx) error,
) error {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := db.Begin(ctx, options, func(tx *events.Tx) error {
		limit := strconv.FormatInt(timeout.Milliseconds(), 10)
		_, err := tx.Exec(ctx, `
			SELECT set_config(name, CASE name WHEN 'row_security' THEN 'off' ELSE $1 END, true)
			FROM pg_settings
			WHERE name IN (
				'row_security', 'statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'
			)`, limit)
		if err != nil {
			return err
		}
		return work(tx)
	})
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "42501" {
		return fmt.Errorf("read %s: %s: it takes a role that may read every row of it", p.name, refused.Message)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", p.name, err)
	}
	return nil
}

// oldRow is a row of the table. Unfit says why it can't be taken over; empty = it can.
type oldRow struct {
	user  string
	task  command.OldTask
	unfit string
}

// bytes is how long its texts are.
func (r *oldRow) bytes() (n int64) {
	for _, text := range []*string{r.task.Title, r.task.Description} {
		if text != nil {
			n += int64(len(*text))
		}
	}
	return n
}

// Why rows are left out for what they are.
const (
	noUser    = "without a usable user_id"
	noID      = "without a usable id"
	longTexts = "with texts over 4 MiB"
)

// identify takes what a row is known by, and finds out whether it is fit; long tells that its texts are too long.
func (r *oldRow) identify(user, id *string, long bool) {
	if user == nil || !auth.ValidUserID(*user) {
		r.unfit = noUser
		return
	}
	r.user = *user
	if id == nil {
		r.unfit = noID
		return
	}
	var err error
	r.task.ID, err = uuid.Parse(*id)
	switch {
	case err != nil || r.task.ID == uuid.Nil:
		r.unfit = noID
	case long:
		r.unfit = longTexts
	}
}

// read calls visit with the rows, user by user and each user's in their old order. A time that is null, or none that a
// task can have, is now.
func (p *predecessor) read(ctx context.Context, tx *events.Tx, now time.Time, visit func(oldRow) error) error {
	text := fmt.Sprintf(`
		SELECT o.user_id, o.id, o.long,
			CASE WHEN NOT o.long THEN o.title END, CASE WHEN NOT o.long THEN o.description END,
			o.is_completed, coalesce(o.created_at, $2), coalesce(o.updated_at, $2)
		FROM (
			SELECT o.user_id::text COLLATE "C" AS user_id, o.id::text COLLATE "C" AS id, o.title::text AS title,
				%[2]s AS description, coalesce(%[3]s, false) AS is_completed, %[4]s AS created_at, %[5]s AS updated_at,
				%[6]s AS long
			FROM %[1]s o
		) o
		ORDER BY o.user_id, o.created_at, o.id`,
		p.name, p.column("description", "text"), p.column("is_completed", "boolean"),
		p.time("created_at"), p.time("updated_at"), p.long())
	return tx.Query(ctx, text, []any{maxOldText, now}, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				r        oldRow
				user, id *string
				long     bool
			)
			t := &r.task
			err := rows.Scan(&user, &id, &long, &t.Title, &t.Description, &t.Completed, &t.CreatedAt, &t.UpdatedAt)
			if err != nil {
				return err
			}
			t.CreatedAt, t.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
			r.identify(user, id, long)
			if err := visit(r); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// long is an expression that tells whether the texts are longer than $1 bytes. They are not read for it.
func (p *predecessor) long() string {
	return `coalesce(octet_length(o.title::text), 0)
		+ coalesce(octet_length(` + p.column("description", "text") + `), 0) > $1`
}

// column is an expression for a column that may be missing.
func (p *predecessor) column(name, kind string) string {
	if _, there := p.columns[name]; !there {
		return "NULL::" + kind
	}
	return "o." + name + "::" + kind
}

// time is an expression for a time that a task can have: RFC 3339 knows the years 1 to 9999. Without a zone it is UTC.
func (p *predecessor) time(name string) string {
	if p.columns[name].kind != "timestamp" {
		return bounded(p.column(name, "timestamptz"))
	}
	return bounded("(o." + name + "::timestamp AT TIME ZONE 'UTC')")
}

func bounded(at string) string {
	return `CASE WHEN ` + at + `
		BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00' THEN ` + at + ` END`
}

// samplePages are how much of each end of the table a start looks at: little of a large table, and all of a small one.
const samplePages, sampleRows = 16, 1000

// sample reads by what rows at both ends of the table are known: the first there were, and those that were added last.
func (p *predecessor) sample(ctx context.Context, tx *events.Tx) (users []string, ids []uuid.UUID, err error) {
	var pages int64
	_, err = events.One(ctx, tx, `
		SELECT pg_relation_size($1::oid) / current_setting('block_size')::bigint`, []any{p.oid}, &pages)
	if err != nil {
		return nil, nil, err
	}
	end := `(
		SELECT o.user_id::text, o.id::text, ` + p.long() + `
		FROM ` + p.name + ` o
		WHERE o.ctid %s '(%d,0)'::tid
		LIMIT %d
	)`
	text := fmt.Sprintf(end+` UNION ALL `+end,
		"<", samplePages, sampleRows, ">=", max(samplePages, pages-samplePages), sampleRows)
	err = tx.Query(ctx, text, []any{maxOldText}, func(rows pgx.Rows) error {
		var (
			user, id *string
			long     bool
		)
		_, err := pgx.ForEachRow(rows, []any{&user, &id, &long}, func() error {
			var r oldRow
			if r.identify(user, id, long); r.unfit == "" {
				users, ids = append(users, r.user), append(ids, r.task.ID)
			}
			return nil
		})
		return err
	})
	return users, ids, err
}

// findUnadopted looks for a task that the ledger does not have, of a user who was not erased.
const findUnadopted = `
	SELECT
	FROM (
		SELECT *
		FROM unnest($1::text[], $2::uuid[]) n(user_id, id)
		WHERE (SELECT 1 FROM {schema}.tasks t WHERE t.user_id = n.user_id AND t.id = n.id LIMIT 1) IS NULL
		OFFSET 0 -- this first: it finds nearly all
	) o
	WHERE (
		SELECT 1
		FROM {schema}.task_events e
		WHERE e.user_id = o.user_id AND e.task_id = o.id
		AND e.seq > coalesce((SELECT u.seq FROM {schema}.users u WHERE u.user_id = o.user_id LIMIT 1), 0)
		LIMIT 1
	) IS NULL
	AND (
		SELECT e.type
		FROM {schema}.task_events e
		WHERE e.user_id = o.user_id
		ORDER BY e.seq
		LIMIT 1
	) IS DISTINCT FROM 'UserErased'
	LIMIT 1`

// unadopted tells whether the table has rows that are not taken over, as far as that can be seen within the timeout.
func (p *predecessor) unadopted(ctx context.Context, db *database, timeout time.Duration) (bool, error) {
	var (
		users []string
		ids   []uuid.UUID
	)
	err := p.begin(ctx, db.ledger, timeout, func(tx *events.Tx) (err error) {
		users, ids, err = p.sample(ctx, tx)
		return err
	})
	if err != nil || len(users) == 0 {
		return false, err
	}
	return events.One(ctx, db.ledger, findUnadopted, []any{users, ids})
}
