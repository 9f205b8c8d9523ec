package httpapi

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

const missing = "/api/tasks/0190a8f0-7a57-7000-8000-000000000001"

// milk is a new task; encoders like to escape what is in its description.
const milk = `{"title":" Buy milk ","description":"a\u2028<&>"}`

func TestACreatedTaskIsReadAsItWasAnswered(t *testing.T) {
	t.Parallel()
	s := start(t)
	created := s.want(201, call{method: "POST", path: "/api/tasks", user: "u", body: milk})
	task := as[taskJSON](t, created)
	path := "/api/tasks/" + task.ID.String()
	if created.Header.Get("Location") != path || created.Header.Get("ETag") != `"1"` || task.ID.Version() != 7 {
		t.Fatalf("created %v, %s", created.Header, task.ID)
	}
	if task.Title != " Buy milk " || *task.Description != "a\u2028<&>" || task.IsCompleted || task.UserID != "u" ||
		task.Version != 1 {
		t.Fatalf("created %+v", task)
	}
	at, err := time.Parse(events.TimeLayout, task.CreatedAt)
	if err != nil || time.Since(at).Abs() > time.Minute || task.UpdatedAt != task.CreatedAt {
		t.Fatalf("created at %s, updated at %s", task.CreatedAt, task.UpdatedAt)
	}
	got := s.want(200, call{method: "GET", path: path, user: "u"})
	if !reflect.DeepEqual(as[taskJSON](t, got), task) || got.Header.Get("X-Version") != "1" {
		t.Fatalf("read %s, created %s", got.body, created.body)
	}
	if strings.Contains(string(got.body), `, "`) || strings.Contains(string(got.body), `": `) ||
		!strings.Contains(string(got.body), "<&>") {
		t.Errorf("not compact, or escaped: %s", got.body)
	}
}

func TestTaskLife(t *testing.T) {
	t.Parallel()
	s := start(t)
	task := s.create("u", milk)
	path := "/api/tasks/" + task.ID.String()
	// step changes the task to a version, and reads it as it was answered.
	step := func(version int64, method, at, body string) taskJSON {
		t.Helper()
		a := s.want(200, call{method: method, path: at, user: "u", body: body})
		after := as[taskJSON](t, a)
		if tag := a.Header.Get("ETag"); after.Version != version || tag != fmt.Sprintf(`"%d"`, version) {
			t.Fatalf("%s %s: version %d, ETag %s; want %d", method, at, after.Version, tag, version)
		}
		read := as[taskJSON](t, s.want(200, call{method: "GET", path: path, user: "u"}))
		if !reflect.DeepEqual(read, after) {
			t.Fatalf("%s %s answered %+v, read %+v", method, at, after, read)
		}
		return after
	}
	after := step(2, "PUT", path, `{"title":"Oat"}`)
	if after.Title != "Oat" || after.Description == nil || after.UpdatedAt <= task.UpdatedAt {
		t.Fatalf("renamed: %+v", after)
	}
	if after := step(3, "PATCH", path, `{"description":null}`); after.Description != nil {
		t.Fatalf("cleared: %+v", after)
	}
	same := `{"title":"Oat","is_completed":false,"user_id":"x","id":7,"version":99,"Title":"no"}`
	before := step(3, "PUT", path, same)
	if again := step(3, "PATCH", path, `{}`); again.UpdatedAt != before.UpdatedAt || again.Title != "Oat" {
		t.Fatalf("nothing changed, but %+v", again)
	}
	step(4, "PATCH", path+"/complete", "")
	step(4, "PUT", path+"/complete", "not read")
	step(5, "DELETE", path+"/complete", "")
	step(5, "DELETE", path+"/complete", "")
	step(6, "PATCH", path+"/complete", `{"is_completed":false}`)
	if after := step(9, "PUT", path, `{"title":"a","description":"b","is_completed":false}`); after.IsCompleted {
		t.Fatalf("three at once: %+v", after)
	}

	typed := http.Header{"Content-Type": {"application/json"}}
	if gone := s.want(204, call{method: "DELETE", path: path, user: "u", header: typed}); len(gone.body) != 0 {
		t.Fatalf("deleted with a body: %s", gone.body)
	}
	s.refused(404, "not_found", call{method: "DELETE", path: path, user: "u"})
	s.refused(404, "not_found", call{method: "GET", path: path, user: "u"})
	if string(s.want(200, call{method: "GET", path: "/api/tasks", user: "u"}).body) != "[]" {
		t.Fatal("an empty list is not []")
	}
}

