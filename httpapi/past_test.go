package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// change sends a write that must succeed.
func (s *service) change(method, path, body string) taskJSON {
	s.t.Helper()
	return as[taskJSON](s.t, s.want(200, call{method: method, path: path, user: "u", body: body}))
}

// past is what u has done in seven events.
type past struct {
	a, b, c taskJSON // as they were created; b is deleted
	changed taskJSON // a as it is
}

func pathOf(task taskJSON) string { return "/api/tasks/" + task.ID.String() }

func (s *service) sevenEvents() (p past) {
	s.t.Helper()
	p.a = s.create("u", `{"title":"Änderung","description":"x"}`)                      // 1
	p.b = s.create("u", `{"title":"apple","is_completed":true}`)                       // 2, 3: of the same moment
	p.changed = s.change("PATCH", pathOf(p.a), `{"title":"zebra","description":null}`) // 4, 5
	s.want(204, call{method: "DELETE", path: pathOf(p.b), user: "u"})                  // 6
	p.c = s.titled("u", "Mango")                                                       // 7
	return p
}

// A list as of the present is the list, whatever is asked of it.
func TestTasksAsOfNowAreTheTasks(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.sevenEvents()
	for _, query := range []string{
		"", "?sort=title", "?sort=title&order=desc", "?sort=updated_at", "?order=asc",
		"?status=completed", "?status=pending&limit=1",
		"?q=ZEB", "?q=nothing", "?limit=1",
	} {
		now := s.want(200, call{method: "GET", path: "/api/tasks" + query, user: "u"})
		separator := map[bool]string{true: "&", false: "?"}[query != ""]
		then := s.want(200, call{method: "GET", path: "/api/tasks" + query + separator + "as_of=7", user: "u"})
		if string(now.body) != string(then.body) || (now.Header.Get("Link") == "") != (then.Header.Get("Link") == "") {
			t.Errorf("%s now:\n%s\nas of now:\n%s", query, now.body, then.body)
		}
	}
}

// A list of the past is of what was there then.
func TestTasksAreAsTheyWere(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := s.sevenEvents()
	for _, tc := range []struct {
		asOf string
		want []string
	}{
		{"0", []string{}},
		{"1", []string{"Änderung"}},
		{"2", []string{"apple", "Änderung"}},
		{"3", []string{"apple", "Änderung"}},
		{"5", []string{"apple", "zebra"}},
		{"6", []string{"zebra"}},
		{"1970-01-01T00:00:00Z", []string{}},
		{"0001-01-01T00:00:00Z", []string{}},
		{p.a.CreatedAt, []string{"Änderung"}},
		{p.b.CreatedAt, []string{"apple", "Änderung"}},
		{p.changed.UpdatedAt, []string{"apple", "zebra"}},
		{p.c.CreatedAt, []string{"Mango", "zebra"}},
		{before(t, p.a.CreatedAt), []string{}},
		{before(t, p.c.CreatedAt), []string{"zebra"}},
	} {
		if got := titles(s.list("u", "?as_of="+url.QueryEscape(tc.asOf))); !slices.Equal(got, tc.want) {
			t.Errorf("as of %s: %q, want %q", tc.asOf, got, tc.want)
		}
	}
	if got := s.list("u", "?as_of=3&status=completed"); len(got) != 1 || got[0].Version != 3 || !got[0].IsCompleted {
		t.Errorf("completed as of 3: %+v", got)
	}
	for status, want := range map[string]string{"completed": "apple", "pending": "Änderung"} {
		if got := titles(s.list("u", "?as_of=3&status="+status)); !slices.Equal(got, []string{want}) {
			t.Errorf("%s as of 3: %q, want %q", status, got, want)
		}
	}
	if got := s.list("u", "?as_of=2"); got[0].Version != 2 || got[0].IsCompleted {
		t.Errorf("between two events of one moment: %+v", got)
	}
	if got := s.list("nobody", "?as_of=0"); len(got) != 0 {
		t.Errorf("nobody: %+v", got)
	}
}

