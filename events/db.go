package events

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Settings are those that a connection of a server should have, where connections keep settings. A statement that was
// planned while its table was empty would scan it for as long as it is prepared, and join it by hashing all of it: here
// every statement is about few rows, which an index finds. So it is planned once, whatever its parameters are.
var Settings = map[string]string{
	"enable_seqscan":    "off",
	"enable_bitmapscan": "off",
	"enable_hashjoin":   "off",
	"enable_mergejoin":  "off",
	"jit":               "off",
	"plan_cache_mode":   "force_generic_plan",
}

// DB is the database of one ledger: a pool of connections, and the schema that everything of the ledger is in. In the
// SQL given to its methods {schema} stands for that schema.
type DB struct {
	pool    *pgxpool.Pool
	schema  string
	quoted  string
	prelude string
	picky   bool // connections are only made to a server that takes writes
	// prepares: a statement stays prepared in its connection.
	prepares bool
	texts    sync.Map // SQL as it is written, to SQL with the schema in it
}

// NewDB returns the ledger in the named schema. The prelude, if there is one, is a SELECT without FROM that makes
// settings; it is run before each statement, in its transaction: behind a transaction pooler a connection keeps no
// settings of its own. The caller closes the pool.
func NewDB(pool *pgxpool.Pool, schema, prelude string) *DB {
	db := &DB{pool: pool, schema: schema, quoted: pgx.Identifier{schema}.Sanitize(), prelude: prelude}
	if pool != nil {
		config := pool.Config().ConnConfig
		db.picky = config.ValidateConnect != nil
		db.prepares = prelude == "" && !db.picky && config.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement
	}
	return db
}

// Pool is the pool of connections.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

// Schema is the name of the ledger's schema.
func (db *DB) Schema() string { return db.schema }

// Pooled tells whether connections keep no settings of their own.
func (db *DB) Pooled() bool { return db.prelude != "" }

// ErrFewConnections: a pooler has fewer connections to PostgreSQL than a command needs at once, which would wait for
// itself.
var ErrFewConnections = errors.New("the pooler has too few connections to PostgreSQL")

// spareTimeout is how long connections may be in use elsewhere.
const spareTimeout = 3 * time.Second

// Spare returns nil when n connections can be had at once. Behind a pooler that does not give them in time it is
// ErrFewConnections.
func (db *DB) Spare(ctx context.Context, n int) error {
	if !db.Pooled() {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	for range n {
		tx, err := db.pool.Begin(waiting)
		if err != nil && waiting.Err() != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: this takes %d more at once: use a URL that goes to PostgreSQL directly, "+
				"or raise the pooler's pool size", ErrFewConnections, n)
		}
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // there is nothing in it
	}
	return nil
}

// SQL writes the schema into a statement. The statements of a program are few: each is written once.
func (db *DB) SQL(text string) string {
	if written, ok := db.texts.Load(text); ok {
		return written.(string)
	}
	written := strings.ReplaceAll(text, "{schema}", db.quoted)
	db.texts.Store(text, written)
	return written
}

// LockKey is the key of the ledger's advisory lock for a purpose: those of another ledger in the same database are
// others.
func (db *DB) LockKey(purpose string) int64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "taskledger %s %s", purpose, db.schema)
	return int64(h.Sum64())
}

// UserLockKey is the key of the advisory lock under which all rows of a user are deleted or written anew: two
// transactions that do so would each wait for a row of the other.
func (db *DB) UserLockKey(user string) int64 { return db.LockKey("rows of " + user) }

// Querier is a DB or a transaction on it.
type Querier interface {
	// Query runs one statement and has read read its rows. It returns read's error, or the statement's.
	Query(ctx context.Context, text string, args []any, read func(pgx.Rows) error) error
	// Exec runs one statement and returns how many rows it changed.
	Exec(ctx context.Context, text string, args ...any) (int64, error)
	// Write runs one statement whose arguments may be Rows, and tells whether it gave a row. It may run it twice, so
	// the second time must not add to the first.
	Write(ctx context.Context, text string, args []any) (row bool, err error)
}

// withPrelude is a SELECT that does what the prelude does too.
func (db *DB) withPrelude(text string) string {
	if db.prelude == "" {
		return text
	}
	return db.prelude + `, ` + strings.TrimPrefix(strings.TrimSpace(text), "SELECT")
}

// Query implements Querier, in one round trip.
func (db *DB) Query(ctx context.Context, text string, args []any, read func(pgx.Rows) error) error {
	if db.prelude != "" {
		return db.pipeline(ctx, db.prelude, nil, text, args, read)
	}
	rows, err := db.pool.Query(ctx, db.SQL(text), args...)
	if err != nil {
		return err
	}
	if !db.picky {
		return readAll(rows, read)
	}
	told := &toldRows{Rows: rows}
	if err = readAll(told, read); !told.retired {
		return err
	}
	db.pool.Reset()
	if rows, err = db.pool.Query(ctx, db.SQL(text), args...); err != nil {
		return err
	}
	return readAll(rows, read)
}

