package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
)

func TestBodiesAreReadStrictly(t *testing.T) {
	t.Parallel()
	s := start(t)
	deep := func(n int) string {
		return `{"title":"a","x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
	}
	for _, tc := range []struct {
		name, body string
		status     int
		code       string
		errors     []string // pointer and code of each
	}{
		{"empty", " ", 400, "invalid_json", nil},
		{"not JSON", `{title:1}`, 400, "invalid_json", nil},
		{"cut off", `{"title":"a"`, 400, "invalid_json", nil},
		{"something behind", `{"title":"a"} x`, 400, "invalid_json", nil},
		{"another value behind", `{"title":"a"}{}`, 400, "invalid_json", nil},
		{"a member twice", `{"title":"a","title":"b"}`, 400, "invalid_json", nil},
		{"a member twice, once escaped", `{"title":"a","\u0074itle":"b"}`, 400, "invalid_json", nil},
		{"an inner member twice", `{"title":"a","x":{"y":1,"y":2}}`, 400, "invalid_json", nil},
		{"not UTF-8", "{\"title\":\"a\xff\"}", 400, "invalid_json", nil},
		{"a surrogate in UTF-8", "{\"title\":\"\xed\xa0\x80\"}", 400, "invalid_json", nil},
		{"a byte order mark", "\ufeff{\"title\":\"a\"}", 400, "invalid_json", nil},
		{"a comment", `{"title":"a"/**/}`, 400, "invalid_json", nil},
		{"a trailing comma", `{"title":"a",}`, 400, "invalid_json", nil},
		{"NaN", `{"title":"a","x":NaN}`, 400, "invalid_json", nil},
		{"a control character", "{\"title\":\"a\nb\"}", 400, "invalid_json", nil},
		{"101 deep", deep(101), 400, "invalid_json", nil},
		{"100 deep", deep(100), 201, "", nil},
		{"an array", `[]`, 422, "validation_error", []string{" invalid_type"}},
		{"null", `null`, 422, "validation_error", []string{" invalid_type"}},
		{"a string", `"title"`, 422, "validation_error", []string{" invalid_type"}},
		{"no title", `{}`, 422, "validation_error", []string{"/title required"}},
		{"Title", `{"Title":"a"}`, 422, "validation_error", []string{"/title required"}},
		{"null title", `{"title":null}`, 422, "validation_error", []string{"/title invalid_type"}},
		{"number title", `{"title":1}`, 422, "validation_error", []string{"/title invalid_type"}},
		{"empty title", `{"title":""}`, 422, "validation_error", []string{"/title too_short"}},
		{"blank title", `{"title":" \u3000\t"}`, 422, "validation_error", []string{"/title blank"}},
		{"title of U+200B alone", "{\"title\":\"\u200b\"}", 422, "validation_error", []string{"/title blank"}},
		{"NUL", `{"title":"a\u0000"}`, 422, "validation_error", []string{"/title invalid_character"}},
		{"lone surrogate", `{"title":"a\ud800"}`, 422, "validation_error", []string{"/title invalid_character"}},
		{
			"swapped surrogates", `{"title":"\udc00\ud800"}`, 422, "validation_error",
			[]string{"/title invalid_character"},
		},
		{"a pair of surrogates", `{"title":"\ud83e\udd5b"}`, 201, "", nil},
		{"the replacement character itself", `{"title":"\ufffd"}`, 201, "", nil},
		{"lone surrogate elsewhere", `{"title":"a","x":"\ud800"}`, 201, "", nil},
		{
			"null is_completed", `{"title":"a","is_completed":null}`, 422, "validation_error",
			[]string{"/is_completed invalid_type"},
		},
		{
			"number is_completed", `{"title":"a","is_completed":1}`, 422, "validation_error",
			[]string{"/is_completed invalid_type"},
		},
		{"all at once", `{"title":"","description":5,"is_completed":"no"}`, 422, "validation_error",
			[]string{"/title too_short", "/description invalid_type", "/is_completed invalid_type"}},
		{"title of 100", fmt.Sprintf(`{"title":%q}`, strings.Repeat("🥛", 100)), 201, "", nil},
		{
			"title of 101", fmt.Sprintf(`{"title":%q}`, strings.Repeat("🥛", 101)), 422, "validation_error",
			[]string{"/title too_long"},
		},
		{"description of 1000", fmt.Sprintf(`{"title":"a","description":%q}`, strings.Repeat("🥛", 1000)), 201, "", nil},
		{
			"description of 1001", fmt.Sprintf(`{"title":"a","description":%q}`, strings.Repeat("a", 1001)), 422,
			"validation_error", []string{"/description too_long"},
		},
		{"empty description", `{"title":"a","description":""}`, 201, "", nil},
	} {
		a := s.do(call{method: "POST", path: "/api/tasks", user: "user of " + tc.name, body: tc.body})
		if a.StatusCode != tc.status {
			t.Errorf("%s: %d %s, want %d", tc.name, a.StatusCode, a.body, tc.status)
			continue
		}
		if tc.status == 201 {
			continue
		}
		p := as[problemJSON](t, a)
		var wrong []string
		for _, e := range p.Errors {
			wrong = append(wrong, *e.Pointer+" "+e.Code)
		}
		if p.Code != tc.code || !slices.Equal(wrong, tc.errors) {
			t.Errorf("%s: %s %q, want %s %q", tc.name, p.Code, wrong, tc.code, tc.errors)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	s := start(t)
	post := func(header http.Header) answer {
		return s.do(call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"a"}`, header: header})
	}
	for _, taken := range []string{
		"application/json", "application/json; charset=UTF-8", "Application/JSON;charset=\"utf-8\"",
		"application/json; charset=utf8", "application/json;charset=UTF8", "application/json; charset=\"Utf8\"",
		"application/json; charset='UTF-8'",
	} {
		if a := post(http.Header{"Content-Type": {taken}}); a.StatusCode != 201 {
			t.Errorf("%s: %d %s", taken, a.StatusCode, a.body)
		}
	}
	if a := post(http.Header{"Content-Type": nil}); a.StatusCode != 201 {
		t.Errorf("no content type: %d %s", a.StatusCode, a.body)
	}
	for _, refused := range []string{
		"text/plain", "", "application/json; charset=latin1", "application/json; charset='utf-8",
		"application/json; charset=utf-16",
		"application/x-www-form-urlencoded", "json", "application/merge-patch+json",
	} {
		if a := post(http.Header{"Content-Type": {refused}}); a.StatusCode != 415 {
			t.Errorf("%q: %d %s", refused, a.StatusCode, a.body)
		}
	}
	if a := post(http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}); a.StatusCode != 415 {
		t.Errorf("gzip: %d %s", a.StatusCode, a.body)
	}
	if a := post(
		http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"identity"}},
	); a.StatusCode != 201 {
		t.Errorf("identity: %d %s", a.StatusCode, a.body)
	}
}

