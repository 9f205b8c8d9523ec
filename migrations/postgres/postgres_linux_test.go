package postgres

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestPostmasterEndsWithItsKilledOwner(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	owner, _ := startOwner(t, dir)
	data := filepath.Join(dir, "data")
	pid, err := strconv.Atoi(pidFile(data)[0])
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, owner.Process.Pid)
	// The error is the kill.
	_ = owner.Wait()
	eventually(t, "PostgreSQL to end with its owner", func() bool { return !runsOn(pid, data) })
}

// All are killed, and somebody else of PostgreSQL's user has its number when it is started again.
func TestNumberOfADeadPostmasterIsAnothersNow(t *testing.T) {
	t.Parallel()
	idle := startIdle(t)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", idle))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	thread, err := strconv.Atoi(tasks[len(tasks)-1].Name())
	if err != nil {
		t.Fatal(err)
	}
	for name, number := range map[string]int{
		"a process":          idle,
		"a thread":           thread,
		"another postmaster": startServer(t, Options{Dir: tempDir(t), Ephemeral: true}).PID(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tempDir(t)
			owner, url := startOwner(t, dir)
			execute(t, url, `CREATE TABLE kept AS SELECT 42 AS answer`)
			left := pidFile(filepath.Join(dir, "data"))
			kill9(t, owner.Process.Pid)
			// The error is the kill.
			_ = owner.Wait()
			eventually(
				t,
				"PostgreSQL to end with its owner",
				func() bool { return pidFile(filepath.Join(dir, "data")) == nil },
			)
			left[0] = strconv.Itoa(number)
			writePIDFile(t, dir, left)

			s := startServer(t, Options{Dir: dir, Ephemeral: true})
			if got := queryInt(t, s.URL(), `SELECT answer FROM kept`); got != 42 {
				t.Errorf("answer: %d, want 42", got)
			}
			if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(number))); err != nil {
				t.Errorf("%s was stopped: %v", name, err)
			}
		})
	}
}

// A postmaster on this directory is never taken for a stranger, by whatever name it was given the directory.
func TestNoSecondPostmasterBesideOneStartedByHand(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := startServer(t, Options{Dir: dir, Ephemeral: true})
	stop(t, s)
	cmd := s.bin.command("postgres", append([]string{"-D", "."}, s.settings()[2:]...)...)
	s.account.apply(cmd)
	cmd.Dir = s.data
	byHand := runUnowned(t, s, cmd)
	_, err := Start(t.Context(), Options{Dir: dir, Ephemeral: true})
	if err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("started beside process %d: %v", byHand, err)
	}
	if got := queryInt(t, s.URL(), `SELECT 42`); got != 42 {
		t.Errorf("the one that ran: %d, want 42", got)
	}
}

// startIdle runs a program of many threads as the user that PostgreSQL runs as.
func startIdle(t *testing.T) (pid int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self) // where it is, that user may not get to it
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(tempDir(t), "idle")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	account, err := someAccount()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = []string{idleProgram + "=1"}
	account.apply(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func writePIDFile(t *testing.T, dir string, lines []string) {
	t.Helper()
	path := filepath.Join(dir, "data", "postmaster.pid")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	account, err := accountFor(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := account.own(path); err != nil {
		t.Fatal(err)
	}
}
