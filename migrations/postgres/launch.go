package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// launch starts a postmaster on s.port and returns when its database can be used. When it does not come up, no process
// is left and the error ends with what PostgreSQL said last.
func (s *Server) launch(ctx context.Context) (*process, error) {
	out, err := openLog(s.logPath())
	if err != nil {
		return nil, fmt.Errorf("open the log of PostgreSQL: %w", err)
	}
	defer out.Close()
	if err := s.vacate(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	cmd := s.bin.command("postgres", s.settings()...)
	s.account.apply(cmd)
	cmd.Dir = s.data
	cmd.Stdout, cmd.Stderr = out.File, out.File
	p, err := spawn(cmd)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	s.pid.Store(int64(p.pid()))
	if err := s.becomeReady(ctx, p); err != nil {
		s.abort(p)
		return nil, fmt.Errorf("start PostgreSQL: %w%s", err, out.said())
	}
	return p, nil
}

// settings go on the command line, where they win over postgresql.conf. Messages of level ERROR stay out of the log:
// they carry the rows they complain of, the client that caused them gets them anyway.
func (s *Server) settings() []string {
	settings := []string{
		"listen_addresses=" + host, "port=" + strconv.Itoa(s.port), "unix_socket_directories=", "max_connections=200",
		"timezone=UTC", "log_timezone=UTC", "logging_collector=off", "log_destination=stderr",
		"log_min_messages=log", "log_min_error_statement=panic", "log_error_verbosity=terse", "log_checkpoints=off",
	}
	if s.ephemeral {
		settings = append(settings, "fsync=off", "full_page_writes=off")
	}
	args := []string{"-D", s.data}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	return args
}

func (s *Server) becomeReady(ctx context.Context, p *process) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !s.acceptsConnections(p) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return fmt.Errorf("it ended at once: %w", errOr(p.err, errors.New("exit status 0")))
		case <-tick.C:
		}
	}
	return s.ensureDatabase(ctx)
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// acceptsConnections asks the postmaster's own file and not the port, where a stranger could listen.
func (s *Server) acceptsConnections(p *process) bool {
	lines := pidFile(s.data)
	return len(lines) >= 8 && lines[0] == strconv.Itoa(p.pid()) && lines[7] == "ready"
}

// pidFile returns the lines of postmaster.pid: process id, data directory, start time, port, socket directory, address,
// shared memory, state.
func pidFile(data string) []string {
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(content), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

// ensureDatabase makes the role and its database when they are missing.
func (s *Server) ensureDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.URL())
	if err == nil {
		return conn.Close(ctx)
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](
		err,
	); !ok ||
		pgErr.Code != noSuchRole && pgErr.Code != noSuchDatabase {
		return err
	}
	conn, err = pgx.Connect(ctx, connURL(superuser, s.password, s.port, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `
		SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', $1::text, $3::text)
		WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)
		UNION ALL
		SELECT format('CREATE DATABASE %I OWNER %I', $2::text, $1)
		WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = $2)`, roleName, databaseName, s.password)
	if err != nil {
		return err
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// SQLSTATEs. PostgreSQL does not tell a role that is missing from a password that is wrong.
const noSuchRole, noSuchDatabase = "28P01", "3D000"

// freePort draws from below the ports that systems hand out for outgoing connections: from those, one could be taken
// while the server restarts, and a client that dials a closed one can even be connected to itself.
func freePort() (int, error) {
	for range 100 {
		port := 15000 + rand.IntN(32000-15000)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find a free port for PostgreSQL: 100 tried, none free")
}