func TestBodySize(t *testing.T) {
	t.Parallel()
	s := start(t)
	sized := func(n int) string { return `{"title":"a"}` + strings.Repeat(" ", n-len(`{"title":"a"}`)) }
	s.want(201, call{method: "POST", path: "/api/tasks", user: "u", body: sized(maxBody)})
	s.refused(413, "payload_too_large", call{method: "POST", path: "/api/tasks", user: "u", body: sized(maxBody + 1)})
	s.refused(413, "payload_too_large", call{method: "DELETE", path: missing, user: "u", body: sized(maxBody + 1)})
	for size, status := range map[int]int{maxBody: 201, maxBody + 1: 413} {
		req, err := http.NewRequestWithContext(
			t.Context(),
			"POST",
			s.http.URL+"/api/tasks",
			io.MultiReader(strings.NewReader(sized(size))),
		)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.token("u"))
		resp, err := http.DefaultTransport.RoundTrip(req) // chunked: the size is not known before
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != status {
			t.Errorf("chunked body of %d: %d, want %d", size, resp.StatusCode, status)
		}
	}
}

// raw sends bytes and reads the first answer.
func (s *service) raw(text string) (*http.Response, error) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	return http.ReadResponse(bufio.NewReader(conn), nil)
}

// What net/http refuses by itself, before it has a request for us, looks like all other errors, and is logged and
// counted.
func TestWhatIsNoHTTPIsAProblemToo(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	s := start(t, func(c *Config) { c.Metrics = registry })
	const host = "Host: x\r\n\r\n"
	long := strings.Repeat("a", 2*maxHeader)
	var ids []string
	for _, tc := range []struct {
		request string
		status  int
		code    string
		detail  string
	}{
		{"nonsense\r\n\r\n", 400, "validation_error", "RFC 9112"},
		{"GET / HTTP/1.1\r\n\r\n", 400, "validation_error", "missing required Host header"},
		{"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "validation_error", "malformed Host header"},
		{"GET / HTTP/1.1\r\nX-A: \x01\r\n" + host, 400, "validation_error", "RFC 9112"},
		{"GET / HTTP/1.1\r\n folded\r\n" + host, 400, "validation_error", "RFC 9112"},
		{"POST /api/tasks HTTP/1.1\r\nContent-Length: -1\r\n" + host, 400, "validation_error", "RFC 9112"},
		{"GET / HTTP/1.1\r\nExpect: miracles\r\n" + host, 417, "validation_error", "100-continue"},
		{"GET / HTTP/1.0\r\nExpect: miracles\r\n" + host, 417, "validation_error", "100-continue"},
		{"GET /" + long + " HTTP/1.1\r\n" + host, 431, "payload_too_large", "32768 bytes"},
		{"GET / HTTP/1.1\r\nX-A: " + long + "\r\n" + host, 431, "payload_too_large", "32768 bytes"},
		{"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n" + host, 501, "validation_error", "chunked"},
		{"GET / HTTP/3.0\r\n" + host, 505, "validation_error", "1.0 or 1.1"},
	} {
		for _, before := range []string{"", "GET /livez HTTP/1.1\r\n" + host} { // also later on a connection
			answers := s.rawAnswers(before + tc.request)
			if before != "" && (len(answers) == 0 || answers[0].StatusCode != 200) {
				t.Errorf("%.40q: %+v before it", tc.request, answers)
				continue
			}
			a := answers[len(answers)-1]
			p := as[problemJSON](t, a)
			if a.StatusCode != tc.status || p.Status != tc.status || p.Code != tc.code || p.Type != "about:blank" ||
				!strings.Contains(
					p.Detail,
					tc.detail,
				) || p.Message != p.Detail || p.Title != http.StatusText(tc.status) {
				t.Errorf("%.40q: %d %s", tc.request, a.StatusCode, a.body)
			}
			h := a.Header
			if h.Get("Content-Type") != "application/problem+json" || h.Get("X-Content-Type-Options") != "nosniff" ||
				h.Get("X-Request-Id") != p.RequestID || p.RequestID == "" || !a.Close {
				t.Errorf("%.40q: %v", tc.request, h)
			}
			ids = append(ids, p.RequestID)
		}
	}
	head := s.rawAnswers("HEAD / HTTP/1.1\r\nExpect: miracles\r\n" + host)
	if len(head) != 1 || len(head[0].body) > 0 {
		t.Errorf("HEAD: %+v", head)
	}
	for _, target := range []string{"OPTIONS *", "CONNECT x:80"} {
		answers := s.rawAnswers(target + " HTTP/1.1\r\nConnection: close\r\n" + host)
		if len(answers) != 1 || answers[0].StatusCode != 404 || as[problemJSON](t, answers[0]).RequestID == "" {
			t.Errorf("%s: %+v", target, answers)
		}
	}
	s.http.Close()
	for _, id := range ids {
		if !strings.Contains(s.logged.String(), id) {
			t.Errorf("no line of %s", id)
		}
	}
	counts, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(counts); !strings.Contains(text, `value:"431"`) || !strings.Contains(text, `value:"505"`) {
		t.Errorf("not counted: %s", text)
	}
}

// rawAnswers sends bytes and reads all answers to the end of the connection.
func (s *service) rawAnswers(text string) (answers []answer) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.http.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	for from := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(from, &http.Request{Method: method})
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return answers
		}
		if err != nil {
			s.t.Fatalf("%.40q: %v", text, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		answers = append(answers, answer{resp, body})
	}
}