func TestOneTaskIsAsItWas(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := s.sevenEvents()
	then := call{method: "GET", path: pathOf(p.a) + "?as_of=3", user: "u"}
	one := s.want(200, then)
	task := as[taskJSON](t, one)
	if task.Title != "Änderung" || task.Version != 1 || one.Header.Get("ETag") != `"1"` ||
		one.Header.Get("X-Version") != "7" {
		t.Errorf("one task: %s, %v", one.body, one.Header)
	}
	s.want(304, with(then, "If-None-Match", `"1"`))
	for _, gone := range []string{pathOf(p.a) + "?as_of=0", pathOf(p.b) + "?as_of=7", pathOf(p.c) + "?as_of=6"} {
		s.refused(404, "not_found", call{method: "GET", path: gone, user: "u"})
	}
}

func TestAsOfRefusesWhatIsNoPast(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := s.sevenEvents()
	for _, future := range []string{
		"8", "9223372036854775807", url.QueryEscape(time.Now().Add(time.Minute).Format(time.RFC3339Nano)),
		"-1", "x", "",
	} {
		for _, path := range []string{"/api/tasks", pathOf(p.a)} {
			refused := s.refused(422, "validation_error",
				call{method: "GET", path: path + "?as_of=" + future, user: "u"})
			if refused.Errors[0].Parameter != "as_of" {
				t.Errorf("as_of=%s: %+v", future, refused)
			}
		}
	}
}

// before is the microsecond before a time.
func before(t *testing.T, at string) string {
	t.Helper()
	when, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		t.Fatal(err)
	}
	return when.Add(-time.Microsecond).Format(time.RFC3339Nano)
}

// follow reads a list page by page.
func (s *service) follow(path string) (items []json.RawMessage) {
	s.t.Helper()
	for path != "" {
		a := s.want(200, call{method: "GET", path: path, user: "u"})
		items = append(items, as[[]json.RawMessage](s.t, a)...)
		path = ""
		if link := a.Header.Get("Link"); link != "" {
			path = link[1:strings.Index(link, ">")]
		}
		if len(items) > 1000 {
			s.t.Fatal("pages without an end")
		}
	}
	return items
}

// The pages of a list of the past are that list, in every order.
func TestPagesOfThePast(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *Config) { c.RateRPS = 0 })
	for i := range 9 {
		s.create("u", fmt.Sprintf(`{"title":"%d same %d","is_completed":%t}`, i%2, i%3, i%2 == 0))
	}
	for _, query := range []string{
		"as_of=11", "as_of=11&sort=title", "as_of=11&sort=updated_at&order=asc",
		"as_of=11&sort=title&order=desc&status=pending",
	} {
		whole := s.follow("/api/tasks?" + query)
		for limit := 1; limit <= len(whole)+1; limit++ {
			pages := s.follow("/api/tasks?" + query + "&limit=" + strconv.Itoa(limit))
			if fmt.Sprintf("%s", pages) != fmt.Sprintf("%s", whole) {
				t.Errorf("%s by %d:\n%s\nwant\n%s", query, limit, pages, whole)
			}
		}
	}
	page := s.want(200, call{method: "GET", path: "/api/tasks?as_of=11&limit=2", user: "u"})
	next := page.Header.Get("Link")
	s.refused(
		422,
		"validation_error",
		call{
			method: "GET",
			path:   strings.Replace(next[1:strings.Index(next, ">")], "as_of=11", "as_of=10", 1),
			user:   "u",
		},
	)
}

