package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"taskledger/migrations/testdb"
)

// TestMain also makes this binary what a comparison starts: the rival and, for the product that --server-binary names,
// another rival; or, by the name of broken, a program that ends at once.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "broken" {
		os.Stderr.WriteString("no such luck\n")
		os.Exit(3)
	}
	if len(os.Args) == 2 && (os.Args[1] == "serve" || os.Args[1] == serveRivalFlag) {
		os.Args[1] = serveRivalFlag
		main()
	}
	testdb.Main(m)
}

// watcher is a progress writer that calls a function at the first line which contains a text.
type watcher struct {
	strings.Builder
	text string
	then func()
	once sync.Once
}

func (w *watcher) Write(p []byte) (int, error) {
	if w.text != "" && strings.Contains(string(p), w.text) {
		w.once.Do(w.then)
	}
	return w.Builder.Write(p)
}

func compareArgs(t *testing.T, binary string, more ...string) []string {
	t.Helper()
	return append([]string{
		"--rival", "--server-binary", binary, "--users", "2", "--tasks", "3", "--connections", "2",
		"--duration", "20ms", "--warmup", "10ms",
	}, more...)
}

// checkGone fails when the directory that the run has named is still there.
func checkGone(t *testing.T, progress string) {
	t.Helper()
	dir := regexp.MustCompile(`both servers in (\S+)`).FindStringSubmatch(progress)
	if dir == nil {
		t.Fatalf("names no directory: %s", progress)
	}
	if _, err := os.Stat(dir[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir[1], err)
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestComparison(t *testing.T) {
	t.Parallel()
	got := bench(t, compareArgs(t, self(t), "--rounds", "1")...)
	if got.code != 0 {
		t.Fatalf("exit %d: %s%s", got.code, got.stdout, got.stderr)
	}
	checkGone(t, got.stderr)
	for _, want := range []string{
		"product / rival, on PostgreSQL 1", "\n| list | 2 | ", "\n| write-read-delete | 2 | ", "| 0 / 0 |\n",
		"| product / rival | C = 2 |\n", "\n| 90 % reads, 10 % writes | ",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in:\n%s", want, got.stdout)
		}
	}
	if n := strings.Count(got.stderr, "\nround 1, "); n != len(workloads) {
		t.Errorf("measured %d workloads, want %d", n, len(workloads))
	}
}

func TestComparisonThatIsInterruptedPrintsWhatItHasAndLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	progress := &watcher{
		text: "round 2, list, 2 connections",
		then: func() { cancel(errors.New("interrupted by hand")) },
	}
	var stdout strings.Builder
	args := compareArgs(t, self(t), "--json", "--workloads", "list,get", "--against", self(t))
	code := run(ctx, args, os.Getenv, &stdout, progress)
	var report comparison
	if err := json.Unmarshal([]byte(stdout.String()), &report); err != nil {
		t.Fatalf("%v: %s%s", err, &stdout, progress)
	}
	if code != 1 || len(report.Cells) != 2 ||
		!strings.HasSuffix(progress.String(), "taskbench: interrupted by hand\n") {
		t.Errorf("exit %d, %d cells: %s", code, len(report.Cells), progress)
	}
	if sides := strings.Join(report.Sides, " "); sides != "product other" {
		t.Errorf("compared %s", sides)
	}
	checkGone(t, progress.String())
}

func TestServerThatEndsAtOnceIsQuoted(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.Symlink(self(t), broken); err != nil {
		t.Fatal(err)
	}
	s := &stand{dir: t.TempDir()}
	err := s.start(t.Context(), &options{RequestTimeout: time.Second}, &side{name: "product"}, exec.Command(broken))
	if err == nil || !strings.Contains(err.Error(), "start the product: it has ended: no such luck") {
		t.Errorf("got %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

func TestComparisonRefusesAPostgreSQLThatIsNotDurable(t *testing.T) {
	t.Parallel()
	s := &stand{postgres: testdb.Server(t)}
	if err := s.prepareDatabases(t.Context()); err == nil || !strings.Contains(err.Error(), "not durable") {
		t.Errorf("got %v", err)
	}
}

func TestProfileIsSaved(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) })
	for duration, want := range map[time.Duration]string{
		50 * time.Millisecond:   "/debug/pprof/profile?seconds=1",
		3900 * time.Millisecond: "/debug/pprof/profile?seconds=3",
	} {
		o := &options{Profile: t.TempDir(), Duration: duration, RequestTimeout: time.Second}
		if err := o.saveProfile(t.Context(), &side{admin: url}, "list.pprof"); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(o.Profile, "list.pprof")); err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}
