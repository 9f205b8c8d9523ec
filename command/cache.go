package command

import (
	"container/list"
	"sync"
)

// cache keeps streams, least recently used out first, bounded by the bytes they take; but one larger than that is kept while it is
// the last one used, or every write of its user would fold it anew. A stream is read and changed only in its
// user's lane.
type cache struct {
	mu    sync.Mutex
	limit int
	used  int
	order *list.List // of *cached, most recent first
	users map[string]*list.Element
}

type cached struct {
	user   string
	stream *stream
	bytes  int
}

func newCache(limit int) *cache {
	return &cache{limit: limit, order: list.New(), users: map[string]*list.Element{}}
}

func (c *cache) get(user string) (*stream, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.users[user]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(el)
	return el.Value.(*cached).stream, true
}

// put keeps s, at its present size.
func (c *cache) put(user string, s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(user)
	entry := &cached{user: user, stream: s, bytes: s.bytes + len(user)}
	c.users[user] = c.order.PushFront(entry)
	c.used += entry.bytes
	for c.used > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back().Value.(*cached).user)
	}
}

func (c *cache) drop(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(user)
}

func (c *cache) remove(user string) {
	el, ok := c.users[user]
	if !ok {
		return
	}
	c.used -= el.Value.(*cached).bytes
	c.order.Remove(el)
	delete(c.users, user)
}
