package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rivo/uniseg"
	"golang.org/x/sys/unix"

	"taskledger/migrations/testdb"
)

// terminal is a pseudo-terminal: what is typed at keyboard is the program's input, and what the program writes to
// screen is read there.
func terminal(t *testing.T, columns uint16) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if screen, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	if err := unix.IoctlSetWinsize(
		int(screen.Fd()),
		unix.TIOCSWINSZ,
		&unix.Winsize{Row: 24, Col: columns},
	); err != nil {
		t.Fatal(err)
	}
	return keyboard, screen
}

// Somebody at a terminal is asked before a user is erased; only the user's id is a yes.
func TestEraseAsksOnATerminal(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	s.terminate()
	for _, tc := range []struct {
		typed string
		code  int
	}{{"y\n", exitFailed}, {"\n", exitFailed}, {"\x04", exitFailed}, {"u\n", 0}} {
		keyboard, screen := terminal(t, 80)
		if _, err := keyboard.WriteString(tc.typed); err != nil {
			t.Fatal(err)
		}
		cmd := program(t, env, "erase", "--user", "u")
		cmd.Stdin = screen
		got := finish(t, cmd)
		if got.code != tc.code ||
			!strings.HasPrefix(got.stderr, `Erase all of user "u" for good (last event: 1)? Type the user's id: `) {
			t.Errorf("%q: %+v", tc.typed, got)
		}
	}
}

func TestHistoryOnATerminal(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"`+strings.Repeat("日本語 ", 20)+`","description":"short"}`)
	s.terminate()
	keyboard, screen := terminal(t, 100)
	cmd := program(t, env, "history", "--user", "u")
	cmd.Stdout = screen
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for shown := bufio.NewScanner(keyboard); len(lines) < 3 && shown.Scan(); {
		lines = append(lines, strings.TrimSuffix(shown.Text(), "\r"))
	}
	if len(lines) != 3 || !strings.Contains(lines[1], "…") || !strings.HasSuffix(lines[2], "  short") {
		t.Errorf("%q", lines)
	}
	for _, line := range lines {
		if uniseg.StringWidth(line) > 100 {
			t.Errorf("%d columns: %q", uniseg.StringWidth(line), line)
		}
	}
}

// On a terminal a rebuild shows how much is done, how fast, and the time that is left.
func TestRebuildOnATerminal(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	execute(t, url, `SET taskledger.ledger = 'on'`, `
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'u' || n % 500, n / 500 + 1, gen_random_uuid(), 'TaskCreated', 1, '{"title":"a","description":null}',
			gen_random_uuid(), gen_random_uuid(), 'u', 'r', now()
		FROM generate_series(0, 49999) n`)
	keyboard, screen := terminal(t, 100)
	cmd := program(t, []string{"DATABASE_URL=" + url}, "rebuild")
	cmd.Stderr = screen
	shown := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(keyboard) // ends with an error, when nobody has the screen any more
		shown <- string(all)
	}()
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	if err := screen.Close(); err != nil {
		t.Fatal(err)
	}
	if all := <-shown; !regexp.MustCompile(`rebuild +\d+% .*\(\d+/50000, \d+ events/s\) \[\d+s:\d+s\]`).
		MatchString(all) {
		t.Errorf("%q", all)
	}
}
