package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/trace"

	"taskledger/events"
)

const (
	// suffix is that of the tables, and of the checkpoint, that a rebuild makes.
	suffix = "_rebuild"
	// swapAttempts bounds how often the swap is tried when somebody holds on to a table.
	swapAttempts = 30
	// swapWait is how long a swap waits for who reads a table; readers that come meanwhile wait behind it.
	swapWait = 100 * time.Millisecond
	// swapPause is the longest time between attempts.
	swapPause = 2 * time.Second
	// clearTimeout bounds how long a rebuild that was interrupted waits for who holds on to what it has made.
	clearTimeout = 2 * time.Second
	// rebuildConnections are those that fold the log and copy into three tables, side by side.
	rebuildConnections = 4
	// sampleUsers is how many users of the new read model are compared with the log before it is swapped in.
	sampleUsers = 20
)

// ErrUnknownProjection: there is no projection of that name.
var ErrUnknownProjection = errors.New("unknown projection")

// ErrUnknownUser: neither the log nor the read model has anything of the user.
var ErrUnknownUser = errors.New("unknown user")

// ErrCurrent: the read model was made by this version of its code.
var ErrCurrent = errors.New("the read model was made by this version of its code")

// RebuildReport says what a rebuild did.
type RebuildReport struct {
	Events int64 // folded, without those that came in meanwhile
	Rows   int64 // written
	Took   time.Duration
}

// Progress is told how many of how many events are done.
type Progress func(done, total int64)

// Rebuild makes the read model anew from the log while servers read and write, and swaps it in, in one transaction;
// tables that were dropped or damaged are there again. The projection is empty, or Name. The pool of db needs six
// connections.
func Rebuild(ctx context.Context, db *events.DB, projection string, progress Progress) (RebuildReport, error) {
	if projection != "" && projection != Name {
		return RebuildReport{}, fmt.Errorf("%w %q", ErrUnknownProjection, projection)
	}
	return rebuildIf(ctx, db, progress, func() error { return nil })
}

// RebuildOutdated is Rebuild of a read model that another version of its code has made, and else ErrCurrent. So of
// several processes that all want it one does it.
func RebuildOutdated(ctx context.Context, db *events.DB, progress Progress) (RebuildReport, error) {
	return rebuildIf(ctx, db, progress, func() error {
		made, program, err := Versions(ctx, db)
		if err == nil && made == program {
			return ErrCurrent
		}
		return err
	})
}

// rebuildIf rebuilds if the condition, which is looked at when no other maintenance is under way, is no error.
func rebuildIf(ctx context.Context, db *events.DB, progress Progress, condition func() error) (RebuildReport, error) {
	r := &rebuild{db: db, progress: progress}
	start := time.Now()
	err := maintain(ctx, db, rebuildConnections, func() error {
		if err := condition(); err != nil {
			return err
		}
		return r.run(ctx)
	})
	if err != nil {
		return RebuildReport{}, fmt.Errorf("rebuild: %w", err)
	}
	return RebuildReport{Events: r.done, Rows: r.rows, Took: time.Since(start)}, nil
}

// Versions are that of the code which made the read model, 0 if several did, and that of this program.
func Versions(ctx context.Context, db *events.DB) (made, program int, err error) {
	found, err := events.One(
		ctx,
		db,
		`SELECT version FROM {schema}.checkpoints WHERE projection = $1`,
		[]any{Name},
		&made,
	)
	if err == nil && !found {
		err = fmt.Errorf("there is no checkpoint of the projection %s", Name)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read the version of the read model: %w", err)
	}
	return made, version, nil
}

type rebuild struct {
	db          *events.DB
	progress    Progress
	done, total int64
	rows        int64
	generation  int64     // of the new read model
	follower    *follower // applies to the new tables what came in meanwhile
}

