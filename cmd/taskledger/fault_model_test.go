package main

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
)

// effect is what the contract says of a command on a task that is as before: the status, the task after it but for its
// version, and the types of its events.
func (o *order) effect(before state) (status int, after state, types []string) {
	switch {
	case o.op == "create":
		return o.creation()
	case before.deleted:
		return http.StatusNotFound, before, nil
	case o.ifMatch != 0 && o.ifMatch != before.version:
		return http.StatusPreconditionFailed, before, nil
	case o.op == "delete":
		after = before
		after.deleted = true
		return http.StatusNoContent, after, []string{"TaskDeleted"}
	}
	return o.change(before)
}

func (o *order) creation() (status int, after state, types []string) {
	after, types = state{title: o.title, description: o.description}, []string{"TaskCreated"}
	if o.completed != nil && *o.completed {
		after.completed, types = true, append(types, "TaskCompleted")
	}
	return http.StatusCreated, after, types
}

func (o *order) change(before state) (status int, after state, types []string) {
	after = before
	if o.title != "" && o.title != before.title {
		after.title, types = o.title, append(types, "TaskRenamed")
	}
	if o.describe && !sameText(o.description, before.description) {
		after.description, types = o.description, append(types, "TaskDescribed")
	}
	switch {
	case o.op == "toggle":
		after.completed = !before.completed
	case o.op == "complete" || o.op == "reopen":
		after.completed = o.op == "complete"
	case o.completed != nil:
		after.completed = *o.completed
	}
	if after.completed != before.completed {
		types = append(types, map[bool]string{true: "TaskCompleted", false: "TaskReopened"}[after.completed])
	}
	return http.StatusOK, after, types
}

