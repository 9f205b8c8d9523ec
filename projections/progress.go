package projections

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/trace"
)

// progress is how far a projection is known to have come: what the database said last. After a failover that may be
// less than it said before.
type progress struct {
	mu        sync.Mutex
	position  int64
	confirmed uint64 // how often the database has said so
	waiters   map[*waiter]bool
}

type waiter struct {
	position int64
	shown    chan struct{}     // closed when the position is shown
	by       trace.SpanContext // of the batch that did it, if it is traced
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

// confirm takes note of what the database said, after it has applied a batch or was asked; by is the batch's span, if
// it has one.
func (p *progress) confirm(position int64, by trace.SpanContext) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.position = position
	p.confirmed++
	for w := range p.waiters {
		if w.position <= position {
			w.by = by
			close(w.shown)
			delete(p.waiters, w)
		}
	}
}

// wait returns when the projection has been confirmed to show the position after the mark; nil when it has been
// already.
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

// await waits until the projection shows the position, and has hurry called first if it has to. The span of ctx is
// linked to that of the batch that was waited for.
func (p *progress) await(ctx context.Context, position int64, mark uint64, hurry func(int64)) error {
	w := p.wait(position, mark)
	if w == nil {
		return nil
	}
	defer p.leave(w)
	hurry(position)
	select {
	case <-w.shown:
		if w.by.IsValid() {
			trace.SpanFromContext(ctx).AddLink(trace.Link{SpanContext: w.by})
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
