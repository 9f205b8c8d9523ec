package projections

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"taskledger/events"
)

// readOnlySnapshot is a transaction in which everything is of one moment.
var readOnlySnapshot = pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}

// comparedUserColumns are those of a user's row that follow from the log: not since when it is parked, and why.
const comparedUserColumns = 4

// Difference is one place where the read model is not the fold of the log, or the log is not contiguous.
type Difference struct {
	Table    string // or "task_events" for the log itself
	UserID   string
	Task     string // the task's id, or of a history row task and seq; empty when it is about the user
	Member   string
	Expected string
	Found    string
}

// String is the line an operator reads.
func (d Difference) String() string {
	return fmt.Sprintf(
		"%s: user=%q task=%s member=%s expected=%s found=%s",
		d.Table,
		d.UserID,
		d.Task,
		d.Member,
		d.Expected,
		d.Found,
	)
}

// VerifyReport says how much was compared.
type VerifyReport struct {
	Users       int64 // of the log
	Events      int64 // of the log
	Rows        int64
	Parked      int64 // users whom the read model does not follow; compared up to where it does
	Differences int64
}

// Verify compares every row of the read model with the fold of the log up to its checkpoint, in one snapshot, and each
// user's seq with 1, 2, 3, …. An empty user means all. It calls found for each difference.
func Verify(ctx context.Context, db *events.DB, user string, found func(Difference)) (VerifyReport, error) {
	v := &verifier{checkpoint: Name, user: user, found: found}
	err := db.Begin(ctx, readOnlySnapshot, func(tx *events.Tx) error { return v.run(ctx, tx) })
	if err != nil {
		return v.report, fmt.Errorf("verify: %w", err)
	}
	return v.report, nil
}

// verifier folds the log and walks through the rows of the read model beside it, all in the order of users.
type verifier struct {
	checkpoint string
	user       string // empty = all
	found      func(Difference)

	report   VerifyReport
	position int64 // of the checkpoint
	tasks    *reader[events.Task]
	history  *reader[change]
	users    *reader[userState]

	fold    *userFold
	head    int64 // the last seq seen of the user in the log
	parked  bool
	through int64 // fold no further than this seq: a parked user's read model stands there
	changes []change
}

func (v *verifier) run(ctx context.Context, q events.Querier) error {
	_, err := events.One(
		ctx,
		q,
		`SELECT position FROM {schema}.checkpoints WHERE projection = $1`,
		[]any{v.checkpoint},
		&v.position,
	)
	if err != nil {
		return err
	}
	// Every row is read: no plan for the first few.
	if _, err := q.Exec(ctx, `SELECT set_config('cursor_tuple_fraction', '1', true)`); err != nil {
		return err
	}
	task := func(row []any) string { return show(row[1]) }
	if v.tasks, err = openReader(ctx, q, v, taskTable, taskColumns, 1, task); err != nil {
		return err
	}
	event := func(row []any) string { return fmt.Sprintf("%s seq=%d", show(row[2]), row[1]) }
	if v.history, err = openReader(ctx, q, v, historyTable, historyColumns, 1, event); err != nil {
		return err
	}
	user := func([]any) string { return "" }
	if v.users, err = openReader(ctx, q, v, userTable, userColumns[:comparedUserColumns], 0, user); err != nil {
		return err
	}
	log, err := openCursor(ctx, q, "log", `
		SELECT `+events.Columns+`
		FROM {schema}.task_events e
		WHERE $1 = '' OR e.user_id = $1
		ORDER BY e.user_id, e.seq`, v.user, func(rows pgx.Rows) (events.Event, error) { return events.ScanEvent(rows) })
	if err != nil {
		return err
	}
	for {
		e, ok, err := log.next()
		if err != nil {
			return err
		}
		if !ok {
			return v.end()
		}
		if err := v.event(&e); err != nil {
			return err
		}
	}
}

func (v *verifier) differ(d Difference) {
	v.report.Differences++
	v.found(d)
}

