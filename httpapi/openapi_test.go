package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestOpenAPIIsValid(t *testing.T) {
	t.Parallel()
	valid, wrong := newSpecChecker(t).validator.ValidateDocument()
	for _, failure := range wrong {
		t.Error(describeFailure(failure))
	}
	if !valid {
		t.Error("openapi.yaml is not OpenAPI 3.1")
	}
}

// specAnswer is a response a server could have sent; tests start from one that is right and spoil it.
type specAnswer struct {
	method, path string
	status       int
	header       http.Header
	body         map[string]any
	raw          string
}

// Only what is read of the caller's events can be waited for.
func TestOpenAPIHasMinVersionForReads(t *testing.T) {
	t.Parallel()
	for path, item := range newSpecChecker(t).paths {
		if item.Get == nil {
			continue
		}
		has := false
		for _, parameter := range item.Get.Parameters {
			has = has || parameter.Name == "min_version"
		}
		if want := strings.HasPrefix(path, "/api/"); has != want {
			t.Errorf("GET %s: min_version %t, want %t", path, has, want)
		}
	}
}

func (a specAnswer) problems(t *testing.T) []string {
	t.Helper()
	body := []byte(a.raw)
	if a.body != nil {
		var err error
		if body, err = json.Marshal(a.body); err != nil {
			t.Fatal(err)
		}
	}
	recorder := &recordingTB{TB: t}
	request := httptest.NewRequestWithContext(t.Context(), a.method, a.path, nil)
	newSpecChecker(t).check(recorder, request, &http.Response{StatusCode: a.status, Header: a.header}, body)
	return recorder.messages
}

// recordingTB is a testing.TB that only remembers what was reported to it.
type recordingTB struct {
	testing.TB
	messages []string
}

func (f *recordingTB) Helper() {}

func (f *recordingTB) Errorf(format string, args ...any) {
	message, _, _ := strings.Cut(fmt.Sprintf(format, args...), "\n\theader:") // what was seen names everything
	f.messages = append(f.messages, message)
}

const (
	specTaskPath = "/api/tasks/0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f"
	specTaskBody = `{"id":"0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f","user_id":"ada","title":"Buy milk",` +
		`"description":null,"is_completed":false,"created_at":"2026-11-22T19:43:57.105086Z",` +
		`"updated_at":"2026-11-22T19:43:57.105086Z","version":17}`
	specEntryBody = `{"seq":17,"type":"TaskRenamed","task_id":"0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f",` +
		`"recorded_at":"2026-11-22T19:43:57.105086Z","actor":"ada","request_id":"r1",` +
		`"changes":{"title":{"from":"Buy milk","to":"Buy oat milk"}},` +
		`"hash":"d81b58a49bd9c2b0ff1c97b2f3a4a8d8c5d9ef2e6b2a9d1b5f0e4d7a6c3b2a19"}`
	specProblemBody = `{"type":"about:blank","title":"Not Found","status":404,"code":"not_found",` +
		`"detail":"not found","message":"not found","request_id":"r1"}`
)

func specTask() specAnswer {
	return specAnswer{
		method: http.MethodGet, path: specTaskPath, status: http.StatusOK, body: specObject(specTaskBody),
		header: specHeader("application/json", "ETag", `"17"`, "X-Version", "17"),
	}
}

func specMissing() specAnswer {
	return specAnswer{
		method: http.MethodGet, path: specTaskPath, status: http.StatusNotFound, body: specObject(specProblemBody),
		header: specHeader("application/problem+json"),
	}
}

func specInvalid() specAnswer {
	body := specObject(specProblemBody)
	body["title"], body["status"], body["code"] = "Unprocessable Entity", 422, "validation_error"
	body["errors"] = []any{
		map[string]any{"pointer": "/title", "code": "too_long", "detail": "must have 1 to 100 characters"},
	}
	return specAnswer{
		method: http.MethodPatch, path: specTaskPath, status: http.StatusUnprocessableEntity, body: body,
		header: specHeader("application/problem+json"),
	}
}

