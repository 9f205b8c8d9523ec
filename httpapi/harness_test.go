package httpapi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"taskledger/command"
	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/migrations/testdb"
	"taskledger/projections"
	"taskledger/query"
)

var testSecret = []byte("0123456789abcdef0123456789abcdef")

// service is a whole server on a database of its own, called over real HTTP. Every answer is held against openapi.yaml.
type service struct {
	t      testing.TB
	pool   *pgxpool.Pool
	server *Server
	http   *httptest.Server
	spec   *specChecker
	logged *bytes.Buffer
	ledger *events.Log
}

// start starts a service; the options change its configuration.
func start(t testing.TB, options ...func(*Config)) *service {
	t.Helper()
	return startOn(t, testdb.New(t), options...)
}

// startOn starts a process's worth of a service on a database that others may use too.
func startOn(t testing.TB, pool *pgxpool.Pool, options ...func(*Config)) *service {
	t.Helper()
	logged := &bytes.Buffer{}
	log := slog.New(slog.NewTextHandler(logged, nil))
	ctx, stop := context.WithCancel(context.Background())
	db := events.NewDB(pool, testdb.Schema, "")
	ledger := events.Open(db)
	runner := projections.NewRunner(ledger, log, nil)
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	authenticator, err := auth.New(ctx, auth.Config{
		Secret: testSecret, Sessions: pool, Logger: log, AllowedOrigins: []string{"http://localhost:3000"},
	})
	if err != nil {
		t.Fatal(err)
	}
	queries := query.NewReader(query.Config{
		DB: events.NewDB(pool, testdb.Schema, readAs), Log: ledger, ReadModel: runner, KeptBytes: 1 << 20,
	})
	cfg := Config{
		Commands: command.NewHandler(
			command.Config{Log: ledger, Stored: queries.Wrote, Quota: 10, CacheBytes: 1 << 20},
		),
		Queries: queries,
		Auth:    authenticator,
		Log:     log,
		Metrics: prometheus.NewRegistry(),
		Ready:   func(context.Context) error { return nil },
		Watch:   runner.Watch,
		Version: "test",
		Origins: []string{"http://localhost:3000"},
	}
	for _, option := range options {
		option(&cfg)
	}
	s := &service{t: t, pool: pool, server: New(cfg), spec: newSpecChecker(t), logged: logged, ledger: ledger}
	s.http = httptest.NewUnstartedServer(nil)
	s.http.Config = s.server.httpServer()
	s.http.Listener = listener{s.http.Listener, s.server.refuseUnreadable}
	s.http.Start()
	t.Cleanup(func() {
		s.http.Close()
		authenticator.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("projections: %v", err)
		}
		ledger.Close()
	})
	return s
}

// allow changes how many live tasks a user may have, before the first request.
func (s *service) allow(quota int) *service {
	s.server.commands = command.NewHandler(command.Config{
		Log: s.ledger, Stored: s.server.queries.Wrote, Quota: quota, CacheBytes: 1 << 20,
	})
	return s
}

// readAs is the role that row level security binds; the tests are a superuser.
const readAs = `SELECT set_config('role', 'pg_read_all_data', true)`

// exec runs SQL by hand.
func (s *service) exec(text string, args ...any) {
	s.t.Helper()
	text = strings.ReplaceAll(text, "{schema}", testdb.Schema)
	if _, err := s.pool.Exec(context.Background(), text, args...); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
}

// taskJSON is a Task as a client reads it.
type taskJSON struct {
	ID          uuid.UUID `json:"id"`
	UserID      string    `json:"user_id"`
	Title       string    `json:"title"`
	Description *string   `json:"description"`
	IsCompleted bool      `json:"is_completed"`
	CreatedAt   string    `json:"created_at"`
	UpdatedAt   string    `json:"updated_at"`
	Version     int64     `json:"version"`
}

