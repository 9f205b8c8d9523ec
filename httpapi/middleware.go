package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
)

const callerKey = "caller"

var requestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// exposed are the headers of answers that a browser's scripts may read from another origin.
var exposed = []string{
	"Allow", "ETag", "Idempotency-Replayed", "Link", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After",
	"WWW-Authenticate", "X-Request-Id", "X-Stale", "X-Version",
}

// accepted are the headers that a browser's scripts may send from another origin.
var accepted = []string{
	"Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Prefer", "X-Request-Id",
}

func underAPI(path string) bool {
	return path == "/api" || strings.HasPrefix(path, "/api/")
}

// trimSlash makes /api/tasks/ the same as /api/tasks.
func trimSlash(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		url := c.Request().URL
		if strings.HasPrefix(url.Path, "/api/") {
			url.Path = strings.TrimSuffix(url.Path, "/")
			url.RawPath = strings.TrimSuffix(url.RawPath, "/")
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
		if s.draining.Load() {
			c.Response().Header().Set("Connection", "close")
		}
		if err := next(c); err != nil {
			c.Error(err)
		}
		took := time.Since(start)
		route, method := routeOf(c), methodOf(c.Request())
		s.requests.WithLabelValues(method, route, fmt.Sprint(c.Response().Status)).Observe(took.Seconds())
		s.log.Info("request", "method", method, "route", route, "status", c.Response().Status,
			"ms", float64(took.Microseconds())/1000, "request_id", id)
		return nil
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
	known := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}
	if slices.Contains(known, r.Method) {
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

// harden sets the headers that every answer has.
func harden(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		header := c.Response().Header()
		header.Set("X-Content-Type-Options", "nosniff")
		if underAPI(c.Request().URL.Path) {
			header.Set("Cache-Control", "private, no-cache")
			// Last, because others on the way add to it.
			c.Response().Before(func() { header.Set("Vary", "Authorization, Cookie, Origin") })
		}
		return next(c)
	}
}

// corsFor lets browsers of exactly these origins in, with credentials.
func corsFor(origins []string) echo.MiddlewareFunc {
	return middleware.CORSWithConfig(middleware.CORSConfig{
		AllowOriginFunc:  func(origin string) (bool, error) { return slices.Contains(origins, origin), nil },
		AllowMethods:     []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		AllowHeaders:     accepted,
		AllowCredentials: true,
		ExposeHeaders:    exposed,
		MaxAge:           600,
	})
}

// identify finds out who is calling before anything else of the request is looked at, and counts the request to that user.
func (s *Server) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if !underAPI(c.Request().URL.Path) {
			return next(c)
		}
		caller, err := s.auth.Authenticate(c.Request())
		var refused *AuthError
		if err != nil && !errors.As(err, &refused) {
			return unavailable(err)
		}
		if err != nil {
			return err
		}
		if err := s.limits.take(c.Response().Header(), caller.UserID); err != nil {
			return err
		}
		c.Set(callerKey, caller)
		return next(c)
	}
}

// bound limits the request's body and the time for it. A body that says it is too large is refused before anything is read; where
// nobody reads bodies, its size is nobody's business.
func (s *Server) bound(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		err := http.NewResponseController(c.Response()).SetReadDeadline(time.Now().Add(s.bodyTime))
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		ctx, cancel := context.WithTimeout(r.Context(), s.workTime)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(c.Response().Writer, r.Body, maxBody)
		c.SetRequest(r)
		if r.ContentLength > maxBody && underAPI(r.URL.Path) && matched(c) {
			return payloadTooLarge(maxBody)
		}
		return next(c)
	}
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
	if p.Status >= http.StatusInternalServerError {
		level := s.log.Error
		if p.Status == http.StatusServiceUnavailable {
			level = s.log.Warn
		}
		level("request failed", "err", safeCause(p), "request_id", c.Response().Header().Get(echo.HeaderXRequestID))
	}
	writeProblem(c.Response(), p)
}