func TestCreateCompletedIsTwoEvents(t *testing.T) {
	t.Parallel()
	s := start(t)
	task := s.create("u", `{"title":"a","is_completed":true,"description":null}`)
	if !task.IsCompleted || task.Version != 2 || task.CreatedAt != task.UpdatedAt {
		t.Fatalf("%+v", task)
	}
}

func TestMergePatchIsForPatchOnly(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	merge := http.Header{"Content-Type": {"application/merge-patch+json; charset=utf-8"}}
	s.want(200, call{method: "PATCH", path: path, user: "u", body: `{"title":"b"}`, header: merge})
	s.refused(
		415,
		"unsupported_media_type",
		call{method: "PUT", path: path, user: "u", body: `{"title":"c"}`, header: merge},
	)
}

func TestIDsInEveryForm(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.titled("u", "a").ID
	plain := strings.ReplaceAll(id.String(), "-", "")
	for _, form := range []string{
		id.String(), strings.ToUpper(id.String()), plain, "urn:uuid:" + id.String(), "urn%3Auuid%3A" + id.String(),
		"%7B" + id.String() + "%7D",
	} {
		s.want(200, call{method: "GET", path: "/api/tasks/" + form, user: "u"})
		s.want(200, call{method: "PATCH", path: "/api/tasks/" + form + "/complete", user: "u"})
	}
	for _, wrong := range []string{
		"1", "x", plain + "0", id.String() + "%00", "%20" + id.String(), "..%2F" + id.String(),
	} {
		p := s.refused(422, "validation_error", call{method: "GET", path: "/api/tasks/" + wrong, user: "u"})
		if p.Errors[0].Parameter != "id" {
			t.Errorf("%s: %+v", wrong, p)
		}
	}
}

func TestListsFilterSortAndSearch(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, title := range []string{"banana", "Apple", "cherry", "ärger", "100% off_er"} {
		s.titled("u", title)
	}
	for _, task := range s.list("u", "?status=pending") {
		if task.Title == "Apple" || task.Title == "cherry" {
			s.want(
				200,
				call{
					method: "PUT",
					path:   "/api/tasks/" + task.ID.String(),
					user:   "u",
					body:   `{"is_completed":true,"description":"DONE \\ well"}`,
				},
			)
		}
	}
	s.titled("v", "banana of another user")
	for query, want := range map[string][]string{
		"":                                   {"100% off_er", "ärger", "cherry", "Apple", "banana"},
		"?order=asc":                         {"banana", "Apple", "cherry", "ärger", "100% off_er"},
		"?sort=title":                        {"100% off_er", "Apple", "ärger", "banana", "cherry"},
		"?sort=title&order=desc&status=all":  {"cherry", "banana", "ärger", "Apple", "100% off_er"},
		"?sort=updated_at":                   {"Apple", "cherry", "100% off_er", "ärger", "banana"},
		"?sort=updated_at&order=asc&limit=2": {"banana", "ärger"},
		"?status=completed&sort=title":       {"Apple", "cherry"},
		"?status=pending&order=asc":          {"banana", "ärger", "100% off_er"},
		"?q=AN":                              {"banana"},
		"?q=%C3%84RGER":                      {"ärger"},
		"?q=0%25%20o":                        {"100% off_er"},
		"?q=f_e":                             {"100% off_er"},
		"?q=_":                               {"100% off_er"},
		"?q=done%20%5C":                      {"cherry", "Apple"},
		"?q=done&sort=title&status=pending":  {},
		"?unknown=1&Status=none&%zz=1&a;b":   {"100% off_er", "ärger", "cherry", "Apple", "banana"},
		"?unknown=1":                         {"100% off_er", "ärger", "cherry", "Apple", "banana"},
	} {
		if got := titles(s.list("u", query)); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
}

func TestListsRefuseWhatTheyDoNotKnow(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := s.refused(
		422,
		"validation_error",
		call{method: "GET", path: "/api/tasks?status=x&sort=id&order=up&limit=0&q=&cursor=zz", user: "u"},
	)
	if len(p.Errors) != 6 {
		t.Errorf("not all errors together: %+v", p.Errors)
	}
	for _, query := range []string{
		"status=", "sort=Title", "order=", "limit=501", "limit=-1", "limit=1.0", "limit=", "limit=99999999999999999999",
		"q=" + strings.Repeat("a", 101),
		"q=%00", "q=%ff", "cursor=", "cursor=e30", "cursor=%00", "status=%zz",
	} {
		s.refused(422, "validation_error", call{method: "GET", path: "/api/tasks?" + query, user: "u"})
	}
	s.want(200, call{method: "GET", path: "/api/tasks?limit=500&q=" + strings.Repeat("%C3%A9", 100), user: "u"})
}

func TestPagesAreTheWholeListOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i := range 7 {
		s.create("u", fmt.Sprintf(`{"title":"t%d","is_completed":%t}`, i/2, i%2 == 0))
	}
	for _, query := range []string{
		"?limit=2", "?limit=3&order=asc", "?sort=title&limit=2", "?sort=title&order=desc&limit=1",
		"?sort=updated_at&limit=2&status=completed", "?q=t&limit=4",
	} {
		whole := s.list("u", strings.Replace(query, "limit", "ignored", 1))
		var paged []taskJSON
		next := "/api/tasks" + query
		for pages := 0; next != ""; pages++ {
			if pages > 7 {
				t.Fatalf("%s: pages without end", query)
			}
			a := s.want(200, call{method: "GET", path: next, user: "u"})
			paged = append(paged, as[[]taskJSON](t, a)...)
			next = nextPage(t, a)
		}
		if !reflect.DeepEqual(paged, whole) {
			t.Errorf("%s: pages give %q, the list %q", query, titles(paged), titles(whole))
		}
	}
}

