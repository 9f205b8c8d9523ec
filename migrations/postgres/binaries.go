package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

const oldest, newest = 14, 18

// binaries are the programs of one PostgreSQL.
type binaries struct {
	dir   string
	major int
}

func (b binaries) path(name string) string {
	return filepath.Join(b.dir, programFile(runtime.GOOS, name))
}

func programFile(goos, name string) string {
	if goos == "windows" {
		return name + ".exe"
	}
	return name
}

func (b binaries) command(name string, args ...string) *exec.Cmd {
	return b.commandContext(context.Background(), name, args...)
}

func (b binaries) commandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.path(name), args...)
	cmd.Env = append(environment(runtime.GOOS, cmd.Environ()), "LC_ALL=C")
	return cmd
}

// environment keeps what programs need to run and nothing else: PG* variables would change what they do, NOTIFY_SOCKET
// would make PostgreSQL answer systemd in our name, and our secrets are none of its business. On Windows names have no
// case.
func environment(goos string, variables []string) []string {
	needed := []string{"PATH", "HOME", "TMPDIR", "TZDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
	if goos == "windows" {
		needed = []string{"PATH", "SYSTEMROOT", "SYSTEMDRIVE", "COMSPEC", "PATHEXT", "TEMP", "TMP"}
	}
	return slices.DeleteFunc(slices.Clone(variables), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		if goos == "windows" {
			name = strings.ToUpper(name)
		}
		return !slices.Contains(needed, name)
	})
}

// search says where a PostgreSQL may come from.
type search struct {
	dirs       []string // where programs may be installed
	repository string   // the Maven repository to download from
}

func usualPlaces() search {
	s := search{repository: "https://repo1.maven.org/maven2"}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			s.dirs = append(s.dirs, filepath.Dir(path))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		`C:\Program Files\PostgreSQL\*\bin`,
	} {
		// The patterns are well-formed, which is all that Glob can complain of.
		found, _ := filepath.Glob(pattern)
		s.dirs = append(s.dirs, found...)
	}
	return s
}

// find returns the newest PostgreSQL there is, or the one whose version the cluster in dir was made by.
func (s search) find(ctx context.Context, dir string, log *slog.Logger) (binaries, error) {
	pinned := clusterVersion(filepath.Join(dir, "data"))
	if found, ok := s.installed(ctx, pinned); ok {
		return found, nil
	}
	major := pinned
	if pinned == 0 {
		major = newest
	}
	found, err := s.download(ctx, filepath.Join(dir, "binaries"), major, log)
	if err != nil {
		return binaries{}, fmt.Errorf("%s is not installed, and it could not be downloaded (%w): %s",
			wanted(pinned), err, advice(runtime.GOOS, pinned))
	}
	return found, nil
}

func wanted(pinned int) string {
	if pinned != 0 {
		return fmt.Sprintf("PostgreSQL %d, which made the data,", pinned)
	}
	return fmt.Sprintf("PostgreSQL (%d to %d)", oldest, newest)
}

func advice(goos string, pinned int) string {
	major := pinned
	if pinned == 0 {
		major = newest
	}
	install := "apt install postgresql (dnf install postgresql-server)"
	switch {
	case goos == "darwin":
		install = fmt.Sprintf("brew install postgresql@%d", major)
	case goos == "windows":
		install = fmt.Sprintf("winget install PostgreSQL.PostgreSQL.%d", major)
	case pinned != 0:
		install = fmt.Sprintf("apt install postgresql-%d (dnf install postgresql-server)", pinned)
	}
	return install + ", or set DATABASE_URL"
}

// installed returns the newest of the installed ones; pinned, if not 0, is the only version that will do.
func (s search) installed(ctx context.Context, pinned int) (binaries, bool) {
	var best binaries
	for _, dir := range s.dirs {
		found, ok := inspect(ctx, dir)
		if !ok || found.major <= best.major || pinned != 0 && found.major != pinned {
			continue
		}
		best = found
	}
	return best, best.major != 0
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// inspect reports whether dir has all the programs of a version that we can use.
func inspect(ctx context.Context, dir string) (binaries, bool) {
	b := binaries{dir: dir}
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		if _, err := os.Stat(b.path(name)); err != nil {
			return b, false
		}
	}
	out, err := b.commandContext(ctx, "postgres", "--version").Output()
	if err != nil {
		return b, false
	}
	match := versionText.FindSubmatch(out)
	if match == nil {
		return b, false
	}
	b.major, err = strconv.Atoi(string(match[1]))
	return b, err == nil && oldest <= b.major && b.major <= newest
}
