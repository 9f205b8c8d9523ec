package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

const (
	maxConnections    = 1024
	maxUsers          = 10_000
	maxRequestTimeout = time.Minute
)

type options struct {
	URL            string        `default:"http://localhost:8000" help:"Base URL of the server, without /api."`
	ReadURL        string        `help:"With --pairs: base URL that the reads go to, another process on the same database. Default: --url."`
	Token          string        `help:"Bearer token of the one user to act as. Default: tokens for --users made-up users, signed with the server's secret."`
	SecretFile     string        `type:"existingfile" help:"File with the server's BETTER_AUTH_SECRET. Default: the environment's BETTER_AUTH_SECRET."`
	Users          int           `default:"32" help:"Number of users the load is spread over."`
	Tasks          int           `default:"20" help:"Tasks a user has before the measurement."`
	Ops            []string      `aliases:"op" default:"create,toggle,get,list" enum:"create,toggle,get,list" help:"Operations to measure: ${enum}."`
	RequestTimeout time.Duration `default:"10s" help:"Longest wait for one answer, at most 1m."`
	Deadline       time.Duration `default:"10m" help:"The whole run ends after this, finished or not."`
	Pairs          int           `help:"Instead of measuring, make this many write-then-read pairs at each number of connections, and fail on a read that misses its write."`
	JSON           bool          `name:"json" help:"Print JSON instead of Markdown."`
	AllowRemote    bool          `help:"Allow a target that is not this machine. Only for servers that are yours."`

	Connections   []int          `help:"Numbers of connections to measure with. Default: 1,16,64; with --rate 64."`
	GivenDuration *time.Duration `name:"duration" help:"Length of each measurement. Default: 5s; with --rival 2s."`
	GivenWarmup   *time.Duration `name:"warmup" help:"Load before it that does not count. Default: 1s; with --rival 300ms."`
	Duration      time.Duration  `kong:"-"`
	Warmup        time.Duration  `kong:"-"`

	Rate      float64 `group:"Open loop" placeholder:"N" help:"Send N requests a second, come what may."`
	Freshness bool    `group:"Open loop" help:"With --rate: measure also how soon changes are on /api/events."`

	Rival        bool     `group:"Comparison" help:"Measure this module's server beside a plain rival, both started here."`
	Workloads    []string `group:"Comparison" default:"${workloads}" enum:"${workloads}" help:"What to compare."`
	Rounds       int      `group:"Comparison" default:"3" help:"How often each is measured; the ratio is the median."`
	ServerBinary string   `group:"Comparison" type:"existingfile" help:"A taskledger to take instead of building one."`
	Against      string   `group:"Comparison" type:"existingfile" help:"A taskledger to take in place of the rival."`
	Profile      string   `group:"Comparison" type:"path" placeholder:"DIR" help:"Save CPU profiles of the product here."`

	ServeRival bool `hidden:""`

	secret string
}

// serveRivalFlag makes this program the rival's server.
const serveRivalFlag = "--serve-rival"

func parse(args []string, getenv func(string) string, stdout, stderr io.Writer) (*options, error) {
	var opts options
	parser, err := kong.New(&opts,
		kong.Name("taskbench"),
		kong.Description("Puts a running taskledger under load. Start that with RATE_LIMIT_RPS=0."),
		kong.Vars{"workloads": workloadNames()},
		kong.Writers(stdout, stderr))
	if err != nil {
		return nil, err
	}
	if _, err := parser.Parse(args); err != nil {
		return nil, err
	}
	if opts.secret, err = opts.readSecret(getenv); err != nil {
		return nil, err
	}
	opts.setDefaults()
	return &opts, opts.check()
}

func workloadNames() string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return strings.Join(names, ",")
}

// setDefaults sets those that depend on what is measured.
func (o *options) setDefaults() {
	o.Duration, o.Warmup = 5*time.Second, time.Second
	if o.Rival {
		o.Duration, o.Warmup = 2*time.Second, 300*time.Millisecond
	}
	if o.GivenDuration != nil {
		o.Duration = *o.GivenDuration
	}
	if o.GivenWarmup != nil {
		o.Warmup = *o.GivenWarmup
	}
	switch {
	case o.Connections != nil:
	case o.Rate > 0:
		o.Connections = []int{64}
	default:
		o.Connections = []int{1, 16, 64}
	}
}

