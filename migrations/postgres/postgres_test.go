package postgres

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ownerDir tells the test binary to be the owner of a server, and nothing else, until it is killed.
const ownerDir = "TASKLEDGER_TEST_OWNER_DIR"

// idleProgram tells the test binary to do nothing until its standard input ends.
const idleProgram = "TASKLEDGER_TEST_IDLE"

func TestMain(m *testing.M) {
	if os.Getenv(idleProgram) != "" {
		_, _ = os.Stdout.WriteString(".")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if dir := os.Getenv(ownerDir); dir != "" {
		os.Exit(runOwner(dir))
	}
	os.Exit(runIn(m))
}

// runIn runs the tests with a temporary directory of their own, because the library that downloads leaves files there.
func runIn(m *testing.M) int {
	dir, err := os.MkdirTemp("", "taskledger-postgres-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = errors.Join(os.Chmod(dir, 0o711), os.Setenv("TMPDIR", dir))
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return m.Run()
}

func TestStartFindsTheDataAgain(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	first := startServer(t, Options{Dir: dir})
	execute(t, first.URL(), `CREATE TABLE kept AS SELECT 42 AS answer`)
	stop(t, first)

	second := startServer(t, Options{Dir: dir})
	if got := queryInt(t, second.URL(), `SELECT answer FROM kept`); got != 42 {
		t.Errorf("answer after a restart: %d, want 42", got)
	}
}

func TestStartIsDurable(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t)})
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		if got := queryInt(
			t,
			s.URL(),
			`SELECT count(*)::int FROM pg_settings WHERE name = $1 AND setting = 'on'`,
			setting,
		); got != 1 {
			t.Errorf("%s is not on", setting)
		}
	}
	if got := queryInt(t, s.URL(), `SELECT count(*)::int FROM pg_database
		WHERE datname = current_database() AND encoding = pg_char_to_encoding('UTF8') AND datcollate = 'C'`); got != 1 {
		t.Error("the database is not UTF-8 with the collation C")
	}
}

func TestStopEndsSessionsAndIsFinal(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t), Ephemeral: true})
	conn := connect(t, s.URL())
	pid := s.PID()
	stop(t, s)
	stop(t, s)
	if alive(pid) {
		t.Errorf("process %d is still there after Stop", pid)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a session outlived its server")
	}
}

func TestStopWithoutTimeStillStops(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t), Ephemeral: true})
	pid := s.PID()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Either way of stopping may win; what counts is that nothing is left.
	if err := s.Stop(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Stop: %v", err)
	}
	if alive(pid) {
		t.Errorf("process %d is still there after Stop", pid)
	}
}

func TestSecondStartIsToldWhoHoldsTheDirectory(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	startServer(t, Options{Dir: dir, Ephemeral: true})
	_, err := Start(t.Context(), Options{Dir: dir, Ephemeral: true})
	held, ok := errors.AsType[*HeldError](err)
	if !ok || held.PID != os.Getpid() {
		t.Fatalf("second start: %v, want a HeldError with our pid %d", err, os.Getpid())
	}
}

func TestKilledPostmasterIsStartedAgainOnItsPort(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t), Ephemeral: true})
	execute(t, s.URL(), `CREATE TABLE kept AS SELECT 42 AS answer`)
	for range 2 {
		killed := s.PID()
		kill9(t, killed)
		eventually(t, "a new postmaster", func() bool { return s.PID() != killed })
		eventually(t, "the server to be back on its URL", func() bool {
			conn, err := pgx.Connect(t.Context(), s.URL())
			if err != nil {
				return false
			}
			return conn.Close(t.Context()) == nil
		})
		if got := queryInt(t, s.URL(), `SELECT answer FROM kept`); got != 42 {
			t.Errorf("answer after kill -9: %d, want 42", got)
		}
	}
	pid := s.PID()
	stop(t, s)
	if alive(pid) {
		t.Error("the second postmaster outlived Stop")
	}
}