// historyJSON is a history entry as a client reads it.
type historyJSON struct {
	Seq        int64           `json:"seq"`
	Type       events.Type     `json:"type"`
	TaskID     uuid.UUID       `json:"task_id"`
	RecordedAt string          `json:"recorded_at"`
	Actor      string          `json:"actor"`
	RequestID  string          `json:"request_id"`
	Changes    json.RawMessage `json:"changes"`
	Hash       string          `json:"hash"`
}

// call is one request.
type call struct {
	method, path string
	user         string // whose token is sent; empty = none
	body         string
	header       http.Header
}

// answer is what came back, read to its end.
type answer struct {
	*http.Response
	body []byte
}

func (s *service) token(user string) string {
	s.t.Helper()
	token, err := auth.SignToken(testSecret, user, "", "", time.Now(), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// signIn makes Better Auth's tables with a session of the user, and returns that as Better Auth signs it.
func (s *service) signIn(user string) string {
	s.t.Helper()
	const token = "2gIFf9Aq3xWJ0nRkT7sYbVhLcEoZpMuD"
	_, err := s.pool.Exec(context.Background(), `
		CREATE TABLE public."user" ("id" text PRIMARY KEY);
		CREATE TABLE public."session" ("token" text UNIQUE, "userId" text, "expiresAt" timestamptz)`)
	if err == nil {
		_, err = s.pool.Exec(context.Background(), `
			WITH u AS (INSERT INTO public."user" VALUES ($2) RETURNING "id")
			INSERT INTO public."session" SELECT $1, "id", now() + interval '1 hour' FROM u`, token, user)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, testSecret)
	mac.Write([]byte(token))
	return token + "." + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// do sends a request without following redirects.
func (s *service) do(c call) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), c.method, s.http.URL+c.path, strings.NewReader(c.body))
	if err != nil {
		s.t.Fatal(err)
	}
	if c.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.user != "" {
		req.Header.Set("Authorization", "Bearer "+s.token(c.user))
	}
	for name, values := range c.header {
		req.Header[name] = values
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", c.method, c.path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", c.method, c.path, err)
	}
	s.spec.check(s.t, req, resp, body)
	return answer{resp, body}
}

// want sends a request and fails the test unless it is answered with the status.
func (s *service) want(status int, c call) answer {
	s.t.Helper()
	a := s.do(c)
	if a.StatusCode != status {
		s.t.Fatalf("%s %s %.80s: %d %s, want %d", c.method, c.path, c.body, a.StatusCode, a.body, status)
	}
	return a
}

// as decodes an answer's body.
func as[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return v
}

func (s *service) create(user, body string) taskJSON {
	s.t.Helper()
	return as[taskJSON](s.t, s.want(201, call{method: "POST", path: "/api/tasks", user: user, body: body}))
}

func (s *service) titled(user, title string) taskJSON {
	s.t.Helper()
	return s.create(user, fmt.Sprintf(`{"title":%q}`, title))
}

func (s *service) list(user, query string) []taskJSON {
	s.t.Helper()
	return as[[]taskJSON](s.t, s.want(200, call{method: "GET", path: "/api/tasks" + query, user: user}))
}

// problemJSON is a problem as a client reads it.
type problemJSON struct {
	Type, Title, Code, Detail, Message string
	Status                             int
	RequestID                          string `json:"request_id"`
	CurrentVersion                     int64  `json:"current_version"`
	Index                              *int
	Errors                             []struct {
		Pointer                 *string
		Parameter, Code, Detail string
	}
}

// refused sends a request and fails the test unless it is refused with the status and code.
func (s *service) refused(status int, code string, c call) problemJSON {
	s.t.Helper()
	p := as[problemJSON](s.t, s.want(status, c))
	if p.Code != code {
		s.t.Fatalf("%s %s %.80s: code %s, want %s", c.method, c.path, c.body, p.Code, code)
	}
	return p
}

func titles(tasks []taskJSON) []string {
	out := []string{}
	for _, t := range tasks {
		out = append(out, t.Title)
	}
	return out
}

// noMetrics registers nothing.
type noMetrics struct{ prometheus.Registerer }

func (noMetrics) MustRegister(...prometheus.Collector) {}

func alwaysUnready(context.Context) error { return errors.New("secret reason") }
