package httpapi

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
)

// readyTimeout bounds the look at everything the service needs.
const readyTimeout = 2 * time.Second

func (s *Server) index(c echo.Context) error {
	return sendJSON(c, http.StatusOK, struct {
		Name    string            `json:"name"`
		Version string            `json:"version"`
		Links   map[string]string `json:"links"`
	}{"taskledger", s.version, map[string]string{
		"tasks":   "/api/tasks",
		"history": "/api/history",
		"docs":    "/docs",
		"openapi": "/openapi.json",
		"live":    "/livez",
		"ready":   "/readyz",
	}})
}

type statusJSON struct {
	Status string `json:"status"`
}

func (s *Server) livez(c echo.Context) error {
	return sendJSON(c, http.StatusOK, statusJSON{"ok"})
}

// readyz shows no details to strangers: they are in the log.
func (s *Server) readyz(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), readyTimeout)
	defer cancel()
	err := s.isReady(ctx)
	s.askers.note(err == nil, s.isStopping())
	if err != nil {
		return newProblem(
			http.StatusServiceUnavailable,
			"unavailable",
			"not ready",
		).with("Retry-After", "1").
			because(err)
	}
	return sendJSON(c, http.StatusOK, statusJSON{"ready"})
}

func (s *Server) isReady(ctx context.Context) error {
	if s.isStopping() {
		return errors.New("the server is stopping")
	}
	return s.ready(ctx)
}

const (
	// askedOften is from how many answers on it is a load balancer that asks whether the server is ready: who starts a
	// server asks too, until it is.
	askedOften = 2
	// askedWithin is how long ago a load balancer has asked last.
	askedWithin = 15 * time.Second
	// heardAfter is how often load balancers want to be told that it is not before they believe it.
	heardAfter = 3
)

// askers are who asks whether the server is ready: a load balancer, if that happens again and again. It sends requests
// until it has heard that the server is about to go.
type askers struct {
	mu    sync.Mutex
	ready int       // how often the answer was yes
	gone  int       // and no, because the server is about to go
	last  time.Time // of any answer
}

func (a *askers) note(ready, stopping bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ready {
		a.ready++
	}
	if stopping {
		a.gone++
	}
	a.last = time.Now()
}

// again tells whether it is likely that somebody asks again who has not heard yet, or who has heard this moment.
func (a *askers) again() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready < askedOften {
		return false
	}
	if a.gone < heardAfter {
		return time.Since(a.last) < askedWithin
	}
	return time.Since(a.last) < nextTime
}

// docs registers the description of the API, as a page and for programs.
func (s *Server) docs() {
	docs := echo.WrapHandler(docsHandler("/docs"))
	s.read("/docs", docs)
	s.read("/docs/:asset", docs)
	s.read("/openapi.json", echo.WrapHandler(openAPIJSONHandler()))
	s.read("/openapi.yaml", echo.WrapHandler(openAPIYAMLHandler()))
}