func TestHeaderSize(t *testing.T) {
	t.Parallel()
	s := start(t)
	sized := func(n int) string {
		head := "GET /livez HTTP/1.1\r\nHost: x\r\nX-Filler: "
		return head + strings.Repeat("a", n-len(head)-4) + "\r\n\r\n"
	}
	for size, status := range map[int]int{maxHeader: 200, maxHeader + 1: 431} {
		resp, err := s.raw(sized(size))
		if err != nil || resp.StatusCode != status {
			t.Errorf("header of %d bytes: %v, %v, want %d", size, resp, err, status)
		}
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.bodyTime = 300 * time.Millisecond // and not the 30 s, for which raw would not wait
	resp, err := s.raw(
		"POST /api/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.token(
			"u",
		) + "\r\nContent-Length: 20\r\n\r\n{\"title\"",
	)
	if err != nil || resp.StatusCode != 400 || !resp.Close {
		t.Errorf("a body that stops: %v, %v", resp, err)
	}
	server := s.server.httpServer()
	if server.ReadHeaderTimeout != 10*time.Second || New(Config{Metrics: noMetrics{}}).bodyTime != 30*time.Second {
		t.Error("not the times of the contract")
	}
}

// Who is refused before the body is read is answered at once, whether or not the body ever comes.
func TestABodyThatNeverComesHoldsNothingUp(t *testing.T) {
	t.Parallel()
	s := start(t)
	task := s.titled("u", "a").ID.String()
	token := "Authorization: Bearer " + s.token("u") + "\r\n"
	for _, tc := range []struct {
		head   string
		status int
	}{
		{"POST /api/tasks HTTP/1.1\r\n", 401},
		{"POST /api/tasks HTTP/1.1\r\nAuthorization: Bearer x\r\n", 401},
		{"POST /api/nothing HTTP/1.1\r\n" + token, 404},
		{"POST /livez HTTP/1.1\r\n", 405},
		{"PATCH /api/tasks/" + task + "/complete HTTP/1.1\r\n" + token, 200},
		{
			"OPTIONS /api/tasks HTTP/1.1\r\nOrigin: http://localhost:3000\r\nAccess-Control-Request-Method: POST\r\n",
			204,
		},
	} {
		resp, err := s.raw(tc.head + "Host: x\r\nContent-Length: 100\r\n\r\n{")
		if err != nil || resp.StatusCode != tc.status {
			t.Errorf("%s: %v, %v", tc.head, resp, err)
		}
	}
}

