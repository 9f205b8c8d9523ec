package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/httpapi/auth"
	"taskledger/migrations/testdb"
)

const serveSecret = "a secret of thirty-two bytes or so"

// served is a running server process.
type served struct {
	t      *testing.T
	cmd    *exec.Cmd
	base   string
	banner string
	stderr *lockedBuffer
}

// lockedBuffer is written by a process and read by a test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var apiAddress = regexp.MustCompile(`API +(http://localhost:\d+)/api`)

// startServer starts a server process on a free port and waits until it is ready.
func startServer(t *testing.T, env ...string) *served {
	t.Helper()
	s := launchServer(t, env...)
	s.await(200, func() (int, error) { return s.status("/readyz") })
	return s
}

// launchServer starts a server process on a free port and waits until it has told its address.
func launchServer(t *testing.T, env ...string) *served {
	t.Helper()
	s := &served{t: t, stderr: &lockedBuffer{}}
	s.start(env...)
	return s
}

func (s *served) start(env ...string) {
	s.t.Helper()
	last := "curl "
	if strings.HasPrefix(env[0], "DATABASE_URL=") {
		last = "/docs"
	}
	s.run(program(s.t, append([]string{"PORT=0", "ADMIN_ADDR=", "RATE_LIMIT_RPS=0"}, env...), "serve"), last)
}

// run starts the process and waits until it has told all up to the line that has last in it.
func (s *served) run(cmd *exec.Cmd, last string) {
	t := s.t
	t.Helper()
	s.cmd = cmd
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	for lines := bufio.NewScanner(stdout); !strings.Contains(s.banner, last) && lines.Scan(); {
		s.banner += lines.Text() + "\n"
	}
	found := apiAddress.FindStringSubmatch(s.banner)
	if found == nil {
		_ = s.cmd.Wait()
		t.Fatalf("the server told no address: %s", s.stderr)
	}
	s.base = found[1]
}

// await asks until the answer has the status.
func (s *served) await(want int, ask func() (int, error)) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		got, err := ask()
		if err == nil && got == want {
			return
		}
		if !tick(ctx) {
			s.t.Fatalf("the answer is %d, %v, want %d; the server said:\n%s", got, err, want, s.stderr)
		}
	}
}

func (s *served) status(path string) (int, error) {
	resp, err := http.Get(s.base + path)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// call calls the API as a user.
func (s *served) call(user, method, path, body string) (status int, answer map[string]any, err error) {
	token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), time.Hour)
	if err != nil {
		return 0, nil, err
	}
	return s.callAs(token, method, path, body)
}

func (s *served) callAs(token, method, path, body string) (status int, answer map[string]any, err error) {
	got, err := s.send(token, method, path, body)
	if err == nil && len(got.body) > 0 && got.body[0] == '{' {
		err = json.Unmarshal(got.body, &answer)
	}
	return got.status, answer, err
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// send sends a request; header is names and values in turn.
func (s *served) send(token, method, path, body string, header ...string) (reply, error) {
	req, err := http.NewRequest(method, s.base+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, data}, err
}

// must calls the API and fails the test unless it is answered with the status.
func (s *served) must(want int, user, method, path, body string) map[string]any {
	s.t.Helper()
	status, answer, err := s.call(user, method, path, body)
	if err != nil || status != want {
		s.t.Fatalf("%s %s: %d %v %v, want %d", method, path, status, answer, err, want)
	}
	return answer
}

// shown waits until the read model, and not only the memory of the server, shows all of a user's events.
func (s *served) shown(user string) {
	s.t.Helper()
	s.must(200, user, "GET", "/api/ledger", "")
}

// terminate sends SIGTERM and waits for the end.
func (s *served) terminate() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Fatalf("after SIGTERM: %v; the server said:\n%s", err, s.stderr)
	}
}

var shownToken = regexp.MustCompile(`Bearer ([\w.-]+)'`)