// The trash has what was deleted, the last first, with the time; a restored task is as it was.
func TestTrashAndRestore(t *testing.T) {
	t.Parallel()
	s := start(t)
	var all []taskJSON
	for i := range 5 {
		all = append(all, s.titled("u", fmt.Sprint(i)))
	}
	if got := s.follow("/api/trash"); len(got) != 0 {
		t.Fatalf("an empty trash: %s", got)
	}
	for _, i := range []int{3, 1, 4} {
		s.want(204, call{method: "DELETE", path: "/api/tasks/" + all[i].ID.String(), user: "u"})
	}
	type deleted struct {
		taskJSON
		DeletedAt string `json:"deleted_at"`
	}
	trash := as[[]deleted](t, s.want(200, call{method: "GET", path: "/api/trash", user: "u"}))
	if len(trash) != 3 || trash[0].Title != "4" || trash[1].Title != "1" || trash[2].Title != "3" ||
		trash[0].Version != 8 ||
		trash[0].DeletedAt != trash[0].UpdatedAt {
		t.Errorf("the trash: %+v", trash)
	}
	if whole, pages := s.follow(
		"/api/trash",
	), s.follow(
		"/api/trash?limit=1",
	); fmt.Sprintf(
		"%s",
		whole,
	) != fmt.Sprintf(
		"%s",
		pages,
	) {
		t.Errorf("pages of the trash: %s", pages)
	}
	restore := func(i int) string { return "/api/tasks/" + all[i].ID.String() + "/restore" }
	for _, match := range []string{`"4"`, `W/"8"`} {
		s.refused(
			412,
			"precondition_failed",
			call{method: "POST", path: restore(4), user: "u", header: http.Header{"If-Match": {match}}},
		)
	}
	key := http.Header{"If-Match": {`"8"`}, "Idempotency-Key": {"r"}}
	first := s.want(200, call{method: "POST", path: restore(4), user: "u", header: key})
	if task := as[taskJSON](
		t,
		first,
	); task.Title != "4" || task.Version != 9 || task.CreatedAt != all[4].CreatedAt ||
		first.Header.Get("ETag") != `"9"` {
		t.Errorf("restored: %s", first.body)
	}
	again := s.want(200, call{method: "POST", path: restore(4), user: "u", header: key})
	if string(again.body) != string(first.body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("the retry: %s %v", again.body, again.Header)
	}
	s.refused(409, "version_conflict", call{method: "POST", path: restore(4), user: "u"})
	s.refused(409, "version_conflict", call{method: "POST", path: restore(0), user: "u"})
	s.refused(404, "not_found", call{method: "POST", path: missing + "/restore", user: "u"})
	if got := s.follow("/api/trash"); len(got) != 2 {
		t.Errorf("the trash after it: %s", got)
	}
	for i := range 7 { // 3 are live, and the quota is 10
		s.titled("u", fmt.Sprint("more ", i))
	}
	s.refused(422, "quota_exceeded", call{method: "POST", path: restore(1), user: "u"})
}

// with is a call with the header.
func with(c call, name string, values ...string) call {
	c.header = http.Header{name: values}
	return c
}

func restoreOf(path string) call { return call{method: "POST", path: path + "/restore", user: "u"} }

// revertTo is the call that takes a task back to a version, which is written as JSON.
func revertTo(version, path string) call {
	return call{method: "POST", path: path + "/revert", user: "u", body: `{"version":` + version + `}`}
}

// changedTask is a task of u: "one", described and completed at 2, "two" and neither at 5.
func (s *service) changedTask() (task taskJSON, path string) {
	s.t.Helper()
	task = s.create("u", `{"title":"one","description":"d","is_completed":true}`) // 1, 2
	path = pathOf(task)
	s.change("PATCH", path, `{"title":"two","description":null,"is_completed":false}`) // 3, 4, 5
	return task, path
}

// A task goes back to what it was, by new events.
func TestRevert(t *testing.T) {
	t.Parallel()
	s := start(t)
	task, path := s.changedTask()
	s.titled("u", "other")                                    // 6
	back := as[taskJSON](t, s.want(200, revertTo("2", path))) // 7, 8, 9
	if back.Title != "one" || *back.Description != "d" || !back.IsCompleted || back.Version != 9 ||
		back.CreatedAt != task.CreatedAt {
		t.Errorf("back at 2: %+v", back)
	}
	same := as[taskJSON](t, s.want(200, revertTo("9", path)))
	if same != back && (same.Version != 9 || same.UpdatedAt != back.UpdatedAt) {
		t.Errorf("to itself: %+v", same)
	}
	open := as[taskJSON](t, s.want(200, revertTo("1", path))) // 10
	if open.Title != "one" || open.IsCompleted || open.Version != 10 {
		t.Errorf("back at 1, between two events of one command: %+v", open)
	}
	if entries := s.history(path + "/history"); len(entries) != 9 {
		t.Errorf("%d entries: nothing is erased", len(entries))
	}
}

func TestARetriedRevertRevertsOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, path := s.changedTask()
	s.want(200, revertTo("1", path)) // 6, 7
	keyed := revertTo("5", path)
	keyed.header = http.Header{"Idempotency-Key": {"k"}, "If-Match": {`"7"`}}
	first := s.want(200, keyed)                  // 8, 9
	s.change("PATCH", path, `{"title":"three"}`) // 10
	again := s.want(200, keyed)
	if string(again.body) != string(first.body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("the retry: %s, first %s", again.body, first.body)
	}
	s.refused(412, "precondition_failed", with(revertTo("5", path), "If-Match", `"7"`))
	if n := s.count(`true`); n != 10 {
		t.Errorf("%d events", n)
	}
}

func TestRevertRefusesWhatNeverWas(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, path := s.changedTask()
	other := s.titled("u", "other") // 6
	nothing := revertTo("", path)
	nothing.body = `{}`
	for name, c := range map[string]call{
		"before its creation": revertTo("5", pathOf(other)),
		"past the head":       revertTo("99", path),
		"0":                   revertTo("0", path),
		"negative":            revertTo("-1", path),
		"no number":           revertTo(`"1"`, path),
		"a fraction":          revertTo("1.5", path),
		"too large":           revertTo("9223372036854775808", path),
		"nothing":             nothing,
		"null":                revertTo("null", path),
	} {
		p := s.refused(422, "validation_error", c)
		if p.Errors[0].Pointer == nil || *p.Errors[0].Pointer != "/version" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	s.refused(404, "not_found", revertTo("1", missing))
	if n := s.count(`true`); n != 6 {
		t.Errorf("%d events", n)
	}
}

func TestADeletedTaskIsNotReverted(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, path := s.changedTask()
	s.want(204, call{method: "DELETE", path: path, user: "u"}) // 6
	s.refused(404, "not_found", revertTo("2", path))
	s.want(200, restoreOf(path)) // 7
	s.refused(422, "validation_error", revertTo("6", path))
	if as[taskJSON](t, s.want(200, revertTo("5", path))).Title != "two" {
		t.Error("a version before the deletion")
	}
}

type syncJSON struct {
	Changes []struct {
		Op      string    `json:"op"`
		Task    *taskJSON `json:"task"`
		ID      string    `json:"id"`
		Version int64     `json:"version"`
	} `json:"changes"`
	Version int64 `json:"version"`
	HasMore bool  `json:"has_more"`
	Reset   bool  `json:"reset"`
}

func (s *service) sync(query string) syncJSON {
	s.t.Helper()
	return as[syncJSON](s.t, s.want(200, call{method: "GET", path: "/api/sync" + query, user: "u"}))
}

// copyOf is a copy of the tasks, kept by syncing from a version on, so many changes at a time.
func (s *service) copyOf(has map[string]int64, since int64, limit int) (int64, map[string]int64) {
	s.t.Helper()
	for {
		page := s.sync(fmt.Sprintf("?since=%d&limit=%d", since, limit))
		if page.Reset {
			clear(has)
		}
		for _, c := range page.Changes {
			switch {
			case c.Op == "delete":
				delete(has, c.ID)
			case c.Task.Version <= since && !page.Reset:
				s.t.Errorf("a change of version %d since %d", c.Task.Version, since)
			default:
				has[c.Task.ID.String()] = c.Task.Version
			}
		}
		if since = page.Version; !page.HasMore {
			return since, has
		}
	}
}

// Whoever stands at any version comes to the same copy.
func TestSyncFromEveryVersion(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *Config) { c.RateRPS = 0 })
	if page := s.sync(""); page.Version != 0 || page.HasMore || len(page.Changes) != 0 {
		t.Fatalf("nothing: %+v", page)
	}
	copies := map[int64]map[string]int64{0: {}}
	take := func() {
		version, has := s.copyOf(map[string]int64{}, 0, 500)
		copies[version] = has
	}
	var tasks []taskJSON
	for i := range 6 {
		tasks = append(tasks, s.titled("u", fmt.Sprint(i)))
		take()
	}
	path := func(i int) string { return "/api/tasks/" + tasks[i].ID.String() }
	for _, i := range []int{2, 0, 2} {
		s.change("PATCH", path(i)+"/complete", "")
		take()
	}
	s.want(204, call{method: "DELETE", path: path(1), user: "u"})
	take()
	s.want(204, call{method: "DELETE", path: path(5), user: "u"})
	take()
	s.want(200, call{method: "POST", path: path(1) + "/restore", user: "u"})
	head, want := s.copyOf(map[string]int64{}, 0, 500)
	for since, has := range copies {
		for _, limit := range []int{1, 2, 3, 500} {
			mine := map[string]int64{}
			for id, version := range has {
				mine[id] = version
			}
			if version, got := s.copyOf(mine, since, limit); version != head || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("from %d by %d: %v at %d, want %v at %d", since, limit, got, version, want, head)
			}
		}
	}
	whole := s.sync("")
	if len(whole.Changes) != 5 ||
		slices.ContainsFunc(
			as[syncJSON](t, s.want(200, call{method: "GET", path: "/api/sync?since=0", user: "u"})).Changes,
			func(c struct {
				Op      string    `json:"op"`
				Task    *taskJSON `json:"task"`
				ID      string    `json:"id"`
				Version int64     `json:"version"`
			}) bool {
				return c.Op != "upsert"
			},
		) {
		t.Errorf("from nothing: %+v", whole)
	}
	for _, wrong := range []string{
		"?since=13", "?since=-1", "?since=x", "?since=", "?limit=0", "?limit=501", "?since=9223372036854775808",
	} {
		s.refused(422, "validation_error", call{method: "GET", path: "/api/sync" + wrong, user: "u"})
	}
	a := s.want(200, call{method: "GET", path: "/api/sync?since=3", user: "u"})
	s.want(
		304,
		call{
			method: "GET",
			path:   "/api/sync?since=3",
			user:   "u",
			header: http.Header{"If-None-Match": {a.Header.Get("ETag")}},
		},
	)
}