func (v *verifier) event(e *events.Event) (err error) {
	if v.fold == nil || v.fold.user != e.UserID {
		if err := v.endUser(); err != nil {
			return err
		}
		if err := v.beginUser(e); err != nil {
			return err
		}
	}
	v.report.Events++
	if v.head++; v.head == 1 && isErasure(*e) { // nothing of what was before it is left
		v.head = e.Seq
	}
	if e.Seq != v.head {
		v.differ(Difference{
			Table:    events.Topic,
			UserID:   e.UserID,
			Member:   "seq",
			Expected: fmt.Sprint(v.head),
			Found:    fmt.Sprint(e.Seq),
		})
		v.head = e.Seq
	}
	if e.Position > v.position || e.Seq > v.through {
		return nil
	}
	if v.changes, err = v.fold.apply(v.changes[:0], e); err != nil {
		return err
	}
	for i := range v.changes {
		if err := v.history.match(e.UserID, e.Seq, &v.changes[i]); err != nil {
			return err
		}
	}
	return nil
}

// beginUser steps over the users who are not in the log, and over the rows of a user whose erasure the read model does
// not show yet: the log they were made of is gone.
func (v *verifier) beginUser(first *events.Event) error {
	user := first.UserID
	v.report.Users++
	v.fold, v.head, v.through = newUserFold(user), 0, math.MaxInt64
	if isErasure(*first) && first.Position > v.position {
		return cmp.Or(v.tasks.pass(user), v.history.pass(user), v.users.pass(user))
	}
	seq, parked, err := v.users.peek(user)
	if v.parked = parked; parked {
		v.report.Parked++
		v.through = seq
	}
	return err
}

func (v *verifier) endUser() error {
	if v.fold == nil {
		return nil
	}
	user := v.fold.user
	for _, t := range v.fold.current() {
		if err := v.tasks.match(user, [16]byte(t.ID), &t); err != nil {
			return err
		}
	}
	if v.fold.seq == 0 && !v.parked {
		return nil // not projected yet
	}
	return v.users.match(user, nil, &v.fold.userState)
}

func (v *verifier) end() error {
	if err := v.endUser(); err != nil {
		return err
	}
	for _, end := range []func() error{v.tasks.end, v.history.end, v.users.end} {
		if err := end(); err != nil {
			return err
		}
	}
	return nil
}

// reader walks through a table in the order of users and of its key, and compares its rows with those expected.
type reader[T any] struct {
	v       *verifier
	name    string
	columns columns[T]
	key     int // the column that is the key within a user; 0 = there is one row a user
	about   func(row []any) string
	rows    *cursor[tableRow]
	at      tableRow
	done    bool
}

// tableRow is a row of the read model as it was found.
type tableRow struct {
	values []any
	parked bool // of a user
}

// openReader stands on the first row.
func openReader[T any](
	ctx context.Context,
	q events.Querier,
	v *verifier,
	t *table,
	columns columns[T],
	key int,
	about func(row []any) string,
) (*reader[T], error) {
	r := &reader[T]{v: v, name: t.name, columns: columns, key: key, about: about}
	parked, order := `false`, `user_id`
	if key == 0 {
		parked = `parked_error IS NOT NULL`
	} else {
		order += `, ` + columns[key].Name
	}
	query := `
		SELECT ` + strings.Join(t.columns[:len(columns)], ", ") + `, ` + parked + `
		FROM {schema}.` + t.name + `
		WHERE $1 = '' OR user_id = $1
		ORDER BY ` + order
	var err error
	if r.rows, err = openCursor(ctx, q, "rows_of_"+t.name, query, v.user, r.scan); err != nil {
		return nil, err
	}
	return r, r.next()
}

func (r *reader[T]) scan(rows pgx.Rows) (row tableRow, err error) {
	places := make([]any, len(r.columns)+1)
	for i, c := range r.columns {
		places[i] = c.place()
	}
	places[len(r.columns)] = &row.parked
	if err := rows.Scan(places...); err != nil {
		return row, err
	}
	row.values = places[:len(r.columns)]
	for i, c := range r.columns {
		row.values[i] = c.taken(places[i])
	}
	return row, nil
}

func (r *reader[T]) next() error {
	row, ok, err := r.rows.next()
	r.at, r.done = row, !ok
	return err
}

func (r *reader[T]) user() string { return r.at.values[0].(string) }

