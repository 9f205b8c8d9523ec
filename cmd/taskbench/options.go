package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
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
	Ops            []string      `default:"create,toggle,get,list" enum:"create,toggle,get,list" help:"Operations to measure: ${enum}."`
	Connections    []int         `default:"1,16,64" help:"Numbers of connections to measure with."`
	Duration       time.Duration `default:"5s" help:"Length of each measurement."`
	Warmup         time.Duration `default:"1s" help:"Load before each measurement that does not count."`
	RequestTimeout time.Duration `default:"10s" help:"Longest wait for one answer, at most 1m."`
	Deadline       time.Duration `default:"10m" help:"The whole run ends after this, finished or not."`
	Pairs          int           `help:"Instead of measuring, make this many write-then-read pairs at each number of connections, and fail on a read that misses its write."`
	JSON           bool          `name:"json" help:"Print JSON instead of Markdown."`
	AllowRemote    bool          `help:"Allow a target that is not this machine. Only for servers that are yours."`

	secret string
}

func parse(args []string, getenv func(string) string, stdout, stderr io.Writer) (*options, error) {
	var opts options
	parser, err := kong.New(&opts,
		kong.Name("taskbench"),
		kong.Description("Puts a running taskledger under load. Start that with RATE_LIMIT_RPS=0."),
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
	return &opts, opts.check()
}

func (o *options) readSecret(getenv func(string) string) (string, error) {
	if o.Token != "" {
		return "", nil
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

func (o *options) checkTimes() error {
	if o.Duration <= 0 || o.Warmup < 0 || o.Deadline <= 0 {
		return errors.New("--duration and --deadline must be positive, --warmup not negative")
	}
	if o.RequestTimeout <= 0 || o.RequestTimeout > maxRequestTimeout {
		return fmt.Errorf("--request-timeout: must be positive and at most %s", maxRequestTimeout)
	}
	steps := time.Duration(len(o.Ops) * len(o.Connections))
	if need := steps * (o.Duration + o.Warmup); o.Pairs == 0 && need > o.Deadline {
		return fmt.Errorf("--deadline: %s is less than the %s that the measurements take", o.Deadline, need)
	}
	return nil
}
