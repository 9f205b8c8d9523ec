package httpapi

import (
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/query"
)

// historyJSON is a history entry as clients see it.
type historyJSON struct {
	Seq        int64          `json:"seq"`
	Type       events.Type    `json:"type"`
	TaskID     uuid.UUID      `json:"task_id"`
	RecordedAt string         `json:"recorded_at"`
	Actor      string         `json:"actor"`
	RequestID  string         `json:"request_id"`
	Changes    jsontext.Value `json:"changes"`
}

func toHistoryJSON(e query.HistoryEntry) historyJSON {
	return historyJSON{
		Seq:        e.Seq,
		Type:       e.Type,
		TaskID:     e.TaskID,
		RecordedAt: e.RecordedAt.Format(timeLayout),
		Actor:      e.Actor,
		RequestID:  e.RequestID,
		Changes:    jsontext.Value(e.Changes),
	}
}

func (s *Server) listHistory(c echo.Context, caller auth.Caller) error {
	var in input
	values := in.values(c.Request())
	filter := in.history(values)
	list := historyFingerprint(caller.UserID, filter)
	filter.After = in.cursor(values, list).seq()
	if err := s.prepareRead(c, caller, &in, values); err != nil {
		return err
	}
	page, err := s.queries.History(c.Request().Context(), caller.UserID, filter)
	if err != nil {
		return err
	}
	return sendHistory(c, list, page)
}

func (s *Server) listTaskHistory(c echo.Context, caller auth.Caller) error {
	var in input
	values := in.values(c.Request())
	id := in.taskID("id", c.Param("id"))
	filter := query.HistoryFilter{
		TaskID: &id,
		Order:  choice(&in, values, "order", query.Ascending, query.Descending),
		Limit:  in.limit(values),
	}
	list := historyFingerprint(caller.UserID, filter)
	filter.After = in.cursor(values, list).seq()
	if err := s.prepareRead(c, caller, &in, values); err != nil {
		return err
	}
	page, err := s.queries.TaskHistory(c.Request().Context(), caller.UserID, id, filter)
	if err != nil {
		return err
	}
	return sendHistory(c, list, page)
}

func sendHistory(c echo.Context, list string, page query.HistoryPage) error {
	if page.More {
		next := cursor{Query: list, Seq: page.Entries[len(page.Entries)-1].Seq}
		if err := setNext(c.Response(), c.Request(), next); err != nil {
			return err
		}
	}
	entries := make([]historyJSON, len(page.Entries))
	for i, e := range page.Entries {
		entries[i] = toHistoryJSON(e)
	}
	return sendList(c, page.Head, list+c.QueryParam("limit")+c.QueryParam("cursor"), entries)
}

func (c *cursor) seq() int64 {
	if c == nil {
		return 0
	}
	return c.Seq
}
