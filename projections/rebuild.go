package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
)

const (
	// shadow is the schema in which new read models are made, under the names they will have.
	shadow = "taskledger_rebuild"
	// rebuildLock is the key of the advisory lock that lets one rebuild run at a time.
	rebuildLock = 7_405_316_120_002
	// swapAttempts bounds how often the swap is tried when somebody holds on to a table.
	swapAttempts = 30
	// swapWait is how long a swap waits for who reads a table; readers that come meanwhile wait behind it.
	swapWait = 100 * time.Millisecond
	// swapPause is the longest time between attempts.
	swapPause = 2 * time.Second
	// sampleUsers is how many users of a new read model are compared with the log before it is swapped in.
	sampleUsers = 20
)

// Errors of Rebuild.
var (
	// ErrRebuildRunning: another rebuild has not ended.
	ErrRebuildRunning = errors.New("another rebuild is running on this database")
	// ErrUnknownProjection: there is no projection of that name.
	ErrUnknownProjection = errors.New("unknown projection")
)

// RebuildReport says what a rebuild did.
type RebuildReport struct {
	Events int64 // folded, over all projections, without those that came in meanwhile
	Rows   int64 // written
	Took   time.Duration
}

// Progress is told how many of how many events are done.
type Progress func(done, total int64)

// Rebuild makes read models anew from the log while servers read and write, and swaps them in, in one transaction each. An empty
// projection means all of them. pool needs four connections.
func Rebuild(ctx context.Context, pool *pgxpool.Pool, projection string, progress Progress) (RebuildReport, error) {
	chosen, err := choose(projection)
	if err != nil {
		return RebuildReport{}, err
	}
	release, err := lockRebuild(ctx, pool)
	if err != nil {
		return RebuildReport{}, fmt.Errorf("rebuild: %w", err)
	}
	defer release()
	r := &rebuild{pool: pool, progress: progress}
	start := time.Now()
	if err := r.count(ctx, len(chosen)); err != nil {
		return RebuildReport{}, fmt.Errorf("rebuild: %w", err)
	}
	for _, p := range chosen {
		if err := r.projection(ctx, p); err != nil {
			return RebuildReport{}, fmt.Errorf("rebuild %s: %w", p.name, err)
		}
	}
	return RebuildReport{Events: r.done, Rows: r.rows, Took: time.Since(start)}, nil
}

func choose(name string) ([]*projection, error) {
	if name == "" {
		return all(), nil
	}
	for _, p := range all() {
		if p.name == name {
			return []*projection{p}, nil
		}
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownProjection, name)
}

// lockRebuild holds the lock in a transaction, which works behind a transaction pooler too. The transaction has no snapshot, so it
// holds up no vacuum.
func lockRebuild(ctx context.Context, pool *pgxpool.Pool) (release func(), err error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	release = func() { _ = tx.Rollback(context.WithoutCancel(ctx)) } // if the connection broke, the lock is free already
	var locked bool
	if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(rebuildLock)).Scan(&locked); err != nil {
		release()
		return nil, err
	}
	if !locked {
		release()
		return nil, ErrRebuildRunning
	}
	return release, nil
}

type rebuild struct {
	pool        *pgxpool.Pool
	progress    Progress
	done, total int64
	rows        int64
}

func (r *rebuild) count(ctx context.Context, passes int) error {
	var n int64
	err := r.pool.QueryRow(ctx, `SELECT count(*) FROM task_events`).Scan(&n)
	r.total = n * int64(passes)
	return err
}

func (r *rebuild) projection(ctx context.Context, p *projection) error {
	if err := r.prepare(ctx, p); err != nil {
		return err
	}
	defer func() {
		// What is left of a rebuild that failed is dropped by the next one, if it can't be now.
		_, _ = r.pool.Exec(context.WithoutCancel(ctx), `DROP SCHEMA IF EXISTS `+shadow+` CASCADE`)
	}()
	position, err := r.fill(ctx, p)
	if err != nil {
		return err
	}
	if err := r.finish(ctx, p, position); err != nil {
		return err
	}
	if err := r.catchUp(ctx, p); err != nil {
		return err
	}
	if err := r.sample(ctx, p); err != nil {
		return err
	}
	return r.swap(ctx, p)
}

// tables are what belongs to a projection.
func (p *projection) tables() []string { return []string{p.name, p.name + "_users"} }

