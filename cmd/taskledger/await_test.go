package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"taskledger/migrations/testdb"
)

// door is a way to a database. While it is shut, it ends connections at once, or takes them and says nothing.
type door struct {
	url    string
	isOpen atomic.Bool
}

func openDoor(t *testing.T, to string, silent bool) *door {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	address := u.Host
	u.Host = listener.Addr().String()
	if !silent { // however slow the machine is, what is wrong is not that nobody answers
		query := u.Query()
		query.Set("connect_timeout", fmt.Sprint(patience.Seconds()))
		u.RawQuery = query.Encode()
	}
	d := &door{url: u.String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				if !d.isOpen.Load() {
					if silent {
						<-t.Context().Done()
					}
					// What is closed with something unread is reset, which is not an end.
					_, _ = client.Read(make([]byte, 4<<10))
					return
				}
				server, err := net.Dial("tcp", address)
				if err != nil {
					return
				}
				defer server.Close()
				go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	return d
}

// A server that starts before its database waits for it, and says so.
func TestAServerWaitsForItsDatabase(t *testing.T) {
	t.Parallel()
	for because, silent := range map[string]bool{"it ends connections at once": false, "it does not answer": true} {
		t.Run(because, func(t *testing.T) {
			t.Parallel()
			way := openDoor(t, testdb.EmptyURL(t), silent)
			s := &served{t: t, stderr: &lockedBuffer{}}
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				for !strings.Contains(s.stderr.String(), `msg="waiting for the database"`) && tick(ctx) {
				}
				way.isOpen.Store(true)
			}()
			s.start("DATABASE_URL="+way.url, "BETTER_AUTH_SECRET="+serveSecret)
			s.await(200, func() (int, error) { return s.status("/readyz") })
			s.await(201, func() (int, error) {
				status, _, err := s.call("u", "POST", "/api/tasks", `{"title":"a"}`)
				return status, err
			})
			if said := s.stderr.String(); !strings.Contains(said, because) || strings.Contains(said, "postgres:") ||
				strings.Contains(said, "127.0.0.1") {
				t.Errorf("it said %s", said)
			}
			s.terminate()
		})
	}
}

func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	away := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	refused := &pgconn.PgError{Code: "28P01"}
	for _, tt := range []struct {
		name     string
		errs     []error
		patience time.Duration
		want     error
	}{
		{"it is there", []error{nil}, time.Minute, nil},
		{"it comes", []error{away, &pgconn.PgError{Code: "57P03"}, io.ErrUnexpectedEOF, nil}, time.Minute, nil},
		{"it refuses", []error{away, refused}, time.Minute, refused},
		{"it does not come", []error{away}, 0, away},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tries := 0
			_, err := patiently(
				t.Context(),
				tt.patience,
				slog.New(slog.DiscardHandler),
				func(context.Context) (*database, error) {
					tries++
					return nil, tt.errs[tries-1]
				},
			)
			if !errors.Is(err, tt.want) || tries != len(tt.errs) {
				t.Errorf("after %d tries: %v", tries, err)
			}
		})
	}
}