// A body may take its time: the time for the work begins when it is there.
func TestASlowBodyIsNoOutage(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.workTime = 2 * time.Second
	body, feed := io.Pipe()
	go func() {
		for _, part := range []string{`{"ti`, `tle"`, `:"a"}`} {
			<-time.After(750 * time.Millisecond)
			_, _ = io.WriteString(feed, part)
		}
		_ = feed.Close()
	}()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.http.URL+"/api/tasks", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token("u"))
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != 201 {
		t.Errorf("a body of 0.75 s, with 0.3 s for the work: %d", resp.StatusCode)
	}
}

// The time for the rest of a body is over when its end was read: an answer that takes longer does not end the
// connection's context.
func TestALongAnswerDoesNotSpoilItsConnection(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.echo.POST("/slow", func(c echo.Context) error {
		if _, err := io.Copy(io.Discard, c.Request().Body); err != nil {
			return err
		}
		c.Response().WriteHeader(200)
		select {
		case <-c.Request().Context().Done():
			return nil
		case <-time.After(2 * restTimeout):
			_, err := io.WriteString(c.Response(), "whole")
			return err
		}
	})
	for range 2 { // on one connection
		resp, err := http.Post(s.http.URL+"/slow", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if resp.Body.Close(); err != nil || string(body) != "whole" {
			t.Errorf("%q %v", body, err)
		}
	}
}

func TestErrorsAreToldInOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	big := strings.Repeat("x", maxBody+1)
	text := http.Header{"Content-Type": {"text/plain"}}
	bad := http.Header{"If-Match": {"garbage"}}
	for _, tc := range []struct {
		status int
		c      call
	}{
		{401, call{method: "POST", path: "/api/nothing", body: big, header: text}},
		{401, call{method: "BREW", path: "/api/tasks/x"}},
		{401, call{method: "GET", path: "/api"}},
		{401, call{method: "POST", path: "/api/tasks", header: http.Header{"Authorization": {"Bearer x.y.z"}}}},
		{404, call{method: "POST", path: "/api/nothing", user: "u", body: big, header: text}},
		{404, call{method: "GET", path: "/api/tasks/x/y/z", user: "u"}},
		{404, call{method: "GET", path: "/api//tasks", user: "u"}},
		{404, call{method: "GET", path: "/nothing"}},
		{405, call{method: "DELETE", path: "/api/tasks", user: "u", body: big, header: text}},
		{405, call{method: "POST", path: "/api/tasks/x", user: "u"}},
		{405, call{method: "BREW", path: "/api/tasks", user: "u"}},
		{405, call{method: "POST", path: "/livez"}},
		{413, call{method: "POST", path: "/api/tasks", user: "u", body: big, header: text}},
		{415, call{method: "PUT", path: "/api/tasks/x", user: "u", body: `{`, header: text}},
		{400, call{method: "PUT", path: "/api/tasks/x", user: "u", body: `{`}},
		{400, call{method: "PUT", path: "/api/tasks/x", user: "u", body: `{"title":""}`, header: bad}},
		{400, call{method: "PUT", path: "/api/tasks/x", user: "u", body: `[]`, header: bad}},
		{401, call{method: "OPTIONS", path: "/api/tasks"}},
		{204, call{method: "OPTIONS", path: "/api/tasks", user: "u"}},
		{404, call{method: "OPTIONS", path: "/nothing"}},
		{422, call{method: "PUT", path: missing, user: "u", body: `{"title":""}`}},
		{404, call{method: "PUT", path: missing, user: "u", body: `{"title":"a"}`,
			header: http.Header{"If-Match": {`"1"`}}}},
	} {
		s.want(tc.status, tc.c)
	}
	p := s.refused(
		422,
		"validation_error",
		call{method: "PUT", path: "/api/tasks/x", user: "u", body: `{"title":"","is_completed":0}`},
	)
	if both := s.refused(
		422,
		"validation_error",
		call{method: "PUT", path: "/api/tasks/x", user: "u", body: `[]`},
	); len(
		both.Errors,
	) != 2 {
		t.Errorf("not both errors together: %+v", both)
	}
	if len(p.Errors) != 3 || p.Message != p.Detail || p.RequestID == "" {
		t.Errorf("not everything together: %+v", p)
	}
}

