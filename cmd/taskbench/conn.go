package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// operation is one request of the API; {id} in path stands for a task.
type operation struct {
	method, path, body string
	want               int
}

var operations = map[string]operation{
	"create": {http.MethodPost, "/api/tasks", `{"title":"` + title + `"}`, http.StatusCreated},
	"toggle": {http.MethodPatch, "/api/tasks/{id}/complete", "", http.StatusOK},
	"get":    {http.MethodGet, "/api/tasks/{id}", "", http.StatusOK},
	"list":   {http.MethodGet, "/api/tasks?limit=20", "", http.StatusOK},
	"delete": {http.MethodDelete, "/api/tasks/{id}", "", http.StatusNoContent},
}

// title is that of every task this program makes.
const title = "Made by taskbench"

// badAnswer is an answer with another status than the operation promises. code is the problem's code, if it has one.
type badAnswer struct {
	status int
	code   string
}

func (e *badAnswer) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", e.status, e.code))
}

// failureName groups errors for counting.
func failureName(err error) string {
	if bad, ok := errors.AsType[*badAnswer](err); ok {
		return bad.Error()
	}
	if _, ok := errors.AsType[*miss](err); ok {
		return "miss"
	}
	if errors.Is(err, errAllAsked) {
		return errAllAsked.Error()
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		return "timeout"
	}
	return "connection"
}

// conn is one keep-alive connection of HTTP/1.1. It belongs to one worker.
//
// It is not net/http's client, which costs more time than many an answer: the load shares the machine with what it
// measures. It dials when it has to, follows no redirect and tries nothing twice.
type conn struct {
	base    string
	timeout time.Duration // for dialling, and for an answer
	tls     *tls.Config   // nil is the usual one

	net     net.Conn // nil: the next request dials
	forget  func() bool
	reader  *bufio.Reader
	host    string
	prefix  string // what base has before /api
	request []byte
	body    bytes.Buffer // of the last answer
}

func newConn(base string, timeout time.Duration) *conn {
	return &conn{base: base, timeout: timeout, reader: bufio.NewReaderSize(nil, 16<<10)}
}

func (c *conn) close() {
	if c.net == nil {
		return
	}
	c.forget()
	_ = c.net.Close() // nothing more is wanted of it
	c.net = nil
}

// do sends one request and reads its answer to the end. A status other than op.want is a *badAnswer. All requests of a
// conn have the same ctx: its end closes the connection.
func (c *conn) do(ctx context.Context, u *user, op operation, id string) error {
	answer, body, err := c.send(ctx, u, op, id)
	if err != nil {
		return err
	}
	if err := c.readBody(answer, body); err != nil {
		c.close()
		return interrupted(ctx, err)
	}
	if answer.last {
		c.close()
	}
	if answer.status != op.want {
		return &badAnswer{status: answer.status, code: problemCode(c.body.Bytes())}
	}
	return nil
}

// interrupted is why ctx has ended, where that is why a connection failed.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// send returns when the head of the answer is there. Its body is read from the reader, unless there is an error.
func (c *conn) send(ctx context.Context, u *user, op operation, id string) (head, io.Reader, error) {
	answer, err := c.exchange(ctx, u, op, id)
	if err != nil {
		c.close()
		return head{}, nil, interrupted(ctx, err)
	}
	switch {
	case answer.chunked:
		return answer, httputil.NewChunkedReader(c.reader), nil
	case answer.length >= 0:
		return answer, io.LimitReader(c.reader, answer.length), nil
	default:
		return answer, c.reader, nil
	}
}

func (c *conn) exchange(ctx context.Context, u *user, op operation, id string) (head, error) {
	if c.net == nil {
		if err := c.dial(ctx); err != nil {
			return head{}, err
		}
	}
	if err := c.net.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return head{}, err
	}
	c.format(u, op, id)
	if _, err := c.net.Write(c.request); err != nil {
		return head{}, err
	}
	return readHead(c.reader)
}

