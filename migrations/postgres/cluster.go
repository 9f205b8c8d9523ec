package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// reachable tells early, and in words, what PostgreSQL would only hint at: that the user it runs as cannot get to the
// directory or to the programs.
func (s *Server) reachable(ctx context.Context) error {
	if s.account == nil {
		return nil
	}
	cmd := s.bin.commandContext(ctx, "postgres", "--version")
	s.account.apply(cmd)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s as user %s: %w", s.bin.path("postgres"), s.account.name, err)
	}
	cmd = s.bin.commandContext(ctx, "postgres", "--version")
	s.account.apply(cmd)
	cmd.Dir = s.dir
	if err := cmd.Run(); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf(
			"user %s, as whom PostgreSQL runs because it refuses root, cannot enter %s: choose another directory or "+
				"open the way to it (chmod o+x)",
			s.account.name,
			s.dir,
		)
	}
	return nil
}

// initialise makes the cluster if there is none. A cluster that is there is whole: it gets its name last.
func (s *Server) initialise(ctx context.Context) error {
	if clusterVersion(s.data) != 0 {
		password, err := readPassword(s.dir)
		s.password = password
		return err
	}
	s.log.Info("making a new PostgreSQL cluster", "dir", s.data, "version", s.bin.major)
	if err := s.makePassword(); err != nil {
		return fmt.Errorf("make a password for PostgreSQL: %w", err)
	}
	unfinished := s.data + ".new"
	if err := s.emptyDir(unfinished); err != nil {
		return fmt.Errorf("make a PostgreSQL cluster: %w", err)
	}
	if err := s.initdb(ctx, unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, s.data)
}

// emptyDir makes dir anew, in the account's hands.
func (s *Server) emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return s.account.own(dir)
}

func (s *Server) initdb(ctx context.Context, dir string) error {
	out, err := openLog(s.logPath())
	if err != nil {
		return fmt.Errorf("open the log of PostgreSQL: %w", err)
	}
	defer out.Close()

	args := []string{
		"-D",
		dir,
		"-U",
		superuser,
		"-E",
		"UTF8",
		"--locale=C",
		"-A",
		"scram-sha-256",
		"--pwfile",
		passwordPath(s.dir),
	}
	if s.ephemeral {
		args = append(args, "--no-sync")
	}
	cmd := s.bin.command("initdb", args...)
	s.account.apply(cmd)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out.File, out.File
	p, err := spawn(cmd)
	if err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("initdb: %w", context.Cause(ctx))
	}
	if p.err != nil {
		return fmt.Errorf("initdb: %w%s", p.err, out.said())
	}
	return nil
}

// clusterVersion is the major version of the cluster in data, 0 without one.
func clusterVersion(data string) int {
	content, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if err != nil {
		return 0
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0
	}
	return major
}

func passwordPath(dir string) string { return filepath.Join(dir, "password") }

func readPassword(dir string) (string, error) {
	content, err := os.ReadFile(passwordPath(dir))
	if err != nil {
		return "", fmt.Errorf("password of PostgreSQL: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// makePassword gives the file to the account, as whom initdb reads it.
func (s *Server) makePassword() error {
	s.password = rand.Text()
	path := passwordPath(s.dir)
	if err := os.WriteFile(path, []byte(s.password+"\n"), 0o600); err != nil {
		return err
	}
	return s.account.own(path)
}

// stopLeftover stops the postmaster that a killed owner left on the cluster: two must never write to it.
func (s *Server) stopLeftover(ctx context.Context) error {
	pid := s.leftover()
	if pid == 0 {
		return nil
	}
	s.log.Warn("stopping the postgresql that a killed process left", "pid", pid)
	for _, mode := range []string{"fast", "immediate"} {
		cmd := s.bin.commandContext(ctx, "pg_ctl", "stop", "-D", s.data, "-m", mode, "-w", "-t", "10")
		s.account.apply(cmd)
		// Its answer counts for nothing: it also fails when the server has gone by itself.
		_ = cmd.Run()
		if s.leftover() == 0 {
			return nil
		}
	}
	return fmt.Errorf("stop the PostgreSQL that a killed process left: process %d is still there", pid)
}

func (s *Server) leftover() int {
	lines := pidFile(s.data)
	if len(lines) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(lines[0])
	if err != nil || !runsOn(pid, s.data) {
		return 0
	}
	return pid
}

// vacate takes the number of a dead postmaster out of postmaster.pid when another process, or a thread of one, has that
// number now, as happens in containers: PostgreSQL can't tell and would refuse to start. It gets our number instead,
// which it passes over as its parent's. All else that PostgreSQL looks at, above all whether the shared memory named
// there is in use, it looks at still.
func (s *Server) vacate() error {
	path := filepath.Join(s.data, "postmaster.pid")
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	number, rest, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || !isStranger(pid, s.data) {
		return nil // what is not a number is for PostgreSQL to tell
	}
	s.log.Warn("postmaster.pid has the number of a process that is no postgresql of this directory", "pid", pid)
	vacated := path + ".new"
	if err := os.WriteFile(vacated, []byte(strconv.Itoa(os.Getpid())+"\n"+rest), 0o600); err != nil {
		return err
	}
	if err := s.account.own(vacated); err != nil {
		return err
	}
	return os.Rename(vacated, path)
}
