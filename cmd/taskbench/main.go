// Taskbench puts a running taskledger under load and prints what it measured.
//
// The load is a closed loop: each worker owns one keep-alive connection and sends its next request when it has read
// the last answer to the end. Only answers with the status that the operation promises count as requests and have a
// latency; all others are counted by status, and make the exit code 1.
//
// With --rate it is an open loop: requests are due at fixed times, whatever becomes of those before, and a request that
// finds no connection free has its wait in its latency. --freshness tells how soon writes are on their users' streams.
//
// With --pairs it measures nothing, and checks that a read right after an acknowledged write sees that write, on the
// same process or, with --read-url, on another one.
//
// With --rival it needs no server: it builds one, starts a PostgreSQL with default durability and, beside the product,
// a plain rival (rival.go), and measures both turn by turn. What counts is their ratio in one run. --server-binary
// takes a product that is built already, and --against another one in place of the rival, to compare two builds.
//
// Every run makes users of its own and leaves their tasks behind; what --rival starts, it stops and removes. A run is
// bounded by --deadline, whatever the server does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// errBroken means that the run ended and its report names answers that should not have been.
var errBroken = errors.New("not every answer was as promised")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run returns the exit code: 0 when all went as promised, 1 when the server did not keep its promises or could not be
// reached, 2 when the arguments cannot be used.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	opts, err := parse(args, getenv, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "taskbench:", err)
		return 2
	}
	if opts.ServeRival {
		return exitCode(stderr, serveRival(ctx, getenv))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.Deadline, fmt.Errorf("deadline of %s reached", opts.Deadline))
	defer cancel()
	return exitCode(stderr, opts.measure(ctx, stdout, stderr))
}

func exitCode(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "taskbench:", err)
	return 1
}

func (o *options) measure(ctx context.Context, stdout, progress io.Writer) error {
	if o.Rival {
		return o.runRival(ctx, stdout, progress)
	}
	users, err := o.makeUsers()
	if err != nil {
		return err
	}
	if o.Pairs > 0 {
		return o.runPairs(ctx, users, stdout, progress)
	}
	return o.runLoad(ctx, users, stdout, progress)
}