func (r *rebuild) run(ctx context.Context) error {
	if err := r.clear(ctx); err != nil {
		return err
	}
	defer func() {
		clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTimeout)
		defer cancel()
		_ = r.clear(clearing) // what is left of a rebuild that failed is dropped by the next one, if it can't be now
	}()
	if _, err := r.db.Exec(ctx, `SELECT {schema}.create_read_model($1)`, suffix); err != nil {
		return fmt.Errorf("make tables: %w", err)
	}
	if _, err := events.One(
		ctx, r.db, `SELECT generation + 1 FROM {schema}.checkpoints WHERE projection = $1`, []any{Name}, &r.generation,
	); err != nil {
		return err
	}
	position, err := r.fill(ctx)
	if err != nil {
		return err
	}
	if err := r.index(ctx, position); err != nil {
		return err
	}
	r.follower = newFollower(newReadModel(), Name+suffix, newTables{r.db}, slog.New(slog.DiscardHandler), nil)
	r.follower.progress.confirm(position, trace.SpanContext{})
	if err := r.catchUp(ctx, r.db); err != nil {
		return err
	}
	if err := r.sample(ctx); err != nil {
		return err
	}
	return r.swap(ctx)
}

func (r *rebuild) clear(ctx context.Context) error {
	return r.db.Begin(ctx, pgx.TxOptions{}, func(tx *events.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT {schema}.drop_read_model($1)`, suffix); err != nil {
			return fmt.Errorf("drop the tables of an earlier rebuild: %w", err)
		}
		_, err := tx.Exec(ctx, `DELETE FROM {schema}.checkpoints WHERE projection = $1`, Name+suffix)
		return err
	})
}

// newTables is a querier for whom the names of the read model's tables are those of the new ones.
type newTables struct{ events.Querier }

var newNames = strings.NewReplacer(
	"{schema}.tasks", "{schema}.tasks"+suffix,
	"{schema}.task_history", "{schema}.task_history"+suffix,
	"{schema}.users", "{schema}.users"+suffix,
)

// Query implements events.Querier.
func (q newTables) Query(ctx context.Context, text string, args []any, read func(pgx.Rows) error) error {
	return q.Querier.Query(ctx, newNames.Replace(text), args, read)
}

// Write implements events.Querier.
func (q newTables) Write(ctx context.Context, text string, args []any) (row bool, err error) {
	return q.Querier.Write(ctx, newNames.Replace(text), args)
}

// Exec implements events.Querier.
func (q newTables) Exec(ctx context.Context, text string, args ...any) (int64, error) {
	return q.Querier.Exec(ctx, newNames.Replace(text), args...)
}

// index gives the new tables what the old ones have, and statistics, so that plans are right from the start.
func (r *rebuild) index(ctx context.Context, position int64) error {
	if _, err := r.db.Exec(ctx, `SELECT {schema}.index_read_model($1)`, suffix); err != nil {
		return fmt.Errorf("make indexes: %w", err)
	}
	for _, t := range readModelTables {
		if _, err := r.db.Exec(ctx, `ANALYZE {schema}.`+t.name+suffix); err != nil {
			return fmt.Errorf("analyze %s: %w", t.name, err)
		}
	}
	_, err := r.db.Exec(ctx, `
		INSERT INTO {schema}.checkpoints (projection, position, generation)
		VALUES ($1, $2, $3)`, Name+suffix, position, r.generation)
	return err
}

// catchUp applies what was appended meanwhile to the new tables, until there is no more. Where an event that this rests
// on is not in the log any more, because its user was erased, it begins again at the checkpoint of the new tables.
func (r *rebuild) catchUp(ctx context.Context, q events.Querier) error {
	r.follower.db = newTables{q}
	for {
		b, err := events.Read(ctx, q, r.follower.progress.at(), maxEvents)
		if err != nil {
			return fmt.Errorf("catch up: %w", err)
		}
		if len(b.Events) == 0 {
			return nil
		}
		err = r.follower.apply(ctx, &events.Delivery{Batch: b, Generation: r.generation})
		if errors.Is(err, errOvertaken) {
			err = r.resume(ctx, q)
		}
		if err != nil {
			return fmt.Errorf("catch up: %w", err)
		}
	}
}

// sample compares some users of the new read model with the log.
func (r *rebuild) sample(ctx context.Context) error {
	var users []string
	err := newTables{
		r.db,
	}.Query(
		ctx,
		`SELECT user_id FROM {schema}.users ORDER BY random() LIMIT $1`,
		[]any{sampleUsers},
		func(rows pgx.Rows) (err error) {
			users, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		},
	)
	if err != nil {
		return fmt.Errorf("sample: %w", err)
	}
	for _, user := range users {
		var first *Difference
		v := &verifier{checkpoint: Name + suffix, user: user, found: func(d Difference) {
			if first == nil {
				first = &d
			}
		}}
		err := r.db.Begin(ctx, readOnlySnapshot, func(tx *events.Tx) error { return v.run(ctx, newTables{tx}) })
		if err != nil {
			return fmt.Errorf("sample: %w", err)
		}
		if first != nil {
			return fmt.Errorf("sample: the new read model differs from the log: %s: user=%q task=%s member=%s",
				first.Table, first.UserID, first.Task, first.Member) // not what it is: that may be a title
		}
	}
	return nil
}

// swap puts the new tables in the place of the old ones in one transaction. It takes the tables before the checkpoint,
// in the order in which the runner's statement takes them, and waits for neither long: readers would queue behind it.
func (r *rebuild) swap(ctx context.Context) error {
	var err error
	wait := swapWait
	for range swapAttempts {
		if err = r.catchUp(ctx, r.db); err != nil {
			return err
		}
		err = r.db.Begin(ctx, pgx.TxOptions{}, func(tx *events.Tx) error { return r.swapIn(ctx, tx) })
		if !isLockTimeout(err) {
			break
		}
		r.follower.progress.confirm(0, trace.SpanContext{}) // what the transaction had applied is undone
		if err := r.resume(ctx, r.db); err != nil {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, swapPause)
	}
	if err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	return nil
}

// resume reads how far the new tables have come.
func (r *rebuild) resume(ctx context.Context, q events.Querier) error {
	var position int64
	_, err := events.One(
		ctx,
		q,
		`SELECT position FROM {schema}.checkpoints WHERE projection = $1`,
		[]any{Name + suffix},
		&position,
	)
	r.follower.forget()
	r.follower.progress.confirm(position, trace.SpanContext{})
	return err
}

func (r *rebuild) swapIn(ctx context.Context, tx *events.Tx) error {
	_, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true)`, fmt.Sprint(swapWait.Milliseconds()))
	if err != nil {
		return err
	}
	for _, t := range readModelTables {
		var there bool
		_, err := events.One(
			ctx,
			tx,
			`SELECT to_regclass($1) IS NOT NULL`,
			[]any{r.db.SQL(`{schema}.` + t.name)},
			&there,
		)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		if _, err := tx.Exec(ctx, `LOCK TABLE {schema}.`+t.name+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `SELECT FROM {schema}.checkpoints WHERE projection = $1 FOR UPDATE`, Name); err != nil {
		return err
	}
	// So that the new read model is nowhere behind the old one.
	if err := r.catchUp(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT {schema}.swap_read_model($1)`, suffix); err != nil {
		return err
	}
	moved, err := tx.Exec(ctx, `
		UPDATE {schema}.checkpoints c
		SET position = s.position, generation = s.generation, version = $3
		FROM {schema}.checkpoints s
		WHERE c.projection = $1 AND s.projection = $2 AND c.generation = s.generation - 1`, Name, Name+suffix, version)
	if err == nil && moved == 0 {
		err = errors.New("somebody else has changed the read model meanwhile: run it again")
	}
	return err
}

func isLockTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "40P01")
}

// RebuildUser makes the rows of one user anew from the log, in one transaction. ErrUnknownUser: there is no such user.
func RebuildUser(ctx context.Context, db *events.DB, user string) (report RebuildReport, err error) {
	start := time.Now()
	err = maintain(ctx, db, 1, func() (err error) {
		report, err = rebuildUser(ctx, db, user)
		return err
	})
	report.Took = time.Since(start)
	return report, err
}

func rebuildUser(ctx context.Context, db *events.DB, user string) (report RebuildReport, err error) {
	err = db.Begin(ctx, pgx.TxOptions{}, func(tx *events.Tx) error {
		w := &userWriter{tx: tx, user: newUserFold(user)}
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, db.UserLockKey(user)); err != nil {
			return err
		}
		err := w.run(ctx)
		report = w.report
		return err
	})
	if err != nil {
		return RebuildReport{}, fmt.Errorf("rebuild one user: %w", err)
	}
	return report, nil
}

// userWriter writes the rows of one user, a chunk of the stream at a time.
type userWriter struct {
	tx       *events.Tx
	user     *userFold
	position int64 // through which the stream is folded
	report   RebuildReport
}

func (w *userWriter) run(ctx context.Context) error {
	_, err := events.One(ctx, w.tx, `
		UPDATE {schema}.checkpoints
		SET generation = generation + 1, `+writtenTo+`
		WHERE projection = $1
		RETURNING position, generation`, []any{Name}, &w.position, &w.user.generation)
	if err != nil {
		return err
	}
	known := false
	for _, t := range readModelTables {
		deleted, err := w.tx.Exec(ctx, `DELETE FROM {schema}.`+t.name+` WHERE user_id = $1`, w.user.user)
		if err != nil {
			return err
		}
		known = known || deleted > 0
	}
	for more := true; more; {
		if more, err = w.next(ctx); err != nil {
			return err
		}
	}
	if w.report.Events == 0 {
		return w.nothing(ctx, known)
	}
	tasks := w.user.current()
	w.report.Rows += int64(len(tasks)) + 1
	return errors.Join(
		write(ctx, w.tx, taskColumns.fresh(taskTable, tasks)),
		write(ctx, w.tx, userColumns.fresh(userTable, []userState{w.user.userState})),
	)
}

// nothing is the end for a user of whom nothing is to be shown: ErrUnknownUser where there is none.
func (w *userWriter) nothing(ctx context.Context, known bool) error {
	if known {
		return nil
	}
	_, err := events.One(ctx, w.tx, `
		SELECT EXISTS (SELECT FROM {schema}.task_events WHERE user_id = $1)`, []any{w.user.user}, &known)
	if err == nil && !known {
		err = ErrUnknownUser
	}
	return err
}

// next folds the next chunk of the stream and writes its history.
func (w *userWriter) next(ctx context.Context) (more bool, err error) {
	var chunk []events.Event
	err = w.tx.Query(ctx, `
		SELECT `+events.Columns+`
		FROM {schema}.task_events e
		WHERE e.user_id = $1 AND e.seq > $2 AND e.position <= $3
		ORDER BY e.seq
		LIMIT $4`, []any{w.user.user, w.user.seq, w.position, maxEvents}, func(rows pgx.Rows) error {
		for rows.Next() {
			e, err := events.ScanEvent(rows)
			if err != nil {
				return err
			}
			chunk = append(chunk, e)
		}
		return rows.Err()
	})
	if err != nil {
		return false, err
	}
	changes := make([]change, 0, len(chunk))
	for i := range chunk {
		if changes, err = w.user.apply(changes, &chunk[i]); err != nil {
			return false, err
		}
	}
	w.report.Events += int64(len(chunk))
	w.report.Rows += int64(len(changes))
	more = len(chunk) == maxEvents && w.user.parked == nil
	return more, write(ctx, w.tx, historyColumns.fresh(historyTable, changes))
}

// write writes rows into their table.
func write(ctx context.Context, tx *events.Tx, r rows) error {
	_, err := tx.Write(ctx, r.write(false, `
		SELECT r.*
		FROM `+r.table.unnest(1)+` AS r`), []any{r.Rows})
	if err != nil {
		return fmt.Errorf("write %s: %w", r.table.name, err)
	}
	return nil
}