func (c *conn) dial(ctx context.Context) error {
	u, err := url.Parse(c.base)
	if err != nil {
		return err
	}
	dialing, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var dialed net.Conn
	if u.Scheme == "https" {
		dialed, err = (&tls.Dialer{Config: c.tls}).DialContext(dialing, "tcp", address(u, "443"))
	} else {
		dialed, err = (&net.Dialer{}).DialContext(dialing, "tcp", address(u, "80"))
	}
	if err != nil {
		return err
	}
	c.net, c.host, c.prefix = dialed, u.Host, u.EscapedPath()
	c.forget = context.AfterFunc(ctx, func() { _ = dialed.Close() })
	c.reader.Reset(dialed)
	return nil
}

func address(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func (c *conn) format(u *user, op operation, id string) {
	before, after, _ := strings.Cut(op.path, "{id}")
	if before == op.path {
		id = ""
	}
	b := c.request[:0]
	for _, part := range []string{op.method, " ", c.prefix, before, id, after, " HTTP/1.1\r\nHost: ", c.host, "\r\n"} {
		b = append(b, part...)
	}
	if u.token != "" {
		b = append(append(append(b, "Authorization: Bearer "...), u.token...), "\r\n"...)
	}
	if op.body != "" {
		b = append(b, "Content-Type: application/json\r\n"...)
	}
	if op.method != http.MethodGet {
		b = strconv.AppendInt(append(b, "Content-Length: "...), int64(len(op.body)), 10)
		b = append(b, "\r\n"...)
	}
	c.request = append(append(b, "\r\n"...), op.body...)
}

// readBody reads the body into c.body, and up to where the next answer begins.
func (c *conn) readBody(answer head, body io.Reader) error {
	c.body.Reset()
	n, err := c.body.ReadFrom(body)
	if err != nil {
		return err
	}
	if answer.chunked {
		return readFields(c.reader, func(_, _ []byte) error { return nil })
	}
	if n < answer.length {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// head is what the head of an answer says of what follows.
type head struct {
	status  int
	length  int64 // -1: to the end of the connection, unless it is chunked
	chunked bool
	last    bool // the connection is of no use after it
}

// readHead reads the head of the final answer.
func readHead(r *bufio.Reader) (head, error) {
	for {
		h, err := readOneHead(r)
		if err != nil || h.status >= http.StatusOK {
			return h, err
		}
	}
}

func readOneHead(r *bufio.Reader) (head, error) {
	h := head{length: -1}
	line, err := readLine(r)
	if err != nil {
		return h, err
	}
	version, rest, _ := bytes.Cut(line, []byte(" "))
	code, _, _ := bytes.Cut(rest, []byte(" "))
	h.status, err = strconv.Atoi(string(code))
	if err != nil || len(code) != 3 || !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		return h, fmt.Errorf("not an answer of HTTP/1.1: %q", line)
	}
	h.last = string(version) == "HTTP/1.0"
	if err := readFields(r, h.note); err != nil {
		return h, err
	}
	if h.status == http.StatusNoContent || h.status == http.StatusNotModified {
		h.length, h.chunked = 0, false
	}
	h.last = h.last || h.length < 0 && !h.chunked
	return h, nil
}

// note looks at one field of the head.
func (h *head) note(name, value []byte) (err error) {
	switch {
	case is(name, "Content-Length"):
		if h.length, err = strconv.ParseInt(string(value), 10, 64); err != nil || h.length < 0 {
			return fmt.Errorf("not a Content-Length: %q", value)
		}
	case is(name, "Transfer-Encoding"):
		if h.chunked = is(value, "chunked"); !h.chunked {
			return fmt.Errorf("an unknown Transfer-Encoding: %q", value)
		}
	case is(name, "Connection"):
		for option := range bytes.SplitSeq(value, []byte(",")) {
			h.last = h.last || is(bytes.TrimSpace(option), "close")
		}
	}
	return nil
}

func is(b []byte, text string) bool {
	return len(b) == len(text) && strings.EqualFold(string(b), text)
}

// readFields reads header fields up to the empty line that ends them.
func readFields(r *bufio.Reader, each func(name, value []byte) error) error {
	for {
		line, err := readLine(r)
		if err != nil || len(line) == 0 {
			return err
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if err := each(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
}

// readLine returns a line without its end; it is valid until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, io.EOF) {
		return nil, io.ErrUnexpectedEOF
	}
	return bytes.TrimRight(line, "\r\n"), err
}

func problemCode(body []byte) string {
	var problem struct {
		Code string `json:"code"`
	}
	if json.Unmarshal(body, &problem) != nil {
		return ""
	}
	return problem.Code
}