// The first thing anyone does: start it with nothing set, paste the curl line, stop it, start it again.
func TestAFirstDay(t *testing.T) {
	t.Parallel()
	env := []string{"DATA_DIR=" + dataDir(t)}
	first := startServer(t, env...)
	token := shownToken.FindStringSubmatch(first.banner)
	if token == nil || !strings.Contains(first.banner, "/docs") {
		t.Fatalf("the banner is %s", first.banner)
	}
	status, task, err := first.callAs(token[1], "POST", "/api/tasks", `{"title":"Buy milk"}`)
	if err != nil || status != 201 {
		t.Fatalf("the shown token: %d %v %v", status, task, err)
	}
	first.terminate()

	second := startServer(t, env...)
	if again := shownToken.FindStringSubmatch(second.banner); again == nil {
		t.Fatalf("the banner is %s", second.banner)
	}
	status, found, err := second.callAs(token[1], "GET", "/api/tasks/"+task["id"].(string), "")
	if err != nil || status != 200 || found["title"] != "Buy milk" {
		t.Fatalf("after a restart: %d %v %v", status, found, err)
	}
	if got := finish(
		t,
		program(t, env, "verify"),
	); got.code != 0 ||
		got.stdout != "compared 1 users, 1 events, 3 rows; 0 parked\n" {
		t.Errorf("verify beside the server: %+v", got)
	}
	second.terminate()
}

// Three processes start at once on one empty database; what one writes the others show.
func TestThreeProcessesOnOneDatabase(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.EmptyURL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	var processes [3]*served
	var starts sync.WaitGroup
	for i := range processes {
		starts.Go(func() { processes[i] = startServer(t, env...) })
	}
	starts.Wait()
	if t.Failed() {
		return
	}
	var work sync.WaitGroup
	for w := range 9 {
		work.Go(func() {
			user := fmt.Sprintf("u%d", w/2) // some users write through two processes
			for n := range 20 {
				writer, reader := processes[(w+n)%3], processes[(w+n+1)%3]
				status, task, err := writer.call(user, "POST", "/api/tasks", fmt.Sprintf(`{"title":"%d-%d"}`, w, n))
				if err != nil || status != 201 {
					t.Errorf("create: %d %v %v", status, task, err)
					return
				}
				status, read, err := reader.call(user, "GET", "/api/tasks/"+task["id"].(string), "")
				if err != nil || status != 200 {
					t.Errorf("read from another process: %d %v %v", status, read, err)
				}
			}
		})
	}
	work.Wait()
	if got := finish(
		t,
		program(t, env[:1], "verify"),
	); got.code != 0 ||
		!strings.HasPrefix(got.stdout, "compared 5 users, 180 events, 365 rows") {
		t.Errorf("verify: %+v", got)
	}
	for _, p := range processes {
		p.terminate()
	}
}

