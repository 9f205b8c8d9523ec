package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

const (
	// rememberedBytes bounds what the read model remembers of its users between batches.
	rememberedBytes = 16 << 20
	// rememberedTasks bounds the tasks that it remembers of one user.
	rememberedTasks = 64
)

// readModel is the projection whose tables the queries read.
type readModel struct {
	users *events.Recent[*userFold]
}

func newReadModel() *readModel {
	return &readModel{users: events.NewRecent[*userFold](rememberedBytes)}
}

func (m *readModel) name() string { return Name }
func (m *readModel) forget()      { m.users.Clear() }

// derive folds a batch onto what is remembered of its users, or else onto what the tables hold.
func (m *readModel) derive(
	ctx context.Context,
	from events.Querier,
	d *events.Delivery,
	refusal string,
) (derived, error) {
	f := &batchFold{
		from: from, users: map[string]*userFold{}, dirty: map[string]bool{}, changes: make([]change, 0, len(d.Events)),
	}
	if err := f.recall(ctx, m.users, d.Events); err != nil {
		return derived{}, err
	}
	for i := range d.Events {
		e := &d.Events[i]
		if refusal != "" {
			f.park(f.users[e.UserID], refusal)
			continue
		}
		if err := f.apply(ctx, e); err != nil {
			if refused, ok := errors.AsType[*events.FoldError](err); ok {
				return derived{}, &heldError{before: i, err: refused}
			}
			return derived{}, err
		}
	}
	f.remember(m.users)
	return derived{rows: f.rows(d.Generation), parked: f.parked, doubtful: f.doubtful}, nil
}

// batchFold is the fold of one batch.
type batchFold struct {
	from     events.Querier
	users    map[string]*userFold
	dirty    map[string]bool // the users whose row has changed
	changes  []change
	parked   []userState
	doubtful bool // events were missed
}

func (f *batchFold) park(u *userFold, reason string) {
	u.park(reason)
	f.notePark(u)
}

func (f *batchFold) notePark(u *userFold) {
	f.dirty[u.user] = true
	f.parked = append(f.parked, u.userState)
}

// taskKey names a task; ids alone are only unique within a user.
type taskKey struct {
	user string
	id   uuid.UUID
}

// recall gathers the users of the batch, and the tasks that its events are about.
func (f *batchFold) recall(ctx context.Context, remembered *events.Recent[*userFold], batch []events.Event) error {
	var unknown []string
	for i := range batch {
		user := batch[i].UserID
		if f.users[user] != nil {
			continue
		}
		// What is remembered is good if nobody else has applied events of the user since.
		u, ok := remembered.Get(user)
		if !ok || u.parked == nil && u.seq+1 != batch[i].Seq {
			u = newUserFold(user)
			if batch[i].Seq > 1 {
				unknown = append(unknown, user)
			}
		}
		f.users[user] = u
	}
	if err := f.loadUsers(ctx, unknown); err != nil {
		return err
	}
	var missing []taskKey
	for i := range batch {
		if key := (taskKey{batch[i].UserID, batch[i].TaskID}); f.mustLoad(&batch[i]) {
			missing = append(missing, key)
		}
	}
	return f.loadTasks(ctx, missing)
}

// mustLoad tells whether an event is about a task that may be in the table and is not known.
func (f *batchFold) mustLoad(e *events.Event) bool {
	u := f.users[e.UserID]
	if _, known := u.tasks[e.TaskID]; known || u.seq == 0 {
		return false
	}
	switch e.Data.Type() {
	case events.TypeTaskCreated, events.TypeTaskImported, events.TypeUserErased:
		return false
	}
	return true
}

// apply folds an event. Events of its user that were missed, whatever the reason, are folded before: the second net
// under the order of the log.
func (f *batchFold) apply(ctx context.Context, e *events.Event) (err error) {
	u := f.users[e.UserID]
	if _, erased := e.Data.(events.UserErased); !erased && u.parked == nil && e.Seq > u.seq+1 {
		if err := f.catchUp(ctx, u, e.Seq); err != nil {
			return err
		}
	}
	return f.fold(u, e)
}

func (f *batchFold) fold(u *userFold, e *events.Event) (err error) {
	seq, parked := u.seq, u.parked != nil
	f.changes, err = u.apply(f.changes, e)
	if u.seq != seq {
		f.dirty[u.user] = true
	}
	if !parked && u.parked != nil {
		f.notePark(u)
	}
	return err
}

func (f *batchFold) catchUp(ctx context.Context, u *userFold, before int64) error {
	f.doubtful = true
	var missed []events.Event
	err := events.ReadStream(ctx, f.from, u.user, u.seq, before-1, func(e events.Event) error {
		missed = append(missed, e)
		return nil
	})
	if err != nil {
		return err
	}
	for i := range missed {
		if f.mustLoad(&missed[i]) {
			if err := f.loadTasks(ctx, []taskKey{{u.user, missed[i].TaskID}}); err != nil {
				return err
			}
		}
		if err := f.fold(u, &missed[i]); err != nil {
			return err
		}
	}
	return nil
}

