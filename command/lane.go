package command

import (
	"context"
	"sync"
)

// lanes let one command of a user through at a time, so that commands of one process never race each other for a seq.
type lanes struct {
	mu   sync.Mutex
	busy map[string]*lane
}

type lane struct {
	users int           // holder and waiters; guarded by lanes.mu
	token chan struct{} // holds one value while the lane is free
}

// take waits for the user's lane, and tells whether somebody else was in it. The caller calls release when done; the
// second call does nothing.
func (l *lanes) take(ctx context.Context, user string) (release func(), waited bool, err error) {
	l.mu.Lock()
	ln, ok := l.busy[user]
	if !ok {
		ln = &lane{token: make(chan struct{}, 1)}
		ln.token <- struct{}{}
		l.busy[user] = ln
	}
	waited = ln.users > 0
	ln.users++
	l.mu.Unlock()

	left := false
	release = func() {
		if !left {
			left = true
			ln.token <- struct{}{}
			l.leave(user, ln)
		}
	}
	select {
	case <-ln.token:
		return release, waited, nil
	default:
	}
	select {
	case <-ln.token:
		return release, waited, nil
	case <-ctx.Done():
		l.leave(user, ln)
		return nil, waited, context.Cause(ctx)
	}
}

func (l *lanes) leave(user string, ln *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.users--
	if ln.users == 0 {
		delete(l.busy, user)
	}
}
