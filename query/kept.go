package query

import (
	"context"
	"strings"
	"sync"
	"time"

	"taskledger/events"
)

const (
	// maxKept is the largest answer that is kept, in bytes.
	maxKept = 64 << 10
	// firstLook and lastLook are the times between looks at the log for a version that another process may write. Each
	// is a multiple of the one before.
	firstLook = 20 * time.Millisecond
	lastLook  = 80 * time.Millisecond
)

// kept are the answers given last, by user and question. They are good as long as the user's stream ends where it did.
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
}

// keptAnswers are answers without their head, by question.
type keptAnswers struct {
	by    map[string]*Answer
	bytes int
}

func newKept(limit int) kept {
	return kept{users: events.NewRecent[*keptUser](limit), waits: map[string]map[chan struct{}]bool{}}
}

// get returns an answer, nil if none is kept, and the position of what this process wrote last for the user.
func (k *kept) get(user, key string) (a *Answer, written int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		return nil, 0
	}
	found := u.among(key).by[key]
	if found == nil {
		return nil, u.written
	}
	answer := *found
	answer.Head = u.head
	return &answer, u.written
}

// put keeps an answer. Those of another head are good for nothing any more.
func (k *kept) put(user, key string, a Answer) {
	if len(a.Body) > maxKept {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		u = &keptUser{}
	}
	if u.head != a.Head {
		u.tasks, u.others = keptAnswers{}, keptAnswers{}
		u.head = a.Head
	}
	u.among(key).put(key, &a)
	k.users.Put(user, u, u.tasks.bytes+u.others.bytes)
}

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
		u = &keptUser{}
	}
	u.follow(c, tasks)
	u.written = last.Position
	k.users.Put(last.UserID, u, u.tasks.bytes)
	for wake := range k.waits[last.UserID] {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// follow takes the answers on to the end of a commit. Those that it does not join on to are good for nothing any more.
func (u *keptUser) follow(c *events.Commit, tasks []events.Task) {
	u.others = keptAnswers{}
	if u.head.EventID != c.After || u.head.Generation != c.Generation {
		u.tasks = keptAnswers{}
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
