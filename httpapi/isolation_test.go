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
	theirs := s.create("victim", `{"title":"very private","description":"very private too"}`)
	own := s.titled("attacker", "own")
	count := func() (n int) {
		if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM taskledger.task_events`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	walked := 0
	for _, route := range s.server.echo.Routes() {
		if !strings.HasPrefix(route.Path, "/api/") || strings.Contains(route.Path, "*") ||
			route.Method == "echo_route_not_found" {
			continue
		}
		walked++
		c := call{method: route.Method, user: "attacker", header: http.Header{"X-Request-Id": {"same"}}}
		if !strings.Contains(route.Path, ":id") {
			if route.Method != "GET" && route.Method != "HEAD" {
				continue
			}
			if route.Path == "/api/events" {
				if f := s.listen("attacker", "0").want(1); f.Data.TaskID != own.ID {
					t.Errorf("the stream shows %s", f.raw)
				}
				continue
			}
			for _, query := range []string{
				"", "?q=private", "?task_id=" + theirs.ID.String(), "?as_of=1", "?since=1", "?seq=1",
			} {
				c.path = route.Path + query
				if a := s.want(
					200,
					c,
				); strings.Contains(string(a.body), "private") ||
					strings.Contains(string(a.body), theirs.ID.String()) {
					t.Errorf("%s %s shows %s", c.method, c.path, a.body)
				}
			}
			continue
		}
		if route.Method != "GET" && route.Method != "HEAD" {
			c.body = `{"title":"taken over","version":1}`
		}
		for _, header := range []http.Header{
			{}, {"If-Match": {`"1"`}}, {"If-None-Match": {`"1"`}}, {"If-Match": {`"99"`}},
		} {
			header.Set("X-Request-Id", "same")
			c.header = header
			answers := [2]string{}
			for i, id := range []string{theirs.ID.String(), missing[len("/api/tasks/"):]} {
				c.path = strings.Replace(route.Path, ":id", id, 1)
				a := s.want(404, c)
				a.Header.Del("Date")
				answers[i] = fmt.Sprint(string(a.body), a.Header)
			}
			if answers[0] != answers[1] {
				t.Errorf("%s %s:\ntheirs  %s\nmissing %s", route.Method, route.Path, answers[0], answers[1])
			}
		}
	}
	for _, op := range []string{"update", "complete", "reopen", "delete", "restore"} {
		refused := s.refused(404, "not_found", call{
			method: "POST",
			path:   "/api/batch",
			user:   "attacker",
			body: fmt.Sprintf(
				`{"commands":[{"op":"create","data":{"title":"new"}},{"op":%q,"id":%q,"data":{"title":"taken over"}}]}`,
				op,
				theirs.ID,
			),
		})
		if refused.Index == nil || *refused.Index != 1 {
			t.Errorf("%s: %+v", op, refused)
		}
	}
	// The same id, chosen by another user, is another task.
	s.want(200, call{
		method: "POST",
		path:   "/api/batch",
		user:   "thief",
		body: fmt.Sprintf(
			`{"commands":[{"op":"create","id":%q,"data":{"title":"mine"}},{"op":"delete","id":%q}]}`,
			theirs.ID,
			theirs.ID,
		),
	})
	s.want(204, call{method: "DELETE", path: "/api/me", user: "thief"})
	if found := s.list(
		"victim",
		"",
	); len(found) != 1 || found[0].ID != theirs.ID || found[0].Title != theirs.Title ||
		found[0].Version != 1 {
		t.Errorf("the victim sees %+v", found)
	}
	if walked < 20 || count() != before+1 {
		t.Errorf("%d routes walked, %d events appended", walked, count()-before)
	}
	if found := s.list("attacker", ""); len(found) != 1 || found[0].ID != own.ID {
		t.Errorf("the attacker sees %q", titles(found))
	}
}