// PostgreSQL is killed under a server: 503 with Retry-After until it is back, then all is well again, and what was
// acknowledged is there.
func TestADatabaseThatGoesAwayComesBack(t *testing.T) {
	t.Parallel()
	db := testdb.Server(t)
	env := []string{"DATABASE_URL=" + db.URL(), "BETTER_AUTH_SECRET=" + serveSecret, "LOG_LEVEL=debug"}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"before"}`)
	stream := s.stream("u") // so that the server listens
	acknowledged := 1
	for range 2 {
		old := db.PID()
		if err := kill9(old); err != nil {
			t.Fatal(err)
		}
		s.await(1, func() (int, error) { // its children may answer for a moment more
			if pid := db.PID(); pid == old || pid == 0 {
				return 0, nil
			}
			return 1, nil
		})
		killed := time.Now()
		s.await(201, func() (int, error) {
			status, answer, err := s.call("u", "POST", "/api/tasks", `{"title":"after"}`)
			if err == nil && status != 201 && (status != 503 || answer["code"] != "unavailable") {
				t.Fatalf("while PostgreSQL is away: %d %v", status, answer)
			}
			return status, err
		})
		acknowledged++
		if took := time.Since(killed); took > recovery {
			t.Errorf("back after %v", took)
		}
		if status, err := s.status("/livez"); status != 200 || err != nil {
			t.Errorf("livez: %d %v", status, err)
		}
		s.await(200, func() (int, error) { return s.status("/readyz") })
	}
	got := finish(t, program(t, env[:1], "verify"))
	events := regexp.MustCompile(`(\d+) events`).FindStringSubmatch(got.stdout)
	if got.code != 0 || events == nil {
		t.Fatalf("verify: %+v", got)
	}
	// A write that was answered with 503 may have been stored.
	if n, err := strconv.Atoi(events[1]); err != nil || n < acknowledged {
		t.Errorf("%s events stored of %d acknowledged", events[1], acknowledged)
	}
	s.terminate()
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Errorf("a stream does not come to a clean end: %v", err)
	}
	said := s.stderr.String()
	if !strings.Contains(said, "no connection to the database") || strings.Contains(said, "user=") {
		t.Errorf("the log does not say that PostgreSQL is away, or says more: %s", said)
	}
}

// SIGTERM under load: what was acknowledged is there, and whoever got through to the server got an answer.
func TestSIGTERMLosesNothing(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	var acknowledged atomic.Int64
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			for n := 0; ; n++ {
				status, _, err := s.call(fmt.Sprintf("u%d", w), "POST", "/api/tasks", `{"title":"a"}`)
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
					return // it no longer listens
				}
				if err != nil || status != 201 {
					t.Errorf("cut off: %d %v", status, err)
					return
				}
				acknowledged.Add(1)
			}
		})
	}
	stream := s.stream("u0")
	s.await(1, func() (int, error) { return int(min(acknowledged.Load()/100, 1)), nil })
	begin := time.Now()
	s.terminate()
	if took := time.Since(begin); took > patience {
		t.Errorf("stopped after %v", took)
	}
	work.Wait()
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Errorf("a stream does not come to a clean end: %v", err)
	}
	after := startServer(t, env...)
	var stored int64
	for w := range 8 {
		status, history, err := after.list(fmt.Sprintf("u%d", w))
		if err != nil || status != 200 {
			t.Fatalf("list: %d %v", status, err)
		}
		stored += int64(len(history))
	}
	if stored < acknowledged.Load() {
		t.Errorf("%d tasks stored, %d acknowledged", stored, acknowledged.Load())
	}
}

// Who stops a server finds in the read model what it has written, to the last event, even where that has to wait.
func TestAStopLeavesNothingUnprojected(t *testing.T) {
	t.Parallel()
	url := testdb.EmptyURL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `LOCK TABLE taskledger.tasks IN SHARE MODE`); err != nil {
			return err
		}
		s.must(201, "u", "POST", "/api/tasks", `{"title":"written"}`)
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		s.await(0, func() (int, error) { // nobody listens any more
			if _, err := s.status("/healthz"); err == nil {
				return 1, nil
			}
			return 0, nil
		})
		<-time.After(300 * time.Millisecond) // in which a server that does not wait would have ended
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v; the server said:\n%s", err, s.stderr)
	}
	got := finish(t, program(t, env, "verify"))
	if got.code != 0 || !strings.HasPrefix(got.stdout, "compared 1 users, 1 events, 3 rows") {
		t.Errorf("verify: %+v", got)
	}
}

// stream opens a user's stream of events.
func (s *served) stream(user string) io.Reader {
	s.t.Helper()
	token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", s.base+"/api/events", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != 200 {
		s.t.Fatalf("a stream: %d", resp.StatusCode)
	}
	return resp.Body
}

// list lists a user's tasks.
func (s *served) list(user string) (status int, tasks []map[string]any, err error) {
	token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), time.Hour)
	if err != nil {
		return 0, nil, err
	}
	got, err := s.send(token, "GET", "/api/tasks", "")
	if err == nil {
		err = json.Unmarshal(got.body, &tasks)
	}
	return got.status, tasks, err
}

// Metrics are on an address of their own; no line of a server's log has a token or a title in it.
func TestNothingPrivateIsLogged(t *testing.T) {
	t.Parallel()
	s := startServer(
		t,
		"DATABASE_URL="+testdb.URL(t),
		"BETTER_AUTH_SECRET="+serveSecret,
		"LOG_LEVEL=debug",
		"LOG_FORMAT=json",
	)
	task := s.must(
		201,
		"u",
		"POST",
		"/api/tasks",
		`{"title":"very private title","description":"very private description"}`,
	)
	s.must(422, "u", "POST", "/api/tasks", `{"title":"very private title","is_completed":"very private"}`)
	s.must(400, "u", "POST", "/api/tasks", `{"title":"very private title"`)
	s.must(200, "u", "PATCH", "/api/tasks/"+task["id"].(string), `{"title":"very private title 2"}`)
	s.must(404, "u", "GET", "/api/very%20private", "")
	s.must(422, "u", "GET", "/api/tasks?q=very+private&limit=0", "")
	for _, cookie := range []string{
		"better-auth.session_token=very-private-session.c2lnbmF0dXJl", "better-auth.session_data=very.private.cache",
	} {
		if status := s.callWithCookie(cookie); status != 401 {
			t.Errorf("a bad cookie: %d", status)
		}
	}
	if status, _, err := s.callAs("very.private.token", "GET", "/api/tasks", ""); status != 401 || err != nil {
		t.Errorf("a bad token: %d %v", status, err)
	}
	s.terminate()
	logged := s.stderr.String()
	if !strings.Contains(logged, `"route":"/api/tasks/:id"`) {
		t.Errorf("no requests are logged: %s", logged)
	}
	for _, secret := range []string{"private", serveSecret, "eyJ"} {
		if strings.Contains(logged, secret) {
			t.Errorf("%q is logged: %s", secret, logged)
		}
	}
}

func (s *served) callWithCookie(cookie string) (status int) {
	s.t.Helper()
	req, err := http.NewRequest("GET", s.base+"/api/tasks", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Cookie", cookie)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode
}

// A key set that can't be reached stops neither the server nor the other credentials; readiness tells where there are
// none.
func TestAKeySetThatIsAway(t *testing.T) {
	t.Parallel()
	url, away := "DATABASE_URL="+testdb.URL(t), "JWKS_URL=http://u:s3cret@127.0.0.1:1/jwks?apikey=s3cret"
	alone := launchServer(t, url, away)
	alone.await(200, func() (int, error) { return alone.status("/livez") })
	beside := startServer(t, url, away, "BETTER_AUTH_SECRET="+serveSecret)
	beside.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	if status, err := alone.status("/readyz"); status != 503 || err != nil {
		t.Errorf("readyz: %d %v", status, err)
	}
	for _, s := range []*served{alone, beside} {
		s.terminate()
		if !strings.Contains(s.stderr.String(), "jwks not reachable") {
			t.Errorf("the log does not tell: %s", s.stderr)
		}
		if strings.Contains(s.stderr.String(), "s3cret") {
			t.Errorf("the log tells a secret: %s", s.stderr)
		}
	}
}

// The backend is there before the frontend, whose tables are not made yet. All is plain http, where browsers send no
// Sec-Fetch-Site.
func TestAFrontendThatComesLater(t *testing.T) {
	t.Parallel()
	var migrated atomic.Bool
	frontend, private := lateFrontend(t, &migrated)
	url := testdb.URL(t)
	s := startServer(t, "DATABASE_URL="+url, "BETTER_AUTH_SECRET="+serveSecret, "BETTER_AUTH_URL="+frontend) // is ready

	execute(t, url, `
		CREATE TABLE public."user" ("id" text PRIMARY KEY);
		CREATE TABLE public."session" ("token" text UNIQUE, "userId" text, "expiresAt" timestamptz);
		INSERT INTO public."user" VALUES ('ada');
		INSERT INTO public."session" VALUES ('abc', 'ada', now() + interval '1 hour')`)
	session := signedSession("abc", serveSecret)
	for _, origin := range []string{frontend, "http://localhost:3000"} {
		if status, detail := s.writeFromPage(session, origin); status != 201 {
			t.Errorf("a page of %s: %d %s", origin, status, detail)
		}
	}
	status, detail := s.writeFromPage(session, "http://nas.lan:3000")
	if status != 403 || !strings.Contains(detail, "CORS_ORIGINS") {
		t.Errorf("a page of another origin: %d %s", status, detail)
	}
	if status, _ := s.writeFromPage(signedSession("abc", strings.Repeat("x", 32)), frontend); status != 401 {
		t.Errorf("signed with another secret: %d", status)
	}

	migrated.Store(true)
	claims := jwt.MapClaims{"sub": "ada", "exp": time.Now().Add(time.Hour).Unix()}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	token.Header["kid"] = "k"
	bearer, err := token.SignedString(private)
	if err != nil {
		t.Fatal(err)
	}
	s.await(200, func() (int, error) {
		status, _, err := s.callAs(bearer, "GET", "/api/tasks", "")
		return status, err
	})
	s.terminate()
	for _, line := range []string{
		"level=WARN msg=\"jwks not reachable", "level=INFO msg=\"jwks serves keys again\"",
		"reason=cross_site detail=\"a write by cookie needs", "CORS_ORIGINS",
		"reason=bad_signature detail=\"not signed with our secret: BETTER_AUTH_SECRET",
	} {
		if !strings.Contains(s.stderr.String(), line) {
			t.Errorf("no %s in the log: %s", line, s.stderr)
		}
	}
}

// lateFrontend serves the key "k" as Better Auth does, but only once it is migrated.
func lateFrontend(t *testing.T, migrated *atomic.Bool) (url string, private ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	frontend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !migrated.Load() || r.URL.Path != "/api/auth/jwks" {
			http.Error(w, `relation "jwks" does not exist`, http.StatusInternalServerError)
			return
		}
		x := base64.RawURLEncoding.EncodeToString(public)
		fmt.Fprintf(w, `{"keys":[{"kid":"k","kty":"OKP","crv":"Ed25519","x":%q}]}`, x)
	}))
	t.Cleanup(frontend.Close)
	return frontend.URL, private
}

// signedSession is a session token as it stands in Better Auth's cookie.
func signedSession(token, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(token))
	return token + "." + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// writeFromPage creates a task as a page of an origin does.
func (s *served) writeFromPage(session, origin string) (status int, detail string) {
	s.t.Helper()
	req, err := http.NewRequest("POST", s.base+"/api/tasks", strings.NewReader(`{"title":"a"}`))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Cookie", "better-auth.session_token="+session)
	req.Header.Set("Origin", origin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Detail string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, answer.Detail
}

// A request that takes its time when SIGTERM comes: until it is done others are answered too, on new connections.
func TestABusyServerAnswersToTheEnd(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	s := startServer(t, "DATABASE_URL="+url, "BETTER_AUTH_SECRET="+serveSecret)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE taskledger.task_events IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() { s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`) })
	s.await(1, func() (waiting int, err error) {
		err = pool.QueryRow(t.Context(), `
			SELECT count(*)
			FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
		return min(waiting, 1), err
	})
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.await(503, func() (int, error) { return s.status("/readyz") })
	for range 20 {
		if status, err := s.status("/livez"); status != 200 || err != nil {
			t.Fatalf("with a request in flight: %d %v", status, err)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("%v; the server said:\n%s", err, s.stderr)
	}
}

func TestCredentialsAreCountedWhereAnOperatorLooks(t *testing.T) {
	t.Parallel()
	db, err := connect(t.Context(), testdb.URL(t), testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	a, err := newApp(t.Context(), &settings{MaxTasksPerUser: 1}, db, []byte(serveSecret), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	ask := func(path string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		a.admin.Handler.ServeHTTP(answer, httptest.NewRequest("GET", "http://localhost"+path, nil))
		return answer
	}
	shown := ask("/metrics")
	for _, name := range []string{
		`taskledger_auth_accepted_total{credential="jwt"}`,
		`taskledger_auth_refusals_total{credential="session",reason="bad_signature"}`,
	} {
		if !strings.Contains(shown.Body.String(), name) {
			t.Errorf("no %s in %s", name, shown.Body)
		}
	}
	if answer := ask("/debug/pprof/cmdline"); answer.Code != 404 { // --database-url has a password in it
		t.Errorf("the command line: %d", answer.Code)
	}
}

// An operator finds who is parked, and lets the stream go on.
func TestParkedCommands(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	if got := finish(t, program(t, env, "parked")); got.code != 0 || got.stdout != "nobody is parked\n" {
		t.Errorf("parked: %+v", got)
	}
	appendUnreadable(t, strings.TrimPrefix(env[0], "DATABASE_URL="))
	s.must(201, "v", "POST", "/api/tasks", `{"title":"behind it"}`)
	s.must(200, "v", "GET", "/api/tasks", "") // shows it when the event has been passed
	if got := finish(
		t,
		program(t, env, "parked", "list"),
	); got.code != exitFailed ||
		strings.Count(got.stdout, `user="u" event=2`) != 1 {
		t.Errorf("parked list: %+v", got)
	}
	if status, err := s.status("/readyz"); status != 200 || err != nil {
		t.Errorf("readyz: %d %v", status, err)
	}
	if got := finish(
		t,
		program(t, env, "parked", "retry"),
	); got.code != exitFailed ||
		strings.Count(got.stdout, "TaskRenamed") != 1 {
		t.Errorf("parked retry: %+v", got)
	}
	if got := finish(
		t,
		program(t, env, "parked", "skip", "--user=u"),
	); got.code != 0 ||
		got.stdout != "nobody is parked\n" {
		t.Errorf("parked skip: %+v", got)
	}
	s.must(201, "u", "POST", "/api/tasks", `{"title":"goes on"}`)
	if got := finish(t, program(t, env, "verify")); got.code != 0 || !strings.HasSuffix(got.stdout, "0 parked\n") {
		t.Errorf("verify: %+v", got)
	}
	if !strings.Contains(s.stderr.String(), "stream parked") {
		t.Error("the log does not tell")
	}
	s.terminate()
}

// The page for operators does what the commands do.
func TestThePageForOperators(t *testing.T) {
	t.Parallel()
	db, err := connect(t.Context(), testdb.URL(t), testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	a, err := newApp(
		t.Context(),
		&settings{MaxTasksPerUser: 1, AdminAddr: "[::1]:0", AdminToken: "not asked for"},
		db,
		[]byte(serveSecret),
		slog.New(slog.DiscardHandler),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	visit := func(form url.Values, path, want string) string {
		t.Helper()
		r := httptest.NewRequest("GET", "http://localhost"+path, nil)
		if form != nil {
			r = httptest.NewRequest("POST", "http://localhost"+path, strings.NewReader(form.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		answer := httptest.NewRecorder()
		a.admin.Handler.ServeHTTP(answer, r)
		if !strings.Contains(answer.Body.String(), want) {
			t.Fatalf("%s: %d, want %q in %s", path, answer.Code, want, answer.Body)
		}
		return answer.Body.String()
	}
	park := func() {
		_, err := db.ledger.Exec(t.Context(), `
			INSERT INTO {schema}.users (user_id, seq, live, hash, parked_error, parked_at)
			VALUES ('u', 6, 1, '', 'it does not fit', now())`)
		if err != nil {
			t.Fatal(err)
		}
	}
	visit(nil, "/", "Nobody is parked")
	visit(nil, "/", "<dt>row level security</dt>")
	park()
	visit(nil, "/", "it does not fit")
	visit(nil, "/users?q=u", "parked</strong>")
	page := visit(nil, "/parked?action=retry&id=u", "Retry</button>")
	csrf := regexp.MustCompile(`name="csrf" value="([^"]*)"`).FindStringSubmatch(page)[1]
	visit(url.Values{"csrf": {csrf}, "id": {"u"}}, "/verify", "1 difference between")
	form := url.Values{"csrf": {csrf}, "id": {"u"}, "action": {"retry"}, "seq": {"7"}}
	visit(form, "/parked", "follows this user again")
	park()
	form.Set("action", "skip")
	visit(form, "/parked", "follows this user again")
	visit(nil, "/", "Nobody is parked")
	visit(url.Values{"csrf": {csrf}, "id": {"u"}}, "/verify", "This user has no events")
}

