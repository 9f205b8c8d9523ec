package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
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
	// stopTimeout is how long requests may take to finish.
	stopTimeout = 10 * time.Second
	// drainTimeout is how long a server goes on listening that is never without a request, or that a load balancer asks
	// whether it is ready: clients hear with each answer, and load balancers by its readiness, that they should leave.
	drainTimeout = 5 * time.Second
	// settlePoll is how often connections are looked at.
	settlePoll = 10 * time.Millisecond
)

// httpServer returns an http.Server with the limits of the contract.
func (s *Server) httpServer() *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(s.handle),
		// What is no path is told so by our own handler.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  idleTimeout,
		// net/http reads this many bytes more before it refuses.
		MaxHeaderBytes: maxHeader - 4096,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState:      s.connections.note,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

// Serve answers requests on l until ctx ends, and then stops without leaving a request unanswered: readiness fails,
// streams end, each answer that begins is the last of its connection, and as soon as there is no request left, and no
// load balancer that has not heard, l is closed. A server that has neither stops at once. Nobody holds up a stop for
// more than 10 seconds. It can be called once. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := s.httpServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener{l, s.refuseUnreadable}) }()
	select {
	case <-ctx.Done():
	case err := <-ended:
		return errors.Join(err, server.Close())
	}
	s.log.Info("stopping")
	asked := time.Now()
	close(s.stopping)
	s.streams.hurry()
	poll := time.NewTicker(settlePoll)
	defer poll.Stop()
	for !s.mayLeave(asked) {
		select {
		case <-poll.C:
		case err := <-ended:
			return errors.Join(err, server.Close())
		}
	}
	if err := l.Close(); err != nil {
		return errors.Join(err, server.Close())
	}
	<-ended // from here on every connection is known
	for !s.connections.settled(time.Time{}) {
		if time.Since(asked) > stopTimeout {
			s.log.Warn("requests were cut off, they took too long")
			break
		}
		<-poll.C
	}
	// Not Shutdown: it has net/http read requests and drop them without an answer.
	return server.Close()
}

// mayLeave tells whether a server that was asked to stop may stop listening: no load balancer takes it for ready, and
// there is no request, or none but new ones for some time.
func (s *Server) mayLeave(asked time.Time) bool {
	waited := time.Since(asked)
	if waited <= s.drainTime && s.askers.again() {
		return false
	}
	return s.connections.settled(time.Time{}) || waited > stopTimeout ||
		waited > s.drainTime && s.connections.settled(asked)
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
