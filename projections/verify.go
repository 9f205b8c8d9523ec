package projections

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
)

// Difference is one place where a read model is not the fold of the log, or the log is not contiguous.
type Difference struct {
	Projection string // or "task_events" for the log itself
	UserID     string
	Task       string // the task's id, or of a history row task and seq; empty when it is about the user
	Member     string
	Expected   string
	Found      string
}

// String is the line an operator reads.
func (d Difference) String() string {
	return fmt.Sprintf("%s: user=%q task=%s member=%s expected=%s found=%s", d.Projection, d.UserID, d.Task, d.Member, d.Expected, d.Found)
}

// VerifyReport says how much was compared.
type VerifyReport struct {
	Users       int64 // of the log
	Events      int64 // of the log
	Rows        int64 // of all read models
	Parked      int64 // users whom a read model does not follow; compared up to where it does
	Differences int64
}

// Verify compares every row of every read model with the fold of the log up to that read model's checkpoint, in one snapshot each,
// and each user's seq with 1, 2, 3, …. An empty user means all. It calls found for each difference. pool needs three connections.
func Verify(ctx context.Context, pool *pgxpool.Pool, user string, found func(Difference)) (VerifyReport, error) {
	var report VerifyReport
	for _, p := range all() {
		one := VerifyReport{}
		if err := verifyProjection(ctx, pool, p, verifyOptions{user: user}, &one, found); err != nil {
			return report, fmt.Errorf("verify %s: %w", p.name, err)
		}
		report.Users, report.Events = one.Users, one.Events
		report.Rows += one.Rows
		report.Parked += one.Parked
		report.Differences += one.Differences
	}
	return report, nil
}

type verifyOptions struct {
	user   string // empty = all
	shadow bool   // look at the new read model of a rebuild
}

// verifyProjection reads log, rows and users side by side, on three connections that share one snapshot.
func verifyProjection(ctx context.Context, pool *pgxpool.Pool, p *projection, o verifyOptions, report *VerifyReport, found func(Difference)) error {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	return pgx.BeginTxFunc(ctx, pool, options, func(log pgx.Tx) error {
		var snapshot string
		if err := log.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&snapshot); err != nil {
			return err
		}
		return pgx.BeginTxFunc(ctx, pool, options, func(rowsTx pgx.Tx) error {
			return pgx.BeginTxFunc(ctx, pool, options, func(usersTx pgx.Tx) error {
				for _, tx := range []pgx.Tx{rowsTx, usersTx} {
					if err := joinSnapshot(ctx, tx, snapshot, o.shadow); err != nil {
						return err
					}
				}
				return compare(ctx, p, o.user, log, rowsTx, usersTx, report, found)
			})
		})
	})
}

func joinSnapshot(ctx context.Context, tx pgx.Tx, snapshot string, shadowed bool) error {
	// SET takes no parameters; the snapshot's name comes from PostgreSQL itself.
	if _, err := tx.Exec(ctx, `SET TRANSACTION SNAPSHOT '`+strings.ReplaceAll(snapshot, `'`, ``)+`'`); err != nil {
		return err
	}
	if shadowed {
		return useShadow(ctx, tx)
	}
	return nil
}

