package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// operation is one request of the API; {id} in path stands for a task.
type operation struct {
	method, path, body string
	want               int
}

var operations = map[string]operation{
	"create": {http.MethodPost, "/api/tasks", `{"title":"Made by taskbench"}`, http.StatusCreated},
	"toggle": {http.MethodPatch, "/api/tasks/{id}/complete", "", http.StatusOK},
	"get":    {http.MethodGet, "/api/tasks/{id}", "", http.StatusOK},
	"list":   {http.MethodGet, "/api/tasks?limit=20", "", http.StatusOK},
}

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
	var bad *badAnswer
	if errors.As(err, &bad) {
		return bad.Error()
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return "timeout"
	}
	return "connection"
}

// conn is one keep-alive connection. It belongs to one worker.
type conn struct {
	base   string
	client *http.Client
	body   bytes.Buffer // of the last answer
}

func newConn(base string, timeout time.Duration) *conn {
	return &conn{base: base, client: &http.Client{
		Timeout: timeout,
		// A transport of its own, without the environment's proxy: one connection, straight to the target.
		Transport: &http.Transport{MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1, DisableCompression: true},
		// A redirect would be a second request in the latency of one, and could lead away from the target.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (c *conn) close() { c.client.CloseIdleConnections() }

// do sends one request and reads its answer to the end. A status other than op.want is a *badAnswer.
func (c *conn) do(ctx context.Context, u *user, op operation, id string) error {
	req, err := c.request(ctx, u, op, id)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	c.body.Reset()
	if _, err := c.body.ReadFrom(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != op.want {
		return &badAnswer{status: resp.StatusCode, code: problemCode(c.body.Bytes())}
	}
	return nil
}

func (c *conn) request(ctx context.Context, u *user, op operation, id string) (*http.Request, error) {
	var body io.Reader
	if op.body != "" {
		body = strings.NewReader(op.body)
	}
	req, err := http.NewRequestWithContext(ctx, op.method, c.base+strings.Replace(op.path, "{id}", id, 1), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	if op.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
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
