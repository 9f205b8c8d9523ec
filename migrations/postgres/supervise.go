package postgres

import (
	"context"
	"time"
)

// supervise owns the postmaster: it starts it again when it dies, and stops it when ctx ends.
func (s *Server) supervise(ctx context.Context, p *process) {
	defer close(s.done)
	defer s.lock.release()
	for p != nil {
		select {
		case <-ctx.Done():
			s.shutDown(p)
			return
		case <-p.done:
			s.log.Warn(
				"postgresql ended by itself, starting it again",
				"pid",
				p.pid(),
				"err",
				p.err,
				"log_file",
				s.logPath(),
			)
			p = s.relaunch(ctx)
		}
	}
}

// relaunch keeps the port, because clients hold the URL. It returns nil when ctx ended first.
func (s *Server) relaunch(ctx context.Context) *process {
	pause := newBackoff()
	for {
		p, err := s.launch(ctx)
		if err == nil {
			s.log.Info("postgresql runs again", "pid", p.pid(), "port", s.port)
			return p
		}
		if ctx.Err() == nil {
			s.log.Warn("postgresql does not start, trying again", "err", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// shutDown returns when the postmaster is gone: asked to end its sessions first, told to drop everything when there is
// no time, and killed when it does not listen.
func (s *Server) shutDown(p *process) {
	p.signal(s.bin, fastShutdown)
	select {
	case <-p.done:
		return
	case <-s.hurry:
	}
	s.abort(p)
}

// abort stops the postmaster and its backends at once; the cluster recovers at the next start.
func (s *Server) abort(p *process) {
	p.signal(s.bin, immediateShutdown)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.kill()
	}
}

// backoff waits between tries, each time longer, up to a second.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: 50 * time.Millisecond} }

// wait reports false when ctx ended.
func (b *backoff) wait(ctx context.Context) bool {
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	b.next = min(2*b.next, time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
