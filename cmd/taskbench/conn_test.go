package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var ask = operation{http.MethodGet, "/api/tasks", "", http.StatusOK}

// serve starts a server of net/http that counts its connections.
func serve(t testing.TB, handler http.HandlerFunc) (url string, connections *atomic.Int64) {
	t.Helper()
	connections = &atomic.Int64{}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return server.URL, connections
}

// serveRaw answers each request, which must have no body, with the same bytes, and then closes the connection.
func serveRaw(t *testing.T, answer string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, answer)
			}
			_ = c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

func newTestConn(t testing.TB, url string) *conn {
	t.Helper()
	c := newConn(url, 10*time.Second)
	t.Cleanup(c.close)
	return c
}

// answering is how a server of net/http answers, and what a conn reads of it.
type answering struct {
	name        string
	handler     http.HandlerFunc
	status      int
	body        string
	connections int64 // for three requests
}

// isRead asks three times.
func (a answering) isRead(t *testing.T) {
	t.Parallel()
	url, connections := serve(t, a.handler)
	c := newTestConn(t, url)
	for range 3 {
		if err := c.do(t.Context(), &user{}, operation{http.MethodGet, "/", "", a.status}, ""); err != nil {
			t.Fatal(err)
		}
		if got := c.body.String(); got != a.body {
			t.Fatalf("read %d bytes %.20q, want %d", len(got), got, len(a.body))
		}
	}
	if n := connections.Load(); n != a.connections {
		t.Errorf("opened %d connections, want %d", n, a.connections)
	}
}

func TestConnReadsAnswersOfNetHTTP(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 4096)
	for _, a := range []answering{
		{"with a length", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }, 200, "hello", 1},
		{"empty", func(http.ResponseWriter, *http.Request) {}, 200, "", 1},
		{
			"long, and so chunked",
			func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, long) }, 200, long, 1,
		},
		{"in chunks", func(w http.ResponseWriter, _ *http.Request) {
			for _, part := range []string{"one ", "two ", long} {
				io.WriteString(w, part)
				w.(http.Flusher).Flush()
			}
		}, 200, "one two " + long, 1},
		{"in chunks with a trailer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Sum")
			io.WriteString(w, "one")
			w.(http.Flusher).Flush()
			w.Header().Set("Sum", "1")
		}, 200, "one", 1},
		{
			"no content",
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, 204, "", 1,
		},
		{"not modified", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusNotModified)
		}, 304, "", 1},
		{"after an early hint", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "hello")
		}, 200, "hello", 1},
		{"that is the last", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			io.WriteString(w, "hello")
		}, 200, "hello", 3},
	} {
		t.Run(a.name, a.isRead)
	}
}

func TestConnReadsOtherAnswers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, answer string
		body         string
		failure      string // empty: none
	}{
		{"to the end of the connection", "HTTP/1.1 200 OK\r\n\r\nhello", "hello", ""},
		{"of HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", ""},
		{"names in capitals", "HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 5\r\nCONNECTION: x, Close\r\n\r\nhello", "hello", ""},
		{"without a reason", "HTTP/1.1 200\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", "hello", ""},
		{"chunked goes before a length",
			"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
				"5\r\nhello\r\n0\r\n\r\n",
			"hello", ""},
		{"shorter than it says", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", "", "connection"},
		{
			"without the last chunk",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
			"",
			"connection",
		},
		{"another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", "", "connection"},
		{"no length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", "", "connection"},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-", "", "connection"},
		{"not HTTP", "hello\r\n\r\n", "", "connection"},
		{"nothing", "", "", "connection"},
		{"another status",
			"HTTP/1.1 503 No\r\nContent-Length: 22\r\nConnection: close\r\n\r\n" + `{"code":"unavailable"}`,
			"", "503 unavailable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newTestConn(t, serveRaw(t, tt.answer))
			for range 2 {
				err := c.do(t.Context(), &user{}, ask, "")
				if tt.failure != "" && (err == nil || failureName(err) != tt.failure) {
					t.Fatalf("got %v, want one that counts as %q", err, tt.failure)
				}
				if tt.failure == "" && (err != nil || c.body.String() != tt.body) {
					t.Fatalf("read %q, %v", c.body.String(), err)
				}
			}
		})
	}
}

