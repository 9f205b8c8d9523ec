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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// startPatience is how long a server that starts waits for its database, which may be starting too.
	startPatience = time.Minute
	// answerTimeout is how long a database may take to let us in.
	answerTimeout = 5 * time.Second
	// awaitPause is the time between two attempts.
	awaitPause = 250 * time.Millisecond
)

// await returns when the database has answered, be it with a refusal: that will not go away by itself, and whoever connects next tells
// it. It logs what it waits for, and for how long at most.
func await(ctx context.Context, url string, patience time.Duration, log *slog.Logger) error {
	config, err := poolConfig(url)
	if err != nil {
		return fmt.Errorf("database URL: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pause := time.NewTicker(awaitPause)
	defer pause.Stop()
	for told := ""; ; {
		conn, err := pgx.ConnectConfig(waiting, config.ConnConfig)
		if err == nil {
			return conn.Close(waiting)
		}
		if !isAway(err) {
			return nil
		}
		why := awayReason(err)
		if why != told && waiting.Err() == nil {
			log.Warn("waiting for the database", "host", config.ConnConfig.Host, "port", config.ConnConfig.Port,
				"database", config.ConnConfig.Database, "because", why, "at_most", patience)
			told = why
		}
		select {
		case <-pause.C:
		case <-waiting.Done():
			if err := ctx.Err(); err != nil {
				return err
			}
			return fmt.Errorf("the database %s at %s is away for %v: %s", config.ConnConfig.Database, config.ConnConfig.Host, patience, told)
		}
	}
}

// isAway tells a database that may be there in a moment from one that has answered: a password, a name or a certificate that is wrong
// stays wrong.
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
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Message
	}
	if lookup, ok := errors.AsType[*net.DNSError](err); ok {
		return lookup.Err
	}
	if system, ok := errors.AsType[syscall.Errno](err); ok {
		return system.Error()
	}
	return "it ends connections at once"
}
