// Package httpapi speaks HTTP: it finds out who is calling, decodes strictly, turns requests into commands and queries,
// and their outcome into answers. CONTRACT is openapi.yaml beside this file, which is served too.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"taskledger/command"
	"taskledger/httpapi/auth"
	"taskledger/query"
)

// Config configures a Server. All of it is needed but what says otherwise.
type Config struct {
	Commands *command.Handler
	Queries  *query.Reader
	Auth     *auth.Authenticator
	Log      *slog.Logger
	// Tracer has a span made of each request under /api; nil is nobody.
	Tracer trace.Tracer
	// Metrics is where the requests are counted.
	Metrics prometheus.Registerer
	// Ready tells whether the service can do its work now; nil means it can. The error is logged, never shown.
	Ready func(ctx context.Context) error
	// Watch calls announce with the user's last seq, or 0 for one that is not known, each time the read model has come
	// to show more of the user's events, until leave is called.
	Watch func(user string, announce func(seq int64)) (leave func())
	// Version is shown at /.
	Version string
	// Origins may call from a browser, with credentials; compared exactly.
	Origins []string
	// RateRPS and RateBurst are a user's token bucket, in requests per second and requests; RateRPS 0 is no limit.
	RateRPS   float64
	RateBurst int
}

// Server answers requests.
type Server struct {
	commands *command.Handler
	queries  *query.Reader
	auth     *auth.Authenticator
	log      *slog.Logger
	tracer   trace.Tracer
	ready    func(ctx context.Context) error
	watch    func(user string, announce func(seq int64)) (leave func())
	version  string
	limits   *rateLimits
	metrics  metrics
	stopping chan struct{} // closed when the server is about to go
	echo     *echo.Echo

	connections connections
	streams     streams
	outages     outages
	askers      askers

	// What tests make shorter.
	bodyTime  time.Duration
	workTime  time.Duration
	drainTime time.Duration
	heartbeat time.Duration
	takeTime  time.Duration
	backlog   int64
}

// handler is a route for an authenticated caller.
type handler func(c echo.Context, caller auth.Caller) error

// New returns a Server; it does no I/O.
func New(cfg Config) *Server {
	s := &Server{
		commands: cfg.Commands,
		queries:  cfg.Queries,
		auth:     cfg.Auth,
		log:      cfg.Log,
		tracer:   cfg.Tracer,
		ready:    cfg.Ready,
		watch:    cfg.Watch,
		version:  cfg.Version,
		limits:   newRateLimits(cfg.RateRPS, cfg.RateBurst),
		metrics:  newMetrics(cfg.Metrics),
		stopping: make(chan struct{}),
		echo:     echo.New(),

		connections: connections{open: map[*conn]bool{}},
		streams:     streams{open: map[string]map[*stream]bool{}},
		outages:     outages{told: map[string]time.Time{}},

		bodyTime:  bodyTimeout,
		workTime:  workTimeout,
		drainTime: drainTimeout,
		heartbeat: heartbeat,
		takeTime:  takeTimeout,
		backlog:   streamBacklog,
	}
	s.echo.HTTPErrorHandler = s.answerError
	s.echo.Pre(tidyPath)
	// Put together once: echo would put it together anew for each request.
	through := s.observe(s.recover(harden(corsFor(cfg.Origins)(s.bound(s.identify(fits(route)))))))
	s.echo.Use(func(echo.HandlerFunc) echo.HandlerFunc { return through })
	s.routes()
	return s
}

func (s *Server) routes() {
	s.read("/api/tasks", s.user(s.list(s.tasks)))
	s.echo.POST("/api/tasks", s.user(s.createTask))
	s.read("/api/tasks/:id", s.user(s.getTask))
	s.echo.PUT("/api/tasks/:id", s.user(s.updateTask))
	s.echo.PATCH("/api/tasks/:id", s.user(s.updateTask))
	s.echo.DELETE(
		"/api/tasks/:id",
		s.user(s.onTask(func(id uuid.UUID) command.Command { return command.DeleteTask{ID: id} })),
	)
	s.echo.PATCH(
		"/api/tasks/:id/complete",
		s.user(s.onTask(func(id uuid.UUID) command.Command { return command.ToggleTask{ID: id} })),
	)
	s.echo.PUT(
		"/api/tasks/:id/complete",
		s.user(s.onTask(func(id uuid.UUID) command.Command { return command.CompleteTask{ID: id} })),
	)
	s.echo.DELETE(
		"/api/tasks/:id/complete",
		s.user(s.onTask(func(id uuid.UUID) command.Command { return command.ReopenTask{ID: id} })),
	)
	s.echo.POST(
		"/api/tasks/:id/restore",
		s.user(s.onTask(func(id uuid.UUID) command.Command { return command.RestoreTask{ID: id} })),
	)
	s.echo.POST("/api/tasks/:id/revert", s.user(s.revertTask))
	s.echo.POST(batchPath, s.user(s.batch))
	s.echo.DELETE("/api/me", s.user(s.eraseUser))
	s.read("/api/tasks/:id/history", s.user(s.list(s.taskHistory)))
	s.read("/api/history", s.user(s.list(s.history)))
	s.read("/api/trash", s.user(s.list(s.trash)))
	s.read("/api/sync", s.user(s.sync))
	s.read("/api/ledger", s.user(s.link))
	s.read("/api/export", s.user(s.export))
	s.echo.GET("/api/events", s.user(s.streamEvents))

	s.read("/", s.index)
	s.read("/livez", s.livez)
	s.read("/readyz", s.readyz)
	s.docs()
}

// read registers a route for GET, and for HEAD, which net/http answers without the body.
func (s *Server) read(path string, h echo.HandlerFunc) {
	s.echo.Match([]string{http.MethodGet, http.MethodHead}, path, h)
}

// route calls the handler of the route that was found.
func route(c echo.Context) error { return c.Handler()(c) }

// user hands the caller, whom identify has found, to a handler.
func (s *Server) user(h handler) echo.HandlerFunc {
	return func(c echo.Context) error { return h(c, workOf(c).caller) }
}