// remember keeps what is known now for the next batch.
func (f *batchFold) remember(in *events.Recent[*userFold]) {
	for user, u := range f.users {
		if len(u.tasks) > rememberedTasks {
			u.tasks = map[uuid.UUID]events.Task{}
		}
		bytes := 256
		for _, t := range u.tasks {
			bytes += t.Bytes()
		}
		in.Put(user, u, bytes)
	}
}

// rows are the rows of the tables that the batch changes, of a read model of this generation.
func (f *batchFold) rows(generation int64) []rows {
	users := make([]userState, 0, len(f.dirty))
	for user := range f.dirty {
		u := f.users[user].userState
		u.generation = generation
		users = append(users, u)
	}
	f.changes = inUserOrder(f.changes)
	slices.SortFunc(users, func(a, b userState) int { return strings.Compare(a.user, b.user) })
	made, changed := f.lastStates()
	if len(f.changes) == 1 && isErasure(*f.changes[0].event) {
		user := f.changes[0].event.UserID
		return []rows{
			{table: taskTable, erased: user}, {table: historyTable, erased: user},
			historyColumns.fresh(historyTable, f.changes), userColumns.rows(userTable, users),
		}
	}
	return []rows{
		taskColumns.fresh(taskTable, made), taskColumns.rows(taskTable, changed),
		historyColumns.fresh(historyTable, f.changes), userColumns.rows(userTable, users),
	}
}

// inUserOrder puts the changes of each user together. Their rows stand together in every index: written one after the
// other they cost less than in turn.
func inUserOrder(changes []change) []change {
	order := make([]*change, len(changes)) // a change is too large to be moved often
	for i := range changes {
		order[i] = &changes[i]
	}
	slices.SortStableFunc(order, func(a, b *change) int { return strings.Compare(a.event.UserID, b.event.UserID) })
	sorted := make([]change, len(order))
	for i, c := range order {
		sorted[i] = *c
	}
	return sorted
}

// lastStates are the tasks that the batch makes, and those that it changes, each as it is after it.
func (f *batchFold) lastStates() (made, changed []events.Task) {
	seen := make(map[taskKey]bool, len(f.changes))
	fresh := map[taskKey]bool{}
	for i := range f.changes {
		c := &f.changes[i]
		if c.before.Version == 0 && c.after.Version > 0 {
			fresh[taskKey{c.after.UserID, c.after.ID}] = true
		}
	}
	made, changed = make([]events.Task, 0, len(fresh)), make([]events.Task, 0, len(f.changes)-len(fresh))
	for i := len(f.changes) - 1; i >= 0; i-- {
		t := &f.changes[i].after
		key := taskKey{t.UserID, t.ID}
		switch {
		case t.Version == 0 || seen[key]: // its creation was passed over, or it was changed again
		case fresh[key]:
			made = append(made, *t)
		default:
			changed = append(changed, *t)
		}
		seen[key] = true
	}
	return made, changed
}

func (f *batchFold) loadUsers(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	err := f.from.Query(ctx, `
		SELECT u.user_id, u.seq, u.live, u.hash, u.parked_error, u.parked_at
		FROM unnest($1::text[]) n(user_id)
		CROSS JOIN LATERAL (SELECT * FROM {schema}.users u WHERE u.user_id = n.user_id LIMIT 1) u`,
		[]any{names}, func(rows pgx.Rows) error {
			for rows.Next() {
				var s userState
				var hash []byte
				if err := rows.Scan(&s.user, &s.seq, &s.live, &hash, &s.parked, &s.parkedAt); err != nil {
					return err
				}
				copy(s.hash[:], hash)
				f.users[s.user].userState = s
			}
			return rows.Err()
		})
	if err != nil {
		return fmt.Errorf("recall users: %w", err)
	}
	return nil
}

func (f *batchFold) loadTasks(ctx context.Context, keys []taskKey) error {
	if len(keys) == 0 {
		return nil
	}
	users, ids := make([]string, len(keys)), make([][16]byte, len(keys))
	for i, key := range keys {
		users[i], ids[i] = key.user, key.id
	}
	err := f.from.Query(ctx, `
		SELECT t.user_id, t.body
		FROM unnest($1::text[], $2::uuid[]) n(user_id, id)
		CROSS JOIN LATERAL (
			SELECT * FROM {schema}.tasks t WHERE t.user_id = n.user_id AND t.id = n.id LIMIT 1
		) t`, []any{users, ids}, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				user string
				body []byte
			)
			if err := rows.Scan(&user, &body); err != nil {
				return err
			}
			t, err := events.ParseTask(body)
			if err != nil {
				return err
			}
			f.users[user].tasks[t.ID] = t
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("recall tasks: %w", err)
	}
	return nil
}
