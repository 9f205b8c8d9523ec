package command

import (
	"github.com/google/uuid"

	"taskledger/events"
)

// decision is what a command comes to: nothing, or events of one task.
type decision struct {
	task   uuid.UUID
	events []events.Data
}

// task finds the live task a command is about, at a version the command accepts.
func (s *stream) task(id uuid.UUID, match Match) (events.Task, error) {
	t := s.tasks[id]
	if t == nil || !t.Live() {
		return events.Task{}, ErrNotFound
	}
	if !match.allows(t.Version) {
		return events.Task{}, &PreconditionError{Current: t.Version}
	}
	return *t, nil
}

func (c CreateTask) decide(s *stream, _ Match) (decision, error) {
	if c.Chosen != nil && s.tasks[c.ID].Version > 0 {
		return decision{}, ErrExists
	}
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

func (c RestoreTask) decide(s *stream, match Match) (decision, error) {
	t := s.tasks[c.ID]
	switch {
	case t == nil || t.Version == 0:
		return decision{}, ErrNotFound
	case !match.allows(t.Version):
		return decision{}, &PreconditionError{Current: t.Version}
	case t.Live():
		return decision{}, ErrLive
	case s.live >= s.quota:
		return decision{}, &QuotaError{Limit: s.quota}
	}
	return decision{task: c.ID, events: []events.Data{events.TaskRestored{}}}, nil
}

func (c RevertTask) decide(s *stream, match Match) (decision, error) {
	t, err := s.task(c.ID, Match{})
	switch {
	case err != nil:
		return decision{}, err
	case c.then == nil || !c.then.Live():
		return decision{}, ErrNotThen
	case !match.allows(t.Version):
		return decision{}, &PreconditionError{Current: t.Version}
	}
	then := UpdateTask{ID: c.ID, Title: &c.then.Title, Description: &c.then.Description, Completed: &c.then.Completed}
	return then.decide(s, Match{})
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

func (c CreateTask) name() string   { return "create" }
func (c UpdateTask) name() string   { return "update" }
func (c ToggleTask) name() string   { return "toggle" }
func (c CompleteTask) name() string { return "complete" }
func (c ReopenTask) name() string   { return "reopen" }
func (c DeleteTask) name() string   { return "delete" }
func (c RestoreTask) name() string  { return "restore" }
func (c RevertTask) name() string   { return "revert" }

func (c CreateTask) about() *uuid.UUID   { return c.Chosen }
func (c UpdateTask) about() *uuid.UUID   { return &c.ID }
func (c ToggleTask) about() *uuid.UUID   { return &c.ID }
func (c CompleteTask) about() *uuid.UUID { return &c.ID }
func (c ReopenTask) about() *uuid.UUID   { return &c.ID }
func (c DeleteTask) about() *uuid.UUID   { return &c.ID }
func (c RestoreTask) about() *uuid.UUID  { return &c.ID }
func (c RevertTask) about() *uuid.UUID   { return &c.ID }
