package httpapi

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"taskledger/httpapi/auth"
)

// export answers with every record of the user, as far as the read model shows them: NDJSON, streamed. It takes as long
// as it takes, but each part of it must be taken in the time of a request.
func (s *Server) export(c echo.Context, caller auth.Caller) error {
	var in input
	ask := s.ask(&in, caller, in.values(c.Request()))
	if err := in.problem(); err != nil {
		return err
	}
	ctx := c.Request().Context()
	a, lines, err := s.queries.Export(ctx, ask)
	setHead(c, a.Head)
	if err != nil {
		return err
	}
	tag := headTag(a.Head, []byte("export"), caller.UserID)
	if noneMatches(c.Request(), tag) {
		c.Response().Header().Set("ETag", tag)
		return c.NoContent(http.StatusNotModified)
	}
	workOf(c).limit(forever)
	part, err := lines.Next(ctx, nil)
	if err != nil && !errors.Is(err, io.EOF) {
		return err // nothing is sent yet: it can be told
	}
	c.Response().Header().Set("ETag", tag)
	c.Response().Header().Set("Content-Type", "application/x-ndjson")
	c.Response().WriteHeader(http.StatusOK)
	if c.Request().Method == http.MethodHead {
		return nil
	}
	conn := http.NewResponseController(c.Response())
	for err == nil {
		if err = conn.SetWriteDeadline(time.Now().Add(s.workTime)); err != nil {
			break
		}
		if _, err = c.Response().Write(part); err != nil {
			break
		}
		part, err = lines.Next(ctx, part[:0])
	}
	if errors.Is(err, io.EOF) {
		return conn.SetWriteDeadline(time.Time{})
	}
	id := c.Response().Header().Get(echo.HeaderXRequestID)
	s.log.Warn("an export was cut off", "err", safeCause(unavailable(err)), "request_id", id)
	panic(http.ErrAbortHandler) // what was sent must not look whole
}