func nextPage(t testing.TB, a answer) string {
	t.Helper()
	link := a.Header.Get("Link")
	if link == "" {
		return ""
	}
	address, ok := strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
	if !ok {
		t.Fatalf("Link: %s", link)
	}
	return address
}

func TestCursorsAreOfOneListOfOneUser(t *testing.T) {
	t.Parallel()
	s := start(t)
	for range 3 {
		s.titled("u", "a")
		s.titled("v", "a")
	}
	next := nextPage(t, s.want(200, call{method: "GET", path: "/api/tasks?limit=1", user: "u"}))
	s.want(200, call{method: "GET", path: strings.Replace(next, "limit=1", "limit=2", 1), user: "u"})
	s.refused(422, "validation_error", call{method: "GET", path: next, user: "v"})
	for _, other := range []string{"&order=asc", "&sort=title", "&status=pending", "&q=a"} {
		s.refused(422, "validation_error", call{method: "GET", path: next + other, user: "u"})
	}
	s.refused(
		422,
		"validation_error",
		call{method: "GET", path: strings.Replace(next, "/api/tasks", "/api/history", 1), user: "u"},
	)
}

func TestConditionalReads(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	s.titled("u", "b")
	read := func(status int, path, user, tag string) answer {
		t.Helper()
		return s.want(status, call{method: "GET", path: path, user: user, header: http.Header{"If-None-Match": {tag}}})
	}
	if a := read(304, path, "u", `"7", W/"1"`); len(a.body) != 0 || a.Header.Get("ETag") != `"1"` {
		t.Errorf("304 with %q, %v", a.body, a.Header)
	}
	read(200, path, "u", `"2"`)
	read(200, path, "u", `garbage`)

	tag := s.want(200, call{method: "GET", path: "/api/tasks", user: "u"}).Header.Get("ETag")
	if !strings.HasPrefix(tag, `W/"2-`) {
		t.Errorf("the tag of a list is %s", tag)
	}
	read(304, "/api/tasks", "u", tag)
	s.want(304, call{method: "HEAD", path: "/api/tasks", user: "u", header: http.Header{"If-None-Match": {tag}}})
	read(200, "/api/tasks?order=asc", "u", tag)
	read(200, "/api/tasks?limit=1", "u", tag)
	read(200, "/api/tasks", "v", tag)

	s.change("PATCH", path+"/complete", "")
	read(304, path, "u", `*`)
	read(200, "/api/tasks", "u", tag)
}

// Also of users that look the same.
func TestTagsAreOfOneUser(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{
		"/api/tasks", "/api/history", "/api/trash", "/api/sync", "/api/ledger", "/api/export",
	} {
		theirs := http.Header{}
		theirs.Set("If-None-Match", s.want(200, call{method: "GET", path: path, user: "nobody"}).Header.Get("ETag"))
		s.want(304, call{method: "GET", path: path, user: "nobody", header: theirs})
		s.want(200, call{method: "GET", path: path, user: "no one", header: theirs})
	}
}

