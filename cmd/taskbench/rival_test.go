package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"taskledger/migrations/testdb"
)

func startRival(t *testing.T) (r *rival, url string) {
	t.Helper()
	r, err := openRival(t.Context(), testdb.EmptyURL(t), testSecret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	server := httptest.NewServer(r.routes())
	t.Cleanup(server.Close)
	return r, server.URL
}

// caller sends requests to the rival as one user.
type caller struct {
	t          *testing.T
	url, token string
}

func newCaller(t *testing.T, url, subject string) caller {
	t.Helper()
	token, err := (&options{secret: testSecret}).sign(subject)
	if err != nil {
		t.Fatal(err)
	}
	return caller{t, url, token}
}

func (c caller) send(method, path, body string) (status int, header http.Header, answer string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(read)
}

func TestRivalKeepsTheContract(t *testing.T) {
	t.Parallel()
	_, url := startRival(t)
	alice, bob := newCaller(t, url, "alice"), newCaller(t, url, "bob")
	status, header, created := alice.send("POST", "/api/tasks", `{"title":"b <&> \"ü\"","description":"d"}`)
	form := regexp.MustCompile(
		`^\{"id":"([0-9a-f-]{36})","user_id":"alice","title":"b <&> \\"ü\\"","description":"d",` +
			`"is_completed":false,"created_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",` +
			`"updated_at":"[^"]{27}","version":1\}$`,
	)
	found := form.FindStringSubmatch(created)
	if status != 201 || found == nil || header.Get("Location") != "/api/tasks/"+found[1] ||
		header.Get("ETag") != `"1"` {
		t.Fatalf("created: %d %v %s", status, header, created)
	}
	path := "/api/tasks/" + found[1]
	if status, header, got := alice.send(
		"GET",
		path,
		"",
	); status != 200 || got != created ||
		header.Get("ETag") != `"1"` {
		t.Errorf("read: %d %v %s", status, header, got)
	}
	status, header, toggled := alice.send("PATCH", path+"/complete", "")
	if status != 200 || header.Get("ETag") != `"2"` || !strings.Contains(toggled, `"is_completed":true`) {
		t.Errorf("toggled: %d %v %s", status, header, toggled)
	}
	if status, _, got := alice.send("GET", "/api/tasks", ""); status != 200 || got != "["+toggled+"]" {
		t.Errorf("listed: %d %s", status, got)
	}
	for _, request := range []string{"GET ", "DELETE ", "PATCH /complete"} {
		method, more, _ := strings.Cut(request, " ")
		if status, _, got := bob.send(
			method,
			path+more,
			"",
		); status != 404 ||
			!strings.Contains(got, `"code":"not_found"`) {
			t.Errorf("%s of another user's task: %d %s", method, status, got)
		}
	}
	if status, _, got := alice.send("DELETE", path, ""); status != 204 || got != "" {
		t.Errorf("deleted: %d %s", status, got)
	}
	if status, _, _ := alice.send("DELETE", path, ""); status != 404 {
		t.Errorf("deleted again: %d", status)
	}
	if status, _, got := alice.send("GET", "/api/tasks", ""); status != 200 || got != "[]" {
		t.Errorf("listed at last: %d %s", status, got)
	}
}

func TestRivalOrdersLists(t *testing.T) {
	t.Parallel()
	_, url := startRival(t)
	c := newCaller(t, url, "alice")
	for _, title := range []string{"b", "A", "c"} {
		body := fmt.Sprintf(`{"title":%q,"is_completed":%t}`, title, title == "c")
		if status, _, got := c.send("POST", "/api/tasks", body); status != 201 {
			t.Fatal(got)
		}
	}
	for query, want := range map[string]string{
		"": "cAb", "order=asc": "bAc", "sort=title": "Abc", "sort=title&order=desc": "cbA", "status=pending": "Ab",
		"status=completed": "c", "sort=updated_at": "cAb", "limit=2": "cA", "limit=500&status=all&other=1": "cAb",
	} {
		_, header, answer := c.send("GET", "/api/tasks?"+query, "")
		var tasks []task
		if err := json.Unmarshal([]byte(answer), &tasks); err != nil {
			t.Fatalf("%s: %s", query, answer)
		}
		got := ""
		for _, task := range tasks {
			got += task.Title
		}
		if got != want || !strings.HasPrefix(header.Get("ETag"), `W/"`) {
			t.Errorf("%s: %s, want %s; %v", query, got, want, header)
		}
	}
}

func TestRivalRefuses(t *testing.T) {
	t.Parallel()
	r, url := startRival(t)
	r.tokens.Store("remembered", rivalCaller{user: "alice", expires: time.Now().Add(-time.Second)})
	alice := newCaller(t, url, "alice")
	expired, err := (&options{secret: testSecret, Deadline: -2 * time.Minute}).sign("alice")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := (&options{secret: "another-secret-another-secret-00"}).sign("alice")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name               string
		caller             caller
		method, path, body string
		want               int
	}{
		{"no token", caller{t, url, ""}, "GET", "/api/tasks", "", 401},
		{"expired", caller{t, url, expired}, "GET", "/api/tasks", "", 401},
		{"expired since it was verified", caller{t, url, "remembered"}, "GET", "/api/tasks", "", 401},
		{"other secret", caller{t, url, stranger}, "GET", "/api/tasks", "", 401},
		{"limit", alice, "GET", "/api/tasks?limit=501", "", 422},
		{"sort", alice, "GET", "/api/tasks?sort=id", "", 422},
		{"no title", alice, "POST", "/api/tasks", `{}`, 422},
		{"blank title", alice, "POST", "/api/tasks", `{"title":" "}`, 422},
		{"long title", alice, "POST", "/api/tasks", `{"title":"` + strings.Repeat("ü", 101) + `"}`, 422},
		{"not JSON", alice, "POST", "/api/tasks", `{`, 400},
		{"no id", alice, "GET", "/api/tasks/x", "", 422},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.caller.t = t
			status, header, got := tt.caller.send(tt.method, tt.path, tt.body)
			if status != tt.want || header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %v %s, want %d", status, header, got, tt.want)
			}
		})
	}
}

func TestRivalStandsTheLoad(t *testing.T) {
	t.Parallel()
	_, url := startRival(t)
	got := bench(t, quick(url)...)
	if got.code != 0 || strings.Count(got.stdout, "| 0 |\n") != 8 {
		t.Errorf("exit %d: %s%s", got.code, got.stdout, got.stderr)
	}
}

func TestRivalNeedsItsDatabase(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	environment := map[string]string{
		"PORT": "0", "DATABASE_URL": "postgres://127.0.0.1:1/x", "BETTER_AUTH_SECRET": testSecret,
	}
	getenv := func(name string) string { return environment[name] }
	if code := run(t.Context(), []string{serveRivalFlag}, getenv, &stderr, &stderr); code != 1 {
		t.Errorf("exit %d: %s", code, &stderr)
	}
}
