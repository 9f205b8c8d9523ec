package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// node is a server that is killed and started again, on another port each time.
type node struct {
	t      *testing.T
	env    []string
	stderr *lockedBuffer

	mu   sync.Mutex
	base string // of the process that runs, or ran last
	life int    // how often it was started
	cmd  *exec.Cmd
}

func (n *node) address() (base string, life int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.base, n.life
}

// start returns when the server has told its address. Without PostgreSQL a server ends at once.
func (n *node) start() error {
	cmd := program(n.t, n.env, "serve")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = n.stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	base := readAddress(stdout)
	if base == "" {
		return errors.Join(errors.New("the server told no address"), cmd.Wait())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.base, n.cmd = base, cmd
	n.life++
	return nil
}

func readAddress(stdout io.Reader) string {
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if found := apiAddress.FindStringSubmatch(lines.Text()); found != nil {
			return found[1]
		}
	}
	return ""
}

// kill ends the process with SIGKILL.
func (n *node) kill() {
	n.mu.Lock()
	cmd := n.cmd
	n.life++
	n.mu.Unlock()
	_ = cmd.Process.Kill() // it may be dead already
	_ = cmd.Wait()         // it was killed
}

// rest waits for a while, up to most, and reports false when ctx ended.
func rest(ctx context.Context, random *rand.Rand, least, most time.Duration) bool {
	timer := time.NewTimer(least + rand.N(most-least+1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (s *stage) count(fault string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[fault]++
}

// breakServers kills one server after the other.
func (s *stage) breakServers(ctx context.Context, random *rand.Rand) {
	for rest(ctx, random, 500*time.Millisecond, 4*time.Second) && !s.t.Failed() {
		n := s.nodes[random.IntN(len(s.nodes))]
		n.kill()
		s.count("server killed")
		rest(ctx, random, 0, 500*time.Millisecond)
		s.revive(n)
	}
}

// revive starts a server again; while PostgreSQL is away that takes more than one try.
func (s *stage) revive(n *node) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		err := n.start()
		if err == nil {
			return
		}
		if !tick(ctx) {
			s.t.Errorf("the server does not start again: %v\n%s", err, n.stderr)
			return
		}
	}
}

type fault struct {
	name string
	do   func(context.Context, *rand.Rand) error
}

// breakDatabase does each of its faults once, in random order, again and again.
func (s *stage) breakDatabase(ctx context.Context, random *rand.Rand) {
	faults := []fault{
		{"postmaster killed", s.killPostmaster},
		{"backend killed", s.killBackend},
		{"connections terminated", s.terminateConnections},
		{"projector held and terminated", s.holdProjector},
		{"disk full", s.fillDisk("statement")},
		{"disk full at commit", s.fillDisk("commit")},
	}
	if s.disk != "" {
		faults = append(faults, fault{"file system full", s.fillFileSystem})
	}
	for {
		for _, i := range random.Perm(len(faults)) {
			if !rest(ctx, random, 200*time.Millisecond, 1500*time.Millisecond) || s.t.Failed() {
				return
			}
			// A fault ends by itself: what it did must be undone, whether the time is up or not.
			if err := faults[i].do(s.t.Context(), random); err != nil {
				s.t.Errorf("%s: %v", faults[i].name, err)
				return
			}
			s.count(faults[i].name)
		}
	}
}

// session does something on a connection of a stranger's.
func (s *stage) session(ctx context.Context, do func(ctx context.Context, conn *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.db.AdminURL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return do(ctx, conn)
}

func (s *stage) killPostmaster(ctx context.Context, _ *rand.Rand) error {
	killed := s.db.PID()
	if err := kill9(killed); err != nil {
		return err
	}
	s.stayAlive()
	return s.recover(ctx, func() bool { return s.db.PID() != killed })
}

// killBackend makes the postmaster end all others and recover.
func (s *stage) killBackend(ctx context.Context, _ *rand.Rand) error {
	if err := s.killOne(ctx); err != nil {
		return err
	}
	s.stayAlive()
	return s.recover(ctx, func() bool { return true })
}

func (s *stage) killOne(ctx context.Context) error {
	var pid int
	err := s.session(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			SELECT pid
			FROM pg_stat_activity
			WHERE backend_type = 'client backend'
			ORDER BY pid = pg_backend_pid(), random()
			LIMIT 1`).Scan(&pid)
	})
	if err != nil {
		return err
	}
	if err := kill9(pid); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// kill9 ends a process at once, on every system.
func kill9(pid int) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

// stayAlive: a server lives without its database.
func (s *stage) stayAlive() {
	for _, n := range s.nodes {
		if status, err := s.get(n, "/livez"); err == nil && status != http.StatusOK {
			s.t.Errorf("livez without PostgreSQL: %d", status)
		}
	}
}

// recover waits for PostgreSQL, and then for each server to write again.
func (s *stage) recover(ctx context.Context, again func() bool) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := s.session(waiting, func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
		if err == nil && again() {
			break
		}
		if !tick(waiting) {
			return err
		}
	}
	back := time.Now()
	for _, n := range s.nodes {
		s.probe(ctx, n, back)
	}
	return nil
}

// probe writes until a write succeeds. A server that is killed meanwhile is not measured.
func (s *stage) probe(ctx context.Context, n *node, back time.Time) {
	_, life := n.address()
	write := &order{op: "create", method: "POST", path: "/api/tasks", body: `{"title":"probe"}`}
	for {
		got, err := s.send(ctx, n, s.probes, write)
		took := time.Since(back)
		if _, now := n.address(); now != life {
			return
		}
		if err == nil && got.status == http.StatusCreated {
			s.mu.Lock()
			s.slowest = max(s.slowest, took)
			s.mu.Unlock()
			return
		}
		if took > recovery {
			s.t.Errorf(
				"%v after PostgreSQL is back a write is answered with %d, %v; the server said:\n%s",
				took,
				got.status,
				err,
				n.stderr,
			)
			return
		}
		if !tick(ctx) {
			return
		}
	}
}

func (s *stage) terminateConnections(ctx context.Context, _ *rand.Rand) error {
	return s.session(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `
			SELECT pg_terminate_backend(pid)
			FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`)
		return err
	})
}

// holdProjector takes a lock that a projector's write needs, and ends the sessions that wait for it.
func (s *stage) holdProjector(ctx context.Context, random *rand.Rand) error {
	locks := []string{
		`SELECT FROM taskledger.checkpoints WHERE projection = 'tasks' FOR UPDATE`,
		`LOCK TABLE taskledger.tasks IN SHARE MODE`,
		`LOCK TABLE taskledger.task_history IN SHARE MODE`,
		`LOCK TABLE taskledger.users IN SHARE MODE`,
	}
	return s.session(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, locks[random.IntN(len(locks))]); err != nil {
				return err
			}
			rest(ctx, random, 50*time.Millisecond, 1500*time.Millisecond)
			_, err := tx.Exec(ctx, `
				SELECT pg_terminate_backend(pid)
				FROM pg_stat_activity
				WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))`)
			return err
		})
	})
}