type linkJSON struct {
	Seq        int64   `json:"seq"`
	Hash       string  `json:"hash"`
	RecordedAt *string `json:"recorded_at"`
}

// The ledger tells every link of the chain, as the history has it.
func TestLinks(t *testing.T) {
	t.Parallel()
	s := start(t)
	link := func(query string) linkJSON {
		t.Helper()
		return as[linkJSON](t, s.want(200, call{method: "GET", path: "/api/ledger" + query, user: "u"}))
	}
	if l := link(""); l.Seq != 0 || l.Hash != strings.Repeat("0", 64) || l.RecordedAt != nil {
		t.Errorf("nothing: %+v", l)
	}
	s.create("u", `{"title":"a","is_completed":true}`)
	s.titled("u", "b")
	history := as[[]historyJSON](t, s.want(200, call{method: "GET", path: "/api/history?order=asc", user: "u"}))
	for _, e := range history {
		if l := link(
			"?seq=" + strconv.FormatInt(e.Seq, 10),
		); l.Seq != e.Seq || l.Hash != e.Hash ||
			*l.RecordedAt != e.RecordedAt {
			t.Errorf("%+v is not as in the history: %+v", l, e)
		}
	}
	if last, l := history[2], link(""); l.Seq != 3 || l.Hash != last.Hash {
		t.Errorf("the last: %+v", l)
	}
	if l := link("?seq=0"); l.Seq != 0 || l.Hash != strings.Repeat("0", 64) {
		t.Errorf("before the first: %+v", l)
	}
	for _, wrong := range []string{"4", "-1", "x", "", "9223372036854775808"} {
		s.refused(422, "validation_error", call{method: "GET", path: "/api/ledger?seq=" + wrong, user: "u"})
	}
}

// deletedAt5 is a task of u that was "one" and completed, "two" at 3, "one" again, and was deleted.
func (s *service) deletedAt5() (path string) {
	s.t.Helper()
	path = pathOf(s.create("u", `{"title":"one","is_completed":true}`)) // 1, 2
	s.change("PATCH", path, `{"title":"two"}`)                          // 3
	s.change("PATCH", path, `{"title":"one"}`)                          // 4
	s.want(204, call{method: "DELETE", path: path, user: "u"})          // 5
	return path
}

