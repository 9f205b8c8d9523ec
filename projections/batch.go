package projections

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"taskledger/events"
)

// batch is what selectBatch brings: the next events, the tasks they are about as the read model has them, and their users.
type batch struct {
	from, to   int64 // checkpoint before and after
	generation int64
	Events     []eventRow  `json:"events"`
	Tasks      []taskState `json:"tasks"`
	Users      []userRow   `json:"users"`
}

type eventRow struct {
	Position      int64          `json:"position"`
	UserID        string         `json:"user_id"`
	Seq           int64          `json:"seq"`
	TaskID        uuid.UUID      `json:"task_id"`
	Type          events.Type    `json:"type"`
	SchemaVersion int            `json:"schema_version"`
	Data          jsontext.Value `json:"data"`
	Actor         string         `json:"actor"`
	RequestID     string         `json:"request_id"`
	RecordedAt    time.Time      `json:"recorded_at"`
	Skipped       bool           `json:"skipped"`
}

type taskState struct {
	UserID      string     `json:"user_id"`
	ID          uuid.UUID  `json:"id"`
	Version     int64      `json:"version"`
	Title       string     `json:"title"`
	Description *string    `json:"description"`
	Completed   bool       `json:"is_completed"`
	CreatedAt   time.Time  `json:"created_at"`
	UpdatedAt   time.Time  `json:"updated_at"`
	DeletedAt   *time.Time `json:"deleted_at"`
}

type userRow struct {
	UserID string  `json:"user_id"`
	Seq    int64   `json:"seq"`
	Parked *string `json:"parked_error"`
}

func parseBatch(payload []byte) (*batch, error) {
	b := &batch{}
	if err := json.Unmarshal(payload, b); err != nil {
		return nil, fmt.Errorf("read batch: %w", err)
	}
	return b, nil
}

func (r eventRow) event() events.Event {
	return events.Event{
		Position:   r.Position,
		UserID:     r.UserID,
		Seq:        r.Seq,
		TaskID:     r.TaskID,
		Actor:      r.Actor,
		RequestID:  r.RequestID,
		RecordedAt: r.RecordedAt.UTC(),
		Data:       events.Read(r.Type, r.SchemaVersion, r.Data, r.Skipped),
	}
}

func (s taskState) task() events.Task {
	t := events.Task{
		UserID:      s.UserID,
		ID:          s.ID,
		Version:     s.Version,
		Title:       s.Title,
		Description: s.Description,
		Completed:   s.Completed,
		CreatedAt:   s.CreatedAt.UTC(),
		UpdatedAt:   s.UpdatedAt.UTC(),
	}
	if s.DeletedAt != nil {
		at := s.DeletedAt.UTC()
		t.DeletedAt = &at
	}
	return t
}

// userFold folds one user's events in order. It stops for good at the first event that cannot follow: the user is parked.
type userFold struct {
	user   string
	seq    int64 // of the last event folded
	parked *string
	tasks  map[uuid.UUID]events.Task
}

func newUserFold(user string) *userFold {
	return &userFold{user: user, tasks: map[uuid.UUID]events.Task{}}
}

// apply folds the user's next event and appends what it changed. An event of a parked user, or one folded before, changes nothing.
func (u *userFold) apply(changes []change, e events.Event) []change {
	if u.parked != nil || e.Seq <= u.seq {
		return changes
	}
	before := u.tasks[e.TaskID]
	after, err := events.Fold(before, e)
	if err == nil && e.Seq != u.seq+1 {
		err = fmt.Errorf("event %d does not follow event %d", e.Seq, u.seq)
	}
	if err != nil {
		u.park(err.Error())
		return changes
	}
	u.seq = e.Seq
	if _, skipped := e.Data.(events.Skipped); skipped {
		return changes
	}
	u.tasks[e.TaskID] = after
	return append(changes, change{event: e, before: before, after: after})
}

func (u *userFold) park(reason string) { u.parked = &reason }

// folded is a batch, folded: what changed, in order, and how far each user got.
type folded struct {
	changes []change
	users   map[string]*userFold
}

func (f folded) userColumns() (users []string, seqs []int64, parked []*string) {
	for _, u := range f.users {
		users, seqs, parked = append(users, u.user), append(seqs, u.seq), append(parked, u.parked)
	}
	return users, seqs, parked
}

// loader loads a user's stream from its beginning.
type loader func(ctx context.Context, user string, after int64, visit func(events.Event) error) error

// fold folds the batch onto the rows that came with it. Where a user's events do not join on to what the read model has, the
// whole stream is folded anew from the log: the second net under the order of the log, and under damaged rows. Only what the log
// itself cannot give parks the user.
func (b *batch) fold(ctx context.Context, load loader) (folded, error) {
	f := folded{users: b.userFolds()}
	for _, row := range b.Events {
		e := row.event()
		u := f.users[e.UserID]
		if u.parked != nil {
			continue
		}
		f.changes = u.apply(f.changes, e)
		if u.parked != nil {
			if err := f.refold(ctx, u, load, e.Seq); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

// refold puts the fold of a user's stream, from its beginning through seq, in place of what the batch had for that user.
func (f *folded) refold(ctx context.Context, u *userFold, load loader, through int64) error {
	*u = *newUserFold(u.user)
	f.changes = slices.DeleteFunc(f.changes, func(c change) bool { return c.event.UserID == u.user })
	err := load(ctx, u.user, 0, func(e events.Event) error {
		if e.Seq <= through {
			f.changes = u.apply(f.changes, e)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("fold a stream anew: %w", err)
	}
	return nil
}

func (b *batch) userFolds() map[string]*userFold {
	users := map[string]*userFold{}
	for _, row := range b.Users {
		u := newUserFold(row.UserID)
		u.seq, u.parked = row.Seq, row.Parked
		users[u.user] = u
	}
	for _, row := range b.Events {
		if users[row.UserID] == nil {
			users[row.UserID] = newUserFold(row.UserID)
		}
	}
	for _, s := range b.Tasks {
		users[s.UserID].tasks[s.ID] = s.task()
	}
	return users
}
