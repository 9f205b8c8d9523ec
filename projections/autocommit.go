package projections

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// autocommit gives a Watermill subscriber a database whose transactions are none: each statement commits by itself, and how many
// rows the last one had is kept.
//
// The transaction of watermill-sql v3.1.0 promises nothing that could be used: it commits after a nack and after an expired
// AckDeadline, and a commit that fails is only logged. Here the one statement that writes rows and checkpoint is the transaction;
// it says by its row count whether it did. That also saves the round trips of BEGIN and COMMIT.
type autocommit struct {
	driver.Connector
	affected atomic.Int64
}

func openAutocommit(pool *pgxpool.Pool) (*sql.DB, *autocommit) {
	connector := &autocommit{Connector: stdlib.GetPoolConnector(pool)}
	db := sql.OpenDB(connector)
	db.SetMaxIdleConns(0) // idle connections belong to the pool
	return db, connector
}

// Connect implements driver.Connector.
func (a *autocommit) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := a.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &autocommitConn{Conn: conn.(*stdlib.Conn), affected: &a.affected}, nil
}

type autocommitConn struct {
	*stdlib.Conn
	affected *atomic.Int64
}

// BeginTx implements driver.ConnBeginTx: it begins nothing.
func (c *autocommitConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return noTx{}, nil
}

// ExecContext implements driver.ExecerContext and keeps the row count, which the subscriber drops.
func (c *autocommitConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	c.affected.Store(0)
	result, err := c.Conn.ExecContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return nil, err
	}
	c.affected.Store(n)
	return result, nil
}

// QueryContext implements driver.QueryerContext.
func (c *autocommitConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	rows, err := c.Conn.QueryContext(ctx, query, args)
	if err != nil {
		cancel()
		return nil, err
	}
	return timedRows{Rows: rows, cancel: cancel}, nil
}

// timedRows are bounded in time until they are closed.
type timedRows struct {
	driver.Rows
	cancel context.CancelFunc
}

// Close implements driver.Rows.
func (r timedRows) Close() error {
	defer r.cancel()
	return r.Rows.Close()
}

type noTx struct{}

// Commit implements driver.Tx.
func (noTx) Commit() error { return nil }

// Rollback implements driver.Tx.
func (noTx) Rollback() error { return nil }
