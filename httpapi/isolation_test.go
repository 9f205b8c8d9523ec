package httpapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Every route, with another user's credentials and ids: what is theirs is as if it were not there, to the byte, and
// nothing of it is changed.
func TestNobodyReachesAnotherUsersTasks(t *testing.T) {
	t.Parallel()
	s := start(t)
	theirs := s.private("victim")
	own := s.titled("attacker", "own")
	walked := 0
	for _, route := range s.server.echo.Routes() {
		if !strings.HasPrefix(route.Path, "/api/") || strings.Contains(route.Path, "*") ||
			route.Method == "echo_route_not_found" {
			continue
		}
		walked++
		c := call{method: route.Method, path: route.Path, user: "attacker"}
		reads := c.method == "GET" || c.method == "HEAD"
		switch {
		case strings.Contains(c.path, ":id"):
			if !reads {
				c.body = `{"title":"taken over","version":1}`
			}
			s.answersAsIfMissing(theirs, c)
		case c.path == "/api/events" && reads:
			if f := s.listen("attacker", "0").want(1); f.Data.TaskID != own.ID {
				t.Errorf("the stream shows %s", f.raw)
			}
		case reads:
			s.showsNothingOf(theirs, c)
		}
	}
	if walked < 20 {
		t.Errorf("%d routes walked", walked)
	}
	s.untouched(theirs, 2)
	if found := s.list("attacker", ""); len(found) != 1 || found[0].ID != own.ID {
		t.Errorf("the attacker sees %q", titles(found))
	}
}

// private is a user's only task. The read model has it, so that others could find it there.
func (s *service) private(user string) taskJSON {
	s.t.Helper()
	task := s.create(user, `{"title":"very private","description":"very private too"}`)
	s.want(200, call{method: "GET", path: "/api/ledger", user: user})
	return task
}

// answersAsIfMissing calls a route with the id of a task and with one that nobody has.
func (s *service) answersAsIfMissing(theirs taskJSON, c call) {
	s.t.Helper()
	route := c.path
	for _, header := range []http.Header{
		{}, {"If-Match": {`"1"`}}, {"If-None-Match": {`"1"`}}, {"If-Match": {`"99"`}},
	} {
		header.Set("X-Request-Id", "same")
		c.header = header
		answers := [2]string{}
		for i, id := range []string{theirs.ID.String(), missing[len("/api/tasks/"):]} {
			c.path = strings.Replace(route, ":id", id, 1)
			a := s.want(404, c)
			a.Header.Del("Date")
			answers[i] = fmt.Sprint(string(a.body), a.Header)
		}
		if answers[0] != answers[1] {
			s.t.Errorf("%s %s:\ntheirs  %s\nmissing %s", c.method, route, answers[0], answers[1])
		}
	}
}

// showsNothingOf reads with every parameter that a task could be found by.
func (s *service) showsNothingOf(theirs taskJSON, c call) {
	s.t.Helper()
	c.header = http.Header{"X-Request-Id": {"same"}}
	path := c.path
	for _, query := range []string{
		"", "?q=private", "?task_id=" + theirs.ID.String(), "?as_of=1", "?since=1", "?seq=1",
	} {
		c.path = path + query
		a := s.want(200, c)
		if strings.Contains(string(a.body), "private") || strings.Contains(string(a.body), theirs.ID.String()) {
			s.t.Errorf("%s %s shows %s", c.method, c.path, a.body)
		}
	}
}

// untouched checks that the log has so many events, and that a task is to its owner as it was created.
func (s *service) untouched(task taskJSON, events int) {
	s.t.Helper()
	if n := s.count(`true`); n != events {
		s.t.Errorf("%d events, want %d", n, events)
	}
	found := s.list(task.UserID, "")
	if len(found) != 1 || found[0].ID != task.ID || found[0].Title != task.Title || found[0].Version != 1 {
		s.t.Errorf("%s sees %+v", task.UserID, found)
	}
}

func TestABatchReachesNoTaskOfAnotherUser(t *testing.T) {
	t.Parallel()
	s := start(t)
	theirs := s.private("victim")
	own := s.titled("attacker", "own")
	for _, name := range []string{"update", "complete", "reopen", "delete", "restore"} {
		refused := s.refused(404, "not_found",
			batchOf("attacker", createOp("new"), op(name, theirs.ID, `,"data":{"title":"taken over"}`)))
		if refused.Index == nil || *refused.Index != 1 {
			t.Errorf("%s: %+v", name, refused)
		}
	}
	s.untouched(theirs, 2)
	if found := s.list("attacker", ""); len(found) != 1 || found[0].ID != own.ID {
		t.Errorf("the attacker sees %q", titles(found))
	}
}

// The same id, chosen by another user, is another task, also when that user is erased.
func TestTheSameIDOfTwoUsersIsTwoTasks(t *testing.T) {
	t.Parallel()
	s := start(t)
	theirs := s.private("victim")
	s.batch(batchOf("thief", op("create", theirs.ID, `,"data":{"title":"mine"}`), op("delete", theirs.ID, ``)))
	s.want(204, call{method: "DELETE", path: "/api/me", user: "thief"})
	s.untouched(theirs, 2) // with the erasure
}
