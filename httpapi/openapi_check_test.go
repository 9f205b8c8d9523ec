package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/helpers"
	"github.com/pb33f/libopenapi-validator/responses"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/pb33f/libopenapi/orderedmap"
)

// specChecker holds answers of the server against openapi.yaml. It may be used from many tests at once.
type specChecker struct {
	paths     map[string]*v3.PathItem
	responses responses.ResponseBodyValidator
	validator validator.Validator

	// What answers a request that no operation of the file is for.
	unrouted *v3.PathItem
}

// unroutedStatuses are the answers of requests that reach no operation, by the component that describes each.
var unroutedStatuses = map[string]string{
	"401":     "Unauthorized",
	"404":     "PublicNotFound",
	"405":     "MethodNotAllowed",
	"default": "PublicInternalError",
}

var parseSpec = sync.OnceValues(func() (*specChecker, error) {
	document, err := libopenapi.NewDocument(openAPIJSON())
	if err != nil {
		return nil, err
	}
	model, err := document.BuildV3Model()
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(document, config.WithFormatAssertions())
	if len(errs) > 0 {
		return nil, fmt.Errorf("new validator: %v", errs)
	}

	paths := map[string]*v3.PathItem{}
	for template, item := range model.Model.Paths.PathItems.FromOldest() {
		paths[template] = item
	}
	unrouted := &v3.Responses{Codes: orderedmap.New[string, *v3.Response]()}
	for status, name := range unroutedStatuses {
		response := model.Model.Components.Responses.GetOrZero(name)
		if status == "default" {
			unrouted.Default = response
			continue
		}
		unrouted.Codes.Set(status, response)
	}
	operation := &v3.Operation{Responses: unrouted}
	return &specChecker{
		paths:     paths,
		responses: v.GetResponseBodyValidator(),
		validator: v,
		unrouted:  &v3.PathItem{Get: operation},
	}, nil
})

// newSpecChecker parses openapi.yaml, once for all tests of a process.
func newSpecChecker(t testing.TB) *specChecker {
	t.Helper()
	checker, err := parseSpec()
	if err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	return checker
}

// check fails the test when openapi.yaml does not allow this answer to this request. body is what was read of
// resp.Body.
func (c *specChecker) check(t testing.TB, req *http.Request, resp *http.Response, body []byte) {
	t.Helper()
	for _, problem := range c.problems(req, resp, body) {
		t.Errorf("%s %s: %d is not as in openapi.yaml: %s\n\theader: %v\n\tbody: %s",
			req.Method, req.URL, resp.StatusCode, problem, resp.Header, specExcerpt(body))
	}
}

func (c *specChecker) problems(req *http.Request, resp *http.Response, body []byte) []string {
	if resp.StatusCode == http.StatusTemporaryRedirect {
		return redirectProblems(req, resp)
	}
	template, item := c.find(req.URL)
	if item == nil || item.GetOperations().GetOrZero(strings.ToLower(req.Method)) == nil {
		return c.unroutedProblems(req, resp, body)
	}
	problems := c.validate(req, resp, body, item, template)
	return append(problems, problemProblems(req, resp, body)...)
}

// redirectProblems is for the one redirect there is: to the path without the slash at its end.
func redirectProblems(req *http.Request, resp *http.Response) []string {
	location := resp.Header.Get("Location")
	path, slash := strings.CutSuffix(req.URL.EscapedPath(), "/")
	if !slash || location != path && !strings.HasPrefix(location, path+"?") {
		return []string{fmt.Sprintf("a redirect to %q", location)}
	}
	return nil
}

// unroutedProblems is for requests that reach no operation: CORS preflights and errors.
func (c *specChecker) unroutedProblems(req *http.Request, resp *http.Response, body []byte) []string {
	switch {
	case req.Method == http.MethodOptions && resp.StatusCode == http.StatusNoContent:
		return nil
	case resp.StatusCode < 400:
		return []string{"no operation of the file is for this method and path, so the answer must be an error"}
	}
	seen := *req // the operation that describes these answers is a GET, and a HEAD
	if req.Method != http.MethodHead {
		seen.Method = http.MethodGet
	}
	problems := c.validate(&seen, resp, body, c.unrouted, req.URL.Path)
	return append(problems, problemProblems(req, resp, body)...)
}