// A client that goes away in the middle of a statement takes no connection to PostgreSQL along: others would wait for a
// new one. A statement that does not come to its end is still given up.
func TestWhoLeavesCostsNoConnection(t *testing.T) {
	t.Parallel()
	db, err := connect(t.Context(), testdb.URL(t), testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	// who leaves while a connection is made may leave it to be made
	if err := db.ledger.Pool().Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	leave := func(seconds float64) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		defer time.AfterFunc(5*time.Millisecond, cancel).Stop()
		// whether it comes to its end is of no interest
		_, _ = db.ledger.Pool().Exec(ctx, `SELECT pg_sleep($1)`, seconds)
	}
	for range 10 {
		leave(0.02)
	}
	if n := db.ledger.Pool().Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections were made for one statement at a time", n)
	}
	begin := time.Now()
	leave(60)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("given up after %v", took)
	}
}

// One client of a server beside many of another, all on one task: it is not refused, and not left waiting.
func TestOneWriterBesideManyOfAnotherServer(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	busy, quiet := startServer(t, env...), startServer(t, env...)
	path := "/api/tasks/" + busy.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)["id"].(string) + "/complete"
	var done atomic.Bool
	var toggles atomic.Int64
	var work sync.WaitGroup
	toggle := func(s *served) {
		if status, answer, err := s.call("u", "PATCH", path, ""); err != nil || status != 200 {
			t.Errorf("toggle: %d %v %v", status, answer, err)
		}
		toggles.Add(1)
	}
	for range 16 {
		work.Go(func() {
			for !done.Load() {
				toggle(busy)
			}
		})
	}
	for range 50 {
		toggle(quiet)
	}
	done.Store(true)
	work.Wait()
	// Not in seconds, for a slow machine is slow for the many too; where the one is always overtaken, they make some
	// thousands to each of its own.
	t.Logf("%d toggles while the one made 50", toggles.Load())
	if toggles.Load() > 20_000 {
		t.Errorf("%d toggles while the one made 50", toggles.Load())
	}
	task := quiet.must(200, "u", "GET", strings.TrimSuffix(path, "/complete"), "")
	if task["version"] != float64(toggles.Load()+1) || task["is_completed"] != (toggles.Load()%2 == 1) {
		t.Errorf("after %d toggles: %v", toggles.Load(), task)
	}
}

