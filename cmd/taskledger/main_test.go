package main

import (
	"bytes"
	"context"
	"errors"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"taskledger/migrations/postgres"
	"taskledger/migrations/testdb"
)

// asProgram tells the test binary to be taskledger.
const asProgram = "TASKLEDGER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	testdb.Main(m)
}

// program returns taskledger in an empty directory with nothing but env in its environment.
func program(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{asProgram + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir}, env...)
	return cmd
}

type outcome struct {
	stdout, stderr string
	code           int
}

func finish(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if _, ended := errors.AsType[*exec.ExitError](cmd.Run()); !ended && cmd.ProcessState == nil {
		t.Fatal("the program did not run")
	}
	return outcome{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

func TestBadSettingStopsTheProgramWithOneLine(t *testing.T) {
	t.Parallel()
	for _, env := range []string{
		"PORT=eighty", "PORT=65536", "PORT=-1", "PORT=1.5",
		"CORS_ORIGINS=*", "CORS_ORIGINS=http://a.example/", "CORS_ORIGINS=http://a.example,b.example",
		"CORS_ORIGINS=http://A.example",
		"ADMIN_ADDR=9090", "ADMIN_ADDR=:http", "ADMIN_TOKEN=s3cret",
		"DATABASE_URL=s3cret:", "BETTER_AUTH_DATABASE_URL=postgres://s3cret@:x/",
		"REBUILD_ON_START=maybe", "DATABASE_SCHEMA=My Ledger", "DATABASE_SCHEMA=public", "DATABASE_SCHEMA=pg_ledger",
		"BETTER_AUTH_SECRET=", "BETTER_AUTH_SECRET=s3cret",
		"BETTER_AUTH_URL=s3cret", "BETTER_AUTH_URL=https://user:s3cret@auth.example",
		"CORS_ORIGINS=https://user:s3cret@a.example",
		"JWKS_URL=ftp://s3cret.example/keys", "OTEL_EXPORTER_OTLP_ENDPOINT=s3cret:4318",
		"RATE_LIMIT_RPS=-1", "RATE_LIMIT_RPS=NaN", "RATE_LIMIT_RPS=+Inf", "RATE_LIMIT_RPS=many", "RATE_LIMIT_BURST=-1",
		"MAX_TASKS_PER_USER=0", "LOG_LEVEL=loud", "LOG_FORMAT=xml",
	} {
		t.Run(env, func(t *testing.T) {
			t.Parallel()
			got := finish(t, program(t, []string{env}, "version"))
			name, _, _ := strings.Cut(env, "=")
			if got.code != exitUsage || got.stdout != "" {
				t.Errorf("exit code %d and output %q, want %d and none", got.code, got.stdout, exitUsage)
			}
			if strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, name) {
				t.Errorf("stderr %q, want one line with %s in it", got.stderr, name)
			}
			if strings.Contains(got.stderr, "s3cret") {
				t.Errorf("stderr shows what may be secret: %q", got.stderr)
			}
		})
	}
}

func TestBadCommandLineStopsTheProgramWithOneLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"bogus"},
		{"serve", "--bogus"},
		{"token"},
		{"--port=eighty"},
		// A variable of a script that is not set is not everybody.
		{"verify", "--user", ""},
		{"verify", "--export="},
		{"rebuild", "--user", ""},
		{"rebuild", "--projection="},
		{"parked", "retry", "--user="},
		{"parked", "--user="},
		{"export", "--user="},
		{"erase", "--user="},
		{"adopt", "--table="},
		{"history", "--user=u", "--until="},
	} {
		got := finish(t, program(t, []string{"DATABASE_URL=postgres://nowhere.invalid/x"}, args...))
		if got.code != exitUsage || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, stderr %q, want %d and one line", args, got.code, got.stderr, exitUsage)
		}
	}
}

func TestServerNeedsSomebodyWhoCanLogIn(t *testing.T) {
	t.Parallel()
	got := finish(t, program(t, []string{"DATABASE_URL=postgres://nowhere.invalid/x"}, "serve"))
	if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 ||
		!strings.Contains(got.stderr, "BETTER_AUTH_SECRET") {
		t.Errorf(
			"exit code %d, stderr %q, want %d and one line with BETTER_AUTH_SECRET in it",
			got.code,
			got.stderr,
			exitFailed,
		)
	}
}

