package httpapi

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The model of TestModel: what the contract says of a user's ledger, in the plainest way, without a line of the
// program. It keeps the state of all tasks after every seq.

// modelTask is a task; its times are those of events, named by their seqs.
type modelTask struct {
	id                        string
	title                     string
	description               *string
	completed                 bool
	version, created, deleted int64 // deleted: 0 = live
}

type modelEvent struct {
	kind, task, changes string
	after               *modelTask // nil when the task is deleted, or everything is
	time                string
	requestID           string
}

// modelUser is the ledger of one user.
type modelUser struct {
	name   string
	quota  int
	first  int64                  // seq of the last erasure, or 0
	states []map[string]modelTask // by seq, from 0 on; those before an erasure are empty
	events []modelEvent           // by seq - 1
	keys   map[string]modelReplay // of this life
	hashes []string               // by seq
}

// modelReplay is a request with a key, and its answer.
type modelReplay struct {
	call   call
	answer string
}

func newModelUser(name string, quota int) *modelUser {
	return &modelUser{
		name: name, quota: quota, states: []map[string]modelTask{{}}, keys: map[string]modelReplay{},
		hashes: []string{strings.Repeat("0", 64)},
	}
}

func (u *modelUser) head() int64 { return int64(len(u.events)) }

func (u *modelUser) now() map[string]modelTask { return u.states[u.head()] }

// modelCommand is what is asked for, whether over a resource or in a batch.
type modelCommand struct {
	op                 string
	id                 string // of a create: chosen, or empty
	ifMatch            int64  // 0 = none
	title, description *string
	describe           bool // description is given, and null when it is nil
	completed          *bool
	version            int64 // of a revert
}

// trial is a user's ledger while a command, or several, are carried out on it.
type trial struct {
	u      *modelUser
	tasks  map[string]modelTask
	events []modelEvent
	states []map[string]modelTask
}

func (u *modelUser) try() *trial { return &trial{u: u, tasks: maps.Clone(u.now())} }

func (t *trial) live() (n int) {
	for _, task := range t.tasks {
		if task.deleted == 0 {
			n++
		}
	}
	return n
}

// keep makes what was tried the user's ledger.
func (t *trial) keep() {
	t.u.events = append(t.u.events, t.events...)
	t.u.states = append(t.u.states, t.states...)
}

// happen is the next event.
func (t *trial) happen(kind string, after modelTask, changes ...string) modelTask {
	after.version = t.u.head() + int64(len(t.events)) + 1
	switch kind {
	case "TaskCreated":
		after.created = after.version
	case "TaskDeleted":
		after.deleted = after.version
	case "TaskRestored":
		after.deleted = 0
	}
	t.tasks[after.id] = after
	e := modelEvent{kind: kind, task: after.id, changes: "{" + strings.Join(changes, ",") + "}"}
	if after.deleted == 0 {
		e.after = &after
	}
	t.events = append(t.events, e)
	t.states = append(t.states, maps.Clone(t.tasks))
	return after
}

func quoteOrNull(s *string) string {
	if s == nil {
		return "null"
	}
	return quote(*s)
}

func changed(member, from, to string) string {
	return fmt.Sprintf(`"%s":{"from":%s,"to":%s}`, member, from, to)
}

// do carries out a command; made is the id of a task that it makes. The status is what the command is answered with
// alone.
func (t *trial) do(c modelCommand, made string) (status int, after modelTask) {
	task, there := t.tasks[c.id]
	matches := c.ifMatch == 0 || c.ifMatch == task.version
	switch c.op {
	case "create":
		switch {
		case c.id != "" && there:
			return 409, task
		case t.live() >= t.u.quota:
			return 422, task
		}
		changes := []string{changed("title", "null", quote(*c.title))}
		if c.description != nil {
			changes = append(changes, changed("description", "null", quote(*c.description)))
		}
		task = t.happen(
			"TaskCreated",
			modelTask{id: made, title: *c.title, description: c.description},
			append(changes, changed("is_completed", "null", "false"))...)
		if c.completed != nil && *c.completed {
			task = t.complete(task, true)
		}
		return 201, task
	case "restore":
		switch {
		case !there:
			return 404, task
		case !matches:
			return 412, task
		case task.deleted == 0:
			return 409, task
		case t.live() >= t.u.quota:
			return 422, task
		}
		return 200, t.happen("TaskRestored", task, changed("deleted", "true", "false"))
	}
	if c.op == "revert" && c.version < 1 {
		return 422, task // no version at all
	}
	if !there || task.deleted > 0 {
		return 404, task
	}
	if c.op == "revert" {
		if c.version > t.u.head() {
			return 422, task
		}
		then, was := t.u.states[c.version][c.id]
		if !was || then.deleted > 0 {
			return 422, task
		}
		c.title, c.describe, c.description, c.completed = &then.title, true, then.description, &then.completed
	}
	if !matches {
		return 412, task
	}
	switch c.op {
	case "delete":
		return 204, t.happen("TaskDeleted", task, changed("deleted", "false", "true"))
	case "toggle":
		return 200, t.complete(task, !task.completed)
	case "complete", "reopen":
		return 200, t.complete(task, c.op == "complete")
	}
	if c.title != nil && *c.title != task.title {
		from := task.title
		task.title = *c.title
		task = t.happen("TaskRenamed", task, changed("title", quote(from), quote(task.title)))
	}
	if from, to := quoteOrNull(task.description), quoteOrNull(c.description); c.describe && from != to {
		task.description = c.description
		task = t.happen("TaskDescribed", task, changed("description", from, to))
	}
	if c.completed != nil {
		task = t.complete(task, *c.completed)
	}
	return 200, task
}

