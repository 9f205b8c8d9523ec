package command

import (
	"github.com/google/uuid"

	"taskledger/events"
)

// stream is one user's stream as decisions see it: the fold of all its events.
type stream struct {
	head  int64 // seq of the last event
	at    int64 // position of the last event
	live  int
	quota int
	tasks map[uuid.UUID]events.Task
	bytes int // about the memory it takes
}

// decision is what a command comes to: nothing, or events of one task.
type decision struct {
	task   uuid.UUID
	events []events.Data
}

func newStream(quota int) *stream {
	return &stream{quota: quota, tasks: map[uuid.UUID]events.Task{}}
}

// apply folds the next event of the stream in.
func (s *stream) apply(e events.Event) error {
	before := s.tasks[e.TaskID]
	after, err := events.Fold(before, e)
	if err != nil {
		return err
	}
	s.head, s.at = e.Seq, e.Position
	if after.Version == 0 {
		return nil // its creation was skipped
	}
	s.tasks[e.TaskID] = after
	s.bytes += taskBytes(after) - taskBytes(before)
	s.live += liveCount(after) - liveCount(before)
	return nil
}

func liveCount(t events.Task) int {
	if t.Live() {
		return 1
	}
	return 0
}

// taskBytes is about what a task takes in memory.
func taskBytes(t events.Task) int {
	if t.Version == 0 {
		return 0
	}
	n := 256 + len(t.Title)
	if t.Description != nil {
		n += len(*t.Description)
	}
	return n
}

// task finds the live task a command is about, at a version the command accepts.
func (s *stream) task(id uuid.UUID, match Match) (events.Task, error) {
	t := s.tasks[id]
	if !t.Live() {
		return t, ErrNotFound
	}
	if !match.allows(t.Version) {
		return t, &PreconditionError{Current: t.Version}
	}
	return t, nil
}

func (c CreateTask) decide(s *stream, _ Match) (decision, error) {
	if s.live >= s.quota {
		return decision{}, &QuotaError{Limit: s.quota}
	}
	d := decision{task: c.ID, events: []events.Data{events.TaskCreated{Title: c.Title, Description: c.Description}}}
	if c.Completed {
		d.events = append(d.events, events.TaskCompleted{})
	}
	return d, nil
}

func (c UpdateTask) decide(s *stream, match Match) (decision, error) {
	t, err := s.task(c.ID, match)
	if err != nil {
		return decision{}, err
	}
	d := decision{task: c.ID}
	if c.Title != nil && *c.Title != t.Title {
		d.events = append(d.events, events.TaskRenamed{Title: *c.Title})
	}
	if c.Description != nil && !equal(*c.Description, t.Description) {
		d.events = append(d.events, events.TaskDescribed{Description: *c.Description})
	}
	if c.Completed != nil {
		d.events = append(d.events, completion(t, *c.Completed)...)
	}
	return d, nil
}

func (c ToggleTask) decide(s *stream, match Match) (decision, error) {
	t, err := s.task(c.ID, match)
	return decision{task: c.ID, events: completion(t, !t.Completed)}, err
}

func (c CompleteTask) decide(s *stream, match Match) (decision, error) {
	t, err := s.task(c.ID, match)
	return decision{task: c.ID, events: completion(t, true)}, err
}

func (c ReopenTask) decide(s *stream, match Match) (decision, error) {
	t, err := s.task(c.ID, match)
	return decision{task: c.ID, events: completion(t, false)}, err
}

func (c DeleteTask) decide(s *stream, match Match) (decision, error) {
	_, err := s.task(c.ID, match)
	return decision{task: c.ID, events: []events.Data{events.TaskDeleted{}}}, err
}

// completion is the event that brings t to the wanted completion, if it takes one.
func completion(t events.Task, want bool) []events.Data {
	switch {
	case t.Completed == want:
		return nil
	case want:
		return []events.Data{events.TaskCompleted{}}
	default:
		return []events.Data{events.TaskReopened{}}
	}
}

func equal(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (CreateTask) name() string   { return "create" }
func (UpdateTask) name() string   { return "update" }
func (ToggleTask) name() string   { return "toggle" }
func (CompleteTask) name() string { return "complete" }
func (ReopenTask) name() string   { return "reopen" }
func (DeleteTask) name() string   { return "delete" }
