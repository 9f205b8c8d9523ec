package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const testSecret = "0123456789abcdef0123456789abcdef"

// fakeAPI keeps versions of tasks and knows just enough of the contract; get replaces its answer to a read.
type fakeAPI struct {
	get           http.HandlerFunc
	streamLate    time.Duration // how long after a write its event is on the stream
	streamForgets bool          // streams have no event
	noStreams     bool

	mu          sync.Mutex
	versions    map[string]int64
	users       map[string]bool
	seqs        map[string]int64
	streams     map[string]chan written // of users who listen
	connections atomic.Int64
}

// written is an event that is to be on a stream.
type written struct {
	seq int64
	at  time.Time
}

func (f *fakeAPI) start(t *testing.T) string {
	t.Helper()
	f.versions, f.users = map[string]int64{}, map[string]bool{}
	f.seqs, f.streams = map[string]int64{}, map[string]chan written{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/tasks", f.create)
	mux.HandleFunc("PATCH /api/tasks/{id}/complete", f.toggle)
	mux.HandleFunc("GET /api/tasks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") })
	if f.get == nil {
		f.get = f.read
	}
	mux.HandleFunc("GET /api/tasks/{id}", f.get)
	if !f.noStreams {
		mux.HandleFunc("GET /api/events", f.stream)
	}
	server := httptest.NewUnstartedServer(f.authenticated(mux))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			f.connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

func (f *fakeAPI) authenticated(next http.Handler) http.Handler {
	key := func(*jwt.Token) (any, error) { return []byte(testSecret), nil }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		token, err := jwt.Parse(raw, key, jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired())
		if err != nil {
			problem(w, http.StatusUnauthorized, "invalid_token")
			return
		}
		subject, _ := token.Claims.GetSubject()
		f.mu.Lock()
		f.users[subject] = true
		f.mu.Unlock()
		r.Header.Set("Test-User", subject)
		next.ServeHTTP(w, r)
	})
}

func (f *fakeAPI) create(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fmt.Sprintf("task-%d", len(f.versions)+1)
	f.append(r, id)
	w.WriteHeader(http.StatusCreated)
	writeTask(w, id, f.versions[id])
}

func (f *fakeAPI) toggle(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.PathValue("id")
	f.append(r, id)
	writeTask(w, id, f.versions[id])
}

// append gives the task its next version, the next seq of its user.
func (f *fakeAPI) append(r *http.Request, id string) {
	user := r.Header.Get("Test-User")
	f.seqs[user]++
	f.versions[id] = f.seqs[user]
	if stream := f.streams[user]; stream != nil {
		stream <- written{f.seqs[user], time.Now()}
	}
}

func (f *fakeAPI) stream(w http.ResponseWriter, r *http.Request) {
	events := make(chan written, 10_000)
	f.mu.Lock()
	f.streams[r.Header.Get("Test-User")] = events
	f.mu.Unlock()
	fmt.Fprint(w, "retry: 3000\n\n")
	for {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case event := <-events:
			<-time.After(time.Until(event.at.Add(f.streamLate)))
			if !f.streamForgets {
				fmt.Fprintf(w, "id: %d\nevent: task.created\ndata: {\"seq\":%[1]d}\n\n", event.seq)
			}
		}
	}
}

func (f *fakeAPI) read(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.PathValue("id")
	if f.versions[id] == 0 {
		problem(w, http.StatusNotFound, "not_found")
		return
	}
	writeTask(w, id, f.versions[id])
}

func writeTask(w http.ResponseWriter, id string, version int64) {
	fmt.Fprintf(w, `{"id":%q,"version":%d}`, id, version)
}