func TestConditionalWrites(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	s.titled("u", "b")
	match := func(value string) http.Header { return http.Header{"If-Match": {value}} }
	rename := func(value string) call {
		return call{method: "PUT", path: path, user: "u", body: `{"title":"x"}`, header: match(value)}
	}
	p := s.refused(412, "precondition_failed", rename(`"2"`))
	if p.CurrentVersion != 1 || !strings.Contains(p.Detail, "at version 1") {
		t.Errorf("%+v", p)
	}
	p = s.refused(412, "precondition_failed", rename(`W/"1"`)) // nginx with gzip makes it of "1"
	if !strings.Contains(p.Detail, "weak (W/)") || !strings.Contains(p.Detail, `"version" from the body`) {
		t.Errorf("a weak tag: %s", p.Detail)
	}
	for _, value := range []string{`W/"1"`, `"01"`, `"x"`, `"1`[:1] + `2", W/"1"`} {
		a := s.want(412, call{method: "DELETE", path: path, user: "u", header: match(value)})
		if a.Header.Get("ETag") != `"1"` {
			t.Errorf("%s: 412 with ETag %s", value, a.Header.Get("ETag"))
		}
	}
	complete := func(value string) call {
		return call{method: "PATCH", path: path + "/complete", user: "u", header: match(value)}
	}
	for _, value := range []string{`1`, `garbage`, ``, `"1" "2"`, `"1`, `*, "1"`, `w/"1"`} {
		s.refused(400, "validation_error", complete(value))
	}
	s.refused(404, "not_found", call{method: "DELETE", path: missing, user: "u", header: match(`*`)})
	s.want(200, complete(`*`))
	s.want(200, rename(`"1", "3"`))
	s.want(204, call{method: "DELETE", path: path, user: "u", header: match(`"4"`)})
}