func TestMissingIsTheSameWhyever(t *testing.T) {
	t.Parallel()
	s := start(t)
	theirs := "/api/tasks/" + s.titled("v", "a").ID.String()
	deleted := "/api/tasks/" + s.titled("u", "a").ID.String()
	s.want(204, call{method: "DELETE", path: deleted, user: "u"})
	id := http.Header{"X-Request-Id": {"same"}}
	for _, c := range []call{
		{method: "GET"}, {method: "PUT", body: `{"title":"x"}`}, {method: "PATCH", body: `{}`}, {method: "DELETE"},
	} {
		c.user, c.header = "u", id
		c.path = missing
		want := s.want(404, c)
		if detail := as[problemJSON](t, want).Detail; !strings.Contains(detail, "deleted, perhaps in another tab") {
			t.Errorf("%s: it does not tell what may have happened: %s", c.method, detail)
		}
		for _, path := range []string{theirs, deleted} {
			c.path = path
			got := s.want(404, c)
			got.Header.Del("Date")
			want.Header.Del("Date")
			if string(got.body) != string(want.body) || fmt.Sprint(got.Header) != fmt.Sprint(want.Header) {
				t.Errorf("%s: %s %v\nmissing: %s %v", c.method, got.body, got.Header, want.body, want.Header)
			}
		}
	}
}

func TestHeadAnswersLikeGet(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	for _, path := range []string{
		"/api/tasks", path, path + "/history", "/api/history", "/", "/docs", "/openapi.json", "/openapi.yaml", "/livez",
		"/readyz", missing,
	} {
		get := s.do(call{method: "GET", path: path, user: "u"})
		head := s.do(call{method: "HEAD", path: path, user: "u"})
		if head.StatusCode != get.StatusCode || len(head.body) != 0 ||
			head.Header.Get("Content-Length") != fmt.Sprint(len(get.body)) ||
			head.Header.Get("ETag") != get.Header.Get("ETag") ||
			head.Header.Get("Content-Type") != get.Header.Get("Content-Type") {
			t.Errorf(
				"%s: HEAD %d %v\nGET %d %v of %d bytes",
				path,
				head.StatusCode,
				head.Header,
				get.StatusCode,
				get.Header,
				len(get.body),
			)
		}
	}
}

func TestTrailingSlashIsTheSame(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.want(201, call{method: "POST", path: "/api/tasks/", user: "u", body: `{"title":"a"}`})
	s.want(200, call{method: "GET", path: "/api/tasks/?limit=1", user: "u"})
	s.want(401, call{method: "GET", path: "/api/tasks/"})
	if resp, err := s.raw(
		"GET /api/%74asks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.token("u") + "\r\n\r\n",
	); err != nil ||
		resp.StatusCode != 200 {
		t.Errorf("a path in other letters: %v, %v", resp, err)
	}
	s.want(200, call{method: "GET", path: "/docs/"})
}

