package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"taskledger/httpapi/auth"
	"taskledger/migrations/testdb"
)

// traceCollector takes traces over OTLP/HTTP, and keeps them.
type traceCollector struct {
	url string

	mu    sync.Mutex
	spans []*tracepb.Span
	all   strings.Builder // everything that was sent, in text
}

func startCollector(t *testing.T) *traceCollector {
	t.Helper()
	c := &traceCollector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		sent := &collector.ExportTraceServiceRequest{}
		if err == nil {
			err = proto.Unmarshal(body, sent)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		c.take(sent)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *traceCollector) take(sent *collector.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all.WriteString(sent.String())
	for _, of := range sent.ResourceSpans {
		for _, in := range of.ScopeSpans {
			c.spans = append(c.spans, in.Spans...)
		}
	}
}

func (c *traceCollector) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all.String()
}

// of returns the spans of a trace by their names; nil as long as one of those that are asked for is not there.
func (c *traceCollector) of(traceID string, names ...string) map[string]*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[string]*tracepb.Span{}
	for _, span := range c.spans {
		if hex.EncodeToString(span.TraceId) == traceID {
			found[span.Name] = span
		}
	}
	for _, name := range names {
		if found[name] == nil {
			return nil
		}
	}
	return found
}

func attributesOf(span *tracepb.Span) map[string]string {
	found := map[string]string{}
	for _, a := range span.Attributes {
		if found[a.Key] = a.Value.GetStringValue(); found[a.Key] == "" {
			found[a.Key] = strconv.FormatInt(a.Value.GetIntValue(), 10)
		}
	}
	return found
}

func linksTo(span, to *tracepb.Span) bool {
	return slices.ContainsFunc(span.Links, func(l *tracepb.Span_Link) bool {
		return string(l.SpanId) == string(to.SpanId) && string(l.TraceId) == string(to.TraceId)
	})
}

