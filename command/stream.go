package command

import (
	"context"
	"slices"
	"sync"

	"github.com/google/uuid"

	"taskledger/events"
)

// stream is what decisions know of one user's stream, as of its head. The last events of it may still be on their way
// into the log: a command is decided on the one before it, whose outcome is not known yet, and is stored only if that
// one is.
type stream struct {
	generation     int64 // of the read model that this began with
	userGeneration int64 // of the user's part of it
	quota          int

	mu    sync.Mutex // guards what follows
	head  events.Head
	live  int                        // tasks that are not deleted
	tasks map[uuid.UUID]*events.Task // those that were asked for, and those changed since; zero = there is none
	bytes int                        // about the memory it takes
	tail  chan struct{}              // closed when the last commit has its outcome; nil = there was none
}

func newStream(quota int) *stream {
	return &stream{quota: quota, tasks: map[uuid.UUID]*events.Task{}, bytes: 256}
}

// know adds a task.
func (s *stream) know(id uuid.UUID, t events.Task) {
	if old := s.tasks[id]; old != nil {
		s.bytes -= old.Bytes()
	}
	s.tasks[id] = &t
	s.bytes += t.Bytes()
}

// apply folds the next event of the stream in. A task that nobody has asked for stays unknown.
func (s *stream) apply(e *events.Event) error {
	if _, erased := e.Data.(events.UserErased); erased {
		for id := range s.tasks {
			s.know(id, events.Task{})
		}
		s.live = 0
	}
	t := s.tasks[e.TaskID]
	_, unreadable := e.Data.(events.Unreadable)
	if t == nil && (unreadable || e.Data.Type() == events.TypeTaskCreated) {
		s.know(e.TaskID, events.Task{})
		t = s.tasks[e.TaskID]
	}
	if t != nil {
		after, err := events.Fold(*t, *e)
		if err != nil {
			return err
		}
		s.bytes += after.Bytes() - t.Bytes()
		*t = after
	}
	s.head = events.Head{Seq: e.Seq, Position: e.Position, EventID: e.EventID}
	s.live += events.LiveChange(e.Data)
	return nil
}

// settle gives the tasks of a commit that was stored its time, which was not known when it was decided: as its steps
// left them, and as the stream knows them, which may be later.
func (s *stream) settle(c *commit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := c.Events[0].RecordedAt
	created := map[uuid.UUID]bool{}
	for i := range c.Events {
		if e := &c.Events[i]; e.Data.Type() == events.TypeTaskCreated {
			created[e.TaskID] = true
		}
	}
	for i := range c.results {
		r := &c.results[i]
		if created[r.known.ID] {
			r.known.CreatedAt = at
		}
		r.task.CreatedAt = r.known.CreatedAt
		for _, t := range []*events.Task{&r.task, r.known} {
			if t.Version < c.Events[0].Seq || t.Version > c.seq {
				continue
			}
			t.UpdatedAt = at
			if t.DeletedAt != nil {
				t.DeletedAt = &at
			}
		}
	}
}

// forget drops tasks until few enough are known, but none of those named.
func (s *stream) forget(keep []uuid.UUID) {
	for id, t := range s.tasks {
		if len(s.tasks) <= rememberedTasks {
			return
		}
		if !slices.Contains(keep, id) {
			s.bytes -= t.Bytes()
			delete(s.tasks, id)
		}
	}
}

func (s *stream) knows(ids []uuid.UUID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.tasks[id] == nil {
			return false
		}
	}
	return true
}

// try calls decide with a copy of what is known, which is taken over unless decide returns an error.
func (s *stream) try(decide func(*stream) error) error {
	trial := &stream{
		generation: s.generation, userGeneration: s.userGeneration, quota: s.quota,
		head: s.head, live: s.live, bytes: s.bytes,
	}
	trial.tasks = make(map[uuid.UUID]*events.Task, len(s.tasks))
	for id, t := range s.tasks {
		t := *t
		trial.tasks[id] = &t
	}
	if err := decide(trial); err != nil {
		return err
	}
	s.head, s.live, s.bytes, s.tasks = trial.head, trial.live, trial.bytes, trial.tasks
	return nil
}

// adopt takes over what another stream knows, if it is of the same state.
func (s *stream) adopt(old *stream) {
	old.mu.Lock()
	defer old.mu.Unlock()
	if old.head.EventID != s.head.EventID || old.generation != s.generation {
		return
	}
	for id, t := range old.tasks {
		if s.tasks[id] == nil {
			s.know(id, *t)
		}
	}
}

// follow takes note of the last commit.
func (s *stream) follow(tail chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tail = tail
}

// onTheWay tells whether a commit has no outcome yet.
func (s *stream) onTheWay() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tail == nil {
		return false
	}
	select {
	case <-s.tail:
		return false
	default:
		return true
	}
}

// await waits until the last commit has its outcome.
func (s *stream) await(ctx context.Context) error {
	s.mu.Lock()
	tail := s.tail
	s.mu.Unlock()
	if tail == nil {
		return nil
	}
	select {
	case <-tail:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