func (t *trial) complete(task modelTask, completed bool) modelTask {
	if task.completed == completed {
		return task
	}
	task.completed = completed
	kind := map[bool]string{true: "TaskCompleted", false: "TaskReopened"}[completed]
	return t.happen(kind, task, changed("is_completed", strconv.FormatBool(!completed), strconv.FormatBool(completed)))
}

// erase ends the user's life; it does nothing when there is none.
func (u *modelUser) erase() bool {
	if u.head() == u.first {
		return false
	}
	u.events = append(u.events, modelEvent{kind: "UserErased", changes: "{}"})
	u.first = u.head()
	for seq := range u.states {
		u.states[seq] = nil
	}
	u.states = append(u.states, map[string]modelTask{})
	u.keys = map[string]modelReplay{}
	return true
}

func (u *modelUser) time(seq int64) string { return u.events[seq-1].time }

// render is a task as clients see it.
func (u *modelUser) render(t modelTask) string {
	deleted := ""
	if t.deleted > 0 {
		deleted = `,"deleted_at":"` + u.time(t.deleted) + `"`
	}
	return fmt.Sprintf(
		`{"id":"%s","user_id":%s,"title":%s,"description":%s,"is_completed":%t,`+
			`"created_at":"%s","updated_at":"%s","version":%d%s}`,
		t.id,
		quote(u.name),
		quote(t.title),
		quoteOrNull(t.description),
		t.completed,
		u.time(t.created),
		u.time(t.version),
		t.version,
		deleted,
	)
}

// entry is an event as clients see it, but for the brace that closes it.
func (u *modelUser) entry(seq int64) string {
	e := u.events[seq-1]
	task := `"` + e.task + `"`
	if e.task == "" {
		task = "null"
	}
	return fmt.Sprintf(
		`{"seq":%d,"type":"%s","task_id":%s,"recorded_at":"%s","actor":%s,"request_id":"%s","changes":%s,"hash":"%s"`,
		seq,
		e.kind,
		task,
		e.time,
		quote(u.name),
		e.requestID,
		e.changes,
		u.hashes[seq],
	)
}

var modelNames = map[string]string{
	"TaskCreated":   "task.created",
	"TaskRenamed":   "task.updated",
	"TaskDescribed": "task.updated",
	"TaskCompleted": "task.completed",
	"TaskReopened":  "task.reopened",
	"TaskDeleted":   "task.deleted",
	"TaskRestored":  "task.restored",
	"UserErased":    "erased",
}

// frame is an event as a stream tells it.
func (u *modelUser) frame(seq int64) string {
	e := u.events[seq-1]
	task := "null"
	if e.after != nil {
		task = u.render(*e.after)
	}
	return modelNames[e.kind] + " " + u.entry(seq) + `,"task":` + task + "}"
}

// modelList is what a list is asked for.
type modelList struct{ status, sort, order, search string }

// list is what is listed of a state.
func (u *modelUser) list(state map[string]modelTask, l modelList) (out []string) {
	var found []modelTask
	for _, t := range state {
		text := strings.ToLower(t.title)
		if t.description != nil {
			text += "\x00" + strings.ToLower(*t.description)
		}
		if t.deleted == 0 && (l.status == "" || l.status == "all" || t.completed == (l.status == "completed")) &&
			strings.Contains(text, strings.ToLower(l.search)) {
			found = append(found, t)
		}
	}
	key := func(t modelTask) string {
		switch l.sort {
		case "title":
			return strings.ToLower(t.title[:1]) // the titles of the test differ in their first letter, or not at all
		case "updated_at":
			return u.time(t.version)
		}
		return u.time(t.created)
	}
	descending := l.order == "desc" || l.order == "" && l.sort != "title"
	sort.Slice(found, func(i, j int) bool {
		a, b := key(found[i])+" "+found[i].id, key(found[j])+" "+found[j].id
		return a < b != descending
	})
	for _, t := range found {
		out = append(out, u.render(t))
	}
	return out
}

// trash is what was deleted, the last first.
func (u *modelUser) trash() (out []string) {
	deleted := slices.DeleteFunc(slices.Collect(maps.Values(u.now())), func(t modelTask) bool { return t.deleted == 0 })
	sort.Slice(deleted, func(i, j int) bool { return deleted[i].version > deleted[j].version })
	for _, t := range deleted {
		out = append(out, u.render(t))
	}
	return out
}

// at is the last seq at a time.
func (u *modelUser) at(time string) (seq int64) {
	for seq = u.head(); seq > 0 && u.time(seq) > time; {
		seq--
	}
	return seq
}

// quote is a JSON string as RFC 8785 (3.2.2.2) has it.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch short := strings.IndexByte("\b\t\n\f\r\"\\", s[0]); {
		case short >= 0:
			b.WriteString(`\` + "btnfr\"\\"[short:short+1])
		case r < ' ':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	b.WriteByte('"')
	return b.String()
}

// canonical is a JSON value as RFC 8785 has it; its numbers are integers.
func canonical(value any) string {
	switch v := value.(type) {
	case string:
		return quote(v)
	case []any:
		items := make([]string, len(v))
		for i := range v {
			items[i] = canonical(v[i])
		}
		return "[" + strings.Join(items, ",") + "]"
	case map[string]any:
		var members []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			members = append(members, quote(name)+":"+canonical(v[name]))
		}
		return "{" + strings.Join(members, ",") + "}"
	case nil:
		return "null"
	}
	return fmt.Sprint(value)
}