func TestConnSendsWhatItIsAskedTo(t *testing.T) {
	t.Parallel()
	type request struct{ line, token, content, length, body string }
	var got request
	url, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = request{r.Method + " " + r.RequestURI + " " + r.Host, r.Header.Get("Authorization"),
			r.Header.Get("Content-Type"), r.Header.Get("Content-Length"), string(body)}
	})
	host := strings.TrimPrefix(url, "http://")
	tests := []struct {
		op   operation
		want request
	}{
		{operations["list"], request{"GET /x/api/tasks?limit=20 " + host, "Bearer t", "", "", ""}},
		{operations["get"], request{"GET /x/api/tasks/7 " + host, "Bearer t", "", "", ""}},
		{operations["toggle"], request{"PATCH /x/api/tasks/7/complete " + host, "Bearer t", "", "0", ""}},
		{operations["delete"], request{"DELETE /x/api/tasks/7 " + host, "Bearer t", "", "0", ""}},
		{operations["create"], request{
			"POST /x/api/tasks " + host, "Bearer t", "application/json", "29", `{"title":"Made by taskbench"}`,
		}},
	}
	c := newTestConn(t, url+"/x")
	for _, tt := range tests {
		tt.op.want = http.StatusOK
		if err := c.do(t.Context(), &user{token: "t"}, tt.op, "7"); err != nil || got != tt.want {
			t.Errorf("sent %+v, %v, want %+v", got, err, tt.want)
		}
	}
}

func TestConnDialsAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	url, connections := serve(t, func(http.ResponseWriter, *http.Request) {
		if requests.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
	})
	c := newTestConn(t, url)
	for i, want := range []bool{true, false, true} {
		if err := c.do(t.Context(), &user{}, ask, ""); (err == nil) != want {
			t.Errorf("request %d: %v", i+1, err)
		}
	}
	if n := connections.Load(); n != 2 {
		t.Errorf("opened %d connections, want 2", n)
	}
}

func TestConnSpeaksTLS(t *testing.T) {
	t.Parallel()
	hello := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }
	server := httptest.NewUnstartedServer(http.HandlerFunc(hello))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	stranger := newTestConn(t, server.URL)
	if err := stranger.do(t.Context(), &user{}, ask, ""); err == nil {
		t.Error("a certificate that nobody vouches for was taken")
	}
	c := newTestConn(t, server.URL)
	c.tls = &tls.Config{RootCAs: x509.NewCertPool()}
	c.tls.RootCAs.AddCert(server.Certificate())
	if err := c.do(t.Context(), &user{}, ask, ""); err != nil || c.body.String() != "hello" {
		t.Errorf("read %q, %v", c.body.String(), err)
	}
}

func TestTheEndOfAContextEndsARequest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	url, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel(enough)
		<-r.Context().Done()
	})
	start := time.Now()
	err := newTestConn(t, url).do(ctx, &user{}, ask, "")
	if took := time.Since(start); !errors.Is(err, enough) || took > 5*time.Second {
		t.Errorf("got %v after %s", err, took)
	}
}

// Of what a request costs here, most is the server's: compare with another client in its place.
func BenchmarkConn(b *testing.B) {
	answer := bytes.Repeat([]byte("x"), 300)
	url, _ := serve(b, func(w http.ResponseWriter, _ *http.Request) { w.Write(answer) })
	c := newTestConn(b, url)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.do(b.Context(), &user{token: "t"}, ask, ""); err != nil {
			b.Fatal(err)
		}
	}
}
