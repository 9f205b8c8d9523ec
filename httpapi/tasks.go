package httpapi

import (
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"taskledger/command"
	"taskledger/events"
	"taskledger/httpapi/auth"
)

func (s *Server) getTask(c echo.Context, caller auth.Caller) error {
	var in input
	id := in.taskID("id", c.Param("id"))
	ask := s.ask(&in, caller, in.values(c.Request()))
	if err := in.problem(); err != nil {
		return err
	}
	a, err := s.queries.Task(c.Request().Context(), ask, id)
	setHead(c, a.Head)
	if err != nil {
		return err
	}
	tag := etag(a.Version)
	c.Response().Header().Set("ETag", tag)
	if noneMatches(c.Request(), tag) {
		return c.NoContent(http.StatusNotModified)
	}
	return sendBody(c, http.StatusOK, a.Body)
}

func (s *Server) createTask(c echo.Context, caller auth.Caller) error {
	var in input
	body, err := in.object(c.Request())
	if err != nil {
		return err
	}
	title, description, completed := in.title(body), in.description(body), in.boolean(body, "is_completed")
	if _, present := body["title"]; !present && body != nil {
		in.member("title", "required", "is required")
	}
	req := in.request(c, caller)
	if err := in.problem(); err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	create := command.CreateTask{ID: id, Title: *title}
	if description != nil {
		create.Description = *description
	}
	if completed != nil {
		create.Completed = *completed
	}
	result, err := s.do(c, req, create)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/tasks/"+result.Task.ID.String())
	return sendTask(c, http.StatusCreated, result.Task)
}

func (s *Server) updateTask(c echo.Context, caller auth.Caller) error {
	var also []string
	if c.Request().Method == http.MethodPatch {
		also = []string{"application/merge-patch+json"}
	}
	var in input
	body, err := in.object(c.Request(), also...)
	if err != nil {
		return err
	}
	update := command.UpdateTask{
		ID:          in.taskID("id", c.Param("id")),
		Title:       in.title(body),
		Description: in.description(body),
		Completed:   in.boolean(body, "is_completed"),
	}
	return s.change(c, caller, &in, update)
}

// onTask handles a command that needs nothing but the task's id. A body is not read.
func (s *Server) onTask(make func(id uuid.UUID) command.Command) handler {
	return func(c echo.Context, caller auth.Caller) error {
		var in input
		cmd := make(in.taskID("id", c.Param("id")))
		return s.change(c, caller, &in, cmd)
	}
}

// change carries out a command on a task that exists.
func (s *Server) change(c echo.Context, caller auth.Caller, in *input, cmd command.Command) error {
	match, err := ifMatch(c.Request())
	if err != nil {
		return err
	}
	req := in.request(c, caller)
	req.Match = match
	if err := in.problem(); err != nil {
		return err
	}
	result, err := s.do(c, req, cmd)
	if err != nil {
		return err
	}
	if result.Task.DeletedAt != nil {
		return c.NoContent(http.StatusNoContent)
	}
	return sendTask(c, http.StatusOK, result.Task)
}

// do carries out a command and sets the headers that every answer to a write has.
func (s *Server) do(c echo.Context, req command.Request, cmd command.Command) (command.Result, error) {
	result, err := s.commands.Do(c.Request().Context(), req, cmd)
	if err != nil {
		return result, err
	}
	setVersion(c, result.Seq)
	if result.Replayed {
		c.Response().Header().Set("Idempotency-Replayed", "true")
	}
	return result, nil
}

// setVersion tells the user's seq that the answer reflects.
func setVersion(c echo.Context, seq int64) {
	c.Response().Header().Set("X-Version", strconv.FormatInt(seq, 10))
}

func sendTask(c echo.Context, status int, t events.Task) error {
	c.Response().Header().Set("ETag", etag(t.Version))
	return sendBody(c, status, t.AppendJSON(nil))
}

func sendJSON(c echo.Context, status int, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return sendBody(c, status, data)
}
