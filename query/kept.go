package query

import (
	"context"
	"sync"
	"time"

	"taskledger/events"
)

const (
	// maxKept is the largest answer that is kept, in bytes.
	maxKept = 64 << 10
	// firstLook and lastLook are the times between looks at the log for a version that another process may write. Each is a multiple of the
	// one before.
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
	answers map[string]*Answer
	bytes   int
}

func newKept(limit int) kept {
	return kept{users: events.NewRecent[*keptUser](limit), waits: map[string]map[chan struct{}]bool{}}
}

// get returns an answer, if one is kept, and the position of what this process wrote last for the user.
func (k *kept) get(user, key string) (a *Answer, written int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		return nil, 0
	}
	return u.answers[key], u.written
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
		u.clear()
	}
	if u.head != a.Head {
		u.clear()
		u.head = a.Head
	}
	if old, ok := u.answers[key]; ok {
		u.bytes -= size(key, old)
	}
	u.answers[key] = &a
	u.bytes += size(key, &a)
	k.users.Put(user, u, u.bytes)
}

func (u *keptUser) clear() { u.answers, u.bytes = map[string]*Answer{}, 0 }

func size(key string, a *Answer) int { return len(key) + len(a.Body) + 256 }

// Wrote tells that this process has appended to the user's stream, through a position: no answer kept for the user is good any more, and
// a read can wait for that position before it asks.
func (r *Reader) Wrote(user string, position int64) {
	k := &r.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users.Get(user)
	if !ok {
		u = &keptUser{}
	}
	u.clear()
	u.written = position
	k.users.Put(user, u, 0)
	for wake := range k.waits[user] {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
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
		timer := time.NewTimer(now.Truncate(pause).Add(pause).Sub(now)) // together with all who wait, who then share a look
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
