package httpapi

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An answer that is larger than net/http's buffer comes in one write all the same, and the connection goes on.
func TestAnAnswerIsOneWrite(t *testing.T) {
	t.Parallel()
	s := start(t)
	for range 8 {
		s.want(201, call{method: "POST", path: "/api/tasks", user: "u",
			body: `{"title":"a","description":"` + strings.Repeat("x", 1000) + `"}`})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var writes atomic.Int64
	server := s.server.httpServer()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener{writesCounted{l, &writes}, s.server.refuseUnreadable}) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	s.http.URL = "http://" + l.Addr().String()
	for n := range int64(3) {
		a := s.want(http.StatusOK, call{method: "GET", path: "/api/tasks", user: "u"})
		if writes.Load() != n+1 || len(a.body) < 2*httpBuffer {
			t.Errorf("%d writes after answer %d of %d bytes", writes.Load(), n+1, len(a.body))
		}
	}
}

// writesCounted counts what is written to its connections.
type writesCounted struct {
	net.Listener
	n *atomic.Int64
}

func (l writesCounted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countedConn{c, l.n}, err
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

// A connection is waited for while it has a request, and for a moment when it may have one.
func TestConnectionsAreSettled(t *testing.T) {
	t.Parallel()
	all := connections{open: map[*conn]bool{}}
	c := &conn{}
	before := time.Now()
	want := func(what string, settled, settledBefore bool) {
		t.Helper()
		if got := all.settled(time.Time{}); got != settled {
			t.Errorf("%s: settled is %t", what, got)
		}
		if got := all.settled(before); got != settledBefore {
			t.Errorf("%s: what had come before it is settled is %t", what, got)
		}
	}
	long := func(d time.Duration) { c.since = time.Now().Add(-d) }
	all.note(c, http.StateNew)
	want("a new connection", false, true)
	long(firstTime)
	want("one that stays without a request", true, true)
	all.note(c, http.StateActive)
	want("a request that has just come", false, true)
	long(time.Hour)
	want("one that takes long", false, false)
	all.note(c, http.StateIdle)
	want("an answer", false, true)
	long(nextTime)
	want("one that no request follows", true, true)
	c.begun.Store(true)
	want("the beginning of the next one", false, false)
	all.note(c, http.StateClosed)
	want("the end", true, true)
}