func TestStopWhileTheServerIsDown(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t), Ephemeral: true})
	kill9(t, s.PID())
	stop(t, s)
	if s.leftover() != 0 {
		t.Error("a postmaster runs after Stop")
	}
}

func TestKilledOwnerLeavesTheDirectoryUsable(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	owner, url := startOwner(t, dir)
	execute(t, url, `CREATE TABLE kept AS SELECT 42 AS answer`)

	_, err := Start(t.Context(), Options{Dir: dir, Ephemeral: true})
	if held, ok := errors.AsType[*HeldError](err); !ok || held.PID != owner.Process.Pid {
		t.Errorf("start next to another process: %v, want a HeldError with its pid %d", err, owner.Process.Pid)
	}
	if got, err := Attach(t.Context(), dir); err != nil || got != url {
		t.Errorf("Attach: %v, want the owner's URL", err)
	}

	kill9(t, owner.Process.Pid)
	// The error is the kill.
	_ = owner.Wait()
	s := startServer(t, Options{Dir: dir, Ephemeral: true})
	if got := queryInt(t, s.URL(), `SELECT answer FROM kept`); got != 42 {
		t.Errorf("answer after kill -9 of the owner: %d, want 42", got)
	}
}

func TestLeftoverPostmasterIsStopped(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := startServer(t, Options{Dir: dir, Ephemeral: true})
	stop(t, s)
	left := launchUnowned(t, s)

	next := startServer(t, Options{Dir: dir, Ephemeral: true})
	eventually(t, "the leftover to be gone", func() bool { return !alive(left) })
	if next.PID() == left {
		t.Error("the leftover is the new server")
	}
}

func TestAttach(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	attachFails(t, filepath.Join(dir, "missing"))
	attachFails(t, dir)
	s := startServer(t, Options{Dir: dir, Ephemeral: true})
	url, err := Attach(t.Context(), dir)
	if err != nil || url != s.URL() {
		t.Fatalf("Attach: %v, want the URL of the server", err)
	}
	if got := queryInt(t, url, `SELECT 42`); got != 42 {
		t.Errorf("got %d, want 42", got)
	}
	stop(t, s)
	attachFails(t, dir)
}

func attachFails(t *testing.T, dir string) {
	t.Helper()
	if _, err := Attach(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Attach to %s: %v, want ErrNotRunning", dir, err)
	}
}

func TestAttachWaitsForAServerThatStarts(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	started := make(chan *Server, 1)
	go func() {
		defer close(started)
		s, err := Start(context.Background(), Options{Dir: dir, Ephemeral: true})
		if err != nil {
			t.Errorf("Start: %v", err)
			return
		}
		started <- s
	}()
	eventually(t, "the start to have the lock", func() bool { return held(dir) == nil })
	url, err := Attach(t.Context(), dir)
	s, ok := <-started
	if !ok {
		return
	}
	t.Cleanup(func() { stop(t, s) })
	if err != nil || url != s.URL() {
		t.Errorf("Attach: %v, want the URL of the server", err)
	}
}