func specHeader(contentType string, more ...string) http.Header {
	header := http.Header{}
	header.Set("Content-Type", contentType)
	header.Set("Cache-Control", "private, no-cache")
	header.Set("Vary", "Authorization, Cookie, Origin")
	header.Set("X-Request-Id", "r1")
	header.Set("X-Content-Type-Options", "nosniff")
	for i := 0; i < len(more); i += 2 {
		header.Set(more[i], more[i+1])
	}
	return header
}

func specObject(text string) map[string]any {
	var members map[string]any
	if err := json.Unmarshal([]byte(text), &members); err != nil {
		panic(err)
	}
	return members
}

func TestSpecCheckerAccepts(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]specAnswer{
		"a task":         specTask(),
		"a missing task": specMissing(),
		"an invalid one": specInvalid(),
		"the headers of a task": {
			method: http.MethodHead, path: specTaskPath, status: http.StatusOK,
			header: specHeader("application/json", "ETag", `"17"`, "X-Version", "17"),
		},
		"a task that is the same": {
			method: http.MethodGet, path: specTaskPath, status: http.StatusNotModified,
			header: specWithout(specHeader("", "ETag", `"17"`, "X-Version", "17"), "Content-Type"),
		},
		"a list": {
			method: http.MethodGet, path: "/api/tasks?limit=1", status: http.StatusOK, raw: "[" + specTaskBody + "]",
			header: specHeader("application/json", "ETag", `W/"17-1"`, "X-Version", "17", "Link",
				`</api/tasks?limit=1&cursor=x>; rel="next"`),
		},
		"an empty list at the path with a slash": {
			method: http.MethodGet, path: "/api/tasks/", status: http.StatusOK, raw: "[]",
			header: specHeader("application/json", "ETag", `W/"0-1"`, "X-Version", "0"),
		},
		"a history": {
			method: http.MethodGet, path: specTaskPath + "/history", status: http.StatusOK,
			raw:    "[" + specEntryBody + "]",
			header: specHeader("application/json", "ETag", `W/"17-1"`, "X-Version", "17"),
		},
		"a creation": {
			method: http.MethodPost, path: "/api/tasks", status: http.StatusCreated, body: specObject(specTaskBody),
			header: specHeader("application/json", "ETag", `"17"`, "X-Version", "17", "Location", specTaskPath),
		},
		"a deletion": {
			method: http.MethodDelete, path: specTaskPath, status: http.StatusNoContent,
			header: specWithout(specHeader("", "X-Version", "18"), "Content-Type"),
		},
		"an unknown path": {
			method: http.MethodGet, path: "/api/nope", status: http.StatusNotFound, body: specObject(specProblemBody),
			header: specHeader("application/problem+json"),
		},
		"a preflight": {method: http.MethodOptions, path: "/api/tasks", status: http.StatusNoContent},
		"a redirect": {
			method: http.MethodGet, path: "/api/tasks/", status: http.StatusTemporaryRedirect,
			header: http.Header{"Location": {"/api/tasks"}},
		},
		"a wrong method": specWith(specAnswer{
			method: http.MethodPost, path: specTaskPath, status: http.StatusMethodNotAllowed,
			header: specHeader("application/problem+json", "Allow", "DELETE, GET, HEAD, PATCH, PUT"),
		}, specObject(`{"type":"about:blank","title":"Method Not Allowed","status":405,"code":"method_not_allowed",`+
			`"detail":"no","message":"no","request_id":"r1"}`)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if problems := a.problems(t); len(problems) > 0 {
				t.Error(strings.Join(problems, "\n"))
			}
		})
	}
}

func TestSpecCheckerRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer specAnswer
		spoil  func(*specAnswer)
		want   string
	}{
		"an extra member":          {specTask(), func(a *specAnswer) { a.body["deleted_at"] = nil }, "deleted_at"},
		"a missing member":         {specTask(), func(a *specAnswer) { delete(a.body, "version") }, "version"},
		"a member of another type": {specTask(), func(a *specAnswer) { a.body["is_completed"] = nil }, "is_completed"},
		"a title of white space":   {specTask(), func(a *specAnswer) { a.body["title"] = "  " }, "title"},
		"a title too long": {
			specTask(), func(a *specAnswer) { a.body["title"] = strings.Repeat("é", 101) }, "title",
		},
		"an id that is none": {specTask(), func(a *specAnswer) { a.body["id"] = "17" }, "id"},
		"a time in nanoseconds": {
			specTask(), func(a *specAnswer) { a.body["created_at"] = "2026-11-22T19:43:57.105086000Z" }, "created_at",
		},
		"a time that is none": {
			specTask(), func(a *specAnswer) { a.body["created_at"] = "2026-13-22T19:43:57.105086Z" }, "created_at",
		},
		"a missing header":     {specTask(), func(a *specAnswer) { a.header.Del("ETag") }, "ETag"},
		"a missing request id": {specTask(), func(a *specAnswer) { a.header.Del("X-Request-Id") }, "X-Request-Id"},
		"a weak tag on a task": {specTask(), func(a *specAnswer) { a.header.Set("ETag", `W/"17"`) }, "etag"},
		"a Vary without Cookie": {
			specTask(), func(a *specAnswer) { a.header.Set("Vary", "Authorization, Origin") }, "vary",
		},
		"a version that is no seq": {specTask(), func(a *specAnswer) { a.header.Set("X-Version", "x") }, "x-version"},
		"another cache control": {
			specTask(), func(a *specAnswer) { a.header.Set("Cache-Control", "public") }, "cache-control",
		},
		"an undeclared status": {specTask(), func(a *specAnswer) { a.status = http.StatusAccepted }, "202"},
		"a wrong content type": {
			specTask(), func(a *specAnswer) { a.header.Set("Content-Type", "text/plain") }, "text/plain",
		},
		"no content type":       {specTask(), func(a *specAnswer) { a.header.Del("Content-Type") }, "content"},
		"text that is not JSON": {specTask(), func(a *specAnswer) { a.body, a.raw = nil, "<html>" }, "body"},
		"an empty body":         {specTask(), func(a *specAnswer) { a.body = nil }, "missing"},
		"a list where a task is": {
			specTask(), func(a *specAnswer) { a.body, a.raw = nil, "["+specTaskBody+"]" }, "object",
		},
		"a body for HEAD": {specTask(), func(a *specAnswer) { a.method = http.MethodHead }, "HEAD"},
		"a body with 304": {specTask(), func(a *specAnswer) { a.status = http.StatusNotModified }, "body"},
		"a list that is null": {
			specTask(),
			func(a *specAnswer) { a.path, a.body, a.raw = "/api/tasks", nil, "null"; a.header.Set("ETag", `W/"1"`) },
			"null",
		},
		"a second JSON value": {specTask(), func(a *specAnswer) { a.body, a.raw = nil, specTaskBody+"{}" }, "body"},
		"a redirect elsewhere": {
			specTask(), func(a *specAnswer) { a.status = 307; a.header.Set("Location", "https://example.org/") },
			"redirect",
		},
		"an unknown problem code": {specMissing(), func(a *specAnswer) { a.body["code"] = "gone" }, "code"},
		"an extra problem member": {specMissing(), func(a *specAnswer) { a.body["sql"] = "SELECT" }, "sql"},
		"a problem as JSON": {
			specMissing(), func(a *specAnswer) { a.header.Set("Content-Type", "application/json") }, "application/json",
		},
		"another status in it":     {specMissing(), func(a *specAnswer) { a.body["status"] = 400 }, "status"},
		"another request id in it": {specMissing(), func(a *specAnswer) { a.body["request_id"] = "r2" }, "request_id"},
		"another message in it":    {specMissing(), func(a *specAnswer) { a.body["message"] = "other" }, "message"},
		"an error without a place": {
			specInvalid(), func(a *specAnswer) { delete(firstSpecError(a), "pointer") }, "pointer",
		},
		"an error in two places": {
			specInvalid(), func(a *specAnswer) { firstSpecError(a)["parameter"] = "id" }, "oneOf",
		},
		"a pointer that is none": {
			specInvalid(), func(a *specAnswer) { firstSpecError(a)["pointer"] = "title" }, "pointer",
		},
		"an unknown path that is": {specTask(), func(a *specAnswer) { a.path = "/api/nope" }, "no operation"},
		"a 404 as plain text": {
			specMissing(), func(a *specAnswer) { a.path = "/api/nope"; a.header.Set("Content-Type", "text/plain") },
			"text/plain",
		},
		"a 405 without Allow": {
			specMissing(), func(a *specAnswer) { a.method, a.status = http.MethodPost, 405 }, "Allow",
		},
		"a 401 without a challenge": {
			specMissing(), func(a *specAnswer) { a.path, a.status = "/api/nope", 401 }, "WWW-Authenticate",
		},
		"an undescribed problem": {
			specMissing(), func(a *specAnswer) { a.method, a.body["extra"] = "TRACE", 1 }, "extra",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := test.answer
			a.header, a.body = maps.Clone(a.header), maps.Clone(a.body)
			test.spoil(&a)
			problems := strings.Join(a.problems(t), "\n")
			if !strings.Contains(problems, test.want) {
				t.Errorf("want a problem that names %q, got %q", test.want, problems)
			}
		})
	}
}

