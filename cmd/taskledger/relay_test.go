package main

import (
	"fmt"
	"net"
	neturl "net/url"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// relay leads to a PostgreSQL. It counts what is sent there, and can go dead.
type relay struct {
	t        *testing.T
	url      string       // leads to the same database
	sent     atomic.Int64 // how often clients have sent something
	accepted atomic.Int64 // connections
	dead     atomic.Int64 // so many of them, the first ones, lead nowhere any more
}

func openRelay(t *testing.T, url string) *relay {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &relay{t: t}
	r.url = fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable",
		neturl.QueryEscape(config.User), neturl.QueryEscape(config.Password), l.Addr(), config.Database)
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil {
				_ = client.Close()
				continue
			}
			t.Cleanup(func() { _, _ = client.Close(), server.Close() })
			number := r.accepted.Add(1)
			go r.pass(number, server, client, &r.sent)
			go r.pass(number, client, server, new(atomic.Int64))
		}
	}()
	return r
}

// silence makes present connections lead nowhere, as in a failover or behind a router that forgot: nothing is refused,
// nothing is answered. New ones work.
func (r *relay) silence() { r.dead.Store(r.accepted.Load()) }

func (r *relay) pass(number int64, to, from net.Conn, count *atomic.Int64) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if number <= r.dead.Load() {
			<-r.t.Context().Done()
			return
		}
		count.Add(1)
		if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}
