package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

// system is the actor of a command of the operator's.
const system = "system"

// untitled is the title of a task that came without one.
const untitled = "Untitled"

// ErrErased: the user was erased. What another backend still has of them is not brought back.
var ErrErased = errors.New("the user was erased")

// OldTask is a task of the backend that was there before.
type OldTask struct {
	ID          uuid.UUID
	Title       *string
	Description *string
	Completed   bool
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// Adoption takes over the tasks of another backend, as a command of the operator's.
type Adoption struct {
	Log       *events.Log // nil in a dry run when there is no ledger yet
	RequestID string
	DryRun    bool // find out what would become of the tasks, and append nothing
}

// Adopted says what became of tasks.
type Adopted struct {
	New      int   // taken over
	There    int   // in the user's stream before, be they deleted
	Cut      int   // of the new ones: those whose texts had to be changed
	Position int64 // of the last event appended; 0 = none was
}

// Adopt appends an event for each task that the user's stream has not seen, in the order given, all of them or none.
// The quota does not apply. It returns ErrErased for a user who was erased, and a *events.FoldError for a stream that
// this program can't read. After any other error it is unknown whether the events were stored; the same call again
// takes over what was not.
func (a *Adoption) Adopt(ctx context.Context, user string, tasks []OldTask) (done Adopted, err error) {
	if a.Log == nil {
		s := newStream(0)
		for i := range tasks {
			s.know(tasks[i].ID, events.Task{})
		}
		_, done, err = a.decide(s, user, tasks)
		return done, err
	}
	for n := range optimisticAttempts {
		done, err = a.once(ctx, a.Log.DB(), a.Log.Submit, user, tasks)
		if !errors.Is(err, events.ErrConflict) {
			return done, err
		}
		if err := backOff(ctx, n); err != nil {
			return Adopted{}, err
		}
	}
	err = a.Log.Exclusively(ctx, func(log *events.Exclusive) (err error) {
		done, err = a.once(ctx, log, log.Submit, user, tasks)
		return err
	})
	return done, err
}

// once decides on the stream as it is, and appends. ErrConflict: it has moved on.
func (a *Adoption) once(
	ctx context.Context, from events.Querier, submit func(context.Context, *events.Commit, func(error)) error,
	user string, tasks []OldTask,
) (Adopted, error) {
	ids := make([]uuid.UUID, len(tasks))
	for i := range tasks {
		ids[i] = tasks[i].ID
	}
	s, err := load(ctx, from, user, 0, ids)
	if err != nil {
		return Adopted{}, err
	}
	// After the load: an erasure behind this look is a conflict.
	if err := refuseErased(ctx, from, user); err != nil {
		return Adopted{}, err
	}
	c, done, err := a.decide(s, user, tasks)
	if err != nil || a.DryRun || len(c.Events) == 0 {
		return done, err
	}
	result := make(chan error, 1)
	if err := submit(ctx, c, func(err error) { result <- err }); err != nil {
		return Adopted{}, err
	}
	if err := <-result; err != nil {
		return Adopted{}, err
	}
	done.Position = c.Events[len(c.Events)-1].Position
	return done, nil
}

// refuseErased returns ErrErased if the stream begins with an erasure: whatever was before one is gone.
func refuseErased(ctx context.Context, from events.Querier, user string) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var first events.Type
	_, err := events.One(ctx, from, `
		SELECT e.type
		FROM {schema}.task_events e
		WHERE e.user_id = $1
		ORDER BY e.seq
		LIMIT 1`, []any{user}, &first)
	if err != nil {
		return fmt.Errorf("look whether a user was erased: %w", err)
	}
	if first == events.TypeUserErased {
		return ErrErased
	}
	return nil
}

// decide makes the events of the tasks that the stream does not have.
func (a *Adoption) decide(s *stream, user string, tasks []OldTask) (*events.Commit, Adopted, error) {
	c := &events.Commit{After: s.head.EventID, Generation: s.generation}
	var done Adopted
	command, err := uuid.NewV7()
	if err != nil {
		return nil, done, err
	}
	for _, t := range tasks {
		if s.tasks[t.ID].Version > 0 {
			done.There++
			continue
		}
		data, cut := t.imported()
		id, err := uuid.NewV7()
		if err != nil {
			return nil, done, err
		}
		e := events.Event{
			UserID: user, Seq: s.head.Seq + 1, TaskID: t.ID, EventID: id, CommandID: command,
			Actor: system, RequestID: a.RequestID, Data: data,
		}
		if err := s.apply(&e); err != nil {
			return nil, done, err
		}
		c.Events = append(c.Events, e)
		done.New++
		if cut {
			done.Cut++
		}
	}
	return c, done, nil
}

// imported is the event of the task, with texts that a task may have; cut tells that they are not those it came with.
func (t OldTask) imported() (d events.TaskImported, cut bool) {
	d = events.TaskImported{
		Description: t.Description, Completed: t.Completed, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
	}
	if t.Title != nil {
		d.Title = beginning(*t.Title, MaxTitle)
	}
	if isBlank(d.Title) {
		d.Title = untitled
	}
	if t.Title == nil || d.Title != *t.Title {
		d.FullTitle, cut = t.Title, true
	}
	if t.Description == nil {
		return d, cut
	}
	if b := beginning(*t.Description, MaxDescription); b != *t.Description {
		d.Description, d.FullDescription, cut = &b, t.Description, true
	}
	return d, cut
}

// beginning is the first n code points of a text.
func beginning(s string, n int) string {
	for at := range s {
		if n == 0 {
			return s[:at]
		}
		n--
	}
	return s
}