// prepare makes the empty tables of the new read model, like those that serve but for indexes.
func (r *rebuild) prepare(ctx context.Context, p *projection) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		statements := []string{
			`DROP SCHEMA IF EXISTS ` + shadow + ` CASCADE`,
			`CREATE SCHEMA ` + shadow,
			`CREATE TABLE ` + shadow + `.projection_checkpoints (LIKE projection_checkpoints INCLUDING ALL)`,
		}
		for _, table := range p.tables() {
			statements = append(statements, `CREATE TABLE `+shadow+`.`+table+
				` (LIKE `+table+` INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)`)
		}
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return fmt.Errorf("prepare tables: %w", err)
			}
		}
		return nil
	})
}

// alike are the statements that make a new table ($1, in the schema $2) like the one that serves: keys, other indexes, row level
// security, policies and grants.
var alike = []string{
	`SELECT format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', $2::text, $1::text, conname, pg_get_constraintdef(oid))
	FROM pg_constraint
	WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u')
	ORDER BY conname`,

	`SELECT replace(
		pg_get_indexdef(i.indexrelid),
		format(' ON %I.%I ', n.nspname, t.relname),
		format(' ON %I.%I ', $2::text, $1::text)
	)
	FROM pg_index i
	JOIN pg_class t ON t.oid = i.indrelid
	JOIN pg_namespace n ON n.oid = t.relnamespace
	WHERE i.indrelid = $1::text::regclass
	AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
	ORDER BY i.indexrelid`,

	`SELECT format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY', $2::text, $1::text)
	FROM pg_class
	WHERE oid = $1::text::regclass AND relrowsecurity`,

	`SELECT format('CREATE POLICY %I ON %I.%I FOR SELECT USING (%s)', polname, $2::text, $1::text, pg_get_expr(polqual, polrelid))
	FROM pg_policy
	WHERE polrelid = $1::text::regclass AND polcmd = 'r'
	ORDER BY polname`,

	`SELECT format('GRANT %s ON %I.%I TO %I', a.privilege_type, $2::text, $1::text, r.rolname)
	FROM pg_class t
	CROSS JOIN aclexplode(t.relacl) a
	JOIN pg_roles r ON r.oid = a.grantee
	WHERE t.oid = $1::text::regclass AND a.grantee <> t.relowner
	ORDER BY r.rolname, a.privilege_type`,
}

// finish makes the new tables like those that serve, and gathers statistics, so that plans are right from the start.
func (r *rebuild) finish(ctx context.Context, p *projection, position int64) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		for _, table := range p.tables() {
			if err := finishTable(ctx, tx, table); err != nil {
				return fmt.Errorf("finish %s: %w", table, err)
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO `+shadow+`.projection_checkpoints (projection, position) VALUES ($1, $2)`, p.name, position)
		return err
	})
}

func finishTable(ctx context.Context, tx pgx.Tx, table string) error {
	for _, ask := range alike {
		statements, err := collect(ctx, tx, ask, table, shadow)
		if err != nil {
			return err
		}
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
	}
	_, err := tx.Exec(ctx, `ANALYZE `+shadow+`.`+table)
	return err
}

func collect(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]string, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// catchUp applies what was appended meanwhile to the new read model, until there is no more.
func (r *rebuild) catchUp(ctx context.Context, p *projection) error {
	for more := true; more; {
		err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
			if err := useShadow(ctx, tx); err != nil {
				return err
			}
			var err error
			more, err = r.applyNext(ctx, tx, p)
			return err
		})
		if err != nil {
			return fmt.Errorf("catch up: %w", err)
		}
	}
	return nil
}

// useShadow makes the names of read models mean the new ones for the rest of the transaction.
func useShadow(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT set_config('search_path', $1 || ', ' || current_schema(), true)`, shadow)
	return err
}

// applyNext applies the next batch to the read model that tx sees, as the runner does.
func (r *rebuild) applyNext(ctx context.Context, tx pgx.Tx, p *projection) (more bool, err error) {
	var (
		from, generation int64
		to               *int64
		payload          []byte
	)
	err = tx.QueryRow(ctx, p.selectBatch(), pgx.QueryExecModeExec, p.name, maxEvents).Scan(&from, &generation, &to, &payload)
	if err != nil || to == nil {
		return false, err
	}
	b, err := parseBatch(payload)
	if err != nil {
		return false, err
	}
	b.from, b.to, b.generation = from, *to, generation
	folded, err := b.fold(ctx, loadFrom(r.pool))
	if err != nil {
		return false, err
	}
	args := append([]any{pgx.QueryExecModeDescribeExec}, p.writeArgs(b, folded)...)
	_, err = tx.Exec(ctx, p.writeBatch(), args...)
	return true, err
}