func TestEveryAnswerHasItsHeaders(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, c := range []call{
		{method: "GET", path: "/api/tasks", user: "u"}, {method: "GET", path: "/api/tasks"},
		{method: "GET", path: missing, user: "u"},
		{method: "GET", path: "/api/none", user: "u"}, {method: "DELETE", path: "/api/tasks", user: "u"},
	} {
		h := s.do(c).Header
		if h.Get("Cache-Control") != "private, no-cache" ||
			strings.Join(h.Values("Vary"), "|") != "Authorization, Cookie, Origin" ||
			h.Get("X-Content-Type-Options") != "nosniff" ||
			h.Get("X-Request-Id") == "" {
			t.Errorf("%s %s: %v", c.method, c.path, h)
		}
	}
	for sent, taken := range map[string]bool{
		"abc.DEF_1-2": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false, "a b": false, "": false,
		"é": false,
	} {
		got := s.do(
			call{method: "GET", path: "/livez", header: http.Header{"X-Request-Id": {sent}}},
		).Header.Get(
			"X-Request-Id",
		)
		if (got == sent) != taken || got == "" {
			t.Errorf("request id %q became %q", sent, got)
		}
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	s := start(t)
	origin := func(o string) http.Header { return http.Header{"Origin": {o}} }
	for _, c := range []call{
		{method: "GET", path: "/api/tasks", user: "u"}, {method: "GET", path: "/api/tasks"},
		{method: "GET", path: missing, user: "u"},
		{method: "POST", path: "/api/tasks", user: "u", body: `{`},
	} {
		c.header = origin("http://localhost:3000")
		h := s.do(c).Header
		if h.Get("Access-Control-Allow-Origin") != "http://localhost:3000" ||
			h.Get("Access-Control-Allow-Credentials") != "true" ||
			!strings.Contains(h.Get("Access-Control-Expose-Headers"), "ETag") {
			t.Errorf("%s %s: %v", c.method, c.path, h)
		}
		for _, other := range []string{
			"http://localhost:3001", "https://localhost:3000", "http://localhost:3000.evil.example", "null",
			"http://LOCALHOST:3000",
		} {
			c.header = origin(other)
			for name := range s.do(c).Header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%s got %s", other, name)
				}
			}
		}
	}
	// As browsers send it: in lower case, sorted. Frameworks and error trackers add headers of their own.
	const sent = "authorization,baggage,cache-control,content-type,idempotency-key,if-match,if-none-match," +
		"last-event-id,sentry-trace,traceparent,tracestate,x-request-id,x-requested-with"
	ask := func(o string) answer {
		return s.do(call{method: "OPTIONS", path: missing, header: http.Header{
			"Origin": {o}, "Access-Control-Request-Method": {"DELETE"}, "Access-Control-Request-Headers": {sent},
		}})
	}
	h := ask("http://localhost:3000")
	if h.StatusCode != 204 ||
		!slices.Contains(strings.Split(h.Header.Get("Access-Control-Allow-Methods"), ","), "DELETE") {
		t.Errorf("preflight: %d %v", h.StatusCode, h.Header)
	}
	allowed := strings.Split(strings.ToLower(h.Header.Get("Access-Control-Allow-Headers")), ",")
	for name := range strings.SplitSeq(sent, ",") {
		if !slices.Contains(allowed, name) {
			t.Errorf("scripts may not send %s, only %v", name, allowed)
		}
	}
	for name := range ask("http://evil.example").Header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("a preflight of another origin got %s", name)
		}
	}
}

func TestRateLimitIsPerUser(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *Config) { c.RateRPS, c.RateBurst = 0.5, 3 })
	for range 3 {
		s.want(200, call{method: "GET", path: "/api/tasks", user: "u"})
	}
	a := s.want(429, call{method: "GET", path: "/api/none", user: "u"})
	if a.Header.Get("Retry-After") != "2" || a.Header.Get("RateLimit") != `"user";r=0;t=6` ||
		a.Header.Get("RateLimit-Policy") != `"user";q=3;w=6` {
		t.Errorf("%v", a.Header)
	}
	s.want(200, call{method: "GET", path: "/api/tasks", user: "v"})
	s.want(401, call{method: "GET", path: "/api/tasks"})
}

