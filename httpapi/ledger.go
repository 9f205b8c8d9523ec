package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/labstack/echo/v4"

	"taskledger/httpapi/auth"
	"taskledger/query"
)

// sync answers with what a copy of the user's tasks lacks.
func (s *Server) sync(c echo.Context, caller auth.Caller) error {
	var in input
	values := in.values(c.Request())
	since, limit := in.number(values, "since"), in.limit(values, maxLimit)
	ask := s.ask(&in, caller, values)
	if err := in.problem(); err != nil {
		return err
	}
	if since == nil {
		since = new(int64)
	}
	a, err := s.queries.Sync(c.Request().Context(), ask, *since, limit)
	return s.sendObject(c, caller.UserID, a, err, "since", "sync "+strconv.FormatInt(*since, 10)+" "+strconv.Itoa(limit))
}

// link answers with a link of the user's chain.
func (s *Server) link(c echo.Context, caller auth.Caller) error {
	var in input
	values := in.values(c.Request())
	seq := in.number(values, "seq")
	ask := s.ask(&in, caller, values)
	if err := in.problem(); err != nil {
		return err
	}
	a, err := s.queries.Link(c.Request().Context(), ask, seq)
	if errors.Is(err, query.ErrNotFound) {
		err = newProblem(http.StatusNotFound, "not_found", "the event was erased, or can't be shown yet")
	}
	return s.sendObject(c, caller.UserID, a, err, "seq", "link "+values.Get("seq"))
}

// sendObject sends an answer that is no task and no list. Its tag is weak, as that of a list.
func (s *Server) sendObject(c echo.Context, user string, a query.Answer, err error, parameter, name string) error {
	setHead(c, a.Head)
	if err != nil {
		return future(err, parameter)
	}
	tag := headTag(a.Head, []byte(name), user)
	c.Response().Header().Set("ETag", tag)
	if noneMatches(c.Request(), tag) {
		return c.NoContent(http.StatusNotModified)
	}
	return sendBody(c, http.StatusOK, a.Body)
}

// number reads a seq, a number from 0 on; nil when it is absent, or wrong, which is noted.
func (in *input) number(values url.Values, name string) *int64 {
	if !values.Has(name) {
		return nil
	}
	n, err := strconv.ParseUint(values.Get(name), 10, 63)
	if err != nil {
		in.parameter(name, "invalid_value", "must be a seq, a number from 0 on")
		return nil
	}
	seq := int64(n)
	return &seq
}

// eraseUser erases the caller. What was derived of the user's events is gone when the answer is sent.
func (s *Server) eraseUser(c echo.Context, caller auth.Caller) error {
	var in input
	req := in.request(c, caller)
	if err := in.problem(); err != nil {
		return err
	}
	result, err := s.commands.Erase(c.Request().Context(), req)
	if err != nil {
		return err
	}
	answerWrite(c, result.Seq, result.Replayed)
	return c.NoContent(http.StatusNoContent)
}