func compare(ctx context.Context, p *projection, user string, log, rowsTx, usersTx pgx.Tx, report *VerifyReport, found func(Difference)) error {
	v := &verifier{projection: p, report: report, found: found}
	if err := usersTx.QueryRow(ctx, `SELECT position FROM projection_checkpoints WHERE projection = $1`, p.name).Scan(&v.position); err != nil {
		return err
	}
	where, args := ``, []any{}
	if user != "" {
		where, args = ` WHERE user_id = $1`, []any{user}
	}
	rows, err := rowsTx.Query(ctx, `SELECT `+strings.Join(names(p.columns), ", ")+` FROM `+p.name+where+` ORDER BY user_id, `+p.key, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	users, err := usersTx.Query(ctx, `SELECT user_id, seq, parked_error IS NOT NULL FROM `+p.name+`_users`+where+` ORDER BY user_id`, args...)
	if err != nil {
		return err
	}
	defer users.Close()
	v.rows, v.users = newRowReader(p, rows), &userReader{rows: users}
	if err := v.start(); err != nil {
		return err
	}
	if err := events.Scan(ctx, log, user, math.MaxInt64, v.event); err != nil {
		return err
	}
	return v.end()
}

// verifier folds the log and walks through the rows and users of the read model beside it, all in order of user.
type verifier struct {
	projection *projection
	position   int64 // the checkpoint of the read model
	rows       *rowReader
	users      *userReader
	report     *VerifyReport
	found      func(Difference)

	user    *userFold
	head    int64 // the last seq seen of the user in the log
	through int64 // fold no further than this seq: a parked user's read model stands there
	changes []change
}

func (v *verifier) differ(d Difference) {
	d.Projection = cmpOr(d.Projection, v.projection.name)
	v.report.Differences++
	v.found(d)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (v *verifier) start() error {
	if err := v.rows.next(); err != nil {
		return err
	}
	return v.users.next()
}

func (v *verifier) event(e events.Event) error {
	if v.user == nil || v.user.user != e.UserID {
		if err := v.endUser(); err != nil {
			return err
		}
		if err := v.beginUser(e.UserID); err != nil {
			return err
		}
	}
	v.report.Events++
	v.head++
	if e.Seq != v.head {
		v.differ(Difference{Projection: events.Topic, UserID: e.UserID, Member: "seq", Expected: fmt.Sprint(v.head), Found: fmt.Sprint(e.Seq)})
		v.head = e.Seq
	}
	if e.Position > v.position || e.Seq > v.through {
		return nil
	}
	v.changes = v.user.apply(v.changes[:0], e)
	if v.projection.current {
		return nil
	}
	for _, c := range v.changes {
		if err := v.row(c); err != nil {
			return err
		}
	}
	return nil
}

// beginUser steps over the rows of users who are not in the log.
func (v *verifier) beginUser(user string) error {
	if err := v.strayUsers(user); err != nil {
		return err
	}
	v.report.Users++
	v.user, v.head, v.through = newUserFold(user), 0, math.MaxInt64
	if !v.users.done && v.users.user == user && v.users.parked {
		v.report.Parked++
		v.through = v.users.seq
	}
	return nil
}

// strayUsers reports the users of the read model that come before user and have no events. An empty user means all that are left.
func (v *verifier) strayUsers(user string) error {
	for !v.users.done && (user == "" || v.users.user < user) {
		v.differ(Difference{UserID: v.users.user, Member: "seq", Expected: "none", Found: fmt.Sprint(v.users.seq)})
		if err := v.users.next(); err != nil {
			return err
		}
	}
	return v.strayRows(user, nil)
}

// strayRows reports the rows that come before the given place and should not be.
func (v *verifier) strayRows(user string, place any) error {
	for !v.rows.done && (user == "" || v.rows.before(user, place)) {
		v.differ(Difference{UserID: v.rows.user(), Task: v.rows.task(), Member: "row", Expected: "none", Found: "a row"})
		if err := v.rows.next(); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) endUser() error {
	if v.user == nil {
		return nil
	}
	if v.projection.current {
		for _, c := range v.user.current() {
			if err := v.row(c); err != nil {
				return err
			}
		}
	}
	if v.user.seq == 0 && (v.users.done || v.users.user != v.user.user) {
		return nil // not projected yet
	}
	if v.users.done || v.users.user != v.user.user {
		v.differ(Difference{UserID: v.user.user, Member: "seq", Expected: fmt.Sprint(v.user.seq), Found: "none"})
		return nil
	}
	if v.users.seq != v.user.seq {
		v.differ(Difference{UserID: v.user.user, Member: "seq", Expected: fmt.Sprint(v.user.seq), Found: fmt.Sprint(v.users.seq)})
	}
	return v.users.next()
}

// row compares one expected row with the next found.
func (v *verifier) row(c change) error {
	user := c.after.UserID
	place := v.projection.keyColumn().value(c)
	if err := v.strayRows(user, place); err != nil {
		return err
	}
	v.report.Rows++
	if v.rows.done || v.rows.after(user, place) {
		v.differ(Difference{UserID: user, Task: v.taskOf(c), Member: "row", Expected: "a row", Found: "none"})
		return nil
	}
	for i, column := range v.projection.columns {
		expected, found := column.value(c), v.rows.values[i]
		if !sameValue(expected, found) {
			v.differ(Difference{UserID: user, Task: v.taskOf(c), Member: column.name, Expected: show(expected), Found: show(found)})
		}
	}
	return v.rows.next()
}

func (v *verifier) taskOf(c change) string {
	if v.projection.current {
		return c.after.ID.String()
	}
	return fmt.Sprintf("%s seq=%d", c.after.ID, c.event.Seq)
}

func (v *verifier) end() error {
	if err := v.endUser(); err != nil {
		return err
	}
	return v.strayUsers("")
}

func (p *projection) keyColumn() column {
	return p.columns[p.index(p.key)]
}

func (p *projection) index(name string) int {
	for i, c := range p.columns {
		if c.name == name {
			return i
		}
	}
	return -1
}

// rowReader reads a read model's rows in order of user and key.
type rowReader struct {
	projection *projection
	rows       pgx.Rows
	key        int
	taskColumn int
	done       bool
	values     []any
}

func newRowReader(p *projection, rows pgx.Rows) *rowReader {
	r := &rowReader{projection: p, rows: rows, key: p.index(p.key), taskColumn: p.index("task_id")}
	if r.taskColumn < 0 {
		r.taskColumn = r.key
	}
	return r
}

func (r *rowReader) next() error {
	if !r.rows.Next() {
		r.done = true
		return r.rows.Err()
	}
	places := make([]any, len(r.projection.columns))
	for i, c := range r.projection.columns {
		places[i] = c.scan()
	}
	if err := r.rows.Scan(places...); err != nil {
		return err
	}
	r.values = make([]any, len(places))
	for i, c := range r.projection.columns {
		r.values[i] = c.read(places[i])
	}
	return nil
}

func (r *rowReader) user() string { return r.values[0].(string) }

func (r *rowReader) task() string {
	return uuid.UUID(r.values[r.taskColumn].([16]byte)).String()
}

// before tells whether the row comes before a place; a nil place is before all rows of its user.
func (r *rowReader) before(user string, place any) bool {
	if r.user() != user {
		return r.user() < user
	}
	return place != nil && compareKeys(r.values[r.key], place) < 0
}

func (r *rowReader) after(user string, place any) bool {
	if r.user() != user {
		return r.user() > user
	}
	return compareKeys(r.values[r.key], place) > 0
}

func compareKeys(a, b any) int {
	switch a := a.(type) {
	case int64:
		return int(a - b.(int64))
	case [16]byte:
		return compareIDs(a, b.([16]byte))
	}
	panic(fmt.Sprintf("a key of type %T has no order", a))
}

// userReader reads the users of a read model in order.
type userReader struct {
	rows   pgx.Rows
	done   bool
	user   string
	seq    int64
	parked bool
}

func (r *userReader) next() error {
	if !r.rows.Next() {
		r.done = true
		return r.rows.Err()
	}
	return r.rows.Scan(&r.user, &r.seq, &r.parked)
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case time.Time:
		return a.Equal(b.(time.Time))
	case *time.Time:
		other := b.(*time.Time)
		return (a == nil) == (other == nil) && (a == nil || a.Equal(*other))
	case *string:
		return sameText(a, b.(*string))
	case []byte:
		return bytes.Equal(a, b.([]byte))
	}
	return a == b
}

// show is a value as an operator reads it.
func show(value any) string {
	switch value := value.(type) {
	case string:
		return fmt.Sprintf("%q", value)
	case *string:
		if value != nil {
			return fmt.Sprintf("%q", *value)
		}
		return "null"
	case time.Time:
		return value.UTC().Format(time.RFC3339Nano)
	case *time.Time:
		if value != nil {
			return value.UTC().Format(time.RFC3339Nano)
		}
		return "null"
	case [16]byte:
		return uuid.UUID(value).String()
	case []byte:
		return fmt.Sprintf("%x", value)
	}
	return fmt.Sprint(value)
}