func (o *options) readSecret(getenv func(string) string) (string, error) {
	if o.Token != "" {
		return "", nil
	}
	if o.Rival {
		return rand.Text() + rand.Text(), nil
	}
	secret := getenv("BETTER_AUTH_SECRET")
	if o.SecretFile != "" {
		content, err := os.ReadFile(o.SecretFile)
		if err != nil {
			return "", err
		}
		secret = strings.TrimRight(string(content), "\r\n")
	}
	if secret == "" {
		return "", errors.New("no way to sign in: set BETTER_AUTH_SECRET, or give --secret-file or --token")
	}
	return secret, nil
}

func (o *options) check() error {
	o.URL = strings.TrimRight(o.URL, "/")
	o.ReadURL = strings.TrimRight(o.ReadURL, "/")
	if o.ReadURL == "" {
		o.ReadURL = o.URL
	}
	return errors.Join(
		o.checkTarget("--url", o.URL),
		o.checkTarget("--read-url", o.ReadURL),
		o.checkSizes(),
		o.checkMode(),
		o.checkTimes())
}

func (o *options) checkTarget(flag, target string) error {
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("%s: %q is not like http://localhost:8000", flag, target)
	}
	if !o.AllowRemote && !isLoopback(u.Hostname()) {
		return fmt.Errorf("%s: %s is not this machine; --allow-remote if it is a server of yours", flag, u.Hostname())
	}
	return nil
}

// isLoopback asks no resolver: what a name means there may change between this look and the dial.
func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func (o *options) checkSizes() error {
	if o.Users < 1 || o.Users > maxUsers {
		return fmt.Errorf("--users: must be 1 to %d", maxUsers)
	}
	if o.Tasks < 1 || o.Tasks > 10_000 {
		return errors.New("--tasks: must be 1 to 10000, the tasks a user may have")
	}
	if o.Pairs < 0 {
		return errors.New("--pairs: must not be negative")
	}
	for _, n := range o.Connections {
		if n < 1 || n > maxConnections {
			return fmt.Errorf("--connections: each must be 1 to %d", maxConnections)
		}
	}
	return nil
}

// checkMode refuses flags that have no meaning together.
func (o *options) checkMode() error {
	writes := !slices.ContainsFunc(o.Ops, func(op string) bool { return op != "create" && op != "toggle" })
	switch {
	case o.Rate < 0:
		return errors.New("--rate: must not be negative")
	case o.Rate > 0 && (o.Pairs > 0 || o.Rival):
		return errors.New("--rate: not with --pairs or --rival")
	case o.Freshness && (o.Rate == 0 || !writes):
		return errors.New("--freshness: only with --rate, and --ops that write: create, toggle")
	case o.Rival && (o.Pairs > 0 || o.Token != ""):
		return errors.New("--rival: makes users of its own and measures; not with --token or --pairs")
	case !o.Rival && (o.ServerBinary != "" || o.Against != "" || o.Profile != ""):
		return errors.New("--server-binary, --against and --profile: only with --rival")
	case o.Rival && o.Tasks > maxLimit/2:
		return fmt.Errorf("--tasks: with --rival at most %d", maxLimit/2)
	case o.Rounds < 1:
		return errors.New("--rounds: must be 1 or more")
	}
	return nil
}

func (o *options) checkTimes() error {
	if o.Duration <= 0 || o.Warmup < 0 || o.Deadline <= 0 {
		return errors.New("--duration and --deadline must be positive, --warmup not negative")
	}
	if o.RequestTimeout <= 0 || o.RequestTimeout > maxRequestTimeout {
		return fmt.Errorf("--request-timeout: must be positive and at most %s", maxRequestTimeout)
	}
	steps := time.Duration(len(o.Ops) * len(o.Connections))
	if o.Rival {
		steps = time.Duration(len(o.cells()) * 2 * o.Rounds)
	}
	if need := steps * (o.Duration + o.Warmup); o.Pairs == 0 && need > o.Deadline {
		return fmt.Errorf("--deadline: %s is less than the %s that the measurements take", o.Deadline, need)
	}
	return nil
}