func TestWithoutBinariesTheErrorSaysWhatToInstall(t *testing.T) {
	t.Parallel()
	nothing := httptest.NewServer(nil)
	t.Cleanup(nothing.Close)
	for name, pinned := range map[string]string{"new": "", "made by 15": "15", "made by 13": "13"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tempDir(t)
			if pinned != "" {
				pin(t, dir, pinned)
			}
			_, err := start(t.Context(), Options{Dir: dir}, search{repository: nothing.URL})
			if err == nil || !strings.Contains(err.Error(), "install postgresql") ||
				!strings.Contains(err.Error(), pinned) {
				t.Errorf("got %v, want what to install", err)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestClusterPinsTheVersion(t *testing.T) {
	t.Parallel()
	places := usualPlaces()
	newestHere, ok := places.installed(t.Context(), 0)
	if !ok {
		t.Fatal("no PostgreSQL is installed")
	}
	if got, ok := places.installed(t.Context(), newestHere.major); !ok || got != newestHere {
		t.Errorf("pinned to %d: %v, want %v", newestHere.major, got, newestHere)
	}
	if got, ok := places.installed(t.Context(), 13); ok {
		t.Errorf("pinned to 13: %v, want none", got)
	}
}

func TestFailedStartSaysWhatPostgreSQLSaid(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	stop(t, startServer(t, Options{Dir: dir, Ephemeral: true}))
	conf := filepath.Join(dir, "data", "postgresql.auto.conf")
	if err := os.WriteFile(conf, []byte("no_such_setting = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{Dir: dir, Ephemeral: true})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("got %v, want the line of PostgreSQL's log", err)
	}
}

func TestSecretsStayPrivate(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := startServer(t, Options{Dir: dir, Ephemeral: true})
	for _, path := range []string{passwordPath(dir), s.logPath(), lockPath(dir)} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", path, info.Mode(), err)
		}
	}
	wrong := connURL(roleName, "wrong", s.port, databaseName)
	if _, err := pgx.Connect(t.Context(), wrong); err == nil {
		t.Error("a wrong password was let in")
	}
}

func TestLogHasNoRows(t *testing.T) {
	t.Parallel()
	s := startServer(t, Options{Dir: tempDir(t), Ephemeral: true})
	conn := connect(t, s.URL())
	for _, sql := range []string{`SELECT 'a private title'::uuid`, `SELECT 'a private title' FROM nowhere`} {
		if _, err := conn.Exec(t.Context(), sql); err == nil {
			t.Fatalf("%s did not fail", sql)
		}
	}
	stop(t, s)
	log, err := os.ReadFile(s.logPath())
	if !strings.Contains(string(log), "database system is shut down") {
		t.Errorf("the log does not go on to the end: %s", log)
	}
	if err != nil || strings.Contains(string(log), "a private title") {
		t.Errorf("the log has contents of the database in it (%v)", err)
	}
}

func TestDefaultDir(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		goos string
		uid  int
		env  map[string]string
		want string
	}{
		{"linux", 1000, map[string]string{"HOME": "/home/u"}, "/home/u/.local/share/taskledger"},
		{"linux", 1000, map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "/data"}, "/data/taskledger"},
		{
			"linux", 1000, map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "relative"},
			"/home/u/.local/share/taskledger",
		},
		{"linux", 0, map[string]string{"HOME": "/root", "XDG_DATA_HOME": "/data"}, "/var/lib/taskledger"},
		{"darwin", 501, map[string]string{"HOME": "/Users/u"}, "/Users/u/Library/Application Support/taskledger"},
		{"windows", -1, map[string]string{"LocalAppData": "/AppData"}, "/AppData/taskledger"},
		{"linux", 1000, nil, ""},
		{"windows", -1, nil, ""},
	} {
		got, err := defaultDir(tt.goos, tt.uid, func(name string) string { return tt.env[name] })
		if got != filepath.FromSlash(tt.want) || (err == nil) != (tt.want != "") {
			t.Errorf("%s, uid %d, %v: %q %v, want %q", tt.goos, tt.uid, tt.env, got, err, tt.want)
		}
	}
}

// What differs between systems, and can be decided on any.