// Conditions and keys hold on what brings the past back as on every write.
func TestConditionsAndKeysOnThePast(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := s.deletedAt5()
	restore, revert := restoreOf(path), revertTo("1", path)
	for _, c := range []call{restore, revert} {
		for _, garbage := range []string{`5`, `"5`, `*, "5"`, `"x" "y"`} {
			if a := s.do(with(c, "If-Match", garbage)); a.StatusCode != 400 {
				t.Errorf("%s with If-Match %s: %d %s", c.path, garbage, a.StatusCode, a.body)
			}
		}
		s.refused(422, "validation_error", with(c, "Idempotency-Key", "a key"))
	}
	if p := s.refused(412, "precondition_failed", with(restore, "If-Match", `"4"`, `W/"5"`)); p.CurrentVersion != 5 {
		t.Errorf("%+v", p)
	}
	s.refused(404, "not_found", with(revert, "If-Match", `*`)) // it is deleted
	s.refused(404, "not_found", with(revert, "Idempotency-Key", "k"))
	s.refused(404, "not_found", with(restoreOf(missing), "If-Match", `*`))
	first := s.want(200, with(restore, "Idempotency-Key", "k")) // 6: what was refused had left no trace of the key
	s.refused(422, "idempotency_key_reused", with(revert, "Idempotency-Key", "k"))
	// before it is looked at whether it is deleted
	s.refused(412, "precondition_failed", with(restore, "If-Match", `"5"`))
	s.refused(409, "version_conflict", with(restore, "If-Match", `"5", "6"`))
	s.refused(409, "version_conflict", restore)
	if again := s.want(200, with(restore, "Idempotency-Key", "k")); !sameAnswer(again, first) {
		t.Errorf("the retry: %s", again.body)
	}
	// Of a version that differs in one member, that one comes back.
	back := as[taskJSON](t, s.want(200, with(revert, "If-Match", `"9"`, `"6"`))) // 7
	if back.Title != "one" || back.IsCompleted || back.Version != 7 {
		t.Errorf("%+v", back)
	}
	// To the same is no event, and leaves no trace of its key.
	same := with(revert, "Idempotency-Key", "same")
	for range 2 {
		if a := s.want(200, same); a.Header.Get("X-Version") != "7" || a.Header.Get("Idempotency-Replayed") != "" {
			t.Errorf("to the same: %s %v", a.body, a.Header)
		}
	}
	last := s.want(200, with(revertTo("3", path), "Idempotency-Key", "same")) // 8, 9
	if last.Header.Get("X-Version") != "9" {
		t.Errorf("with the key again: %s %v", last.body, last.Header)
	}
}

func TestBodiesOfRevertAreReadStrictly(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, path := s.changedTask()
	for body, status := range map[string]int{
		`{"version":1`: 400, `{"version":1}x`: 400, `{"version":1,"version":2}`: 400, `[1]`: 422, ``: 400,
	} {
		if a := s.do(call{method: "POST", path: path + "/revert", user: "u", body: body}); a.StatusCode != status {
			t.Errorf("%s: %d, want %d", body, a.StatusCode, status)
		}
	}
	if n := s.count(`true`); n != 5 {
		t.Errorf("%d events", n)
	}
}

// A task that comes and goes has all of it in its history, and was there in between.
func TestTheHistoryOfADeletedTask(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := s.deletedAt5()
	s.want(200, restoreOf(path))                               // 6
	s.want(200, revertTo("1", path))                           // 7
	s.want(200, revertTo("3", path))                           // 8, 9
	s.want(204, call{method: "DELETE", path: path, user: "u"}) // 10
	entries := s.history(path + "/history")
	var kinds []string
	for _, e := range entries {
		kinds = append(kinds, strings.TrimPrefix(string(e.Type), "Task"))
	}
	want := "Created Completed Renamed Renamed Deleted Restored Reopened Renamed Completed Deleted"
	if got := strings.Join(kinds, " "); got != want {
		t.Errorf("the history of a deleted task: %s", got)
	}
	if string(entries[4].Changes) != `{"deleted":{"from":false,"to":true}}` ||
		string(entries[5].Changes) != `{"deleted":{"from":true,"to":false}}` {
		t.Errorf("%s, %s", entries[4].Changes, entries[5].Changes)
	}
	for seq, want := range map[int]int{4: 200, 5: 404, 6: 200, 9: 200, 10: 404} {
		if a := s.do(call{method: "GET", path: fmt.Sprint(path, "?as_of=", seq), user: "u"}); a.StatusCode != want {
			t.Errorf("as of %d: %d, want %d", seq, a.StatusCode, want)
		}
	}
}