// Write implements Querier. Its arguments may be large: where statements are prepared, pgx does not hold on to them, as
// it does to those of a Query, in each connection, until as many others have been in their place.
func (db *DB) Write(ctx context.Context, text string, args []any) (row bool, err error) {
	retired := false
	write := func(conn *pgx.Conn) (err error) {
		if db.prepares {
			row, err = writePrepared(ctx, conn, db.SQL(text), args)
			return err
		}
		err = db.queryOn(ctx, conn, text, args, func(rows pgx.Rows) error {
			row = rows.Next()
			return rows.Err()
		})
		retired = db.picky && isRetired(conn)
		return err
	}
	if err = db.withRows(ctx, write); retired {
		db.pool.Reset()
		err = db.withRows(ctx, write)
	}
	return row && !retired, err
}

func writePrepared(ctx context.Context, conn *pgx.Conn, text string, args []any) (row bool, err error) {
	statement, err := conn.Prepare(ctx, text, text)
	if err != nil {
		return false, err
	}
	// Rows are large. They go as they are: pgx would copy them.
	others := slices.Clone(args)
	for i, arg := range args {
		if _, ok := arg.(*Rows); ok {
			others[i] = nil
		}
	}
	var b pgx.ExtendedQueryBuilder
	if err := b.Build(conn.TypeMap(), statement, others); err != nil {
		return false, err
	}
	for i, arg := range args {
		if rows, ok := arg.(*Rows); ok {
			if b.ParamValues[i], err = rows.of(conn.TypeMap(), statement.ParamOIDs[i]); err != nil {
				return false, err
			}
			b.ParamFormats[i] = pgx.BinaryFormatCode
		}
	}
	result := conn.PgConn().ExecPrepared(ctx, statement.Name, b.ParamValues, b.ParamFormats, b.ResultFormats).Read()
	return len(result.Rows) > 0, result.Err
}

// queryOn is Query on a connection.
func (db *DB) queryOn(
	ctx context.Context, conn *pgx.Conn, text string, args []any, read func(pgx.Rows) error,
) error {
	if db.prelude != "" {
		return pipeline(ctx, conn, db.prelude, nil, db.SQL(text), args, read)
	}
	rows, err := conn.Query(ctx, db.SQL(text), args...)
	if err != nil {
		return err
	}
	return readAll(rows, read)
}

// withRows calls do with a connection that takes Rows.
func (db *DB) withRows(ctx context.Context, do func(*pgx.Conn) error) error {
	return db.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return db.onRows(ctx, c.Conn(), do) })
}

// onRows calls do with the connection, which then takes Rows. One on which that fails, but for the data, is closed:
// what it knows of types and statements may be of a schema that was made anew.
func (db *DB) onRows(ctx context.Context, conn *pgx.Conn, do func(*pgx.Conn) error) error {
	err := db.learnRows(ctx, conn)
	if err == nil {
		err = do(conn)
	}
	if err != nil && !isRefusal(err) {
		_ = conn.Close(ctx) // it has failed already
	}
	return err
}

// toldRows are rows of a server that has to take writes. One that has been told to take no more is about to be left for
// another, which may know more already: what it gives is not shown.
type toldRows struct {
	pgx.Rows
	begun, retired bool
}

// Next implements pgx.Rows. The server tells before the first row.
func (r *toldRows) Next() bool {
	more := r.Rows.Next()
	if more && !r.begun { // at the end the connection is not ours any more
		r.retired = isRetired(r.Conn())
	}
	r.begun = true
	if r.retired {
		r.Close()
		return false
	}
	return more
}

func isRetired(conn *pgx.Conn) bool {
	return conn.PgConn().ParameterStatus("default_transaction_read_only") == "on"
}

// Exec implements Querier.
func (db *DB) Exec(ctx context.Context, text string, args ...any) (changed int64, err error) {
	err = db.Query(ctx, text, args, func(rows pgx.Rows) error {
		rows.Close()
		changed = rows.CommandTag().RowsAffected()
		return nil
	})
	return changed, err
}

// Begin runs work in a transaction, and commits it unless work returns an error.
func (db *DB) Begin(ctx context.Context, options pgx.TxOptions, work func(*Tx) error) error {
	return pgx.BeginTxFunc(ctx, db.pool, options, func(tx pgx.Tx) error {
		if db.prelude != "" {
			if _, err := tx.Exec(ctx, db.prelude); err != nil {
				return err
			}
		}
		return work(&Tx{Tx: tx, db: db})
	})
}

// pipeline runs two statements in one round trip and one implicit transaction, and reads the rows of the second.
func (db *DB) pipeline(
	ctx context.Context, first string, firstArgs []any, second string, args []any, read func(pgx.Rows) error,
) error {
	return pipeline(ctx, db.pool, first, firstArgs, db.SQL(second), args, read)
}

// sender is a pool or a connection.
type sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func pipeline(
	ctx context.Context, to sender, first string, firstArgs []any, second string, args []any, read func(pgx.Rows) error,
) error {
	batch := &pgx.Batch{}
	batch.Queue(first, firstArgs...)
	batch.Queue(second, args...)
	results := to.SendBatch(ctx, batch)
	_, err := results.Exec()
	if err == nil {
		rows, _ := results.Query() // its error is that of the rows
		err = readAll(rows, read)
	}
	// An implicit transaction commits at the end of the pipeline: only a clean Close says that it did.
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	return err
}