func specWith(a specAnswer, body map[string]any) specAnswer {
	a.body = body
	return a
}

func specWithout(header http.Header, name string) http.Header {
	header.Del(name)
	return header
}

func firstSpecError(a *specAnswer) map[string]any {
	return a.body["errors"].([]any)[0].(map[string]any)
}

func TestSpecCheckerIsSafeInParallel(t *testing.T) {
	t.Parallel()
	good, bad := specTask(), specMissing()
	bad.body["code"] = "gone"
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 100 {
				if problems := good.problems(t); len(problems) > 0 {
					t.Error(problems)
				}
				if problems := bad.problems(t); len(problems) == 0 {
					t.Error("a wrong answer was accepted")
				}
			}
		})
	}
	readers.Wait()
}

func BenchmarkSpecChecker(b *testing.B) {
	a := specTask()
	checker := newSpecChecker(b)
	request := httptest.NewRequestWithContext(b.Context(), a.method, a.path, nil)
	for b.Loop() {
		checker.check(b, request, &http.Response{StatusCode: a.status, Header: a.header}, []byte(specTaskBody))
	}
}

func TestCheckRoutes(t *testing.T) {
	t.Parallel()
	var routes []string
	for template, item := range newSpecChecker(t).paths {
		for method := range item.GetOperations().KeysFromOldest() {
			routes = append(routes, strings.ToUpper(method)+" "+template)
		}
	}
	slices.Sort(routes)
	t.Log(routes)

	check := func(routes []string) string {
		recorder := &recordingTB{TB: t}
		checkRoutes(recorder, routes)
		return strings.Join(recorder.messages, "\n")
	}
	if got := check(routes); got != "" {
		t.Error(got)
	}
	if got, want := check(
		append(routes, "GET /api/tasks/{id}/secret"),
	), "GET /api/tasks/{}/secret is served and not in openapi.yaml"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := check(routes[1:]), "is in openapi.yaml and not served"; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDocsWorkOffline(t *testing.T) {
	t.Parallel()
	docs := docsHandler("/docs")
	page := getFile(t, docs, "/docs", nil)
	policy := page.Header().Get("Content-Security-Policy")
	if strings.Contains(policy, "unsafe") || !strings.HasPrefix(policy, "default-src 'none';") {
		t.Errorf("policy %q", policy)
	}
	if strings.Contains(page.Body.String(), "://") {
		t.Error("the page names another host")
	}
	inline := regexp.MustCompile(`(?s)<(?:script|style)>(.+?)</`).FindAllStringSubmatch(page.Body.String(), -1)
	if len(inline) != 2 {
		t.Errorf("%d inline texts, want a style and a script", len(inline))
	}
	for _, match := range inline {
		if !strings.Contains(policy, cspHash(match[1])) {
			t.Errorf("%q has no hash in %q", match[1], policy)
		}
	}
	loaded := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.Body.String(), -1)
	if len(loaded) != len(docsAssets) {
		t.Errorf("the page loads %d files, want %d", len(loaded), len(docsAssets))
	}
	for _, match := range loaded {
		if asset := getFile(t, docs, match[1], nil); asset.Code != http.StatusOK || asset.Body.Len() < 300 {
			t.Errorf("%s: %d with %d bytes", match[1], asset.Code, asset.Body.Len())
		}
	}
	for _, path := range []string{"/docs/nope", "/docs/swagger-ui.js", "/docs/../docs.go", "/docs/swagger-ui.css.gz"} {
		if got := getFile(t, docs, path, nil).Code; got != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, got)
		}
	}
}

