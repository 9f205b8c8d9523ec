package main

import (
	"debug/elf"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"taskledger/migrations/testdb"
)

// image is a directory with what the Dockerfile puts into the image, and nothing else.
type image struct {
	root   string
	mode   *syscall.SysProcAttr
	prefix string // of a path in the image, as the program sees it
}

// The image as compose starts it: nothing around the program, nowhere to write, process 1, a user without a name and a
// home.
func TestImageNeedsNothingElse(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 100)
	keys := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
	t.Cleanup(keys.Close)
	made := makeImage(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: keys.Certificate().Raw}))

	url := "DATABASE_URL=" + testdb.EmptyURL(t)
	env := append(composeEnv(t, map[string]string{"BETTER_AUTH_SECRET": serveSecret}),
		url, "PORT=0", "ADMIN_ADDR=", "JWKS_URL="+keys.URL)
	s := &served{t: t, stderr: &lockedBuffer{}}
	s.run(made.program(env), "/docs")
	s.await(200, func() (int, error) { return s.status("/readyz") })
	s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	select {
	case <-asked:
	case <-time.After(patience):
		t.Errorf("it does not know the certificates of the image; it said %s", s.stderr)
	}
	if got := finish(t, made.program([]string{url}, "verify")); got.code != 0 {
		t.Errorf("verify: %+v", got)
	}
	s.terminate()
	for _, home := range [][]string{nil, {"HOME=" + made.prefix + "/"}} {
		if got := finish(t, made.program(append(home, "PORT=0", "ADMIN_ADDR="))); got.code == 0 ||
			!strings.Contains(got.stderr, "DATABASE_URL") {
			t.Errorf("without a database, %v: %+v, want what to set", home, got)
		}
	}
}

// makeImage does what the Dockerfile says, but for the certificates, which are those given.
func makeImage(t *testing.T, certificates []byte) *image {
	t.Helper()
	build, final := stages(t)
	made := &image{root: t.TempDir()}
	for _, i := range final {
		if i.name != "COPY" {
			continue
		}
		from, to := i.args[1], i.args[2]
		if strings.HasSuffix(to, "/") {
			to += filepath.Base(from)
		}
		to = filepath.Join(made.root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(from, ".crt") {
			if err := os.WriteFile(to, certificates, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		buildProgram(t, argsOfBuild(build), from, to)
	}
	// Before t.TempDir is removed, it must be ours to change again.
	t.Cleanup(func() { _ = os.Chmod(made.root, 0o755) })
	if err := os.Chmod(made.root, 0o555); err != nil {
		t.Fatal(err)
	}
	made.choose(t)
	return made
}

// argsOfBuild is the command that makes the program.
func argsOfBuild(build []instruction) []string {
	for _, i := range build {
		if i.name == "RUN" && slices.Contains(i.args, "build") {
			return i.args
		}
	}
	return nil
}

// buildProgram runs that command, with another place for what it makes.
func buildProgram(t *testing.T, args []string, from, to string) {
	t.Helper()
	args = slices.Clone(args)
	output := slices.Index(args, from)
	if output < 0 {
		t.Fatalf("the build stage %q does not make %s", args, from)
	}
	args[output] = to
	cmd := exec.CommandContext(t.Context(), "env", args...)
	cmd.Dir = moduleRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	file, err := elf.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}
}

// choose takes the way of running the program that is closest to a container's and that we may go: root's, root's where
// it may make no namespaces, and everybody's.
func (i *image) choose(t *testing.T) {
	t.Helper()
	nobody := &syscall.Credential{Uid: 65532, Gid: 65532}
	modes := []*syscall.SysProcAttr{
		{Chroot: i.root, Credential: nobody, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS},
		{Chroot: i.root, Credential: nobody},
	}
	if os.Geteuid() != 0 {
		modes = []*syscall.SysProcAttr{{}}
	}
	for _, mode := range modes {
		i.mode, i.prefix = mode, ""
		if mode.Chroot == "" {
			i.prefix = i.root
		}
		out, err := i.program(nil, "version").CombinedOutput()
		if errors.Is(err, fs.ErrPermission) {
			t.Logf("not allowed: chroot %t, namespaces %t", mode.Chroot != "", mode.Cloneflags != 0)
			continue
		}
		if err != nil || !strings.HasPrefix(string(out), "taskledger ") {
			t.Fatalf("version: %v, %s", err, out)
		}
		return
	}
	t.Fatal("the program cannot be run")
}

func (i *image) program(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(i.prefix+"/taskledger", args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = i.prefix+"/", slices.Concat([]string{}, env), i.mode
	if i.prefix != "" {
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+i.prefix+"/etc/ssl/certs/ca-certificates.crt")
	}
	return cmd
}