func TestQuota(t *testing.T) {
	t.Parallel()
	s := start(t)
	var last taskJSON
	for i := range 10 {
		last = s.titled("u", fmt.Sprint(i))
	}
	s.refused(422, "quota_exceeded", call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"one more"}`})
	s.titled("v", "another user's")
	s.want(204, call{method: "DELETE", path: "/api/tasks/" + last.ID.String(), user: "u"})
	s.titled("u", "in its place")
}

// history reads a list of u's events.
func (s *service) history(path string) []historyJSON {
	s.t.Helper()
	return as[[]historyJSON](s.t, s.want(200, call{method: "GET", path: path, user: "u"}))
}

// twoTasksInSixEvents are u's; another user has one more.
func (s *service) twoTasksInSixEvents() (first, second taskJSON) {
	s.t.Helper()
	first = s.create("u", `{"title":"a","description":"d"}`)
	second = s.create("u", `{"title":"b","is_completed":true}`)
	path := "/api/tasks/" + first.ID.String()
	s.want(200, call{method: "PUT", path: path, user: "u", body: `{"title":"c","description":null}`,
		header: http.Header{"X-Request-Id": {"my-request.1"}}})
	s.want(204, call{method: "DELETE", path: path, user: "u"})
	s.titled("v", "another user's")
	return first, second
}

func TestHistory(t *testing.T) {
	t.Parallel()
	s := start(t)
	first, second := s.twoTasksInSixEvents()
	all := s.history("/api/history?order=asc")
	want := []struct {
		typ     events.Type
		task    uuid.UUID
		changes string
	}{
		{"TaskCreated", first.ID, `{"title":{"from":null,"to":"a"},"description":{"from":null,"to":"d"},` +
			`"is_completed":{"from":null,"to":false}}`},
		{"TaskCreated", second.ID, `{"title":{"from":null,"to":"b"},"is_completed":{"from":null,"to":false}}`},
		{"TaskCompleted", second.ID, `{"is_completed":{"from":false,"to":true}}`},
		{"TaskRenamed", first.ID, `{"title":{"from":"a","to":"c"}}`},
		{"TaskDescribed", first.ID, `{"description":{"from":"d","to":null}}`},
		{"TaskDeleted", first.ID, `{"deleted":{"from":false,"to":true}}`},
	}
	if len(all) != len(want) {
		t.Fatalf("%d entries, want %d", len(all), len(want))
	}
	for i, w := range want {
		e := all[i]
		if e.Seq != int64(i+1) || e.Type != w.typ || e.TaskID != w.task || string(e.Changes) != w.changes ||
			e.Actor != "u" {
			t.Errorf("entry %d: %+v %s, want %+v", i, e, e.Changes, w)
		}
	}
	if all[3].RequestID != "my-request.1" || all[0].RecordedAt != first.CreatedAt {
		t.Errorf("%+v, %+v", all[3], all[0])
	}
	none := s.want(200, call{method: "GET", path: "/api/history", user: "nobody"})
	if string(none.body) != "[]" || none.Header.Get("X-Version") != "0" {
		t.Errorf("a new user's history: %s, version %s", none.body, none.Header.Get("X-Version"))
	}
}

func TestHistoryFiltersAndPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	first, second := s.twoTasksInSixEvents()
	path := "/api/tasks/" + first.ID.String()
	seqs := func(path string) string {
		t.Helper()
		var out []string
		for _, e := range s.history(path) {
			out = append(out, fmt.Sprint(e.Seq))
		}
		return strings.Join(out, " ")
	}
	third := strings.ReplaceAll(s.history("/api/history?order=asc")[2].RecordedAt, ":", "%3A")
	for path, want := range map[string]string{
		"/api/history":                                        "6 5 4 3 2 1",
		"/api/history?since=2&until=5":                        "5 4 3",
		"/api/history?since=0&until=99&order=asc":             "1 2 3 4 5 6",
		"/api/history?since=" + third:                         "6 5 4",
		"/api/history?until=" + third + "&order=asc":          "1 2 3",
		"/api/history?type=TaskCreated":                       "2 1",
		"/api/history?task_id=" + second.ID.String():          "3 2",
		"/api/history?task_id=" + uuid.NewString():            "",
		"/api/history?limit=2":                                "6 5",
		path + "/history":                                     "1 4 5 6",
		path + "/history?order=desc&limit=1":                  "6",
		"/api/tasks/" + second.ID.String() + "/history":       "2 3",
		"/api/history?type=TaskDeleted&since=1&order=asc":     "6",
		"/api/history?since=2020-01-01T00:00:00%2B01:00":      "6 5 4 3 2 1",
		"/api/history?until=2020-01-01T00:00:00.5z&order=asc": "",
	} {
		if got := seqs(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	next := nextPage(t, s.want(200, call{method: "GET", path: "/api/history?limit=4", user: "u"}))
	if got := seqs(next); got != "2 1" {
		t.Errorf("the second page has %s", got)
	}
	s.refused(422, "validation_error", call{method: "GET", path: next, user: "v"})
}

func TestHistoryRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := start(t)
	first, _ := s.twoTasksInSixEvents()
	for _, query := range []string{
		"type=taskcreated", "type=", "task_id=1", "since=-1", "since=yesterday", "since=%2B5",
		"since=2026-01-01T1:00:00Z", "since=2026-01-01T01:00:00,5Z", "until=", "order=x", "limit=0", "cursor=1",
	} {
		s.refused(422, "validation_error", call{method: "GET", path: "/api/history?" + query, user: "u"})
	}
	s.refused(404, "not_found", call{method: "GET", path: "/api/tasks/" + first.ID.String() + "/history", user: "v"})
	s.refused(404, "not_found", call{method: "GET", path: missing + "/history", user: "u"})
}

// An answer is of one moment: what it shows and the seq it names belong together, also when it shows nothing.
func TestAReadIsOfOneMoment(t *testing.T) {
	t.Parallel()
	s := start(t)
	done := make(chan struct{})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for reads := 0; ; reads++ {
				select {
				case <-done:
					t.Logf("%d reads", reads)
					return
				default:
				}
				a := s.want(200, call{method: "GET", path: "/api/tasks", user: "u"})
				// Creation and deletion take turns: with an odd seq there is one task, with an even one none.
				seq, err := strconv.Atoi(a.Header.Get("X-Version"))
				if n := len(as[[]taskJSON](t, a)); err != nil || n != seq%2 {
					t.Errorf("at %s: %d tasks", a.Header.Get("X-Version"), n)
				}
			}
		})
	}
	for range 80 {
		s.want(204, call{method: "DELETE", path: "/api/tasks/" + s.titled("u", "a").ID.String(), user: "u"})
	}
	close(done)
	work.Wait()
}
