package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"taskledger/httpapi/auth"
	"taskledger/query"
)

const (
	// minVersionTimeout bounds how long a read waits for its min_version.
	minVersionTimeout = time.Second
	// minVersionPoll is how often it looks when this process hears of nothing.
	minVersionPoll = 100 * time.Millisecond
)

// minVersion reads the seq that an answer must reflect; 0 is any.
func (in *input) minVersion(values url.Values) int64 {
	if !values.Has("min_version") {
		return 0
	}
	seq, err := strconv.ParseUint(values.Get("min_version"), 10, 63)
	if err != nil {
		in.parameter("min_version", "invalid_value", "must be a seq, a number from 0 on")
		return 0
	}
	return int64(seq)
}

// prepareRead tells what is wrong with a read, or waits for the version it asks for.
func (s *Server) prepareRead(c echo.Context, caller auth.Caller, in *input, values url.Values) error {
	seq := in.minVersion(values)
	if err := in.problem(); err != nil {
		return err
	}
	return s.await(c, caller, seq)
}

// await waits until the read models show the user's seq.
func (s *Server) await(c echo.Context, caller auth.Caller, seq int64) error {
	if seq == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), minVersionTimeout)
	defer cancel()
	poll := time.NewTicker(minVersionPoll)
	defer poll.Stop()
	for {
		moved := s.moved() // before the look, or what happens in between is missed
		shown, err := s.queries.Shown(ctx, caller.UserID)
		if err == nil && shown.Seq >= seq {
			return nil
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		select {
		case <-moved:
		case <-poll.C:
		case <-ctx.Done():
			return newProblem(http.StatusServiceUnavailable, "not_yet_consistent", "the read models do not show this version yet; try again").
				with("Retry-After", "1")
		}
	}
}

// setHead tells the user's seq that the answer reflects, and whether newer events are held up.
func setHead(c echo.Context, head query.Head) {
	setVersion(c, head.Seq)
	if head.Stale {
		c.Response().Header().Set("X-Stale", "true")
	}
}