// A server that has decided on an event forgets it when an operator has it passed over.
func TestASkipIsForgottenByRunningServers(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	path := "/api/tasks/" + s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)["id"].(string)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(
		t.Context(),
		`ALTER TABLE taskledger.tasks ADD CONSTRAINT no_poison CHECK (search <> 'poison')`,
	); err != nil {
		t.Fatal(err)
	}
	s.must(200, "u", "PATCH", path, `{"title":"poison"}`)
	s.must(201, "v", "POST", "/api/tasks", `{"title":"behind it"}`)
	s.must(200, "v", "GET", "/api/tasks", "") // shows it when the event has been passed
	if got := finish(t, program(t, env, "parked", "skip", "--user=u")); got.code != 0 {
		t.Fatalf("parked skip: %+v", got)
	}
	if read := s.must(200, "u", "GET", path, ""); read["title"] != "a" {
		t.Errorf("after the skip: %v", read)
	}
	if written := s.must(
		200,
		"u",
		"PUT",
		path,
		`{"is_completed":false}`,
	); written["title"] != "a" ||
		written["version"] != 1.0 {
		t.Errorf("a write that changes nothing: %v", written)
	}
	if written := s.must(200, "u", "PATCH", path, `{"title":"b"}`); written["version"] != 3.0 {
		t.Errorf("the next write: %v", written)
	}
	s.terminate()
}

