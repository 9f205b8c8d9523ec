package httpapi

import (
	"context"
	"errors"
	"net/http"
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
	if err := s.isReady(ctx); err != nil {
		return newProblem(http.StatusServiceUnavailable, "unavailable", "not ready").with("Retry-After", "1").because(err)
	}
	return sendJSON(c, http.StatusOK, statusJSON{"ready"})
}

func (s *Server) isReady(ctx context.Context) error {
	if s.isStopping() {
		return errors.New("the server is stopping")
	}
	return s.ready(ctx)
}

// docs registers the description of the API, as a page and for programs.
func (s *Server) docs() {
	docs := echo.WrapHandler(docsHandler("/docs"))
	s.read("/docs", docs)
	s.read("/docs/:asset", docs)
	s.read("/openapi.json", echo.WrapHandler(openAPIJSONHandler()))
	s.read("/openapi.yaml", echo.WrapHandler(openAPIYAMLHandler()))
}
