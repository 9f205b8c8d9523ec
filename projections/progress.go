package projections

import (
	"context"
	"sync"
)

// broadcast wakes everyone who waits.
type broadcast struct {
	mu   sync.Mutex
	next chan struct{}
}

// wait returns a channel that is closed at the next send.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// progress is how far one projection is known to have come: only ever what the database confirmed.
type progress struct {
	mu       sync.Mutex
	position int64
	moved    *broadcast // of all projections of the process
}

func (p *progress) confirm(position int64) {
	if p.advance(position) {
		p.moved.send()
	}
}

func (p *progress) advance(position int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	grown := position > p.position
	p.position = max(p.position, position)
	return grown
}

func (p *progress) at() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position
}

// wait returns when the projection has confirmed position, or ctx ends.
func (p *progress) wait(ctx context.Context, position int64) {
	for {
		moved := p.moved.wait() // before the look, or what happens in between is missed
		if p.at() >= position {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}
