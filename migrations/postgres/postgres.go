// Package postgres runs a PostgreSQL of our own, so that nobody has to install and configure a database to use
// taskledger or to run its tests.
//
// A directory holds one server: its cluster (data), its log (postgres.log), its password and a lock. Whoever has the
// lock owns the server: starts it on a free loopback port, starts it again on the same port when it dies, and stops it.
// On Linux the kernel stops it when its owner is killed; elsewhere the next owner does. The server runs in a session of
// its own, so a Ctrl-C in a terminal reaches the owner alone, which can then finish its work before it stops the
// database.
package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	host = "127.0.0.1"
	// superuser owns the cluster. roleName is what the database is used as: an ordinary role, which row level security
	// binds.
	superuser    = "postgres"
	roleName     = "taskledger"
	databaseName = "taskledger"

	startTimeout = 2 * time.Minute
)

// Options say where a server lives and how careful it is.
type Options struct {
	// Dir holds everything of the server, and nothing of it is elsewhere. It is made when it is missing.
	Dir string
	// Logger hears of starts, stops and restarts; nil is silence. What PostgreSQL itself says goes to postgres.log in
	// Dir.
	Logger *slog.Logger
	// Ephemeral trades the survival of a power cut for speed (no fsync): for tests. A commit still survives a kill -9
	// of PostgreSQL.
	Ephemeral bool
}

// Server is a running PostgreSQL. It keeps running until Stop.
type Server struct {
	dir       string
	data      string
	ephemeral bool
	log       *slog.Logger
	bin       binaries
	account   *account
	password  string
	port      int

	lock    *lock
	pid     atomic.Int64
	cancel  context.CancelFunc // ends supervision
	hurry   chan struct{}      // closed when the stop has no more time
	hurried sync.Once
	done    chan struct{} // closed when no postmaster is left and the lock is free
}

// Start starts the server of opts.Dir, making its cluster at the first time. The context bounds the start, not the life
// of the server. The error is a *HeldError when another owner runs a server on the directory.
func Start(ctx context.Context, opts Options) (*Server, error) {
	return start(ctx, opts, usualPlaces())
}

func start(ctx context.Context, opts Options, places search) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, err := newServer(opts)
	if err != nil {
		return nil, err
	}
	if s.lock, err = acquire(ctx, s.dir); err != nil {
		return nil, err
	}
	p, err := s.open(ctx, places)
	if err != nil {
		s.lock.release()
		return nil, err
	}
	if err := s.lock.publish(s.port); err != nil {
		s.abort(p)
		s.lock.release()
		return nil, fmt.Errorf("tell where PostgreSQL listens: %w", err)
	}
	life, stop := context.WithCancel(context.Background())
	s.cancel = stop
	go s.supervise(life, p)
	return s, nil
}

func newServer(opts Options) (*Server, error) {
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := makeDir(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("directory of PostgreSQL: %w (or set DATABASE_URL)", err)
	}
	return &Server{
		dir: dir, data: filepath.Join(dir, "data"), ephemeral: opts.Ephemeral, log: log,
		hurry: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// makeDir lets everybody pass, for the user that PostgreSQL runs as instead of root, but not look around. It returns
// the directory's real path: the one name by which a leftover postmaster of it is recognised.
func makeDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// open brings the cluster up; the lock is ours.
func (s *Server) open(ctx context.Context, places search) (*process, error) {
	var err error
	if s.account, err = accountFor(s.data); err != nil {
		return nil, err
	}
	if s.bin, err = places.find(ctx, s.dir, s.log); err != nil {
		return nil, err
	}
	if err := s.reachable(ctx); err != nil {
		return nil, err
	}
	if err := s.stopLeftover(ctx); err != nil {
		return nil, err
	}
	if err := s.initialise(ctx); err != nil {
		return nil, err
	}
	if err := rotate(s.logPath()); err != nil {
		return nil, fmt.Errorf("rotate the log of PostgreSQL: %w", err)
	}
	return s.firstLaunch(ctx)
}

// firstLaunch tries a few ports, because one that was free can be taken a moment later, and a few times, because the
// backends of a killed postmaster hold its shared memory until they notice.
func (s *Server) firstLaunch(ctx context.Context) (*process, error) {
	pause := newBackoff()
	for attempt := 1; ; attempt++ {
		var err error
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		p, err := s.launch(ctx)
		if err == nil {
			s.log.Info("postgresql runs", "dir", s.dir, "port", s.port, "pid", p.pid(), "version", s.bin.major)
			return p, nil
		}
		if attempt == 5 || !pause.wait(ctx) {
			return nil, err
		}
	}
}

// URL is where the server listens, for the owner of its database, who is no superuser; it stays valid until Stop,
// across restarts. It has the password in it: not for logs.
func (s *Server) URL() string { return connURL(roleName, s.password, s.port, databaseName) }

// AdminURL is URL for the superuser.
func (s *Server) AdminURL() string { return connURL(superuser, s.password, s.port, databaseName) }

// PID is the process id of the postmaster that runs now.
func (s *Server) PID() int { return int(s.pid.Load()) }

// Stop ends supervision and shuts the server down: sessions are ended, what was committed is on disk. When ctx ends
// first, the server is stopped the hard way and recovers at its next start. It can be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	s.cancel()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	s.hurried.Do(func() { close(s.hurry) })
	<-s.done
	return fmt.Errorf("stop PostgreSQL in time: %w", context.Cause(ctx))
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "postgres.log") }

func connURL(role, password string, port int, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(role, password),
		Host:     net.JoinHostPort(host, strconv.Itoa(port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}