// The way to PostgreSQL goes dead without a word, as in a failover or behind a router that forgot: nothing is refused,
// nothing answered. New connections work. Writes are taken again, and read.
func TestADatabaseThatGoesSilentIsLeft(t *testing.T) {
	t.Parallel()
	way := openRelay(t, testdb.URL(t))
	s := startServer(t, "DATABASE_URL="+way.url, "BETTER_AUTH_SECRET="+serveSecret)
	for n := range 20 { // several connections are in use
		s.must(201, fmt.Sprint("u", n), "POST", "/api/tasks", `{"title":"before"}`)
	}
	way.silence()
	begin := time.Now()
	var work sync.WaitGroup
	for n := range 4 {
		work.Go(func() {
			user, id := fmt.Sprint("u", n), ""
			s.await(201, func() (int, error) {
				status, task, err := s.call(user, "POST", "/api/tasks", `{"title":"after"}`)
				if status == 201 {
					id = task["id"].(string)
				}
				return status, err
			})
			s.await(200, func() (int, error) {
				status, _, err := s.call(user, "GET", "/api/tasks/"+id, "")
				return status, err
			})
		})
	}
	work.Wait()
	took := time.Since(begin)
	t.Logf("written and read again after %v", took.Round(time.Millisecond))
	if took > recovery {
		t.Errorf("written and read again after %v", took)
	}
}