func (c *specChecker) validate(
	req *http.Request,
	resp *http.Response,
	body []byte,
	item *v3.PathItem,
	template string,
) []string {
	seen := *resp
	seen.Body = http.NoBody
	if len(body) > 0 {
		seen.Body = io.NopCloser(bytes.NewReader(body))
	}
	_, failures := c.responses.ValidateResponseBodyWithPathItem(req, &seen, item, template)
	var problems []string
	for _, failure := range failures {
		problems = append(problems, describeFailure(failure))
	}
	declared := declaredResponse(helpers.ExtractOperation(req, item), resp.StatusCode)
	if declared != nil && orderedmap.Len(declared.Content) == 0 && len(body) > 0 {
		problems = append(problems, "a body where the file has none")
	}
	contentType := resp.Header.Get("Content-Type")
	isJSON := strings.Contains(contentType, "json") && contentType != "application/x-ndjson"
	// the validator lets null pass
	if isJSON && len(body) > 0 && (!json.Valid(body) || string(bytes.TrimSpace(body)) == "null") {
		problems = append(problems, "the body is null or not one JSON value")
	}
	return problems
}

func declaredResponse(operation *v3.Operation, status int) *v3.Response {
	if response := operation.Responses.Codes.GetOrZero(fmt.Sprint(status)); response != nil {
		return response
	}
	return operation.Responses.Default
}

// problemProblems is what no schema can say of an error: its members repeat each other, its status and a header.
func problemProblems(req *http.Request, resp *http.Response, body []byte) []string {
	if resp.StatusCode < 400 || req.Method == http.MethodHead {
		return nil
	}
	var problem struct {
		Title     string `json:"title"`
		Status    int    `json:"status"`
		Detail    string `json:"detail"`
		Message   string `json:"message"`
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal(body, &problem); err != nil {
		return []string{"the problem is not JSON: " + err.Error()}
	}
	var problems []string
	if problem.Status != resp.StatusCode {
		problems = append(problems, fmt.Sprintf("status is %d in the body", problem.Status))
	}
	if problem.Title != http.StatusText(resp.StatusCode) {
		problems = append(problems, fmt.Sprintf("title is %q, not %q", problem.Title, http.StatusText(resp.StatusCode)))
	}
	if problem.Message != problem.Detail {
		problems = append(problems, "message does not repeat detail")
	}
	if problem.RequestID != resp.Header.Get("X-Request-Id") {
		problems = append(problems, fmt.Sprintf("request_id is %q in the body", problem.RequestID))
	}
	return problems
}

// find returns the path of the file that a request's path belongs to. A name stands before a parameter, as a router
// does it; a slash at the end is the same as none.
func (c *specChecker) find(address *url.URL) (string, *v3.PathItem) {
	seen := address.EscapedPath()
	if seen != "/" {
		seen = strings.TrimSuffix(seen, "/")
	}
	if item, ok := c.paths[seen]; ok {
		return seen, item
	}
	segments := strings.Split(seen, "/")
	for template, item := range c.paths {
		if slices.EqualFunc(strings.Split(template, "/"), segments, matchSegment) {
			return template, item
		}
	}
	return "", nil
}

func matchSegment(template, seen string) bool {
	if strings.HasPrefix(template, "{") {
		return seen != ""
	}
	return template == seen
}

func describeFailure(failure *errors.ValidationError) string {
	if len(failure.SchemaValidationErrors) == 0 {
		return failure.Message + ": " + failure.Reason
	}
	lines := []string{failure.Message}
	for _, schema := range failure.SchemaValidationErrors {
		lines = append(lines, fmt.Sprintf("%s at %q (%s)", schema.Reason, schema.FieldPath, schema.KeywordLocation))
	}
	return strings.Join(lines, "; ")
}

func specExcerpt(body []byte) string {
	const most = 600
	if len(body) <= most {
		return string(body)
	}
	return string(body[:most]) + "…"
}

// checkRoutes fails the test unless the routes of the server ("GET /api/tasks/{id}"; ":id" and "*" are parameters too)
// are exactly the operations of openapi.yaml.
func checkRoutes(t testing.TB, registered []string) {
	t.Helper()
	described := map[string]bool{}
	for template, item := range newSpecChecker(t).paths {
		for method := range item.GetOperations().KeysFromOldest() {
			described[strings.ToUpper(method)+" "+anonymousPath(template)] = true
		}
	}
	served := map[string]bool{}
	for _, route := range registered {
		method, template, _ := strings.Cut(route, " ")
		served[method+" "+anonymousPath(template)] = true
	}
	for route := range served {
		if !described[route] {
			t.Errorf("%s is served and not in openapi.yaml", route)
		}
	}
	for route := range described {
		if !served[route] {
			t.Errorf("%s is in openapi.yaml and not served", route)
		}
	}
}

// anonymousPath is a path without the names of its parameters.
func anonymousPath(template string) string {
	segments := strings.Split(template, "/")
	for i, segment := range segments {
		if strings.HasPrefix(segment, "{") || strings.HasPrefix(segment, ":") || segment == "*" {
			segments[i] = "{}"
		}
	}
	return strings.Join(segments, "/")
}