// sample compares some users of the new read model with the log.
func (r *rebuild) sample(ctx context.Context, p *projection) error {
	rows, err := r.pool.Query(ctx, `SELECT user_id FROM `+shadow+`.`+p.name+`_users ORDER BY random() LIMIT $1`, sampleUsers)
	if err != nil {
		return fmt.Errorf("sample: %w", err)
	}
	users, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("sample: %w", err)
	}
	for _, user := range users {
		var report VerifyReport
		var first *Difference
		err := verifyProjection(ctx, r.pool, p, verifyOptions{user: user, shadow: true}, &report, func(d Difference) {
			if first == nil {
				first = &d
			}
		})
		if err != nil {
			return fmt.Errorf("sample: %w", err)
		}
		if first != nil {
			return fmt.Errorf("sample: the new read model differs from the log: %s", *first)
		}
	}
	return nil
}

// swap puts the new read model in the place of the old one in one transaction. It takes the tables before the checkpoint, in the
// order in which the runner's statement takes them, and waits for neither long: readers would queue behind it.
func (r *rebuild) swap(ctx context.Context, p *projection) error {
	var err error
	pause := swapWait
	for range swapAttempts {
		if err = r.catchUp(ctx, p); err != nil {
			return err
		}
		err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error { return r.swapIn(ctx, tx, p) })
		if !isLockTimeout(err) {
			break
		}
		if err := wait(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, swapPause)
	}
	if err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *rebuild) swapIn(ctx context.Context, tx pgx.Tx, p *projection) error {
	var schema string
	if err := tx.QueryRow(ctx, `SELECT quote_ident(current_schema()) FROM set_config('lock_timeout', $1, true)`, fmt.Sprint(swapWait.Milliseconds())).Scan(&schema); err != nil {
		return err
	}
	for _, table := range p.tables() {
		if _, err := tx.Exec(ctx, `LOCK TABLE `+schema+`.`+table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `SELECT FROM `+schema+`.projection_checkpoints WHERE projection = $1 FOR UPDATE`, p.name); err != nil {
		return err
	}
	if err := r.catchUpIn(ctx, tx, p); err != nil {
		return err
	}
	for _, table := range p.tables() {
		if _, err := tx.Exec(ctx, `DROP TABLE `+schema+`.`+table); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `ALTER TABLE `+shadow+`.`+table+` SET SCHEMA `+schema); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `
		UPDATE `+schema+`.projection_checkpoints c
		SET position = s.position, generation = c.generation + 1
		FROM `+shadow+`.projection_checkpoints s
		WHERE c.projection = s.projection AND c.projection = $1`, p.name)
	return err
}

// catchUpIn applies the last few events inside the swap's transaction, so that the new read model is nowhere behind the old one.
func (r *rebuild) catchUpIn(ctx context.Context, tx pgx.Tx, p *projection) error {
	if err := useShadow(ctx, tx); err != nil {
		return err
	}
	for {
		more, err := r.applyNext(ctx, tx, p)
		if err != nil || !more {
			return err
		}
	}
}

// RebuildUser makes the read models of one user anew from the log, in one short transaction a projection.
func RebuildUser(ctx context.Context, pool *pgxpool.Pool, projection, user string) (RebuildReport, error) {
	chosen, err := choose(projection)
	if err != nil {
		return RebuildReport{}, err
	}
	start := time.Now()
	report := RebuildReport{}
	for _, p := range chosen {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return p.rebuildUser(ctx, tx, user, &report) })
		if err != nil {
			return RebuildReport{}, fmt.Errorf("rebuild %s of one user: %w", p.name, err)
		}
	}
	report.Took = time.Since(start)
	return report, nil
}

func (p *projection) rebuildUser(ctx context.Context, tx pgx.Tx, user string, report *RebuildReport) error {
	b := &batch{}
	err := tx.QueryRow(ctx, `
		UPDATE projection_checkpoints
		SET generation = generation + 1
		WHERE projection = $1
		RETURNING position, generation`, p.name).Scan(&b.from, &b.generation)
	if err != nil {
		return err
	}
	b.to = b.from
	u := newUserFold(user)
	f := folded{users: map[string]*userFold{user: u}}
	err = events.Scan(ctx, tx, user, b.to, func(e events.Event) error {
		f.changes = u.apply(f.changes, e)
		report.Events++
		return nil
	})
	if err != nil {
		return err
	}
	for _, table := range p.tables() {
		if _, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE user_id = $1`, user); err != nil {
			return err
		}
	}
	if report.Events == 0 {
		return nil
	}
	report.Rows += int64(len(f.changes))
	_, err = tx.Exec(ctx, p.writeBatch(), p.writeArgs(b, f)...)
	return err
}

func isLockTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "40P01")
}