func problem(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"status":%d,"code":%q}`, status, code)
}

type outcome struct {
	code           int
	stdout, stderr string
}

func bench(t *testing.T, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	getenv := func(name string) string { return map[string]string{"BETTER_AUTH_SECRET": testSecret}[name] }
	code := run(t.Context(), args, getenv, &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

// quick are arguments for a load as short as a test needs it.
func quick(url string, more ...string) []string {
	return append(
		[]string{
			"--url",
			url,
			"--users",
			"3",
			"--tasks",
			"2",
			"--connections",
			"1,4",
			"--warmup",
			"10ms",
			"--duration",
			"100ms",
		},
		more...)
}

func TestLoadReportsEveryOperationAtEveryNumberOfConnections(t *testing.T) {
	t.Parallel()
	api := &fakeAPI{}
	got := bench(t, quick(api.start(t), "--json")...)
	if got.code != 0 {
		t.Fatalf("exit %d: %s", got.code, got.stderr)
	}
	var results []loadResult
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range results {
		seen[fmt.Sprint(r.Op, r.Connections)] = true
		if r.Requests == 0 || r.Rate <= 0 || r.P50 <= 0 || r.P50 > r.P99 || r.P99 > r.Max*1.01 || len(r.Errors) > 0 {
			t.Errorf("implausible: %+v", r)
		}
	}
	if len(seen) != 8 || len(results) != 8 {
		t.Errorf("measured %v, want four operations with 1 and 4 connections", seen)
	}
	if len(api.users) != 3 {
		t.Errorf("acted as %d users, want 3", len(api.users))
	}
	if n, want := api.connections.Load(), int64(seedConnections+4*(1+4)); n > want {
		t.Errorf("%d connections were opened, want one a worker: %d", n, want)
	}
}

func TestLoadPrintsMarkdown(t *testing.T) {
	t.Parallel()
	got := bench(t, quick((&fakeAPI{}).start(t), "--ops", "get")...)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[2], "| get | 1 | ") || !strings.HasSuffix(lines[3], " | 0 |") {
		t.Errorf("exit %d, printed:\n%s", got.code, got.stdout)
	}
}

func TestLoadCountsWrongStatuses(t *testing.T) {
	t.Parallel()
	api := &fakeAPI{get: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }}
	got := bench(t, quick(api.start(t), "--ops", "get,list")...)
	if got.code != 1 {
		t.Errorf("exit %d, want 1", got.code)
	}
	lines := strings.Split(got.stdout, "\n")
	if !strings.HasPrefix(lines[2], "| get | 1 | 0 | 0.00 |") || !strings.HasSuffix(lines[2], " × 500 |") {
		t.Errorf("get: %s", lines[2])
	}
	if !strings.HasSuffix(lines[4], " | 0 |") {
		t.Errorf("list: %s", lines[4])
	}
}

func TestRateLimitIsExplained(t *testing.T) {
	t.Parallel()
	limited := func(w http.ResponseWriter, _ *http.Request) { problem(w, http.StatusTooManyRequests, "rate_limited") }
	got := bench(t, quick((&fakeAPI{get: limited}).start(t), "--ops", "get")...)
	if got.code != 1 || !strings.Contains(got.stdout, " × 429 rate_limited |") ||
		!strings.Contains(got.stdout, "RATE_LIMIT_RPS=0") {
		t.Errorf("exit %d, printed:\n%s", got.code, got.stdout)
	}
	server := httptest.NewServer(http.HandlerFunc(limited))
	t.Cleanup(server.Close)
	got = bench(t, quick(server.URL)...)
	if got.code != 1 || !strings.Contains(got.stderr, "RATE_LIMIT_RPS=0") {
		t.Errorf("seeding: exit %d, printed:\n%s", got.code, got.stderr)
	}
}

func TestTokenActsAsItsUser(t *testing.T) {
	t.Parallel()
	signed := jwt.NewWithClaims(
		jwt.SigningMethodHS256,
		jwt.MapClaims{"sub": "u1", "exp": time.Now().Add(time.Hour).Unix()},
	)
	token, err := signed.SignedString([]byte(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	api := &fakeAPI{}
	got := bench(t, quick(api.start(t), "--ops", "list", "--token", token)...)
	if got.code != 0 || len(api.users) != 1 || !api.users["u1"] {
		t.Errorf("exit %d, acted as %v: %s", got.code, api.users, got.stderr)
	}
}

func TestSecretFileGoesBeforeTheEnvironment(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("another-secret-another-secret-00\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := bench(t, quick((&fakeAPI{}).start(t), "--secret-file", file)...)
	if got.code != 1 || !strings.Contains(got.stderr, "401 invalid_token") {
		t.Errorf("exit %d: %s", got.code, got.stderr)
	}
}

func TestPairsPassWhenReadsSeeWrites(t *testing.T) {
	t.Parallel()
	got := bench(t, "--url", (&fakeAPI{}).start(t), "--pairs", "50", "--connections", "1,4")
	want := "| 1 | 50 | 0 | 0 |\n| 4 | 50 | 0 | 0 |\n"
	if got.code != 0 || !strings.HasSuffix(got.stdout, want) {
		t.Errorf("exit %d, printed:\n%s%s", got.code, got.stdout, got.stderr)
	}
}

func TestPairsDetectMisses(t *testing.T) {
	t.Parallel()
	missing := func(w http.ResponseWriter, _ *http.Request) { problem(w, http.StatusNotFound, "not_found") }
	stale := func(w http.ResponseWriter, r *http.Request) { writeTask(w, r.PathValue("id"), 1) }
	tests := []struct {
		name string
		get  http.HandlerFunc
		row  string
		miss string
	}{
		{"task not there yet", missing, "| 1 | 4 | 4 | 0 |", "version 1 written, version 0 read"},
		{"older version", stale, "| 1 | 4 | 3 | 0 |", "version 2 written, version 1 read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := bench(t, "--url", (&fakeAPI{get: tt.get}).start(t), "--pairs", "4", "--connections", "1")
			if got.code != 1 || !strings.Contains(got.stdout, tt.row) || !strings.Contains(got.stdout, tt.miss) {
				t.Errorf("exit %d, printed:\n%s", got.code, got.stdout)
			}
		})
	}
}

func TestPairsReadFromTheOtherServer(t *testing.T) {
	t.Parallel()
	other := (&fakeAPI{}).start(t)
	got := bench(t, "--url", (&fakeAPI{}).start(t), "--read-url", other, "--pairs", "4", "--connections", "1", "--json")
	var results []pairsResult
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil {
		t.Fatal(err)
	}
	if got.code != 1 || len(results) != 1 || results[0].Misses != 4 {
		t.Errorf("exit %d, results %+v, want every read to miss", got.code, results)
	}
}

func TestPairsCountErrorsApartFromMisses(t *testing.T) {
	t.Parallel()
	away := func(w http.ResponseWriter, _ *http.Request) { problem(w, http.StatusServiceUnavailable, "unavailable") }
	got := bench(t, "--url", (&fakeAPI{get: away}).start(t), "--pairs", "4", "--connections", "1")
	if got.code != 1 || !strings.Contains(got.stdout, "| 1 | 0 | 0 | 4 × 503 unavailable |") {
		t.Errorf("exit %d, printed:\n%s", got.code, got.stdout)
	}
}

func TestDeadlineEndsARunThatHangs(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, more := range [][]string{{"--pairs", "4"}, {"--ops", "get", "--connections", "1", "--duration", "50ms"}} {
		url := (&fakeAPI{get: hang}).start(t)
		got := bench(t, quick(url, append(more, "--deadline", "300ms")...)...)
		if got.code != 1 || !strings.Contains(got.stderr, "deadline of 300ms reached") {
			t.Errorf("%v: exit %d: %s", more, got.code, got.stderr)
		}
	}
}

func TestAnswersAreWaitedForNoLongerThanTheRequestTimeout(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	url := (&fakeAPI{get: hang}).start(t)
	got := bench(t, quick(url, "--ops", "get", "--duration", "700ms", "--request-timeout", "500ms")...)
	if got.code != 1 || !strings.Contains(got.stdout, " × timeout |") {
		t.Errorf("exit %d, printed:\n%s", got.code, got.stdout)
	}
}

func TestArgumentsThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"--url", "http://192.0.2.1:8000"}, "--allow-remote"},
		{[]string{"--url", "http://localhost.example.com"}, "--allow-remote"},
		{[]string{"--url", "http://127.0.0.1@192.0.2.1"}, "--allow-remote"},
		{[]string{"--read-url", "http://192.0.2.1:8000"}, "--read-url"},
		{[]string{"--url", "localhost:8000"}, "--url"},
		{[]string{"--users", "0"}, "--users"},
		{[]string{"--tasks", "10001"}, "--tasks"},
		{[]string{"--connections", "0"}, "--connections"},
		{[]string{"--pairs", "-1"}, "--pairs"},
		{[]string{"--duration", "0s"}, "--duration"},
		{[]string{"--request-timeout", "2m"}, "--request-timeout"},
		{[]string{"--deadline", "10s"}, "--deadline"},
		{[]string{"--ops", "create,erase"}, "--ops"},
		{[]string{"--rate", "-1"}, "--rate"},
		{[]string{"--rate", "1", "--pairs", "1"}, "--pairs"},
		{[]string{"--rate", "1", "--rival"}, "--rival"},
		{[]string{"--freshness"}, "--rate"},
		{[]string{"--freshness", "--rate", "1", "--ops", "create,get"}, "--ops"},
		{[]string{"--rival", "--pairs", "1"}, "--pairs"},
		{[]string{"--rival", "--token", "x"}, "--token"},
		{[]string{"--rival", "--tasks", "251"}, "--tasks"},
		{[]string{"--rival", "--rounds", "0"}, "--rounds"},
		{[]string{"--rival", "--workloads", "list,sleep"}, "--workloads"},
		{[]string{"--rival", "--deadline", "1m"}, "--deadline"},
		{[]string{"--profile", "x"}, "--rival"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			// Only parsed: should a check be lost, no test shall send anything to another machine.
			var discard bytes.Buffer
			_, err := parse(tt.args, func(string) string { return testSecret }, &discard, &discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %s", err, tt.want)
			}
		})
	}
}

func TestTargetsOfThisMachineAreAllowed(t *testing.T) {
	t.Parallel()
	var discard bytes.Buffer
	getenv := func(string) string { return testSecret }
	for _, args := range [][]string{
		{"--url", "http://localhost:8000/"},
		{"--url", "http://127.0.0.2:1"},
		{"--url", "http://[::1]:8000"},
		{"--url", "https://tasks.example.com", "--allow-remote"},
	} {
		if _, err := parse(args, getenv, &discard, &discard); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestNoWayToSignIn(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	code := run(context.Background(), nil, func(string) string { return "" }, &stderr, &stderr)
	if code != 2 || !strings.Contains(stderr.String(), "BETTER_AUTH_SECRET") {
		t.Errorf("exit %d: %s", code, &stderr)
	}
}