// compareTo compares the place of the row with another place.
func (r *reader[T]) compareTo(user string, key any) int {
	if order := cmp.Compare(r.user(), user); order != 0 || r.key == 0 {
		return order
	}
	switch at := r.at.values[r.key].(type) {
	case int64:
		return cmp.Compare(at, key.(int64))
	case [16]byte:
		return compareIDs(at, key.([16]byte))
	}
	panic(fmt.Sprintf("a key of type %T has no order", r.at.values[r.key]))
}

// strays reports the rows before a place: they should not be.
func (r *reader[T]) strays(user string, key any) error {
	for !r.done && r.compareTo(user, key) < 0 {
		if err := r.stray(); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader[T]) stray() error {
	r.differ(r.user(), r.at.values, "row", "none", "a row")
	return r.next()
}

func (r *reader[T]) differ(user string, row []any, member, expected, found string) {
	r.v.differ(Difference{
		Table: r.name, UserID: user, Task: r.about(row), Member: member, Expected: expected, Found: found,
	})
}

func (r *reader[T]) end() error {
	for !r.done {
		if err := r.stray(); err != nil {
			return err
		}
	}
	return nil
}

// pass steps over the rows of a user.
func (r *reader[T]) pass(user string) error {
	for !r.done && r.user() <= user {
		step := r.next
		if r.user() < user {
			step = r.stray
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// peek tells what the row of a user says, if there is one.
func (r *reader[T]) peek(user string) (seq int64, parked bool, err error) {
	if err := r.strays(user, nil); err != nil || r.done || r.user() != user {
		return 0, false, err
	}
	return r.at.values[1].(int64), r.at.parked, nil
}

// match compares an expected row with the next one found.
func (r *reader[T]) match(user string, key any, expected *T) error {
	if err := r.strays(user, key); err != nil {
		return err
	}
	r.v.report.Rows++
	row := make([]any, len(r.columns))
	for i, c := range r.columns {
		row[i] = c.value(expected)
	}
	if r.done || r.compareTo(user, key) > 0 {
		r.differ(user, row, "row", "a row", "none")
		return nil
	}
	for i, c := range r.columns {
		if found := r.at.values[i]; !sameValue(row[i], found) {
			r.differ(user, row, c.Name, show(row[i]), show(found))
		}
	}
	return r.next()
}

// fetchSize is how many rows a cursor fetches at a time.
const fetchSize = 2000

// cursor reads the rows of a query chunk by chunk (DECLARE, FETCH), so that several can be read side by side in one
// transaction.
type cursor[T any] struct {
	ctx     context.Context
	q       events.Querier
	name    string
	scan    func(pgx.Rows) (T, error)
	fetched []T
}

// openCursor declares a cursor; the query may have one parameter.
func openCursor[T any](
	ctx context.Context, q events.Querier, name, query string, arg any, scan func(pgx.Rows) (T, error),
) (*cursor[T], error) {
	if _, err := q.Exec(ctx, `DECLARE `+name+` NO SCROLL CURSOR FOR `+query, arg); err != nil {
		return nil, fmt.Errorf("open a cursor on %s: %w", name, err)
	}
	return &cursor[T]{ctx: ctx, q: q, name: name, scan: scan}, nil
}

func (c *cursor[T]) next() (item T, ok bool, err error) {
	if len(c.fetched) == 0 {
		err = c.q.Query(
			c.ctx,
			fmt.Sprintf(`FETCH %d FROM %s`, fetchSize, c.name),
			nil,
			func(rows pgx.Rows) (err error) {
				c.fetched, err = pgx.CollectRows(rows, func(pgx.CollectableRow) (T, error) { return c.scan(rows) })
				return err
			},
		)
		if err != nil {
			return item, false, fmt.Errorf("read %s: %w", c.name, err)
		}
		if len(c.fetched) == 0 {
			return item, false, nil
		}
	}
	item, c.fetched = c.fetched[0], c.fetched[1:]
	return item, true, nil
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
	case pgtype.UUID:
		return value.String()
	case []byte:
		return fmt.Sprintf("%x", value)
	}
	return fmt.Sprint(value)
}
