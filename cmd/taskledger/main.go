// Command taskledger is the task backend: its server, and what an operator does to it.
//
// This package is the composition root: the only one that reads the environment, and the only one that knows all the
// others.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/alecthomas/kong"
	"github.com/joho/godotenv"

	"taskledger/events"
)

// Exit codes. A command may have its own reason to end with 1: verify does when it finds a difference.
const (
	exitFailed = 1
	exitUsage  = 2
)

// cli is the command line: the settings, which every command takes, and the commands.
type cli struct {
	Settings settings `embed:""`

	Serve   serveCmd   `cmd:"" default:"withargs" help:"Run the server (the default command)."`
	Migrate migrateCmd `cmd:"" help:"Bring the schema to the version of this program. The server does so too."`
	Verify  verifyCmd  `cmd:"" help:"Compare the read models with the fold of the log, or check the chain of an export."`
	Rebuild rebuildCmd `cmd:"" help:"Make the read models anew from the log, while servers run, and swap them in."`
	Status  statusCmd  `cmd:"" help:"How the service stands. Exit 0: nothing needs anybody; 1: something does."`
	Adopt   adoptCmd   `cmd:"" help:"Take over the tasks of the backend before. Run again it takes what is new."`
	Parked  parkedCmd  `cmd:"" help:"Users whom a read model no longer follows, as an event could not be applied."`
	History historyCmd `cmd:"" help:"Print a user's audit trail."`
	Export  exportCmd  `cmd:"" help:"Print the log as NDJSON: records with their hashes."`
	Import  importCmd  `cmd:"" help:"Take an export into a ledger that has none of its users."`
	Erase   eraseCmd   `cmd:"" help:"Erase a user."`
	Token   tokenCmd   `cmd:"" help:"Print a development token, to call the API as a user."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if err := loadDotEnv(); err != nil {
		return fail(stderr, err, exitUsage)
	}
	if err := tidyEnvironment(); err != nil {
		return fail(stderr, err, exitUsage)
	}
	var c cli
	command, err := parse(&c, args, stdout, stderr)
	if err != nil {
		return fail(stderr, err, exitUsage)
	}
	tuneGC()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends a shutdown that takes too long.
	context.AfterFunc(ctx, stop)

	command.BindTo(ctx, (*context.Context)(nil))
	command.BindTo(stdout, (*io.Writer)(nil))
	if err := command.Run(&c.Settings, newLogger(c.Settings, stderr)); err != nil {
		return fail(stderr, err, exitFailed)
	}
	return 0
}

func parse(c *cli, args []string, stdout, stderr io.Writer) (*kong.Context, error) {
	parser, err := kong.New(c,
		kong.Name("taskledger"),
		kong.Description("A task backend whose source of truth is a ledger of events. "+
			"Each setting is a flag, an environment variable or a line of a .env file in the working directory; "+
			"the first of these wins."),
		kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}),
	)
	if err != nil {
		return nil, err
	}
	command, err := parser.Parse(args)
	if err != nil {
		return nil, errors.New(withoutURLs(err.Error(), args))
	}
	return command, errors.Join(refuseEmpty(command), c.Settings.check())
}

// refuseEmpty refuses an empty value of a command's own flag: --user "$NOBODY" is not everybody. Settings, which have a
// variable each, may be empty.
func refuseEmpty(command *kong.Context) error {
	for _, p := range command.Path {
		if f := p.Flag; f != nil && len(f.Envs) == 0 && f.Target.Kind() == reflect.String && f.Target.String() == "" {
			return fmt.Errorf("--%s must not be empty", f.Name)
		}
	}
	return nil
}

// withoutURLs takes out of a message the arguments that may be a database's URL, or libpq's key=value: there is a
// password in them.
func withoutURLs(message string, args []string) string {
	for _, arg := range args {
		value := arg
		if name, after, ok := strings.Cut(arg, "="); ok && strings.HasPrefix(name, "-") {
			value = after
		}
		if strings.Contains(value, "://") || strings.Contains(value, "=") {
			message = strings.ReplaceAll(message, value, "…")
		}
	}
	return message
}

// loadDotEnv adds what the environment does not say itself. What the file has in it is never shown: it may be a secret.
func loadDotEnv() error {
	content, err := os.ReadFile(".env")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// Editors on Windows begin a text with a byte-order mark.
	content = bytes.TrimPrefix(content, []byte("\ufeff"))
	if !utf8.Valid(content) || bytes.IndexByte(content, 0) >= 0 {
		return errors.New(".env: is not UTF-8: save it as that")
	}
	values, err := godotenv.UnmarshalBytes(content)
	if err != nil {
		return errors.New(".env: has a line that is not NAME=value, a comment or empty")
	}
	for name, value := range values {
		if _, set := os.LookupEnv(name); set {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf(".env: %w", err)
		}
	}
	return nil
}

// numbers are the settings that are one, and what they should be.
var numbers = map[string]string{
	"PORT":               "a port number, 0 to 65535",
	"RATE_LIMIT_RPS":     "a number of requests a second, 0 (off) or more",
	"RATE_LIMIT_BURST":   "a number of requests, 0 (off) or more",
	"MAX_TASKS_PER_USER": "a number of tasks, 1 or more",
}

// tidyEnvironment takes a variable that is empty for one that is not set, as it comes from a compose file; but an empty
// secret is an error, and an empty ADMIN_ADDR a setting. It names the numbers that are none, better than the parser of
// flags would.
func tidyEnvironment() error {
	for _, name := range settingNames() {
		if os.Getenv(name) == "" && name != "BETTER_AUTH_SECRET" && name != "ADMIN_ADDR" {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	for name, want := range numbers {
		value, set := os.LookupEnv(name)
		if _, err := strconv.ParseFloat(value, 64); set && err != nil {
			return fmt.Errorf("%s must be %s, not %q", name, want, value)
		}
	}
	return nil
}

// settingNames are the variables of settings.
func settingNames() []string {
	var names []string
	for i, t := 0, reflect.TypeFor[settings](); i < t.NumField(); i++ {
		names = append(names, t.Field(i).Tag.Get("env"))
	}
	return names
}

// fail prints one line.
func fail(stderr io.Writer, err error, code int) int {
	// There is nobody else to tell when this cannot be written.
	_, _ = fmt.Fprintln(stderr, "taskledger: "+strings.Join(strings.Fields(events.SafeText(err)), " "))
	return code
}

func newLogger(cfg settings, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: logLevels[cfg.LogLevel]}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// softMemoryLimit is what the heap is kept below as long as that is not busy work: a server's caches take a half of it.
const softMemoryLimit = 112 << 20

// tuneGC lets the heap grow to several times what is in use, and no further than memory allows: collecting it as often
// as Go does by default took a tenth of the time of a busy server, and a fifth of that of a rebuild. Who sets GOGC or
// GOMEMLIMIT has it that way.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemoryLimit)
	}
}
