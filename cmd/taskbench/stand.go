package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/postgres"
)

const (
	startTimeout = time.Minute
	// stopTimeout is how long a server, and then PostgreSQL, may take to stop by themselves.
	stopTimeout = 15 * time.Second
	// settleTime bounds the wait for servers to come to rest.
	settleTime = time.Second
)

var readyz = operation{http.MethodGet, "/readyz", "", http.StatusOK}

// stand is what a comparison runs on: a PostgreSQL with default durability, and two servers with a database of it each.
type stand struct {
	dir      string
	proc     fs.FS
	postgres *postgres.Server
	version  string // of PostgreSQL
	sides    []*side
}

// side is one of the two servers.
type side struct {
	name     string
	database string // its URL
	url      string
	admin    string // where its profiles are; empty: it has none
	program  *program
	users    []*user // whose lists stay as they are
}

// openStand starts all of it. What has been started is stopped again when that fails.
func (o *options) openStand(ctx context.Context, progress io.Writer) (*stand, error) {
	s := &stand{proc: os.DirFS("/proc")}
	if err := s.open(ctx, o, progress); err != nil {
		return nil, errors.Join(interrupted(ctx, err), s.close())
	}
	return s, nil
}

func (s *stand) open(ctx context.Context, o *options, progress io.Writer) error {
	if err := s.makeDir(); err != nil {
		return err
	}
	binary, err := o.buildServer(ctx, s.dir, progress)
	if err != nil {
		return err
	}
	fmt.Fprintln(progress, "starting PostgreSQL and both servers in", s.dir)
	s.postgres, err = postgres.Start(ctx, postgres.Options{Dir: filepath.Join(s.dir, "postgres")})
	if err != nil {
		return err
	}
	if err := s.prepareDatabases(ctx); err != nil {
		return err
	}
	if err := s.startProduct(ctx, o, "product", binary); err != nil {
		return err
	}
	if o.Against != "" {
		return s.startProduct(ctx, o, "other", o.Against)
	}
	return s.startRival(ctx, o)
}

// makeDir lets everybody pass: PostgreSQL, which refuses to run as root, may run as another user.
func (s *stand) makeDir() error {
	var err error
	if s.dir, err = os.MkdirTemp("", "taskbench-"); err != nil {
		return err
	}
	return os.Chmod(s.dir, 0o711)
}

func (o *options) buildServer(ctx context.Context, dir string, progress io.Writer) (string, error) {
	if o.ServerBinary != "" {
		return o.ServerBinary, nil
	}
	fmt.Fprintln(progress, "building the server")
	binary := filepath.Join(dir, "taskledger")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "taskledger/cmd/taskledger")
	cmd.Stdout, cmd.Stderr = progress, progress
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build the server (elsewhere than in its module, use --server-binary): %w", err)
	}
	return binary, nil
}

// prepareDatabases also makes sure that PostgreSQL is as durable as it is by default.
func (s *stand) prepareDatabases(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.postgres.AdminURL())
	if err != nil {
		return err
	}
	defer closeConnection(conn)
	var durable bool
	err = conn.QueryRow(ctx, `
		SELECT current_setting('server_version'), bool_and(setting = 'on')
		FROM pg_settings
		WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes')`).Scan(&s.version, &durable)
	if err != nil {
		return err
	}
	if !durable {
		return errors.New("this PostgreSQL is not durable: fsync, synchronous_commit or full_page_writes is off")
	}
	// Of the same owner as the first.
	u, err := url.Parse(s.postgres.URL())
	if err == nil {
		_, err = conn.Exec(ctx, `CREATE DATABASE `+secondDatabase+` OWNER `+u.User.Username())
	}
	return err
}

// secondDatabase is the rival's.
const secondDatabase = "rival"

// closeConnection closes one that has done its work, whatever ctx says by now.
func closeConnection(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}

// newSide is the next, with a database of its own.
func (s *stand) newSide(name string) (*side, error) {
	u, err := url.Parse(s.postgres.URL())
	if err != nil {
		return nil, err
	}
	if len(s.sides) > 0 {
		u.Path = "/" + secondDatabase
	}
	return &side{name: name, database: u.String()}, nil
}