// One trace leads from a request through its append to the projection of its events, and to the read that waited for
// it; it has nothing private in it, and the log names it.
func TestATraceLeadsFromAWriteToTheReadThatWaitedForIt(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	s := startServer(t, "DATABASE_URL="+testdb.URL(t), "BETTER_AUTH_SECRET="+serveSecret, "LOG_FORMAT=json",
		"OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, "OTEL_BSP_SCHEDULE_DELAY=10", "OTEL_SERVICE_NAME=tasks-of-a-test")
	token, err := auth.SignToken([]byte(serveSecret), "private-user", "", "", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	const write, read, wait = "POST /api/tasks", "GET /api/tasks", "wait for the read model"
	const caller = "00f067aa0ba902b7"
	traceID, id, n := "", "", 0
	pair := func() (int, error) {
		traceID = fmt.Sprintf("4bf92f3577b34da6a3ce929d%08x", n)
		n++
		parent := "00-" + traceID + "-" + caller + "-01"
		made, err := s.send(token, "POST", "/api/tasks", `{"title":"private title"}`,
			"Content-Type", "application/json", "traceparent", parent, "X-Request-Id", "request-"+traceID)
		if err != nil || made.status != 201 {
			return made.status, err
		}
		id = strings.TrimPrefix(made.header.Get("Location"), "/api/tasks/")
		got, err := s.send(token, "GET", "/api/tasks?q=private", "", "traceparent", parent)
		return got.status, err
	}
	// A read that comes late has nothing to wait for, and a batch that was read from the log is nobody's: again, until
	// there is one of each.
	whole := func() bool {
		spans := c.of(traceID, write, "append", "project", read, wait)
		return spans != nil && len(spans[wait].Links) > 0
	}
	s.await(200, func() (int, error) {
		for range 5 { // spans come a little later
			if n > 0 && whole() {
				return 200, nil
			}
			tick(t.Context())
		}
		status, err := pair()
		if status/100 != 2 {
			t.Errorf("%d %v", status, err)
		}
		return 0, err
	})
	s.terminate()
	spans := c.of(traceID, write, "append", "project", read, wait)
	for child, parent := range map[string]string{"append": write, "project": "append", wait: read} {
		if string(spans[child].ParentSpanId) != string(spans[parent].SpanId) {
			t.Errorf("%q is not the child of %q", child, parent)
		}
	}
	for _, name := range []string{write, read} {
		span := spans[name]
		if hex.EncodeToString(span.ParentSpanId) != caller || span.Kind != tracepb.Span_SPAN_KIND_SERVER {
			t.Errorf("%q is not the caller's: %v", name, span)
		}
	}
	if !linksTo(spans["project"], spans["append"]) {
		t.Errorf("the projection is not linked to the append: %v", spans["project"])
	}
	if !linksTo(spans[wait], spans["project"]) {
		t.Errorf("the wait is not linked to the projection: %v", spans[wait])
	}
	want := map[string]string{"http.request.method": "POST", "http.route": "/api/tasks",
		"http.response.status_code": "201", "request_id": "request-" + traceID}
	if got := attributesOf(spans[write]); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the write has the attributes %v, want %v", got, want)
	}
	for _, private := range []string{"private", token, id, "?q="} {
		if strings.Contains(c.text(), private) {
			t.Errorf("a trace has %q in it", private)
		}
	}
	if !strings.Contains(c.text(), "tasks-of-a-test") {
		t.Error("OTEL_SERVICE_NAME is not what the traces are of")
	}
	if !s.logged(traceID, "request-"+traceID) {
		t.Errorf("no line of a request has both ids; the server said\n%.2000s", s.stderr)
	}
}

// logged tells whether there is the line of a request with both ids.
func (s *served) logged(traceID, requestID string) bool {
	for line := range strings.Lines(s.stderr.String()) {
		var said struct {
			Msg       string `json:"msg"`
			TraceID   string `json:"trace_id"`
			RequestID string `json:"request_id"`
		}
		if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "request" && said.TraceID == traceID &&
			said.RequestID == requestID {
			return true
		}
	}
	return false
}

// A collector that is away, or takes for ever, is one warning; requests and the stop go on without it.
func TestACollectorThatIsAwayDelaysNothing(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(end) })
	for name, url := range map[string]string{"away": "http://u:s3cret@127.0.0.1:1/?k=s3cret", "hanging": hanging.URL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "DATABASE_URL="+testdb.URL(t), "BETTER_AUTH_SECRET="+serveSecret,
				"OTEL_EXPORTER_OTLP_ENDPOINT="+url, "OTEL_EXPORTER_OTLP_HEADERS=authorization s3cret",
				"OTEL_EXPORTER_OTLP_TIMEOUT=600000", "OTEL_BSP_EXPORT_TIMEOUT=600000",
				"OTEL_BSP_SCHEDULE_DELAY=10", "OTEL_BSP_MAX_QUEUE_SIZE=20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=10")
			for range 50 {
				s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
			}
			began := time.Now()
			s.terminate()
			if took := time.Since(began); took > patience {
				t.Errorf("the stop took %s", took)
			}
			if strings.Contains(s.stderr.String(), "s3cret") {
				t.Errorf("the server shows a secret: %s", s.stderr)
			}
			if n := strings.Count(s.stderr.String(), "tracing does not work"); n != 1 {
				t.Errorf("warned %d times; the server said\n%s", n, s.stderr)
			}
		})
	}
}

// The variables of OpenTelemetry's SDK decide what is traced.
func TestWhatIsTracedIsForTheVariablesOfTheSDK(t *testing.T) {
	t.Parallel()
	for _, off := range []string{
		"OTEL_TRACES_SAMPLER=always_off", "OTEL_SDK_DISABLED=true", "OTEL_EXPORTER_OTLP_ENDPOINT=",
	} {
		t.Run(off, func(t *testing.T) {
			t.Parallel()
			c := startCollector(t)
			s := startServer(t, "DATABASE_URL="+testdb.URL(t), "BETTER_AUTH_SECRET="+serveSecret,
				"OTEL_EXPORTER_OTLP_ENDPOINT="+c.url+"/", off)
			s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
			s.must(200, "u", "GET", "/api/tasks", "")
			s.terminate() // sends what there is
			if sent := c.text(); sent != "" {
				t.Errorf("sent %s", sent)
			}
			if said := s.stderr.String(); strings.Contains(said, "tracing") { // sent elsewhere, where nobody is
				t.Errorf("the server said %s", said)
			}
		})
	}
}
