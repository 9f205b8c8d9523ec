package httpapi

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"taskledger/httpapi/auth"
)

var requestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// methods are those of the routes.
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
}

// exposed are the headers of answers that a browser's scripts may read from another origin.
var exposed = []string{
	"Allow",
	"ETag",
	"Idempotency-Replayed",
	"Link",
	"Location",
	"RateLimit",
	"RateLimit-Policy",
	"Retry-After",
	"WWW-Authenticate",
	"X-Request-Id",
	"X-Stale",
	"X-Version",
}

// accepted are the headers that a browser's scripts may send from another origin.
var accepted = []string{
	"Authorization",
	"baggage",
	"Cache-Control",
	"Content-Type",
	"Idempotency-Key",
	"If-Match",
	"If-None-Match",
	"Last-Event-ID",
	"sentry-trace",
	"traceparent",
	"tracestate",
	"X-Requested-With",
	"X-Request-Id",
}

func underAPI(path string) bool {
	return path == "/api" || strings.HasPrefix(path, "/api/")
}

// tidyPath makes /api/tasks/ the same as /api/tasks, and a path the same whatever of it is percent-encoded; but an
// encoded slash stays part of its segment.
func tidyPath(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		url := c.Request().URL
		if len(url.Path) > 1 {
			url.Path = strings.TrimSuffix(url.Path, "/")
			url.RawPath = strings.TrimSuffix(url.RawPath, "/")
		}
		if !strings.Contains(strings.ToLower(url.RawPath), "%2f") {
			url.RawPath = ""
		}
		return next(c)
	}
}

// observe gives the request its id, and counts and logs it: never its path or query as sent, which may hold anything.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		id := c.Request().Header.Get(echo.HeaderXRequestID)
		if !requestID.MatchString(id) {
			id = uuid.NewString()
		}
		c.Response().Header().Set(echo.HeaderXRequestID, id)
		c.Response().Before(func() {
			if s.isStopping() {
				c.Response().Header().Set("Connection", "close")
			}
		})
		span := s.startSpan(c, id)
		defer span.End()
		if err := s.limitReading(c); err != nil {
			return err
		}
		if err := next(c); err != nil {
			c.Error(err)
		}
		took := time.Since(start)
		route, method := routeOf(c), methodOf(c.Request())
		s.metrics.request(kind{method, route, c.Response().Status}, took)
		finish(span, route, c.Response().Status)
		if s.log.Enabled(c.Request().Context(), slog.LevelInfo) {
			log := s.log
			if traced := span.SpanContext(); traced.IsValid() {
				log = log.With("trace_id", traced.TraceID())
			}
			log.Info("request", "method", method, "route", route, "status", c.Response().Status,
				"ms", float64(took.Microseconds())/1000, "request_id", id)
		}
		return nil
	}
}

// startSpan begins the span of a request under /api, in the trace that the caller named. It has no more in it than the
// line that is logged.
func (s *Server) startSpan(c echo.Context, id string) trace.Span {
	r := c.Request()
	if s.tracer == nil || !underAPI(r.URL.Path) {
		return noop.Span{}
	}
	method := methodOf(r)
	name := method
	if matched(c) {
		name += " " + c.Path()
	}
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := s.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", method), attribute.String("request_id", id)))
	c.SetRequest(r.WithContext(ctx))
	return span
}

// finish notes in a request's span how it was answered.
func finish(span trace.Span, route string, status int) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.String("http.route", route), attribute.Int("http.response.status_code", status))
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
}

// routeOf is the pattern that matched, so that there are few of them.
func routeOf(c echo.Context) string {
	if path := c.Path(); path != "" && c.Response().Status != http.StatusMethodNotAllowed {
		return path
	}
	return "none"
}

func methodOf(r *http.Request) string {
	if r.Method == http.MethodOptions || slices.Contains(methods, r.Method) {
		return r.Method
	}
	return "other"
}

// recover turns a panic into an answer, and logs where it was.
func (s *Server) recover(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			switch r := recover(); r {
			case nil:
			case http.ErrAbortHandler:
				panic(r)
			default:
				s.log.Error("panic", "type", fmt.Sprintf("%T", r), "stack", string(debug.Stack()))
				err = newProblem(http.StatusInternalServerError, "internal", "something went wrong on our side")
			}
		}()
		return next(c)
	}
}

// Headers that every answer has; a value set by itself would cost an allocation each. Nobody writes into them.
var (
	nosniff      = []string{"nosniff"}
	cacheControl = []string{"private, no-cache"}
	vary         = []string{"Authorization, Cookie, Origin"}
)

// harden sets the headers that every answer has.
func harden(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		header := c.Response().Header()
		header["X-Content-Type-Options"] = nosniff
		if underAPI(c.Request().URL.Path) {
			header["Cache-Control"] = cacheControl
			header["Vary"] = vary
			if isFromPage(c.Request()) {
				c.Response().Before(func() { header["Vary"] = vary }) // CORS has added to it
			}
		}
		return next(c)
	}
}

