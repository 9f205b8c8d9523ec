package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

const (
	// countedEvents is how many events are counted one by one; of more, statistics give an estimate.
	countedEvents = 100_000
	// shownParked bounds the parked users that a Status names.
	shownParked = 20
	// shownLocks bounds the waits for locks that a Status names.
	shownLocks = 20
	// tolerableLag is how old an event may be that the read model does not show, before it is asked whether that
	// moves at all.
	tolerableLag = 10 * time.Second
	// progressPatience is how long it is waited for a move.
	progressPatience = 1500 * time.Millisecond
	// statusLockWait is how long a table that is locked is waited for: a swap takes less.
	statusLockWait = 2 * time.Second
)

// Status is how a ledger stands, for an operator. Sizes are in bytes, times in seconds.
type Status struct {
	Log         LogStatus       `json:"log"`
	ReadModel   ReadModelStatus `json:"read_model"`
	Parked      ParkedStatus    `json:"parked"`
	Rebuild     *RebuildStatus  `json:"rebuild"` // null: none is under way, and nothing is left of one
	Connections []Connections   `json:"connections"`
	LockWaits   []LockWait      `json:"lock_waits"`
	// Locked: what the tables hold is not told, because somebody locks one of them.
	Locked     bool             `json:"locked"`
	LockedBy   []int32          `json:"locked_by"` // process ids, in PostgreSQL
	Tables     []TableStatus    `json:"tables"`
	PostgreSQL PostgreSQLStatus `json:"postgresql"`
}

// LogStatus is the size of the log and how it grows. What was appended of late is counted by positions, of users who
// were erased since too, as long as it is less than countedEvents.
type LogStatus struct {
	Events         int64      `json:"events"`
	Estimated      bool       `json:"events_estimated"`
	Bytes          int64      `json:"bytes"` // with indexes
	LastMinute     int64      `json:"events_last_minute"`
	LastHour       int64      `json:"events_last_hour"`
	LastDay        int64      `json:"events_last_day"`
	BytesLastDay   int64      `json:"bytes_last_day"` // as estimated from the average size of an event
	LastRecordedAt *time.Time `json:"last_recorded_at"`
}

// ReadModelStatus is how far the read model follows the log.
type ReadModelStatus struct {
	Version        int     `json:"version"`         // of the code that its tables were made by; 0: several versions
	ProgramVersion int     `json:"program_version"` // of this program's code
	LagEvents      int64   `json:"lag_events"`      // countedEvents stands for more
	LagSeconds     float64 `json:"lag_seconds"`     // age of the oldest event that is not shown
	Stuck          bool    `json:"stuck"`           // it is behind and was seen not to move
	Bytes          int64   `json:"bytes"`
}

// ParkedStatus is who is parked.
type ParkedStatus struct {
	Users int      `json:"users"`
	First []Parked `json:"first"` // some of them
}

// RebuildStatus is a read model in the making.
type RebuildStatus struct {
	Running     bool    `json:"running"` // false: what an interrupted one has left behind
	DoneEvents  int64   `json:"done_events"`
	TotalEvents int64   `json:"total_events"` // estimated
	Seconds     float64 `json:"seconds"`      // since it began
	Phase       string  `json:"phase"`        // "fold", or "index" when all is folded: indexes, catching up, swap
}

// Connections are those to the database that are named the same and do the same.
type Connections struct {
	Application string  `json:"application"`
	State       string  `json:"state"` // PostgreSQL's; "hidden" of another role's
	Waits       string  `json:"waits"` // the class of what an active one waits for: Lock, IO, …; empty for none
	Count       int     `json:"count"`
	Seconds     float64 `json:"seconds"` // the longest time in this state
}

// LockWait is a connection that waits for a lock.
type LockWait struct {
	PID         int32   `json:"pid"`
	Application string  `json:"application"`
	Lock        string  `json:"lock"` // what is locked
	Seconds     float64 `json:"seconds"`
	BlockedBy   []int32 `json:"blocked_by"`
}

// TableStatus is a table of the ledger.
type TableStatus struct {
	Name        string     `json:"name"`
	Rows        int64      `json:"rows"`      // estimated
	DeadRows    int64      `json:"dead_rows"` // estimated
	Bytes       int64      `json:"bytes"`
	Changed     int64      `json:"changed_since_analyze"` // rows
	AnalyzedAt  *time.Time `json:"analyzed_at"`
	VacuumedAt  *time.Time `json:"vacuumed_at"`
	RowSecurity bool       `json:"row_level_security"` // enabled and forced
}

