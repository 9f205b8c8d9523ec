//go:build unix

package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPostmasterHasItsOwnSession(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t), Ephemeral: true})
	group, err := unix.Getpgid(s.PID())
	if err != nil || group != s.PID() {
		t.Errorf("process group of %d: %d (%v), want its own, so that Ctrl-C does not reach it", s.PID(), group, err)
	}
}

// Only root has privileges to drop; anybody else's server must be their own.
func TestRootIsDropped(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	startServer(t, Options{Dir: dir, Ephemeral: true})
	info, err := os.Stat(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if root := os.Geteuid() == 0; root == (int(owner) == os.Geteuid()) {
		t.Errorf("we are user %d, PostgreSQL runs as user %d", os.Geteuid(), owner)
	}
}

func TestUnreachableDirectoryIsNamed(t *testing.T) {
	t.Parallel()
	closed := tempDir(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "postgres")
	s, err := Start(t.Context(), Options{Dir: dir, Ephemeral: true})
	if os.Geteuid() != 0 {
		if err != nil {
			t.Fatalf("our own closed directory: %v", err)
		}
		stop(t, s)
		return
	}
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "cannot enter") {
		t.Errorf("got %v, want that %s cannot be entered", err, dir)
	}
}

// What ps shows on macOS: a leftover is ours only by its whole directory, which may have spaces in it.
func TestLeftoverIsKnownByItsCommandLine(t *testing.T) {
	t.Parallel()
	const dir = "/Users/u/Library/Application Support/taskledger/data"
	const line = "/opt/homebrew/opt/postgresql@18/bin/postgres -D " + dir
	for commandLine, want := range map[string]bool{
		line + "\n":                        true,
		line + " -c port=15000\n":          true,
		line + "2 -c port=15000\n":         false,
		"postgres -D /backup" + dir + "\n": false,
		"/usr/sbin/other\n":                false,
		"":                                 false,
	} {
		if got := names(commandLine, dir); got != want {
			t.Errorf("%q: %t, want %t", commandLine, got, want)
		}
	}
	for name, want := range map[string]bool{
		"postgres\n": true, "/opt/homebrew/bin/postgres\n": true, "postmaster\n": true, "zsh\n": false, "": false,
	} {
		if got := isPostmaster(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
}