// isFromPage tells whether the request is one that CORS is about.
func isFromPage(r *http.Request) bool { return r.Header.Get("Origin") != "" }

// corsFor lets browsers of exactly these origins in, with credentials.
func corsFor(origins []string) echo.MiddlewareFunc {
	return middleware.CORSWithConfig(middleware.CORSConfig{
		// OPTIONS that is no preflight is a method like any other.
		Skipper: func(c echo.Context) bool {
			r := c.Request()
			return !isFromPage(r) ||
				r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") == ""
		},
		AllowOriginFunc:  func(origin string) (bool, error) { return slices.Contains(origins, origin), nil },
		AllowMethods:     methods,
		AllowHeaders:     accepted,
		AllowCredentials: true,
		ExposeHeaders:    exposed,
		MaxAge:           600,
	})
}

// identify finds out who is calling before anything else of the request is looked at, and counts the request to that
// user.
func (s *Server) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if !underAPI(c.Request().URL.Path) {
			return next(c)
		}
		caller, err := s.auth.Authenticate(c.Request())
		var refused *auth.Error
		if err != nil && !errors.As(err, &refused) {
			return unavailable(err)
		}
		if err != nil {
			return err
		}
		if err := s.limits.take(c.Response().Header(), caller.UserID); err != nil {
			return err
		}
		workOf(c).caller = caller
		return next(c)
	}
}

// limitReading gives a request its time for the body. When the answer is there the rest of the body gets a moment only:
// net/http reads it before it answers, to use the connection again, and who never sends it would never be answered.
func (s *Server) limitReading(c echo.Context) error {
	conn := http.NewResponseController(c.Response().Writer)
	limit := func(d time.Duration) error {
		if err := conn.SetReadDeadline(time.Now().Add(d)); !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		return nil
	}
	if c.Request().ContentLength == 0 {
		return nil
	}
	c.Response().Before(func() {
		if body, ok := c.Request().Body.(*timedBody); ok && body.ended {
			return // net/http now waits for the client's next request, or its end
		}
		if err := limit(restTimeout); err != nil {
			c.Response().Header().Set("Connection", "close")
		}
	})
	return limit(s.bodyTime)
}

// bound limits the request's body, and the time for its work, which begins anew when the body is there.
func (s *Server) bound(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		w := &work{Context: r.Context(), until: time.Now().Add(s.workTime)}
		defer w.finish()
		r = r.WithContext(w)
		if r.ContentLength != 0 {
			r.Body = &timedBody{
				ReadCloser: http.MaxBytesReader(c.Response().Writer, r.Body, bodyLimit(c)),
				begin:      func() { w.limit(s.bodyTime + s.workTime) },
				end:        func() { w.limit(s.workTime) },
			}
		}
		c.SetRequest(r)
		return next(c)
	}
}

// fits refuses a body that says it is too large before anything of it is read; where nobody reads bodies, its size is
// nobody's business.
func fits(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if r.ContentLength > bodyLimit(c) && underAPI(r.URL.Path) && matched(c) {
			return payloadTooLarge(bodyLimit(c))
		}
		return next(c)
	}
}

func bodyLimit(c echo.Context) int64 {
	if c.Path() == batchPath {
		return maxBatchBody
	}
	return maxBody
}

// timedBody tells when a body begins to be read, and when it ends.
type timedBody struct {
	io.ReadCloser
	begin, end   func()
	begun, ended bool
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.begin()
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	b.ended = b.ended || errors.Is(err, io.EOF)
	return n, err
}

// matched tells whether the request has found a route: an unknown path and a wrong method are told before its size.
func matched(c echo.Context) bool {
	return c.Path() != "" && c.Get(echo.ContextKeyHeaderAllow) == nil
}

// answerError is the one place where an error becomes an answer, and where it is logged.
func (s *Server) answerError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	p := problemOf(err)
	s.logFailure(p, c.Response().Header().Get(echo.HeaderXRequestID))
	writeProblem(c.Response(), p)
}

// logFailure tells why a request failed by no fault of its own. What is away is away for everybody, so that is told
// once in a while: each request has its line with its status besides.
func (s *Server) logFailure(p *problem, id string) {
	cause := safeCause(p)
	switch {
	case p.Status < http.StatusInternalServerError:
	case p.Status != http.StatusServiceUnavailable:
		s.log.Error("request failed", "err", cause, "request_id", id)
	case s.outages.isNews(cause, time.Now()):
		s.log.Warn("request failed", "err", cause, "request_id", id)
	}
}

// outages remembers which causes were told of.
type outages struct {
	mu   sync.Mutex
	told map[string]time.Time
}

// outageEvery is the least time between two lines of one cause.
const outageEvery = 10 * time.Second

func (o *outages) isNews(cause string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.told, func(_ string, at time.Time) bool { return now.Sub(at) >= outageEvery })
	if _, known := o.told[cause]; known {
		return false
	}
	o.told[cause] = now
	return true
}