func (s *stand) startProduct(ctx context.Context, o *options, name, binary string) error {
	side, err := s.newSide(name)
	if err != nil {
		return err
	}
	admin, err := freeAddress()
	if err != nil {
		return err
	}
	side.admin = "http://" + admin
	return s.start(ctx, o, side, exec.Command(binary, "serve"),
		"RATE_LIMIT_RPS=0", "ADMIN_ADDR="+admin, "LOG_LEVEL=warn", "DATA_DIR="+filepath.Join(s.dir, "data-"+name))
}

func (s *stand) startRival(ctx context.Context, o *options) error {
	side, err := s.newSide("rival")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return s.start(ctx, o, side, exec.Command(self, serveRivalFlag))
}

// start returns when the server answers. Its environment is what stands here and nothing else.
func (s *stand) start(ctx context.Context, o *options, next *side, cmd *exec.Cmd, environment ...string) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	next.url = "http://" + address
	cmd.Dir = s.dir
	cmd.Env = append(environment, "PORT="+port, "DATABASE_URL="+next.database, "BETTER_AUTH_SECRET="+o.secret)
	if next.program, err = startProgram(cmd, filepath.Join(s.dir, next.name+".log")); err != nil {
		return fmt.Errorf("start the %s: %w", next.name, err)
	}
	s.sides = append(s.sides, next)
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c := newConn(next.url, o.RequestTimeout)
	defer c.close()
	err = until(starting, func() (bool, error) {
		return c.do(starting, &user{}, readyz, "") == nil, next.program.alive()
	})
	if err != nil {
		return fmt.Errorf("start the %s: %w", next.name, err)
	}
	return nil
}

// freeAddress is free now. It is not held, so that a server can have it.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// analyze has both databases know how their tables look, as they would a minute later.
func (s *stand) analyze(ctx context.Context) error {
	for _, side := range s.sides {
		conn, err := pgx.Connect(ctx, side.database)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, `ANALYZE`)
		closeConnection(conn)
		if err != nil {
			return err
		}
	}
	return nil
}

// usage is processor time.
type usage struct {
	server, postgres time.Duration
}

// used is what a side and PostgreSQL have used so far; an error where there is no /proc.
func (s *stand) used(of *side) (usage, error) {
	server, err := processTime(s.proc, of.program.pid())
	if err != nil {
		return usage{}, err
	}
	cluster, err := familyTime(s.proc, s.postgres.PID())
	return usage{server: server, postgres: cluster}, err
}

// settle waits until nobody has anything left to do from the turn before, so that the next does not pay for it.
func (s *stand) settle(ctx context.Context) {
	settling, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	var before time.Duration
	// Who does not come to rest in time, such as a vacuum, is a part of what is measured.
	_ = until(settling, func() (bool, error) {
		var now time.Duration
		for _, side := range s.sides {
			used, err := s.used(side)
			if err != nil {
				return false, err
			}
			now += used.server + used.postgres
		}
		same := now == before
		before = now
		return same, nil
	})
}

// close stops and removes all that there is.
func (s *stand) close() error {
	var err error
	for _, side := range s.sides {
		side.program.stop()
	}
	if s.postgres != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err = s.postgres.Stop(ctx)
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// program is a process of ours.
type program struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// startProgram starts cmd, whose output goes to the file log.
func startProgram(cmd *exec.Cmd, log string) (*program, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &program{cmd: cmd, log: log, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // how it ended, its log tells
	}()
	return p, nil
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// alive is an error with the program's last words when it has ended.
func (p *program) alive() error {
	select {
	case <-p.ended:
	default:
		return nil
	}
	const words = 2000
	said, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
	return fmt.Errorf("it has ended: %s", said[max(0, len(said)-words):])
}

// stop ends the program, the hard way when it takes too long.
func (p *program) stop() {
	// An error means that it has ended, or cannot be asked to.
	if p.cmd.Process.Signal(syscall.SIGTERM) == nil {
		select {
		case <-p.ended:
		case <-time.After(stopTimeout):
		}
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
}
