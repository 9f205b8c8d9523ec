package projections

import (
	"context"
	"sync"
)

// progress is how far a projection is known to have come: what the database said last. After a failover that may be less than it said
// before.
type progress struct {
	mu        sync.Mutex
	position  int64
	confirmed uint64 // how often the database has said so
	waiters   map[*waiter]bool
}

type waiter struct {
	position int64
	shown    chan struct{} // closed when the position is shown
}

func (p *progress) mark() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirmed
}

func (p *progress) at() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position
}

func (p *progress) confirm(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.position = position
	p.confirmed++
	for w := range p.waiters {
		if w.position <= position {
			close(w.shown)
			delete(p.waiters, w)
		}
	}
}

// wait returns when the projection has been confirmed to show the position after the mark; nil when it has been already.
func (p *progress) wait(position int64, mark uint64) *waiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.confirmed > mark && p.position >= position {
		return nil
	}
	w := &waiter{position: position, shown: make(chan struct{})}
	p.waiters[w] = true
	return w
}

func (p *progress) leave(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiters, w)
}

// await waits until the projection shows the position, and has hurry called first if it has to.
func (p *progress) await(ctx context.Context, position int64, mark uint64, hurry func(int64)) error {
	w := p.wait(position, mark)
	if w == nil {
		return nil
	}
	defer p.leave(w)
	hurry(position)
	select {
	case <-w.shown:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