// PostgreSQLStatus is what is worth knowing of the server.
type PostgreSQLStatus struct {
	Version        string `json:"version"`
	Standby        bool   `json:"standby"`
	Connections    int    `json:"connections"`
	MaxConnections int    `json:"max_connections"`
	SharedBuffers  int64  `json:"shared_buffers"`
	Fsync          bool   `json:"fsync"`
	FullPageWrites bool   `json:"full_page_writes"`
	// SynchronousCommit is that of sessions which say nothing, on this server and of this role.
	SynchronousCommit string  `json:"synchronous_commit"`
	Autovacuum        bool    `json:"autovacuum"`
	LongestSeconds    float64 `json:"longest_transaction_seconds"`
}

// ReadStatus looks how the ledger stands. It writes nothing, and what it costs does not grow with the log; it takes a
// second or two when the read model is behind, to see whether it moves.
func ReadStatus(ctx context.Context, db *events.DB) (*Status, error) {
	r := statusReader{
		db:     db,
		Status: &Status{LockedBy: []int32{}, Tables: []TableStatus{}, Parked: ParkedStatus{First: []Parked{}}},
	}
	err := r.read(ctx, r.readConnections, r.readLockWaits, r.readPostgreSQL)
	if err == nil {
		err = r.read(ctx, r.readTables, r.readLog, r.readLag, r.readParked, r.readRebuild)
	}
	if isLockTimeout(err) {
		err = r.read(ctx, r.readLockedBy)
	}
	if err == nil && !r.Locked && r.ReadModel.LagSeconds > tolerableLag.Seconds() {
		r.ReadModel.Stuck, err = r.stuck(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return r.Status, nil
}

// statusReader reads a status, part by part.
type statusReader struct {
	*Status
	db         *events.DB
	checkpoint events.Checkpoint
}

// read reads parts in one transaction, which waits for nobody long.
func (r *statusReader) read(ctx context.Context, parts ...func(context.Context, *events.Tx) error) error {
	return r.db.Begin(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx *events.Tx) error {
		_, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true)`, fmt.Sprint(statusLockWait.Milliseconds()))
		if err != nil {
			return err
		}
		for _, part := range parts {
			if err := part(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *statusReader) readTables(ctx context.Context, tx *events.Tx) error {
	return tx.Query(ctx, `
		SELECT c.relname::text,
			coalesce(CASE WHEN c.reltuples > 0 AND c.relpages > 0
				THEN c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::float8)
			END, t.n_live_tup, 0)::bigint,
			coalesce(t.n_dead_tup, 0), pg_total_relation_size(c.oid), coalesce(t.n_mod_since_analyze, 0),
			greatest(t.last_analyze, t.last_autoanalyze), greatest(t.last_vacuum, t.last_autovacuum),
			c.relrowsecurity AND c.relforcerowsecurity
		FROM pg_class c
		LEFT JOIN pg_stat_all_tables t ON t.relid = c.oid
		WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND c.relname = ANY ($2)
		ORDER BY array_position($2, c.relname::text)`,
		[]any{r.db.Schema(), []string{events.Topic, taskTable.name, historyTable.name, userTable.name}},
		func(rows pgx.Rows) (err error) {
			r.Tables, err = pgx.CollectRows(rows, pgx.RowToStructByPos[TableStatus])
			return err
		})
}

// readLog counts without reading the whole log.
func (r *statusReader) readLog(ctx context.Context, tx *events.Tx) error {
	for _, t := range r.Tables {
		if t.Name == events.Topic {
			r.Log.Events, r.Log.Bytes, r.Log.Estimated = t.Rows, t.Bytes, true
		} else {
			r.ReadModel.Bytes += t.Bytes
		}
	}
	var first, last int64
	_, err := events.One(ctx, tx, `
		SELECT coalesce(f.position, 1), coalesce(l.position, 0), l.recorded_at
		FROM (SELECT) one
		LEFT JOIN LATERAL (SELECT position FROM {schema}.task_events ORDER BY position LIMIT 1) f ON true
		LEFT JOIN LATERAL (
			SELECT position, recorded_at FROM {schema}.task_events ORDER BY position DESC LIMIT 1
		) l ON true`,
		nil, &first, &last, &r.Log.LastRecordedAt)
	if err != nil {
		return err
	}
	var counted int64
	_, err = events.One(ctx, tx, `SELECT count(*) FROM (SELECT FROM {schema}.task_events LIMIT $1) counted`,
		[]any{countedEvents}, &counted)
	if err != nil {
		return err
	}
	if r.Log.Events = max(r.Log.Events, counted); counted < countedEvents {
		r.Log.Events, r.Log.Estimated = counted, false
	}
	if err := r.readGrowth(ctx, tx, first, last); err != nil {
		return err
	}
	if r.Log.Events > 0 {
		r.Log.BytesLastDay = int64(float64(r.Log.Bytes) / float64(r.Log.Events) * float64(r.Log.LastDay))
	}
	return nil
}

// readGrowth reads how many events were appended lately: positions have few gaps, but for the large one before an
// import, and later events have later positions, so that the first one since a time is found by halving. An import
// brings old times with it: then that is a guess.
func (r *statusReader) readGrowth(ctx context.Context, tx *events.Tx, first, last int64) error {
	_, err := events.One(ctx, tx, `
		WITH RECURSIVE search (age, since, low, high) AS (
			SELECT age, clock_timestamp() - age, $1::bigint, $2::bigint + 1
			FROM unnest(ARRAY['1 minute', '1 hour', '1 day']::interval[]) age
			UNION ALL
			SELECT age, since, CASE WHEN late THEN low ELSE middle + 1 END, CASE WHEN late THEN middle ELSE high END
			FROM (
				SELECT s.*, (s.low + s.high) / 2 AS middle, (
					SELECT e.recorded_at
					FROM {schema}.task_events e
					WHERE e.position >= (s.low + s.high) / 2
					ORDER BY e.position
					LIMIT 1
				) >= s.since AS late
				FROM search s
				WHERE s.low < s.high
			) step
		)
		SELECT
			coalesce(max(n) FILTER (WHERE age = '1 minute'), 0),
			coalesce(max(n) FILTER (WHERE age = '1 hour'), 0),
			coalesce(max(n) FILTER (WHERE age = '1 day'), 0)
		FROM search s
		CROSS JOIN LATERAL (SELECT $2::bigint + 1 - s.low AS positions) p
		CROSS JOIN LATERAL (
			SELECT CASE WHEN p.positions < $3::bigint THEN p.positions ELSE (
				SELECT CASE WHEN count(*) < $3::bigint THEN count(*) ELSE least(p.positions, $4::bigint) END
				FROM (SELECT FROM {schema}.task_events e WHERE e.position >= s.low LIMIT $3::bigint) counted
			) END AS n
		) n
		WHERE low = high`,
		[]any{first, last, countedEvents, r.Log.Events}, &r.Log.LastMinute, &r.Log.LastHour, &r.Log.LastDay)
	return err
}

func (r *statusReader) readLag(ctx context.Context, tx *events.Tx) error {
	r.ReadModel.ProgramVersion = version
	found, err := events.One(ctx, tx, `
		SELECT c.position, c.generation, c.version, (
				SELECT count(*)
				FROM (SELECT FROM {schema}.task_events e WHERE e.position > c.position LIMIT $2) behind
			), coalesce(extract(epoch FROM clock_timestamp() - (
				SELECT e.recorded_at
				FROM {schema}.task_events e
				WHERE e.position > c.position
				ORDER BY e.position
				LIMIT 1
			)), 0)::float8
		FROM {schema}.checkpoints c
		WHERE c.projection = $1`, []any{Name, countedEvents},
		&r.checkpoint.Position, &r.checkpoint.Generation, &r.ReadModel.Version, &r.ReadModel.LagEvents,
		&r.ReadModel.LagSeconds)
	if err == nil && !found {
		err = fmt.Errorf("there is no checkpoint of the projection %s", Name)
	}
	return err
}

// stuck waits for the checkpoint to move.
func (r *statusReader) stuck(ctx context.Context) (bool, error) {
	for deadline := time.Now().Add(progressPatience); time.Now().Before(deadline); {
		var now events.Checkpoint
		_, err := events.One(ctx, r.db, `SELECT position, generation FROM {schema}.checkpoints WHERE projection = $1`,
			[]any{Name}, &now.Position, &now.Generation)
		if err != nil || now != r.checkpoint {
			return false, err
		}
		if err := pause(ctx, progressPatience/10); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (r *statusReader) readParked(ctx context.Context, tx *events.Tx) error {
	return tx.Query(ctx, `
		SELECT user_id, seq + 1, parked_error, parked_at, count(*) OVER ()
		FROM {schema}.users
		WHERE parked_error IS NOT NULL
		ORDER BY parked_at DESC, user_id
		LIMIT $1`, []any{shownParked}, func(rows pgx.Rows) error {
		for rows.Next() {
			var p Parked
			if err := rows.Scan(&p.UserID, &p.Seq, &p.Reason, &p.Since, &r.Parked.Users); err != nil {
				return err
			}
			r.Parked.First = append(r.Parked.First, p)
		}
		return rows.Err()
	})
}

// readRebuild tells of a rebuild, whichever process runs it; nil: none is under way, and nothing is left of one.
func readRebuild(ctx context.Context, db *events.DB, from events.Querier) (*RebuildStatus, error) {
	var (
		there, filled, indexed bool
		copied                 *int64
		out                    RebuildStatus
	)
	_, err := events.One(ctx, from, `
		SELECT t.new IS NOT NULL, coalesce(pg_relation_size(t.new) > 0, false),
			EXISTS (SELECT FROM {schema}.checkpoints WHERE projection = $2),
			holder.pid IS NOT NULL, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8, (
				SELECT max(tuples_processed) FROM pg_stat_progress_copy WHERE relid = t.new AND command = 'COPY FROM'
			), (
				SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass($4)
			)
		FROM (SELECT to_regclass($1) AS new) t
		LEFT JOIN LATERAL (
			SELECT pid
			FROM pg_locks
			WHERE locktype = 'advisory' AND objsubid = 1 AND granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND (classid::bigint << 32 | objid::bigint) = $3
			LIMIT 1
		) holder ON true
		LEFT JOIN pg_stat_activity a ON a.pid = holder.pid`,
		[]any{db.SQL(`{schema}.task_history` + suffix), Name + suffix, db.LockKey("maintenance"),
			db.SQL(`{schema}.task_events`)},
		&there, &filled, &indexed, &out.Running, &out.Seconds, &copied, &out.TotalEvents)
	if err != nil || !there {
		return nil, err
	}
	switch {
	case copied != nil:
		out.Phase, out.DoneEvents = "fold", *copied
	case indexed:
		out.Phase, out.DoneEvents = "swap", out.TotalEvents
	case filled:
		out.Phase, out.DoneEvents = "index", out.TotalEvents
	default:
		out.Phase = "fold"
	}
	out.TotalEvents = max(out.TotalEvents, out.DoneEvents)
	return &out, nil
}

func (r *statusReader) readConnections(ctx context.Context, tx *events.Tx) error {
	return tx.Query(ctx, `
		SELECT coalesce(application_name, ''), coalesce(state, 'hidden'),
			CASE WHEN state = 'active' THEN coalesce(wait_event_type, '') ELSE '' END AS waits,
			count(*), coalesce(max(extract(epoch FROM clock_timestamp() - state_change)), 0)::float8
		FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
		GROUP BY 1, 2, 3
		ORDER BY 1, 2, 3`, nil, func(rows pgx.Rows) (err error) {
		r.Connections, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Connections])
		return err
	})
}

func (r *statusReader) readLockWaits(ctx context.Context, tx *events.Tx) error {
	return tx.Query(ctx, `
		SELECT l.pid, coalesce(a.application_name, ''),
			CASE
				WHEN l.relation IS NOT NULL THEN l.relation::regclass::text
				WHEN l.locktype <> 'advisory' THEN l.locktype
				WHEN (l.classid::bigint << 32 | l.objid::bigint) = $1 THEN 'append'
				WHEN (l.classid::bigint << 32 | l.objid::bigint) = $2 THEN 'maintenance'
				ELSE 'advisory'
			END,
			coalesce(extract(epoch FROM clock_timestamp() - l.waitstart), 0)::float8, pg_blocking_pids(l.pid)
		FROM pg_locks l
		JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE NOT l.granted AND a.datname = current_database()
		ORDER BY l.waitstart
		LIMIT $3`, []any{
		r.db.LockKey("append"), r.db.LockKey("maintenance"), shownLocks,
	}, func(rows pgx.Rows) (err error) {
		r.LockWaits, err = pgx.CollectRows(rows, pgx.RowToStructByPos[LockWait])
		return err
	})
}

// readLockedBy tells who locks a table of the ledger against all others.
func (r *statusReader) readLockedBy(ctx context.Context, tx *events.Tx) error {
	return tx.Query(ctx, `
		SELECT DISTINCT l.pid
		FROM pg_locks l
		JOIN pg_class c ON c.oid = l.relation
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND n.nspname = $1
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		ORDER BY l.pid`, []any{r.db.Schema()}, func(rows pgx.Rows) (err error) {
		r.Locked = true
		r.LockedBy, err = pgx.CollectRows(rows, pgx.RowTo[int32])
		return err
	})
}

func (r *statusReader) readRebuild(ctx context.Context, tx *events.Tx) (err error) {
	r.Rebuild, err = readRebuild(ctx, r.db, tx)
	return err
}

func (r *statusReader) readPostgreSQL(ctx context.Context, tx *events.Tx) error {
	p := &r.PostgreSQL
	_, err := events.One(ctx, tx, `
		SELECT current_setting('server_version'), pg_is_in_recovery(),
			(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
			current_setting('max_connections')::int, pg_size_bytes(current_setting('shared_buffers')),
			current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
			current_setting('synchronous_commit'), current_setting('autovacuum') = 'on', (
				SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8
				FROM pg_stat_activity
				WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
			)`, nil,
		&p.Version, &p.Standby, &p.Connections, &p.MaxConnections, &p.SharedBuffers, &p.Fsync, &p.FullPageWrites,
		&p.SynchronousCommit, &p.Autovacuum, &p.LongestSeconds)
	return err
}

// Findings are what the status says in words: problems need a person, notes are worth a look.
func (s *Status) Findings() (problems, notes []string) {
	problem := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	note := func(worth bool, format string, args ...any) {
		if worth {
			notes = append(notes, fmt.Sprintf(format, args...))
		}
	}
	problem(s.Parked.Users > 0, "users are parked: %d; see taskledger parked", s.Parked.Users)
	problem(
		s.ReadModel.Stuck,
		"the read model is %s behind and does not move: does a server run, and what does it log?",
		time.Duration(s.ReadModel.LagSeconds)*time.Second,
	)
	note(!s.ReadModel.Stuck && s.ReadModel.LagSeconds > tolerableLag.Seconds(),
		"the read model is %s behind and catching up",
		time.Duration(s.ReadModel.LagSeconds)*time.Second)
	problem(
		s.Locked,
		"tables of the ledger are locked against all others by processes %v: what they hold is not told",
		s.LockedBy,
	)
	problem(!s.Locked && s.ReadModel.Version != s.ReadModel.ProgramVersion,
		"the read model was made by version %d of its code, this program has version %d: run taskledger rebuild",
		s.ReadModel.Version, s.ReadModel.ProgramVersion)
	note(
		s.Rebuild != nil && !s.Rebuild.Running,
		"an interrupted rebuild has left tables behind; the next one drops them",
	)
	for _, w := range s.LockWaits {
		problem(w.Seconds > tolerableLag.Seconds(), "process %d (%s) waits for the lock on %s since %s, blocked by %v",
			w.PID, w.Application, w.Lock, time.Duration(w.Seconds)*time.Second, w.BlockedBy)
	}
	for _, t := range s.Tables {
		note(
			!t.RowSecurity,
			"row level security is off on %s: run taskledger migrate as the owner of the ledger",
			t.Name,
		)
		note(t.Rows >= 10_000 && t.AnalyzedAt == nil, "%s was never analyzed: run ANALYZE", t.Name)
		note(t.AnalyzedAt != nil && t.Changed > max(10_000, t.Rows/2),
			"the statistics of %s are old: %d rows have changed since: run ANALYZE", t.Name, t.Changed)
		note(t.DeadRows > max(10_000, t.Rows/2), "%s has %d dead rows for %d live ones: autovacuum does not keep up",
			t.Name, t.DeadRows, t.Rows)
	}
	s.PostgreSQL.findings(problem, note)
	return problems, notes
}

// findings are those that are about PostgreSQL as a whole.
func (p *PostgreSQLStatus) findings(problem, note func(found bool, format string, args ...any)) {
	problem(p.Standby, "this PostgreSQL is a standby and takes no writes")
	problem(!p.Fsync, "PostgreSQL has fsync off: a power cut can destroy the ledger")
	problem(!p.FullPageWrites, "PostgreSQL has full_page_writes off: a power cut can destroy the ledger")
	problem(p.SynchronousCommit == "off",
		"PostgreSQL has synchronous_commit off: a crash can lose writes that were acknowledged")
	problem(!p.Autovacuum, "PostgreSQL has autovacuum off: tables grow and plans go wrong")
	problem(p.Connections >= p.MaxConnections*9/10, "of PostgreSQL's %d connections %d are taken",
		p.MaxConnections, p.Connections)
	note(p.SharedBuffers < 64<<20, "PostgreSQL has shared_buffers of %d MB, 128 MB or more serve better",
		p.SharedBuffers>>20)
	note(p.LongestSeconds > 3600, "a transaction is open for %s: nothing it might see can be vacuumed",
		(time.Duration(p.LongestSeconds) * time.Second).String())
}