// However many users come by, the table of buckets does not grow without end; who was forgotten has a full bucket
// again.
func TestTheTableOfRateLimitsIsBounded(t *testing.T) {
	t.Parallel()
	limits := newRateLimits(0.001, 1)
	for n := range maxBuckets + 1000 {
		if err := limits.take(http.Header{}, fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
	if n := limits.buckets.Len(); n != maxBuckets {
		t.Errorf("%d buckets", n)
	}
	if err := limits.take(http.Header{}, fmt.Sprint(maxBuckets+999)); err == nil {
		t.Error("who has just been here has a full bucket")
	}
	if err := limits.take(http.Header{}, "0"); err != nil {
		t.Error(err)
	}
}

func TestPublicPages(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *Config) { c.Ready = alwaysUnready })
	if a := s.want(200, call{method: "GET", path: "/"}); !strings.Contains(string(a.body), `"name":"taskledger"`) {
		t.Errorf("/: %s", a.body)
	}
	s.want(200, call{method: "GET", path: "/livez"})
	if p := s.refused(
		503,
		"unavailable",
		call{method: "GET", path: "/readyz"},
	); strings.Contains(
		p.Detail,
		"secret reason",
	) {
		t.Errorf("details for strangers: %s", p.Detail)
	}
	for _, asset := range docsAssets {
		s.want(200, call{method: "GET", path: "/docs/" + asset})
	}
	if page := s.want(200, call{method: "GET", path: "/docs"}); strings.Contains(string(page.body), "//") {
		t.Errorf("the docs name another host: %s", page.body)
	}
	s.refused(404, "not_found", call{method: "GET", path: "/docs/..%2Fserver.go"})
	s.refused(404, "not_found", call{method: "GET", path: "/metrics"})
	s.refused(404, "not_found", call{method: "GET", path: "/debug/pprof/"})
}

func TestEveryRouteIsInTheDescription(t *testing.T) {
	t.Parallel()
	var registered []string
	for _, r := range New(Config{Metrics: noMetrics{}}).echo.Routes() {
		registered = append(registered, r.Method+" "+r.Path)
	}
	checkRoutes(t, registered)
}

