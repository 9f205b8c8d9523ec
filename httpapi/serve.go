package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits of a connection.
const (
	maxHeader     = 32 << 10
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	// restTimeout is how long the rest of a body may take that nobody reads.
	restTimeout = 250 * time.Millisecond
	// workTimeout bounds what the server does for one request; clients give up after 10 seconds.
	workTimeout = 9 * time.Second
)

// Times of a stop.
const (
	// drainTime is how long clients are asked to leave before the server stops listening.
	drainTime = time.Second
	// stopTimeout is how long requests in flight may take to finish after that.
	stopTimeout = 10 * time.Second
	// newTimeout is how long a connection may wait with its first request.
	newTimeout = 5 * time.Second
	// settlePoll is how often connections are looked at.
	settlePoll = 10 * time.Millisecond
)

// connKey is the key of a request's connection in its context.
type connKey struct{}

// httpServer returns an http.Server with the limits of the contract.
func (s *Server) httpServer() *http.Server {
	return &http.Server{
		Handler:           s.echo,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		// net/http reads this many bytes more before it refuses.
		MaxHeaderBytes: maxHeader - 4096,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState:      s.connections.note,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
}

// Serve answers requests on l until ctx ends, and then stops without leaving a request unanswered: readiness fails, streams end, each
// answer that begins is the last of its connection; a moment later l is closed, and the requests that have come by then are answered.
// Slow clients hold up nobody's stop: a first request has 5 seconds to come, a later one until l is closed, and each body and answer 10
// seconds from then. It can be called once. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := s.httpServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case <-ctx.Done():
	case err := <-ended:
		return errors.Join(err, server.Close())
	}
	s.log.Info("stopping")
	close(s.stopping)
	s.streams.hurry()
	drained := time.NewTimer(drainTime)
	defer drained.Stop()
	select {
	case <-drained.C:
	case err := <-ended:
		return errors.Join(err, server.Close())
	}
	if err := l.Close(); err != nil {
		return errors.Join(err, server.Close())
	}
	<-ended // from here on every connection is known
	if !s.connections.settle(stopTimeout) {
		s.log.Warn("requests were cut off, they took too long")
	}
	// Not Shutdown: it has net/http read requests and drop them without an answer.
	return server.Close()
}

// isStopping tells whether the server is about to go. A client that hears so early finds another server in time.
func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// connections knows which connections may have a request that is not answered yet: the new ones and the active ones.
type connections struct {
	mu   sync.Mutex
	busy map[net.Conn]connection
}

type connection struct {
	state http.ConnState
	since time.Time
}

// note is the ConnState hook of an http.Server.
func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		c.busy[conn] = connection{state, time.Now()}
		return
	}
	delete(c.busy, conn)
}

// settled tells whether every request that is known of is answered.
func (c *connections) settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.busy {
		if conn.state == http.StateActive || time.Since(conn.since) < newTimeout {
			return false
		}
	}
	return true
}

// settle waits until all is settled, or the timeout has passed, which it tells.
func (c *connections) settle(timeout time.Duration) bool {
	poll := time.NewTicker(settlePoll)
	defer poll.Stop()
	for deadline := time.Now().Add(timeout); !c.settled(); <-poll.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
