package query

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

const (
	// maxKept is the largest answer that is kept, in bytes.
	maxKept = 64 << 10
	// maxTaskAnswers and maxOthers bound the answers that are kept of a user: nobody looks at more in turn, and the
	// rest would only be there for the garbage collector.
	maxTaskAnswers = 64
	maxOthers      = 16
	// maxKeptTasks and maxKeptTaskBytes bound what is kept of a user's live tasks, all of them or none.
	maxKeptTasks     = 200
	maxKeptTaskBytes = 128 << 10
	// firstLook and lastLook are the times between looks at the log for a version that another process may write. Each
	// is a multiple of the one before.
	firstLook = 20 * time.Millisecond
	lastLook  = 80 * time.Millisecond
)

// kept are the answers given last, by user and question, and all live tasks of those who ask for lists again, which
// answer any question about them. They are good as long as the user's stream ends where it did.
type kept struct {
	mu    sync.Mutex // guards all of it
	users *events.Recent[*keptUser]
	waits map[string]map[chan struct{}]bool // those who wait for a user's next event
}

type keptUser struct {
	written int64 // position of the last event that this process wrote for the user
	head    Head  // of all the answers
	tasks   keptAnswers
	others  keptAnswers // which any event may change
	live    liveTasks
	many    int64 // up to this seq the user is taken to have too many live tasks to keep
}

// liveTasks are all live tasks of a user, in no order; nil = they are not known. Neither the slice nor a task in it is
// ever changed.
type liveTasks []*events.Task

// follow returns the tasks after a commit; nil = they are too many, or it is not known what became of one.
func (l liveTasks) follow(c *events.Commit, changed []events.Task) liveTasks {
	if l == nil {
		return nil
	}
	known := make(map[uuid.UUID]bool, len(changed))
	for i := range changed {
		known[changed[i].ID] = true
	}
	for i := range c.Events {
		if !known[c.Events[i].TaskID] {
			return nil
		}
	}
	after := append(make(liveTasks, 0, len(l)+len(changed)), l...)
	for i := range changed {
		t := &changed[i]
		at := slices.IndexFunc(after, func(other *events.Task) bool { return other.ID == t.ID })
		switch {
		case at >= 0 && t.Live():
			after[at] = t
		case at >= 0:
			after = slices.Delete(after, at, at+1)
		case t.Live():
			after = append(after, t)
		}
	}
	if !after.few() {
		return nil
	}
	return after
}

// few tells whether they may be kept.
func (l liveTasks) few() bool { return len(l) <= maxKeptTasks && l.bytes() <= maxKeptTaskBytes }

func (l liveTasks) bytes() (n int) {
	for _, t := range l {
		n += t.Bytes()
	}
	return n
}

// keptAnswers are answers without their head, by question.
type keptAnswers struct {
	by    map[string]*Answer
	bytes int
	most  int // of them
}

func newKeptUser() *keptUser {
	return &keptUser{tasks: keptAnswers{most: maxTaskAnswers}, others: keptAnswers{most: maxOthers}}
}

func (k *keptAnswers) clear() { k.by, k.bytes = nil, 0 }

func newKept(limit int) kept {
	return kept{users: events.NewRecent[*keptUser](limit), waits: map[string]map[chan struct{}]bool{}}
}

// keptFor is what is kept for a question.
type keptFor struct {
	head   Head
	answer *Answer // nil = none
	live   liveTasks
	// written is the position of what this process wrote last for the user.
	written int64
	// learn: the user asks again and again, so that it pays to know all live tasks, which are not too many.
	learn bool
}

// get returns what is kept for a question.
func (k *kept) get(user string, q question) keptFor {
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		return keptFor{}
	}
	found := keptFor{head: u.head, written: u.written, learn: q.list && u.head != (Head{}) && u.head.Seq >= u.many}
	if a := u.among(q.key).by[q.key]; a != nil {
		answer := *a
		answer.Head = u.head
		found.answer = &answer
	} else if q.of != nil {
		found.live = u.live
	}
	return found
}

// good tells that there is an answer.
func (f keptFor) good() bool { return f.answer != nil || f.live != nil }

// put keeps an answer. Those of another head are good for nothing any more.
func (k *kept) put(user, key string, a Answer) {
	if len(a.Body) > maxKept {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		u = newKeptUser()
	}
	u.begin(a.Head)
	u.among(key).put(key, &a)
	k.users.Put(user, u, u.bytes())
}

