package httpapi

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
)

// connKey is the key of a request's connection in its context.
type connKey struct{}

// tcpOf is the TCP connection that a request came on, if it came on one.
func tcpOf(r *http.Request) *net.TCPConn {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return nil
	}
	tcp, _ := c.Conn.(*net.TCPConn)
	return tcp
}

// conn is a client's connection. It tells whether a request has begun to come, and turns what net/http answers by
// itself, in plain text, into problems.
type conn struct {
	net.Conn
	refuse  func(plain []byte) []byte
	begun   atomic.Bool   // something has come that is not answered yet
	handled bool          // the request that came last has reached our handler; of the connection's own goroutine
	held    *bytes.Buffer // nil unless what is written is gathered; of the same goroutine

	mu    sync.Mutex // guards what follows
	state http.ConnState
	since time.Time
}

// listener accepts connections as conns.
type listener struct {
	net.Listener
	refuse func(plain []byte) []byte
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, refuse: l.refuse}, nil
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.begun.Store(true)
	}
	return n, err
}

// Write implements net.Conn. What is written before a request has reached our handler is net/http's own.
func (c *conn) Write(p []byte) (int, error) {
	switch {
	case c.held != nil:
		return c.held.Write(p)
	case c.handled:
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(c.refuse(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// httpBuffer is the size of net/http's buffer in front of a connection: an answer over that comes in several writes.
const httpBuffer = 4 << 10

var heldBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// inOneWrite sends all that answer writes in one go, which costs half as much here and at the client.
func inOneWrite(w http.ResponseWriter, r *http.Request, answer func() error) error {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return answer()
	}
	held := heldBuffers.Get().(*bytes.Buffer)
	held.Reset()
	defer heldBuffers.Put(held)
	c.held = held
	defer func() { c.held = nil }()
	if err := answer(); err != nil {
		return err
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	_, err := c.Conn.Write(held.Bytes())
	return err
}

// CloseWrite lets net/http end an answer while the client still sends.
func (c *conn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// handle takes a request over from net/http.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		c.handled = true
	}
	s.echo.ServeHTTP(w, r)
}

// unreadable says what is wrong with a request that net/http refuses by itself, by the status that it has for it.
var unreadable = map[int]struct{ code, detail string }{
	400: {"validation_error", "the request is not the HTTP of RFC 9112"},
	417: {"validation_error", "Expect: must be 100-continue"},
	431: {"payload_too_large", fmt.Sprintf("the headers must not be over %d bytes", maxHeader)},
	501: {"validation_error", "Transfer-Encoding: must be chunked"},
	505: {"validation_error", "the version of HTTP must be 1.0 or 1.1"},
}

// refuseUnreadable makes a problem of an answer of net/http's own, and counts and logs it. Nothing of the request is
// known: not its id, nor its path, nor its origin.
func (s *Server) refuseUnreadable(plain []byte) []byte {
	line, rest, _ := bytes.Cut(plain, []byte("\r\n"))
	version, reason, _ := bytes.Cut(line, []byte(" "))
	status, err := strconv.Atoi(string(reason[:min(len(reason), 3)]))
	if err != nil || status < http.StatusBadRequest {
		return plain
	}
	why, ok := unreadable[status]
	if !ok {
		why = unreadable[http.StatusBadRequest]
	}
	p := newProblem(status, why.code, why.detail)
	if _, more, ok := bytes.Cut(reason, []byte(": ")); ok {
		p.Detail += ": " + string(more)
	}
	id := uuid.NewString()
	header := http.Header{
		"Cache-Control":          {"private, no-cache"},
		"Connection":             {"close"},
		"Date":                   {time.Now().UTC().Format(http.TimeFormat)},
		"Vary":                   {"Authorization, Cookie, Origin"},
		"X-Content-Type-Options": {"nosniff"},
		echo.HeaderXRequestID:    {id},
	}
	body := p.fill(header)
	if status == http.StatusExpectationFailed && !bytes.Contains(rest, []byte("Content-Length")) {
		body = nil // it was a HEAD: net/http has read this one
	}
	s.metrics.request(kind{"other", "none", status}, 0)
	s.log.Info("request", "method", "other", "route", "none", "status", status, "ms", 0, "request_id", id)
	var answer bytes.Buffer
	fmt.Fprintf(&answer, "%s %d %s\r\n", version, status, http.StatusText(status))
	_ = header.Write(&answer) // a buffer takes everything
	answer.WriteString("\r\n")
	answer.Write(body)
	return answer.Bytes()
}

// connections knows which connections may have a request that is not answered yet.
type connections struct {
	mu   sync.Mutex
	open map[*conn]bool
}

const (
	// firstTime is how long the first request of a connection may be on its way.
	firstTime = time.Second
	// nextTime is how long the next may be, of a client that sends one after the other.
	nextTime = 100 * time.Millisecond
)

// note is the ConnState hook of an http.Server.
func (c *connections) note(of net.Conn, state http.ConnState) {
	known, ok := of.(*conn)
	if !ok {
		return
	}
	known.enter(state)
	switch state {
	case http.StateNew:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open[known] = true
	case http.StateClosed, http.StateHijacked:
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, known)
	}
}

func (c *conn) enter(state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateActive: // also when all of it had come together with the request before
		c.begun.Store(true)
	case http.StateIdle:
		c.begun.Store(false)
		c.handled = false
	}
	c.state, c.since = state, time.Now()
}

// settled tells whether every request is answered that had come by then, or with zero every one.
func (c *connections) settled(then time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		if !conn.settled(then) {
			return false
		}
	}
	return true
}

func (c *conn) settled(then time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !then.IsZero() && !c.since.Before(then) || !c.begun.Load() && time.Since(c.since) >= mayTake[c.state]
}

// mayTake is how long a request may be on its way on a connection in a state.
var mayTake = map[http.ConnState]time.Duration{http.StateNew: firstTime, http.StateIdle: nextTime}
