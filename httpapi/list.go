package httpapi

import (
	"cmp"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/query"
)

// listing is a list as a request asks for it.
type listing struct {
	filter query.Filter
	// limit is the limit of a page where the request has none; 0 = there is none, and the list is streamed when it is
	// large.
	limit int
	// ofTask: it is the history of one task, which must have been there.
	ofTask bool
}

// list handles every list: pages, cursors, entity tags. Whatever tells two lists apart is in the filter, and so in all
// of them.
func (s *Server) list(read func(in *input, c echo.Context, values url.Values) listing) handler {
	return func(c echo.Context, caller auth.Caller) error {
		var in input
		values := in.values(c.Request())
		asked := read(&in, c, values)
		l, err := query.NewListing(asked.filter)
		if err != nil { // a text that is not UTF-8, which was noted
			return cmp.Or(in.problem(), err)
		}
		p := page{user: caller.UserID, Listing: l}
		p.Limit, p.After = in.limit(values, asked.limit), in.cursor(values, p)
		ask := s.ask(&in, caller, values)
		if err := in.problem(); err != nil {
			return err
		}
		if c.Request().Header.Get("If-None-Match") != "" {
			ask.Has = func(h query.Head) bool { return noneMatches(c.Request(), p.tag(h)) }
		}
		if p.Limit == 0 {
			ask.Stream = s.streamList(c, p)
		}
		answer := s.queries.List
		if asked.ofTask {
			answer = s.queries.TaskHistory
		}
		a, err := answer(c.Request().Context(), ask, p.Listing)
		return s.sendList(c, a, err, p, values)
	}
}

// ask says how a read is asked.
func (s *Server) ask(in *input, caller auth.Caller, values url.Values) query.Ask {
	return query.Ask{UserID: caller.UserID, MinVersion: in.minVersion(values)}
}

// streamList begins an answer that is too large to be gathered; the reader has the time of a request to take it.
func (s *Server) streamList(c echo.Context, p page) func(query.Head) io.Writer {
	return func(h query.Head) io.Writer {
		setHead(c, h)
		c.Response().Header().Set("ETag", p.tag(h))
		c.Response().Header().Set("Content-Type", "application/json")
		// An error means that the connection is gone, which the write tells as well.
		_ = http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(s.workTime))
		c.Response().WriteHeader(http.StatusOK)
		return c.Response()
	}
}

func (s *Server) sendList(c echo.Context, a query.Answer, err error, p page, values url.Values) error {
	switch {
	case c.Response().Committed && err != nil:
		panic(http.ErrAbortHandler) // what was sent must not look whole
	case a.Streamed:
		return http.NewResponseController(c.Response()).SetWriteDeadline(time.Time{})
	}
	setHead(c, a.Head)
	if err != nil {
		return future(err, "as_of")
	}
	etag := p.tag(a.Head)
	c.Response().Header().Set("ETag", etag)
	if a.Unchanged || noneMatches(c.Request(), etag) {
		return c.NoContent(http.StatusNotModified)
	}
	if a.Next != nil {
		if err := setNext(c, values, cursor{Query: p.digest(), Place: *a.Next}); err != nil {
			return err
		}
	}
	return sendBody(c, http.StatusOK, a.Body)
}

func sendBody(c echo.Context, status int, body []byte) error {
	send := func() error { return c.Blob(status, "application/json", body) }
	small := len(body) < httpBuffer/2
	if !small || c.Request().Method == http.MethodHead { // else net/http counts
		c.Response().Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	if small || len(body) > 16*httpBuffer {
		return send()
	}
	return inOneWrite(c.Response(), c.Request(), send)
}

func (s *Server) tasks(in *input, _ echo.Context, values url.Values) listing {
	f := query.TaskFilter{
		Status: choice(in, values, "status", query.StatusAll, query.StatusPending, query.StatusCompleted),
		Sort:   choice(in, values, "sort", query.SortCreatedAt, query.SortTitle, query.SortUpdatedAt),
		Search: in.search(values),
		AsOf:   in.moment(values, "as_of"),
	}
	if f.Sort == query.SortTitle {
		f.Order = choice(in, values, "order", query.Ascending, query.Descending)
	} else {
		f.Order = choice(in, values, "order", query.Descending, query.Ascending)
	}
	return listing{filter: f}
}

func (s *Server) trash(*input, echo.Context, url.Values) listing {
	return listing{filter: query.TrashFilter{}, limit: maxLimit}
}

func (s *Server) history(in *input, _ echo.Context, values url.Values) listing {
	f := query.HistoryFilter{
		Order: choice(in, values, "order", query.Descending, query.Ascending),
		Since: in.moment(values, "since"),
		Until: in.moment(values, "until"),
	}
	if values.Has("type") {
		f.Type = choice(in, values, "type", events.Types()...)
	}
	if values.Has("task_id") {
		id := in.taskID("task_id", values.Get("task_id"))
		f.TaskID = &id
	}
	return listing{filter: f, limit: maxLimit}
}

func (s *Server) taskHistory(in *input, c echo.Context, values url.Values) listing {
	id := in.taskID("id", c.Param("id"))
	f := query.HistoryFilter{TaskID: &id, Order: choice(in, values, "order", query.Ascending, query.Descending)}
	return listing{filter: f, limit: maxLimit, ofTask: true}
}