// putMade keeps an answer that was made of what is kept, unless that has moved on.
func (k *kept) putMade(user, key string, a Answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if u, ok := k.users.Get(user); ok && u.head == a.Head && len(a.Body) <= maxKept {
		u.among(key).put(key, &a)
		k.users.Put(user, u, u.bytes())
	}
}

// putLive keeps all live tasks of the user, or takes note that they are too many; nil = more than can be kept.
func (k *kept) putLive(user string, head Head, live liveTasks) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		u = newKeptUser()
	}
	u.begin(head)
	if u.live = live; live == nil || !live.few() {
		u.live, u.many = nil, head.Seq+maxKeptTasks
	}
	k.users.Put(user, u, u.bytes())
}

// begin drops what is kept of another head.
func (u *keptUser) begin(head Head) {
	if u.head != head {
		u.tasks.clear()
		u.others.clear()
		u.live, u.head = nil, head
	}
}

func (u *keptUser) bytes() int { return u.tasks.bytes + u.others.bytes + u.live.bytes() }

func (u *keptUser) among(key string) *keptAnswers {
	if strings.HasPrefix(key, taskKey) {
		return &u.tasks
	}
	return &u.others
}

func (k *keptAnswers) put(key string, a *Answer) {
	k.drop(key)
	if k.by == nil {
		k.by = map[string]*Answer{}
	}
	for other := range k.by {
		if len(k.by) < k.most {
			break
		}
		k.drop(other)
	}
	k.by[key] = a
	k.bytes += size(key, a)
}

func (k *keptAnswers) drop(key string) {
	if a, ok := k.by[key]; ok {
		delete(k.by, key)
		k.bytes -= size(key, a)
	}
}

func size(key string, a *Answer) int { return len(key) + len(a.Body) + 256 }

// Wrote tells that this process has appended to a user's stream, and how that left its tasks: a read can wait for that
// before it asks. Of the answers kept for the user those about tasks are still good, or are known anew: the read model
// will have the same fold.
func (r *Reader) Wrote(c *events.Commit, tasks []events.Task) {
	last := &c.Events[len(c.Events)-1]
	k := &r.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(last.UserID)
	if !ok {
		u = newKeptUser()
	}
	u.follow(c, tasks)
	u.written = last.Position
	k.users.Put(last.UserID, u, u.bytes())
	for wake := range k.waits[last.UserID] {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// follow takes the answers on to the end of a commit. Those that it does not join on to are good for nothing any more.
func (u *keptUser) follow(c *events.Commit, tasks []events.Task) {
	u.others.clear()
	if u.head.EventID != c.After || u.head.Generation != c.Generation {
		u.tasks.clear()
		u.live = nil
	}
	if u.head == (Head{}) {
		return // the user reads nothing
	}
	for i := range c.Events {
		u.tasks.drop(keyOfTask(c.Events[i].TaskID))
	}
	for i := range tasks {
		if t := &tasks[i]; t.Live() {
			u.tasks.put(keyOfTask(t.ID), &Answer{Body: t.AppendJSON(nil), Version: t.Version})
		} else {
			u.tasks.drop(keyOfTask(t.ID))
		}
	}
	u.live = u.live.follow(c, tasks)
	last := &c.Events[len(c.Events)-1]
	u.head = Head{Seq: last.Seq, EventID: last.EventID, Generation: c.Generation}
}

// wait returns a channel that gets a value when this process writes for the user, until leave is called.
func (k *kept) wait(user string) (wake chan struct{}, leave func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wake = make(chan struct{}, 1)
	if k.waits[user] == nil {
		k.waits[user] = map[chan struct{}]bool{}
	}
	k.waits[user][wake] = true
	return wake, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.waits[user], wake)
		if len(k.waits[user]) == 0 {
			delete(k.waits, user)
		}
	}
}

// awaitVersion waits until the user's stream has the version that is asked for, whichever process writes it.
func (r *Reader) awaitVersion(ctx context.Context, ask Ask, deadline time.Time) error {
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	wake, leave := r.kept.wait(ask.UserID)
	defer leave()
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		look, err := r.log.Head(waiting, ask.UserID)
		if waiting.Err() != nil {
			return ErrNotYet
		}
		if err != nil || look.Seq >= ask.MinVersion {
			return err
		}
		now := time.Now()
		// together with all who wait, who then share a look
		timer := time.NewTimer(now.Truncate(pause).Add(pause).Sub(now))
		select {
		case <-wake:
		case <-timer.C:
		case <-waiting.Done():
			timer.Stop()
			return ErrNotYet
		}
		timer.Stop()
	}
}
