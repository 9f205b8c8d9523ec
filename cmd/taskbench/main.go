// Taskbench puts a running taskledger under load and prints what it measured.
//
// The load is a closed loop: each worker owns one keep-alive connection and sends its next request when it has read
// the last answer to the end. Only answers with the status that the operation promises count as requests and have a
// latency; all others are counted by status, and make the exit code 1.
//
// With --pairs it measures nothing, and checks that a read right after an acknowledged write sees that write, on the
// same process or, with --read-url, on another one.
//
// Every run makes users of its own and leaves their tasks behind. A run is bounded by --deadline, whatever the server
// does.
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
	ctx, cancel := context.WithTimeoutCause(ctx, opts.Deadline, fmt.Errorf("deadline of %s reached", opts.Deadline))
	defer cancel()
	if err := opts.measure(ctx, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "taskbench:", err)
		return 1
	}
	return 0
}

func (o *options) measure(ctx context.Context, stdout, progress io.Writer) error {
	users, err := o.makeUsers()
	if err != nil {
		return err
	}
	if o.Pairs > 0 {
		return o.runPairs(ctx, users, stdout, progress)
	}
	return o.runLoad(ctx, users, stdout, progress)
}
