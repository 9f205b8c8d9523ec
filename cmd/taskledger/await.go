package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"taskledger/events"
)

const (
	// startPatience is how long a server that starts waits for its database, which may be starting too.
	startPatience = time.Minute
	// awaitPause is the time between two attempts.
	awaitPause = 250 * time.Millisecond
)

// patiently tries to open a database until it is there or has refused, or patience is at its end. It logs what it waits
// for.
func patiently(
	ctx context.Context, patience time.Duration, log *slog.Logger, open func(context.Context) (*database, error),
) (*database, error) {
	pause := time.NewTicker(awaitPause)
	defer pause.Stop()
	told := ""
	for deadline := time.Now().Add(patience); ; {
		db, err := open(ctx)
		if err == nil || !isAway(err) || ctx.Err() != nil {
			return db, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w (waited for it for %v)", err, patience)
		}
		if why := awayReason(err); why != told {
			log.Warn("waiting for the database", "because", why, "at_most", patience.String())
			told = why
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the database: %w", ctx.Err())
		}
	}
}

// isAway tells a database that may be there in a moment from one that has answered: a password, a name or a certificate
// that is wrong stays wrong.
func isAway(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection exceptions, too many connections, starting up or shutting down, system errors.
		return slices.Contains([]string{"08", "53", "57", "58", "XX"}, pgErr.Code[:2])
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	_, network := errors.AsType[net.Error](err)
	return network || pgconn.Timeout(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// awayReason is what keeps a database away, without anything of its URL.
func awayReason(err error) string {
	if pgconn.Timeout(err) {
		return "it does not answer"
	}
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		return events.Cause(err) // PostgreSQL's own words may name the role or the database
	}
	if lookup, ok := errors.AsType[*net.DNSError](err); ok {
		return lookup.Err
	}
	if system, ok := errors.AsType[syscall.Errno](err); ok {
		return system.Error()
	}
	return "it ends connections at once"
}
