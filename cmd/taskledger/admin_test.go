package main

import (
	"context"
	"html"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
)

// adminPages are the admin page, as a browser uses it.
type adminPages struct {
	t *testing.T
	a *app
}

// must asks for a page, which has the status and a text in it; a form makes it a POST.
func (p *adminPages) must(status int, path string, form url.Values, text string) (page string) {
	p.t.Helper()
	r := httptest.NewRequest("GET", "http://localhost"+path, nil)
	if form != nil {
		r = httptest.NewRequest("POST", "http://localhost"+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	w := httptest.NewRecorder()
	p.a.admin.Handler.ServeHTTP(w, r)
	if w.Code != status || !strings.Contains(w.Body.String(), text) {
		p.t.Fatalf("%s %v: %d, want %d and %q in\n%s", path, form, w.Code, status, text, w.Body)
	}
	return w.Body.String()
}

// form is what the form of a page sends.
func (p *adminPages) form(path string) url.Values {
	p.t.Helper()
	form := url.Values{}
	hidden := regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)
	for _, match := range hidden.FindAllStringSubmatch(p.must(200, path, nil, ""), -1) {
		form.Set(match[1], html.UnescapeString(match[2]))
	}
	return form
}

// What the admin page is asked to do is done to the ledger: users are found, verified, retried and skipped.
func TestTheAdminPageDoesWhatItSays(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	s, a, stop := serveHere(t, url, &settings{MaxTasksPerUser: 100})
	defer stop()
	pages := &adminPages{t: t, a: a}
	path := "/api/tasks/" + s.must(201, "u", "POST", "/api/tasks", `{"title":"first"}`)["id"].(string)
	park := func(title string) {
		t.Helper()
		execute(t, url, `ALTER TABLE taskledger.tasks ADD CONSTRAINT refused CHECK (search <> '`+title+`')`)
		s.must(200, "u", "PATCH", path, `{"title":"`+title+`"}`)
		s.must(201, "v", "POST", "/api/tasks", `{"title":"behind it"}`)
		s.must(200, "v", "GET", "/api/tasks", "") // shows it when the event has been passed
		pages.must(200, "/", nil, "/parked?action=retry&amp;id=u")
	}
	shown := func(title string) {
		t.Helper()
		if task := s.must(200, "u", "GET", path, ""); task["title"] != title {
			t.Errorf("the task is %v, want %s", task, title)
		}
	}
	relent := func() { execute(t, url, `ALTER TABLE taskledger.tasks DROP CONSTRAINT refused`) }

	park("second")
	form := pages.form("/parked?action=retry&id=u")
	pages.must(409, "/parked", form, "still refuses this event")
	onDatabase(t, url, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, a.ledger.LockKey("maintenance")); err != nil {
			return err
		}
		pages.must(409, "/parked", form, "Try again when it has ended")
		_, err := conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, a.ledger.LockKey("maintenance"))
		return err
	})
	relent()
	pages.must(200, "/parked", form, "follows this user again")
	shown("second")
	park("third")
	pages.must(200, "/parked", pages.form("/parked?action=skip&id=u"), "follows this user again")
	relent()
	shown("second")
	pages.must(200, "/", nil, "Nobody is parked")

	pages.must(200, "/users?q=u", nil, "1 found")
	pages.must(200, "/users?q=w", nil, "No user")
	verify := pages.form("/user?id=u")
	pages.must(200, "/verify", verify, "are the fold of the ledger")
	execute(t, url, `UPDATE taskledger.tasks SET version = 9 WHERE user_id = 'u'`)
	pages.must(200, "/verify", verify, "1 difference between")
}