// More requests than connections, and none of them comes to an end: they wait, are told 503, and nothing is stuck
// afterwards.
func TestMoreClientsThanConnections(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.workTime = 500 * time.Millisecond
	s.titled("u", "a")
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE taskledger.tasks IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	for range 3 * int(s.pool.Config().MaxConns) {
		work.Go(func() {
			a := s.do(call{method: "GET", path: "/api/tasks", user: "u"})
			if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
	work.Wait()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.server.workTime = workTimeout
	for range 20 {
		s.want(200, call{method: "GET", path: "/api/tasks", user: "u"})
	}
}

// serving is a server that Serve runs, until it is stopped.
type serving struct {
	*service
	address string
	stop    context.CancelFunc
	ended   chan error
}

func (s *service) serve() *serving {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	v := &serving{service: s, address: l.Addr().String(), stop: stop, ended: make(chan error, 1)}
	go func() { v.ended <- s.server.Serve(ctx, l) }()
	return v
}

func (v *serving) dial() net.Conn {
	v.t.Helper()
	conn, err := net.Dial("tcp", v.address)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		v.t.Fatal(err)
	}
	return conn
}

// ask sends a request, or the rest of one, and wants 200, as the last answer of the connection or not.
func (v *serving) ask(conn net.Conn, request string, last bool) {
	v.t.Helper()
	_, err := io.WriteString(conn, request)
	if err != nil {
		v.t.Error(err)
		return
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 || resp.Close != last {
		v.t.Errorf("%q: %+v, %v", request, resp, err)
		return
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		v.t.Error(err)
	}
}

// goesOn fails the test when Serve ends within the time.
func (v *serving) goesOn(within time.Duration) {
	v.t.Helper()
	select {
	case err := <-v.ended:
		v.t.Fatalf("it stopped with a request in flight: %v", err)
	case <-time.After(within):
	}
}

// listens tells whether there is still somebody to connect to.
func (v *serving) listens() bool {
	conn, err := net.Dial("tcp", v.address)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// soon is ample time to stop when nothing is waited for, and less than any of the times for which a stop may wait.
const soon = 4 * time.Second

// wantEnd waits for the end of Serve, which is to come within a time.
func (v *serving) wantEnd(within time.Duration) {
	v.t.Helper()
	begin := time.Now()
	if err := <-v.ended; err != nil {
		v.t.Error(err)
	}
	if took := time.Since(begin); took > within {
		v.t.Errorf("it took %v to stop", took)
	}
}

const live = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

// gate makes a route that answers when it is let through.
func (s *service) gate(path string) (request string, entered chan bool, open func()) {
	entered, through := make(chan bool, 1), make(chan bool)
	open = sync.OnceFunc(func() { close(through) })
	s.t.Cleanup(open)
	s.server.echo.GET(path, func(c echo.Context) error {
		entered <- true
		<-through
		return c.NoContent(200)
	})
	return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n", entered, open
}

// Nobody has a request: connections that clients keep for a later one hold nothing up.
func TestAServerWithoutRequestsStopsAtOnce(t *testing.T) {
	t.Parallel()
	v := start(t).serve()
	kept, unused := v.dial(), v.dial()
	v.ask(kept, live, false)
	v.eventually(func() bool { return v.server.connections.settled(time.Time{}) }) // as time goes by
	v.stop()
	v.wantEnd(soon)
	for _, conn := range []net.Conn{kept, unused} {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

// As long as one request is not answered, others come through, on old connections and new ones; then nobody listens
// any more.
func TestABusyServerAnswersUntilItsLastRequestIsDone(t *testing.T) {
	t.Parallel()
	s := start(t)
	request, entered, open := s.gate("/slow")
	v := s.serve()
	kept, early := v.dial(), v.dial()
	v.ask(kept, live, false)
	var slow sync.WaitGroup
	slow.Go(func() { v.ask(v.dial(), request, true) })
	<-entered
	v.stop()
	<-s.server.stopping
	for _, path := range []string{"/readyz", "/livez"} {
		if want := map[string]int{"/readyz": 503, "/livez": 200}[path]; s.do(
			call{method: "GET", path: path},
		).StatusCode != want {
			t.Errorf("%s is not %d while stopping", path, want)
		}
	}
	v.ask(kept, live, true)
	v.ask(early, live, true)
	v.ask(v.dial(), live, true)
	v.goesOn(2 * firstTime)
	v.ask(v.dial(), live, true)
	open()
	slow.Wait()
	v.wantEnd(soon)
	if v.listens() {
		t.Error("it still listens")
	}
}

// A request that has begun to come is waited for, and a moment for the first of a new connection.
func TestARequestThatIsOnItsWayIsWaitedFor(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before string
		sent   int
		pause  time.Duration
	}{
		"nothing yet":               {"", 0, firstTime / 4},
		"half of the first request": {"", 20, 2 * firstTime},
		"half of the second":        {live, 20, 2 * firstTime},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := start(t).serve()
			conn := v.dial()
			if tc.before != "" {
				v.ask(conn, tc.before, false)
			}
			if _, err := io.WriteString(conn, live[:tc.sent]); err != nil {
				t.Fatal(err)
			}
			v.eventually(func() bool { // else it may be in the system's queue still, for which nobody waits
				accepted, begun := v.server.connections.count()
				return accepted == 1 && (tc.sent == 0 || begun == 1)
			})
			v.stop()
			v.goesOn(tc.pause)
			v.ask(conn, live[tc.sent:], true)
			v.wantEnd(soon)
		})
	}
}

// count is how many connections there are, and on how many of them a request has begun to come.
func (c *connections) count() (accepted, begun int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		if conn.begun.Load() {
			begun++
		}
	}
	return len(c.open), begun
}

// A server that is never without a request stops too: when all is answered that had come before, and some time has
// passed.
func TestAServerThatIsNeverWithoutARequestStops(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.server.drainTime = 500 * time.Millisecond
	before, enteredBefore, openBefore := s.gate("/before")
	after, enteredAfter, openAfter := s.gate("/after")
	v := s.serve()
	var requests sync.WaitGroup
	requests.Go(func() { v.ask(v.dial(), before, true) })
	<-enteredBefore
	v.stop()
	<-s.server.stopping
	requests.Go(func() { v.ask(v.dial(), after, true) })
	<-enteredAfter
	v.goesOn(2 * s.server.drainTime) // the first is still there
	v.ask(v.dial(), live, true)
	openBefore()
	v.eventually(func() bool { return !v.listens() })
	openAfter()
	requests.Wait()
	v.wantEnd(soon)
}

// A load balancer that asks again and again is waited for until it has heard, and one that asks no more for some time.
func TestALoadBalancerHearsOfAStop(t *testing.T) {
	t.Parallel()
	for name, hears := range map[string]bool{"it hears": true, "it asks no more": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			ask := func(want int) {
				t.Helper()
				if got := s.do(call{method: "GET", path: "/readyz"}).StatusCode; got != want {
					t.Errorf("/readyz is %d, want %d", got, want)
				}
			}
			s.server.drainTime = 6 * time.Second
			if hears {
				s.server.drainTime = time.Minute
			}
			v := s.serve()
			for range askedOften {
				ask(200)
			}
			v.stop()
			<-s.server.stopping
			if hears {
				for range heardAfter {
					v.goesOn(200 * time.Millisecond)
					ask(503)
				}
				v.wantEnd(soon)
				return
			}
			v.goesOn(s.server.drainTime / 6)
			v.wantEnd(2 * s.server.drainTime)
		})
	}
}