func readAll(rows pgx.Rows, read func(pgx.Rows) error) error {
	defer rows.Close()
	if err := read(rows); err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}

// Tx is a transaction on a DB.
type Tx struct {
	pgx.Tx
	db *DB
}

// Query implements Querier.
func (tx *Tx) Query(ctx context.Context, text string, args []any, read func(pgx.Rows) error) error {
	rows, err := tx.Tx.Query(ctx, tx.db.SQL(text), args...)
	if err != nil {
		return err
	}
	return readAll(rows, read)
}

// Exec implements Querier.
func (tx *Tx) Exec(ctx context.Context, text string, args ...any) (int64, error) {
	tag, err := tx.Tx.Exec(ctx, tx.db.SQL(text), args...)
	return tag.RowsAffected(), err
}

// Write implements Querier.
func (tx *Tx) Write(ctx context.Context, text string, args []any) (row bool, err error) {
	err = tx.withRows(ctx, func(*pgx.Conn) error {
		return tx.Query(ctx, text, args, func(rows pgx.Rows) error {
			row = rows.Next()
			return rows.Err()
		})
	})
	return row, err
}

// withRows calls do with the transaction's connection, which then takes Rows.
func (tx *Tx) withRows(ctx context.Context, do func(*pgx.Conn) error) error {
	return tx.db.onRows(ctx, tx.Conn(), do)
}

// One reads the columns of the only row that a statement gives; found is false when it gives none.
func One(ctx context.Context, from Querier, text string, args []any, places ...any) (found bool, err error) {
	err = from.Query(ctx, text, args, func(rows pgx.Rows) error {
		if found = rows.Next(); !found {
			return rows.Err()
		}
		return rows.Scan(places...)
	})
	return found, err
}

// Cause is what may be logged of an error: SafeText, of what PostgreSQL says of the data only the code and the
// constraint, because the message may quote a title.
func Cause(err error) string {
	var (
		failed  *pgconn.ConnectError
		refused *pgconn.PgError
	)
	if !errors.As(err, &failed) && errors.As(err, &refused) {
		return strings.TrimSpace("SQLSTATE " + refused.Code + " " + refused.ConstraintName)
	}
	return SafeText(err)
}

// SafeText is the text of an error without what it tells of a connection: that has values of the database's URL in it,
// such as host and user, and PostgreSQL's own words. This says why there is none.
func SafeText(err error) string {
	text := err.Error()
	for _, failed := range connectionErrors(err) {
		text = strings.ReplaceAll(text, failed.Error(), connectionText(failed))
	}
	return text
}

// connectionErrors are those of an error that name a host.
func connectionErrors(err error) (found []error) {
	switch err := err.(type) { // not errors.As: there may be more than one
	case *pgconn.ConnectError, *net.DNSError, x509.HostnameError:
		return append(found, err)
	case *net.OpError:
		if err.Op != "listen" { // which is our own address
			return append(found, err)
		}
	}
	for _, cause := range causes(err) {
		found = append(found, connectionErrors(cause)...)
	}
	return found
}

// causes are what an error wraps.
func causes(err error) []error {
	switch err := err.(type) {
	case interface{ Unwrap() error }:
		if cause := err.Unwrap(); cause != nil {
			return []error{cause}
		}
	case interface{ Unwrap() []error }:
		return err.Unwrap()
	}
	return nil
}

func connectionText(failed error) string {
	var reasons []string
	eachFirst(failed, func(first error) {
		if why := firstText(first); !slices.Contains(reasons, why) {
			reasons = append(reasons, why)
		}
	})
	text := strings.Join(reasons, "; ")
	if _, ok := failed.(*pgconn.ConnectError); ok {
		text = "no connection to the database: " + text
	}
	return text
}

// eachFirst calls do with each error that no other one is the cause of: what came first.
func eachFirst(err error, do func(error)) {
	wrapped := causes(err)
	if len(wrapped) == 0 {
		do(err)
	}
	for _, cause := range wrapped {
		eachFirst(cause, do)
	}
}

// refusals are why PostgreSQL, or a pooler, takes no connection. It says so itself, but with the name of the role.
var refusals = map[string]string{
	"08P01": "a parameter of the connection is not supported",
	"28000": "this role may not log in from here",
	"28P01": "the password is wrong",
	"3D000": "there is no such database",
	"42501": "this role may not connect to the database",
	"42704": "options has a setting that is not known",
	"53300": "too many connections",
	"57P03": "it is starting, stopping or recovering",
}

func firstText(err error) string {
	switch err := err.(type) {
	case *pgconn.PgError:
		if why := refusals[err.Code]; why != "" {
			return why + " (SQLSTATE " + err.Code + ")"
		}
		return "SQLSTATE " + err.Code
	case *net.DNSError:
		return err.Err
	case x509.HostnameError:
		return "the certificate is for other hosts"
	}
	return err.Error()
}