// Beyond the loopback the admin port is never served to everyone.
func TestAnAdminPortForOthersNeedsAToken(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "10.0.0.1:0", "localhost.example:0"} {
		got := finish(t, program(t, []string{"ADMIN_ADDR=" + addr}, "serve"))
		if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 ||
			!strings.Contains(got.stderr, "ADMIN_TOKEN") {
			t.Errorf(
				"%s: exit code %d, stderr %q, want %d and one line with ADMIN_TOKEN in it",
				addr,
				got.code,
				got.stderr,
				exitFailed,
			)
		}
	}
	for _, addr := range []string{"", "127.0.0.1:0", "[::1]:0", "localhost:0"} {
		if err := (&settings{AdminAddr: addr}).checkServable(); err != nil {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if err := (&settings{AdminAddr: ":0", AdminToken: "0123456789abcdef"}).checkServable(); err != nil {
		t.Error(err)
	}
}

// What is said of a database that can't be opened has no value of its URL in it but host and database.
func TestADatabaseThatCannotBeOpenedIsOneLine(t *testing.T) {
	t.Parallel()
	there := parseURL(t, testdb.URL(t))
	there.Path, there.User = "/nowhere", neturl.UserPassword("postgres", "s3cret")
	for url, want := range map[string]string{
		"postgres://s3cret:s3cret@127.0.0.1:1/x?application_name=s3cret": "connection refused",
		"host=/nowhere user=s3cret password=s3cret":                      "no such file",
		there.String(): "the password is wrong",
	} {
		got := finish(t, program(t, []string{"DATABASE_URL=" + url}, "migrate"))
		if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, want) ||
			strings.Contains(got.stderr, "s3cret") {
			t.Errorf("exit code %d, stderr %q, want %d and one line with %q", got.code, got.stderr, exitFailed, want)
		}
	}
}

func TestDotEnvIsReadAndTheEnvironmentWins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		file string
		env  []string
		args []string
		code int
	}{
		{"LOG_LEVEL=loud", nil, nil, exitUsage},
		{"LOG_LEVEL=loud", []string{"LOG_LEVEL=info"}, nil, 0},
		{"LOG_LEVEL=loud", nil, []string{"--log-level=info"}, 0},
		{"LOG_LEVEL=info", []string{"LOG_LEVEL=loud"}, nil, exitUsage},
		{"s3cret is no setting", nil, nil, exitUsage},
		{"\ufeffLOG_LEVEL=loud", nil, nil, exitUsage}, // read, whatever an editor has put before it
		{"\ufeffLOG_LEVEL=info\r\n# a comment\r\nLOG_FORMAT=json\r\n", nil, nil, 0},
		{"\ufeff", nil, nil, 0},
		{"\xff\xfeL\x00O\x00G\x00=\x00s3cret", nil, nil, exitUsage},
	} {
		cmd := program(t, tt.env, append(tt.args, "version")...)
		if err := os.WriteFile(filepath.Join(cmd.Dir, ".env"), []byte(tt.file+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := finish(t, cmd); got.code != tt.code || strings.Contains(got.stderr, "s3cret") {
			t.Errorf(
				".env %q, environment %v, arguments %v: exit code %d, want %d; stderr %q",
				tt.file,
				tt.env,
				tt.args,
				got.code,
				tt.code,
				got.stderr,
			)
		}
	}
}

func TestHelpIsThereForEveryCommand(t *testing.T) {
	t.Parallel()
	for _, command := range []string{
		"serve", "migrate", "status", "adopt", "token", "verify", "history", "export", "import", "erase", "version",
	} {
		got := finish(t, program(t, nil, command, "--help"))
		if got.code != 0 || !strings.Contains(got.stdout, "Usage: taskledger "+command) {
			t.Errorf("%s --help: exit code %d, output %q", command, got.code, got.stdout)
		}
	}
}

func TestMigrateADatabaseOfOthers(t *testing.T) {
	t.Parallel()
	got := finish(t, program(t, []string{"DATABASE_URL=" + testdb.URL(t)}, "migrate"))
	if got.code != 0 {
		t.Errorf("exit code %d, stderr %q", got.code, got.stderr)
	}
}

// The commands of an operator share the embedded database with the server that runs it, and a second server does not.
func TestEmbeddedDatabaseIsSharedWithCommands(t *testing.T) {
	t.Parallel()
	env := []string{"DATA_DIR=" + dataDir(t), "PORT=0", "ADMIN_ADDR="}
	server := program(t, env)
	var stderr bytes.Buffer
	server.Stderr = &stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill() })
	url := awaitDatabase(t, strings.TrimPrefix(env[0], "DATA_DIR="))

	if got := finish(t, program(t, env, "migrate")); got.code != 0 {
		t.Errorf("migrate next to a server: exit code %d, stderr %q", got.code, got.stderr)
	}
	if got := finish(
		t,
		program(t, env, "serve"),
	); got.code != exitFailed ||
		!strings.Contains(got.stderr, "already runs") {
		t.Errorf("a second server: exit code %d, stderr %q, want %d and who runs", got.code, got.stderr, exitFailed)
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("the server after SIGTERM: %v, stderr %s", err, &stderr)
	}
	if again, err := postgres.Attach(
		t.Context(),
		strings.TrimPrefix(env[0], "DATA_DIR="),
	); !errors.Is(
		err,
		postgres.ErrNotRunning,
	) {
		t.Errorf("PostgreSQL outlived its server: %v, same address %v", err, again == url)
	}
	if got := finish(t, program(t, env, "migrate")); got.code != 0 {
		t.Errorf("migrate without a server: exit code %d, stderr %q", got.code, got.stderr)
	}
}

// dataDir is not t.TempDir, whose parents are closed to the user that PostgreSQL runs as when the tests run as root.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "taskledger-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func awaitDatabase(t *testing.T, dir string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		url, err := postgres.Attach(ctx, dir)
		if err == nil {
			return url
		}
		if !errors.Is(err, postgres.ErrNotRunning) || !tick(ctx) {
			t.Fatalf("wait for the server: %v", err)
		}
	}
}