// What this package serves by itself is as openapi.yaml says, once the middleware has added its headers.
func TestDocsAreAsDescribed(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.Handle("/docs", docsHandler("/docs"))
	mux.Handle("/docs/", docsHandler("/docs"))
	mux.Handle("/openapi.json", openAPIJSONHandler())
	mux.Handle("/openapi.yaml", openAPIYAMLHandler())
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "r1")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})

	paths := []string{"/docs", "/openapi.json", "/openapi.yaml"}
	for _, name := range docsAssets {
		paths = append(paths, "/docs/"+name)
	}
	for _, path := range paths {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			tag := ""
			for _, want := range []int{http.StatusOK, http.StatusNotModified} {
				request := httptest.NewRequestWithContext(t.Context(), method, path, nil)
				request.Header.Set("If-None-Match", tag)
				recorder := httptest.NewRecorder()
				server.ServeHTTP(recorder, request)
				if recorder.Code != want {
					t.Errorf("%s %s: %d, want %d", method, path, recorder.Code, want)
				}
				newSpecChecker(t).check(t, request, recorder.Result(), recorder.Body.Bytes())
				tag = recorder.Header().Get("ETag")
			}
		}
	}
}

func TestOpenAPIFiles(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		handler     http.Handler
		contentType string
		want        []byte
	}{
		{openAPIJSONHandler(), "application/json", openAPIJSON()},
		{openAPIYAMLHandler(), "application/yaml", openAPIYAML()},
	} {
		whole := getFile(t, test.handler, "/", nil)
		if got := whole.Header().Get("Content-Type"); got != test.contentType {
			t.Errorf("content type %q, want %q", got, test.contentType)
		}
		if got, _ := io.ReadAll(whole.Body); !slices.Equal(got, test.want) {
			t.Errorf("%s: %d bytes, want %d", test.contentType, len(got), len(test.want))
		}
		// http.ServeContent would refuse these in plain text, or cut the file.
		for name, value := range map[string]string{"Range": "bytes=99999999-", "If-Match": `"other"`} {
			got := getFile(t, test.handler, "/", http.Header{name: {value}})
			if got.Code != http.StatusOK || got.Body.Len() != len(test.want) {
				t.Errorf("%s with %s: %d with %d bytes", test.contentType, name, got.Code, got.Body.Len())
			}
		}
		same := getFile(t, test.handler, "/", http.Header{"If-None-Match": {whole.Header().Get("ETag")}})
		if same.Code != http.StatusNotModified || same.Body.Len() > 0 {
			t.Errorf("%s with its ETag: %d, want 304", test.contentType, same.Code)
		}
	}
	if !json.Valid(openAPIJSON()) {
		t.Error("openapi.json is not JSON")
	}
}

func getFile(t *testing.T, handler http.Handler, path string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	maps.Copy(request.Header, header)
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}
