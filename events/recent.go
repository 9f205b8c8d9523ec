package events

import (
	"container/list"
	"sync"
)

// Recent keeps a value a user, least recently used out first, bounded by the bytes they take; but one larger than the
// bound is kept while it is the last one used. What the values hold is their users' to guard.
type Recent[V any] struct {
	mu    sync.Mutex
	limit int
	used  int
	order *list.List // of *recent[V], most recent first
	users map[string]*list.Element
}

type recent[V any] struct {
	user  string
	value V
	bytes int
}

// NewRecent returns an empty Recent that holds about limit bytes.
func NewRecent[V any](limit int) *Recent[V] {
	return &Recent[V]{limit: limit, order: list.New(), users: map[string]*list.Element{}}
}

// Get returns the user's value.
func (r *Recent[V]) Get(user string) (value V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.users[user]
	if !ok {
		return value, false
	}
	r.order.MoveToFront(el)
	return el.Value.(*recent[V]).value, true
}

// Put keeps a value that takes about so many bytes, in place of the one before.
func (r *Recent[V]) Put(user string, value V, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bytes += len(user) + 128
	if el, ok := r.users[user]; ok {
		kept := el.Value.(*recent[V])
		r.used += bytes - kept.bytes
		kept.value, kept.bytes = value, bytes
		r.order.MoveToFront(el)
	} else {
		r.users[user] = r.order.PushFront(&recent[V]{user: user, value: value, bytes: bytes})
		r.used += bytes
	}
	for r.used > r.limit && r.order.Len() > 1 {
		r.remove(r.order.Back())
	}
}

// Drop forgets the user's value.
func (r *Recent[V]) Drop(user string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if el, ok := r.users[user]; ok {
		r.remove(el)
	}
}

// Clear forgets all values.
func (r *Recent[V]) Clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order.Init()
	clear(r.users)
	r.used = 0
}

// Bytes is about what the values take.
func (r *Recent[V]) Bytes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}

func (r *Recent[V]) remove(el *list.Element) {
	kept := r.order.Remove(el).(*recent[V])
	r.used -= kept.bytes
	delete(r.users, kept.user)
}