func sameText(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// always tells whether the command, if it is not refused, changes something whatever the task is like.
func (o *order) always() bool { return o.op == "create" || o.op == "toggle" || o.op == "delete" }

// stored tells of a settled command whether it is known to have left events: its answer is then the same for ever.
func (o *order) stored() bool { return o.answer.status < 300 && (o.changed || o.always()) }

type entry struct {
	Seq       int64  `json:"seq"`
	Type      string `json:"type"`
	TaskID    string `json:"task_id"`
	RequestID string `json:"request_id"`
}

// auditHistory goes through what is stored, command by command, and holds each against what was asked for,
// acknowledged, and to be expected on the state it found. Each command must be found once, those that were refused not
// at all.
func (s *stage) auditHistory(a *account) {
	orders, found := map[string]*order{}, map[string]bool{}
	for _, o := range a.orders {
		orders[o.key] = o
	}
	tasks := map[string]state{}
	entries := s.history(a)
	for len(entries) > 0 {
		o := orders[entries[0].RequestID]
		if o == nil || found[o.key] {
			s.t.Errorf("%s: %+v is of no command, or of one that was stored before", a.user, entries[0])
			return
		}
		found[o.key] = true
		_, after, types := o.effect(tasks[entries[0].TaskID])
		if len(types) == 0 || len(types) > len(entries) || !o.wrote(entries[:len(types)], types) {
			s.t.Errorf(
				"%s: %s on %+v is stored as %+v, want %v",
				a.user,
				o.describeIt(),
				tasks[entries[0].TaskID],
				entries[:min(3, len(entries))],
				types,
			)
			return
		}
		after.version, after.answer = entries[len(types)-1].Seq, o.answer.body
		s.auditAnswer(o, after)
		tasks[entries[0].TaskID] = after
		entries = entries[len(types):]
	}
	for _, o := range a.orders {
		if a.shared && !o.always() {
			o.changed = found[o.key] // it may have found nothing to change
		}
		if found[o.key] != o.stored() {
			s.t.Errorf("%s: %s was answered with %+v; stored: %v", a.user, o.describeIt(), o.answer, found[o.key])
		}
	}
	a.tasks = tasks
}

// wrote tells whether the entries are of this command.
func (o *order) wrote(entries []entry, types []string) bool {
	for i, e := range entries {
		if e.RequestID != o.key || e.Type != types[i] || e.TaskID != o.id {
			return false
		}
	}
	return true
}

// auditAnswer holds what was acknowledged against what was stored.
func (s *stage) auditAnswer(o *order, after state) {
	version := strconv.FormatInt(after.version, 10)
	if o.answer.version != version {
		s.t.Errorf("%s: answered with %+v, stored at %s", o.describeIt(), o.answer, version)
	}
	if after.deleted {
		return
	}
	task, err := readTask(o.answer.body)
	same := task.Title == after.title && sameText(task.Description, after.description) &&
		task.Completed == after.completed
	if err != nil || !same || task.Version != after.version || task.ID != o.id || o.answer.etag != `"`+version+`"` {
		s.t.Errorf("%s: answered with %+v, stored %+v", o.describeIt(), o.answer, after)
	}
}

// history is the user's whole audit trail; its seqs must be 1, 2, 3 and so on.
func (s *stage) history(a *account) []entry {
	got := s.settle(
		a,
		&order{method: "GET", path: "/api/history?order=asc&min_version=" + s.head(a)},
		rand.New(rand.NewPCG(0, 0)),
	)
	var entries []entry
	if err := json.Unmarshal([]byte(got.body), &entries); err != nil || got.status != http.StatusOK {
		s.t.Errorf("%s: history: %d %v", a.user, got.status, err)
		return nil
	}
	for i, e := range entries {
		if e.Seq != int64(i)+1 {
			s.t.Errorf("%s: entry %d of the history has seq %d", a.user, i+1, e.Seq)
			return nil
		}
	}
	return entries
}

// head is the highest seq that was acknowledged.
func (s *stage) head(a *account) string {
	var head int64
	for _, o := range a.orders {
		// Refusals have none.
		seq, err := strconv.ParseInt(o.answer.version, 10, 64)
		if err == nil {
			head = max(head, seq)
		}
	}
	return strconv.FormatInt(head, 10)
}

// auditTasks compares what is read with the last answer of each task, byte for byte.
func (s *stage) auditTasks(a *account) {
	random := rand.New(rand.NewPCG(0, 0))
	listed := map[string]string{}
	got := s.settle(a, &order{method: "GET", path: "/api/tasks"}, random)
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || got.status != http.StatusOK {
		s.t.Errorf("%s: list: %d %v", a.user, got.status, err)
		return
	}
	for _, raw := range list {
		task, err := readTask(string(raw))
		if err != nil || listed[task.ID] != "" {
			s.t.Errorf("%s: %s is listed twice, or %v", a.user, raw, err)
		}
		listed[task.ID] = string(raw)
	}
	for id, want := range a.tasks {
		one := s.settle(a, &order{method: "GET", path: "/api/tasks/" + id}, random)
		if want.deleted {
			if one.status != http.StatusNotFound || listed[id] != "" {
				s.t.Errorf("%s: the deleted task %s is read as %+v, listed as %q", a.user, id, one, listed[id])
			}
			continue
		}
		if one.status != http.StatusOK || one.body != want.answer || listed[id] != want.answer {
			s.t.Errorf("%s: task %s is read as %+v, listed as %q, want %s", a.user, id, one, listed[id], want.answer)
		}
		delete(listed, id)
	}
	if len(listed) > 0 {
		s.t.Errorf("%s: listed, and never acknowledged: %v", a.user, listed)
	}
}

// replayAll sends commands again; each must be answered as it was the first time.
func (s *stage) replayAll(a *account, random *rand.Rand) {
	stored := slices.DeleteFunc(slices.Clone(a.orders), func(o *order) bool { return !o.stored() })
	random.Shuffle(len(stored), func(i, j int) { stored[i], stored[j] = stored[j], stored[i] })
	for _, o := range stored[:min(maxReplays, len(stored))] {
		if again := s.settle(a, o, random); again != o.answer {
			s.t.Errorf("%s: %s was first answered with %+v, now with %+v", a.user, o.describeIt(), o.answer, again)
			return
		}
	}
}
