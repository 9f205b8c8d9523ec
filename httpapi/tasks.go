package httpapi

import (
	"errors"
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
	values := in.values(c.Request())
	ask, asOf := s.ask(&in, caller, values), in.moment(values, "as_of")
	if err := in.problem(); err != nil {
		return err
	}
	a, err := s.queries.Task(c.Request().Context(), ask, id, asOf)
	setHead(c, a.Head)
	if err != nil {
		return future(err, "as_of")
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
	var create command.CreateTask
	if body != nil {
		create = in.create(body)
	}
	req := in.request(c, caller)
	if err := in.problem(); err != nil {
		return err
	}
	result, err := s.do(c, req, create)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/tasks/"+result.Task.ID.String())
	return sendTask(c, http.StatusCreated, result.Task)
}

// create reads a new task.
func (in *input) create(body object) command.CreateTask {
	create := command.CreateTask{ID: uuid.Must(uuid.NewV7())}
	if title := in.title(body); title != nil {
		create.Title = *title
	}
	if description := in.description(body); description != nil {
		create.Description = *description
	}
	if completed := in.boolean(body, "is_completed"); completed != nil {
		create.Completed = *completed
	}
	if _, present := body["title"]; !present {
		in.member("title", "required", "is required")
	}
	return create
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
	if errors.Is(err, command.ErrNotThen) {
		return invalid([]inputProblem{atMember("version", "out_of_range", err.Error())})
	}
	if err != nil {
		return err
	}
	if result.Task.DeletedAt != nil {
		return c.NoContent(http.StatusNoContent)
	}
	return sendTask(c, http.StatusOK, result.Task)
}

func (s *Server) revertTask(c echo.Context, caller auth.Caller) error {
	var in input
	body, err := in.object(c.Request())
	if err != nil {
		return err
	}
	revert := command.RevertTask{ID: in.taskID("id", c.Param("id")), Version: in.seq(body, "version")}
	if _, present := body["version"]; !present && body != nil {
		in.member("version", "required", "is required")
	}
	return s.change(c, caller, &in, revert)
}

// do carries out a command.
func (s *Server) do(c echo.Context, req command.Request, cmd command.Command) (command.Result, error) {
	result, err := s.commands.Do(c.Request().Context(), req, cmd)
	if err != nil {
		return result, err
	}
	answerWrite(c, result.Seq, result.Replayed)
	return result, nil
}

// answerWrite sets the headers that every answer to a write has.
func answerWrite(c echo.Context, seq int64, replayed bool) {
	setVersion(c, seq)
	if replayed {
		c.Response().Header().Set("Idempotency-Replayed", "true")
	}
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