func TestEnvironmentOfPostgreSQL(t *testing.T) {
	t.Parallel()
	given := []string{
		"Path=p", "PATH=p", "SystemRoot=r", "ComSpec=c", "TEMP=t", "HOME=h", "TMPDIR=t", "DYLD_LIBRARY_PATH=l",
		"PGHOST=x", "pgdata=x", "BETTER_AUTH_SECRET=x", "NOTIFY_SOCKET=x", "=C:=x",
	}
	before := slices.Clone(given)
	for goos, want := range map[string][]string{
		"linux":   {"PATH=p", "HOME=h", "TMPDIR=t", "DYLD_LIBRARY_PATH=l"},
		"darwin":  {"PATH=p", "HOME=h", "TMPDIR=t", "DYLD_LIBRARY_PATH=l"},
		"windows": {"Path=p", "PATH=p", "SystemRoot=r", "ComSpec=c", "TEMP=t"},
	} {
		if got := environment(goos, given); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", goos, got, want)
		}
	}
	if !slices.Equal(given, before) {
		t.Error("the environment that was given is changed")
	}
}

func TestProgramsAndAdviceOfEachSystem(t *testing.T) {
	t.Parallel()
	for goos, want := range map[string]string{"linux": "initdb", "darwin": "initdb", "windows": "initdb.exe"} {
		if got := programFile(goos, "initdb"); got != want {
			t.Errorf("%s: %s, want %s", goos, got, want)
		}
	}
	for _, tt := range []struct {
		goos   string
		pinned int
		want   string
	}{
		{"linux", 0, "apt install postgresql (dnf install postgresql-server), or set DATABASE_URL"},
		{"linux", 15, "apt install postgresql-15 (dnf install postgresql-server), or set DATABASE_URL"},
		{"darwin", 0, "brew install postgresql@18, or set DATABASE_URL"},
		{"darwin", 15, "brew install postgresql@15, or set DATABASE_URL"},
		{"windows", 0, "winget install PostgreSQL.PostgreSQL.18, or set DATABASE_URL"},
		{"windows", 15, "winget install PostgreSQL.PostgreSQL.15, or set DATABASE_URL"},
	} {
		if got := advice(tt.goos, tt.pinned); got != tt.want {
			t.Errorf("%s, %d: %q, want %q", tt.goos, tt.pinned, got, tt.want)
		}
	}
}

func tempDir(t *testing.T) string {
	t.Helper()
	// Not t.TempDir: its parents are closed to the user that PostgreSQL runs as when the tests run as root.
	dir, err := os.MkdirTemp("", "taskledger-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func pin(t *testing.T, dir, major string) {
	t.Helper()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(major+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	acc, err := someAccount()
	if err != nil {
		t.Fatal(err)
	}
	if err := acc.own(data); err != nil {
		t.Fatal(err)
	}
}

func someAccount() (*account, error) {
	return accountFor(filepath.Join(os.TempDir(), "no such cluster"))
}

func startServer(t *testing.T, opts Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

// launchUnowned runs the server's postmaster as a dead owner without Linux's help would have left it.
func launchUnowned(t *testing.T, s *Server) int {
	t.Helper()
	cmd := s.bin.command("postgres", s.settings()...)
	s.account.apply(cmd)
	cmd.Dir = s.data
	return runUnowned(t, s, cmd)
}

func runUnowned(t *testing.T, s *Server, cmd *exec.Cmd) (pid int) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	eventually(t, "the leftover to run", func() bool { return s.acceptsConnections(p) })
	return p.pid()
}

func startOwner(t *testing.T, dir string) (owner *exec.Cmd, url string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), ownerDir+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close() })
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the owner said nothing: %v", err)
	}
	return cmd, strings.TrimSpace(line)
}

// runOwner runs a server until standard input ends.
func runOwner(dir string) int {
	s, err := Start(context.Background(), Options{Dir: dir, Ephemeral: true})
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	_, _ = os.Stdout.WriteString(s.URL() + "\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := s.Stop(context.Background()); err != nil {
		return 1
	}
	return 0
}

func kill9(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatalf("kill -9 %d: %v", pid, err)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	// It may be broken by then.
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	if _, err := connect(t, url).Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func queryInt(t *testing.T, url, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := connect(t, url).QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// eventually waits for a condition, which no event of ours announces, for as long as a loaded machine may need.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("waited 30 s for %s", what)
		case <-tick.C:
		}
	}
}
