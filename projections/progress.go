package projections

import (
	"context"
	"sync"
)

// progress is how far one projection is known to have come: only ever what the database confirmed.
type progress struct {
	mu       sync.Mutex
	position int64
	moved    chan struct{} // closed, and made anew, when position grows
}

func newProgress() *progress {
	return &progress{moved: make(chan struct{})}
}

func (p *progress) confirm(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if position <= p.position {
		return
	}
	p.position = position
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *progress) at() (position int64, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position, p.moved
}

// wait returns when the projection has confirmed position, or ctx ends.
func (p *progress) wait(ctx context.Context, position int64) {
	for {
		at, moved := p.at()
		if at >= position {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}
