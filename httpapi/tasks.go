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
	"taskledger/query"
)

// timeLayout is RFC 3339 in UTC with microseconds, which is what PostgreSQL keeps.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// taskJSON is a Task as clients see it.
type taskJSON struct {
	ID          uuid.UUID `json:"id"`
	UserID      string    `json:"user_id"`
	Title       string    `json:"title"`
	Description *string   `json:"description"`
	IsCompleted bool      `json:"is_completed"`
	CreatedAt   string    `json:"created_at"`
	UpdatedAt   string    `json:"updated_at"`
	Version     int64     `json:"version"`
}

func toJSON(t events.Task) taskJSON {
	return taskJSON{
		ID:          t.ID,
		UserID:      t.UserID,
		Title:       t.Title,
		Description: t.Description,
		IsCompleted: t.Completed,
		CreatedAt:   t.CreatedAt.Format(timeLayout),
		UpdatedAt:   t.UpdatedAt.Format(timeLayout),
		Version:     t.Version,
	}
}

func (s *Server) listTasks(c echo.Context, caller auth.Caller) error {
	var in input
	values := in.values(c.Request())
	filter := in.tasks(values)
	list := tasksFingerprint(caller.UserID, filter)
	filter.After = in.cursor(values, list).task()
	if err := s.prepareRead(c, caller, &in, values); err != nil {
		return err
	}
	page, err := s.queries.Tasks(c.Request().Context(), caller.UserID, filter)
	if err != nil {
		return err
	}
	if page.More {
		next := taskCursor(list, filter.Cursor(page.Tasks[len(page.Tasks)-1]))
		if err := setNext(c.Response(), c.Request(), next); err != nil {
			return err
		}
	}
	tasks := make([]taskJSON, len(page.Tasks))
	for i, t := range page.Tasks {
		tasks[i] = toJSON(t)
	}
	return sendList(c, page.Head, list+c.QueryParam("limit")+c.QueryParam("cursor"), tasks)
}

func (s *Server) getTask(c echo.Context, caller auth.Caller) error {
	var in input
	id := in.taskID("id", c.Param("id"))
	if err := s.prepareRead(c, caller, &in, in.values(c.Request())); err != nil {
		return err
	}
	task, head, err := s.queries.Task(c.Request().Context(), caller.UserID, id)
	if err == nil || errors.Is(err, query.ErrNotFound) {
		setHead(c, head)
	}
	if err != nil {
		return err
	}
	return sendTask(c, http.StatusOK, task)
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
	if req.Async {
		c.Response().Header().Set("Preference-Applied", "respond-async")
	}
	return result, nil
}

// setVersion tells the user's seq that the answer reflects.
func setVersion(c echo.Context, seq int64) {
	c.Response().Header().Set("X-Version", strconv.FormatInt(seq, 10))
}

func sendTask(c echo.Context, status int, t events.Task) error {
	tag := etag(t.Version)
	c.Response().Header().Set("ETag", tag)
	if isRead(c.Request()) && noneMatches(c.Request(), tag) {
		return c.NoContent(http.StatusNotModified)
	}
	return sendJSON(c, status, toJSON(t))
}

// sendList sends an array with the weak tag of the user's seq and the query.
func sendList[T any](c echo.Context, head query.Head, list string, items []T) error {
	tag := `W/"` + strconv.FormatInt(head.Seq, 10) + "-" + fingerprint(list) + `"`
	setHead(c, head)
	c.Response().Header().Set("ETag", tag)
	if noneMatches(c.Request(), tag) {
		return c.NoContent(http.StatusNotModified)
	}
	return sendJSON(c, http.StatusOK, items)
}

func isRead(r *http.Request) bool {
	return r.Method == http.MethodGet || r.Method == http.MethodHead
}

func sendJSON(c echo.Context, status int, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Content-Length", strconv.Itoa(len(data)))
	return c.Blob(status, "application/json", data)
}
