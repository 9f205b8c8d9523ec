package admin

import (
	"context"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"taskledger/command"
	"taskledger/events"
	"taskledger/migrations/testdb"
	"taskledger/projections"
	"taskledger/query"
)

func TestMain(m *testing.M) { testdb.Main(m) }

const testToken = "0123456789abcdef"

// site is a Server whose parts that ask the database are made up.
type site struct {
	*Server
	t      *testing.T
	parked []Parked
	done   []string // what was done to parked users
	err    error    // of everything that asks
	header http.Header
	from   string
}

func newSite(t *testing.T, token string) *site {
	s := &site{t: t, header: http.Header{"Accept": {"text/html"}}, from: "127.0.0.1:4711"}
	do := func(what string, user string) error {
		if s.err == nil {
			s.done = append(s.done, what+" "+user)
			s.parked = nil
		}
		return s.err
	}
	s.Server = New(Config{
		Version: "test",
		Metrics: prometheus.NewRegistry(),
		Log:     slog.New(slog.DiscardHandler),
		Token:   token,
		Status:  func(context.Context) (any, error) { return map[string]any{"answer": 42}, s.err },
		Parked:  func(context.Context) ([]Parked, error) { return s.parked, nil },
		Retry:   func(_ context.Context, user string) error { return do("retry", user) },
		Skip:    func(_ context.Context, user string, seq int64) error { return do(fmt.Sprint("skip ", seq), user) },
		FindUsers: func(_ context.Context, prefix string, limit int) ([]query.User, error) {
			return make([]query.User, limit), s.err
		},
		Verify: func(_ context.Context, _ string, found func(string)) (Verified, error) {
			for i := range 500 {
				found(fmt.Sprint("difference ", i))
			}
			return Verified{Events: 1, Differences: 500}, s.err
		},
	})
	return s
}

// call sends a request; a form makes it a POST.
func (s *site) call(path string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "http://localhost"+path, nil)
	if form != nil {
		r = httptest.NewRequest("POST", "http://localhost"+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, values := range s.header {
		r.Header[name] = values
		if name == "Host" {
			r.Host = values[0]
		}
	}
	r.RemoteAddr = s.from
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// must is call, for an answer with a status and a text in it.
func (s *site) must(status int, path string, form url.Values, text string) *httptest.ResponseRecorder {
	s.t.Helper()
	w := s.call(path, form)
	if w.Code != status || !strings.Contains(w.Body.String(), text) {
		s.t.Fatalf("%s %v: %d, want %d and %q in\n%s", path, form, w.Code, status, text, w.Body)
	}
	return w
}

// formOf is the form of a page, as a browser would send it.
func formOf(t *testing.T, page string) url.Values {
	t.Helper()
	form := url.Values{}
	hidden := regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)
	for _, match := range hidden.FindAllStringSubmatch(page, -1) {
		form.Set(match[1], html.UnescapeString(match[2]))
	}
	return form
}

var guarded = []string{
	"/", "/metrics", "/debug/pprof/", "/debug/pprof/heap", "/users?q=", "/user?id=u&at=x",
	"/parked?action=skip&id=u", "/nowhere",
}

func TestOnlyNamesOfTheLoopbackAreAnswered(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	for _, host := range []string{"localhost", "LOCALHOST:9090", "127.0.0.1:9090", "127.8.8.8", "[::1]:9090", "[::1]"} {
		s.header.Set("Host", host)
		s.must(200, "/", nil, "Overview")
	}
	for _, host := range []string{
		"evil.example", "localhost.evil.example:9090", "127.0.0.1.nip.io", "10.0.0.1", "0.0.0.0:9090",
		"[::]", "", "@localhost",
	} {
		s.header.Set("Host", host)
		for _, path := range guarded {
			s.must(403, path, nil, "loopback")
		}
		s.must(403, "/verify", url.Values{"csrf": {s.csrf}, "id": {"u"}}, "loopback")
	}
}

func TestTheTokenIsAskedForBeforeAnything(t *testing.T) {
	t.Parallel()
	s := newSite(t, testToken)
	for _, path := range guarded {
		w := s.must(401, path, nil, `name="token"`)
		if w.Header().Get("WWW-Authenticate") == "" || strings.Contains(w.Body.String(), s.csrf) {
			t.Errorf("%s: %v", path, w.Header())
		}
	}
	s.must(401, "/verify", url.Values{"csrf": {s.csrf}, "id": {"u"}}, `name="token"`)
	s.must(200, "/style.css", nil, ":root")
	for _, wrong := range []string{
		"Bearer", "Bearer ", "Bearer " + testToken + "0", "Bearer " + testToken[1:], "Basic " + testToken,
	} {
		s.header.Set("Authorization", wrong)
		s.must(401, "/metrics", nil, "")
	}
	for _, right := range []string{"Bearer " + testToken, "bearer " + testToken} {
		s.header.Set("Authorization", right)
		s.must(200, "/", nil, "Overview")
		s.must(200, "/metrics", nil, "")
	}
}

func TestSignInMakesASession(t *testing.T) {
	t.Parallel()
	s := newSite(t, testToken)
	form := formOf(t, s.must(401, "/user?id=u&at=2", nil, "").Body.String())
	if form.Get("next") != "/user?id=u&at=2" {
		t.Errorf("leads to %q", form.Get("next"))
	}
	form.Set("token", "wrong")
	s.must(401, "/sign-in", form, "This is not the token")
	form.Set("token", testToken)
	w := s.must(303, "/sign-in", form, "")
	if to := w.Header().Get("Location"); to != "/user?id=u&at=2" {
		t.Errorf("led to %q", to)
	}
	cookie := w.Result().Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || strings.Contains(cookie.Value, testToken) {
		t.Errorf("the cookie is %v", cookie)
	}
	s.header.Set("Cookie", cookie.Name+"="+cookie.Value)
	s.must(200, "/", nil, "Sign out")
	s.must(200, "/metrics", nil, "")
	s.must(303, "/sign-out", url.Values{}, "")

	end, _, _ := strings.Cut(cookie.Value, ".")
	for _, bad := range []string{
		"", ".", end, end + ".", end + "0" + strings.TrimPrefix(cookie.Value, end), cookie.Value + "x",
		session(testToken, time.Now().Add(-time.Second)),
		session(testToken+"x", time.Now().Add(time.Hour)),
	} {
		s.header.Set("Cookie", cookie.Name+"="+bad)
		s.must(401, "/", nil, `name="token"`)
	}
	for _, next := range []string{"", "//evil.example", "https://evil.example", `/\evil.example`, "/\t/evil.example"} {
		w := s.must(303, "/sign-in", url.Values{"token": {testToken}, "next": {next}}, "")
		if to := w.Header().Get("Location"); to != "/" {
			t.Errorf("%q led to %q", next, to)
		}
	}
}

func TestWrongTokensAreThrottled(t *testing.T) {
	t.Parallel()
	s := newSite(t, testToken)
	s.from = "[2001:db8::1]:1"
	for range wrongTokens {
		s.must(401, "/sign-in", url.Values{"token": {"guess"}}, "This is not the token")
	}
	s.from = "[2001:db8::2]:1" // of the same network
	w := s.must(429, "/sign-in", url.Values{"token": {testToken}}, "Too many wrong tokens")
	if w.Header().Get("Retry-After") == "" || len(w.Result().Cookies()) > 0 {
		t.Errorf("%v", w.Header())
	}
	s.header.Set("Cookie", sessionCookie+"="+session(testToken, time.Now().Add(time.Hour)))
	s.must(200, "/", nil, "Overview")
	s.header.Del("Cookie")
	s.header.Set("Authorization", "Bearer "+testToken)
	s.must(429, "/metrics", nil, "")
	s.from = "192.0.2.1:1"
	for range 3 * wrongTokens {
		s.must(200, "/metrics", nil, "")
	}
}

func TestPagesOfOtherSitesChangeAndLoadNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.parked = []Parked{{UserID: "u", Seq: 2}}
	good := url.Values{"csrf": {s.csrf}, "action": {"skip"}, "id": {"u"}, "seq": {"2"}}
	for name, value := range map[string]string{
		"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example",
	} {
		s.header.Set(name, value)
		w := s.must(403, "/parked", good, "another site")
		if w.Header().Get("Content-Security-Policy") == "" {
			t.Errorf("%v", w.Header())
		}
		s.header.Del(name)
	}
	for _, csrf := range []string{"", "x", newSite(t, "").csrf} {
		form := url.Values{"csrf": {csrf}, "action": {"skip"}, "id": {"u"}, "seq": {"2"}}
		s.must(403, "/parked", form, "not of this server")
	}
	s.must(200, "/parked?"+good.Encode(), nil, "Skip event 2 for good") // a GET asks only
	if len(s.done) > 0 {
		t.Errorf("done: %q", s.done)
	}
	s.header.Set("Sec-Fetch-Site", "cross-site")
	s.header.Set("Sec-Fetch-Mode", "no-cors")
	s.must(403, "/debug/pprof/profile", nil, "another site")
	s.header.Set("Sec-Fetch-Mode", "navigate")
	s.must(200, "/", nil, "Overview")
}

func TestParkedUsersAreRetriedAndSkippedAfterAConfirmation(t *testing.T) {
	t.Parallel()
	const user = `u "1" & <b>`
	s := newSite(t, "")
	s.must(200, "/", nil, "Nobody is parked")
	for _, action := range []string{"retry", "skip"} {
		s.parked = []Parked{{UserID: user, Seq: 7, Reason: "<i>why</i>", Since: time.Unix(0, 0)}}
		page := s.must(200, "/", nil, "&lt;i&gt;why&lt;/i&gt;").Body.String()
		link := regexp.MustCompile(`href="(/parked\?action=` + action + `[^"]*)"`).FindStringSubmatch(page)
		if link == nil {
			t.Fatalf("no link in %s", page)
		}
		form := formOf(t, s.must(200, html.UnescapeString(link[1]), nil, "Leave it").Body.String())
		seq := form["seq"]
		form["seq"] = []string{"8"}
		s.must(409, "/parked", form, "another event")
		form["seq"] = seq
		s.err = Refusal("Not now.")
		s.must(409, "/parked", form, "Not now.")
		s.err = errors.New("connection refused")
		s.must(503, "/parked", form, "The database did not answer")
		s.err = nil
		s.must(200, "/parked", form, "follows this user again")
		s.must(404, "/parked", form, "not parked")
	}
	if strings.Join(s.done, ", ") != "retry "+user+", skip 7 "+user {
		t.Errorf("done: %q", s.done)
	}
	s.must(422, "/parked?action=erase&id=u", nil, "retry and skip")
}

func TestEveryPageForbidsWhatIsNotIts(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	for _, path := range guarded {
		h := s.call(path, nil).Header()
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" ||
			!strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") ||
			strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestAnOverviewOfADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.must(200, "/", nil, "<dt>answer</dt><dd><span class=\"text\">42</span>")
	s.err = errors.New("dial postgres://s3cret@db")
	page := s.must(200, "/", nil, "The status could not be read").Body.String()
	if strings.Contains(page, "s3cret") {
		t.Error("the page shows the error")
	}
	s.must(503, "/users?q=a", nil, "The database did not answer")
}

func TestWhatIsAskedForIsBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	page := s.must(200, "/users?q=a", nil, "More than 50 users").Body.String()
	if n := strings.Count(page, "<tr>") - 1; n != maxUsers {
		t.Errorf("%d users", n)
	}
	page = s.must(200, "/verify", url.Values{"csrf": {s.csrf}, "id": {"u"}}, "500 differences").Body.String()
	if n := strings.Count(
		page,
		"<li><code",
	); n != maxDifferences ||
		!strings.Contains(page, "These are the first 100") {
		t.Errorf("%d differences", n)
	}
	s.busy <- struct{}{}
	s.must(429, "/verify", url.Values{"csrf": {s.csrf}, "id": {"u"}}, "Another verification is running")
	for _, bad := range []string{strings.Repeat("x", 256), "%00", "%ff"} {
		s.must(422, "/users?q="+bad, nil, "255 bytes")
		s.must(422, "/user?id="+bad, nil, "255 bytes")
	}
	for _, bad := range []string{
		"at=-1", "at=x", "at=9223372036854775808", "time=tomorrow", "task=x", "before=x", "from=x",
		"from=2026-01-01T00:00,x",
	} {
		s.must(422, "/user?id=u&"+bad, nil, "does not understand")
	}
	s.must(400, "/verify", url.Values{"csrf": {s.csrf}, "id": {strings.Repeat("x", maxForm)}}, "")
}

func TestTheStatusIsShownInItsOrder(t *testing.T) {
	t.Parallel()
	n, err := nodeOf(struct {
		Z    string           `json:"z"`
		A    []map[string]any `json:"a"`
		None *int             `json:"none"`
		At   time.Time        `json:"at"`
		Deep struct {
			Yes bool `json:"yes"`
		} `json:"deep"`
	}{A: []map[string]any{{"x": 1.5}, {"x": "<b>"}}, At: time.Unix(0, 5)})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := pages.ExecuteTemplate(&b, "node", n); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(b.String(), " ")), " ")
	if want := "z – a x 1.5 &lt;b&gt; none – at 1970-01-01 00:00:00 UTC deep yes no"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestTextThatDeceivesIsShownByNumber(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain\nlines":               "plain\nlines",
		"evil\u202egpj.exe":          "evil[U+202E]gpj.exe",
		"\u2066a\u2069\ufeff":        "[U+2066]a[U+2069][U+FEFF]",
		"bell\a\x00\x1b[0m":          "bell[U+0007][U+0000][U+001B][0m",
		"שלום":                       "שלום",
		"\U0001F469\u200d\U0001F467": "\U0001F469\u200d\U0001F467",
	} {
		if got := visible(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

// audited is a site on a database, with a user who has done things.
func audited(t *testing.T) (*site, *command.Handler, *events.DB) {
	t.Helper()
	pool := testdb.New(t)
	db := events.NewDB(pool, testdb.Schema, "")
	log := events.Open(db)
	ctx, stop := context.WithCancel(context.Background())
	runner := projections.NewRunner(log, slog.New(slog.DiscardHandler), nil)
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("projections: %v", err)
		}
		log.Close()
	})
	s := newSite(t, "")
	s.Queries = query.NewReader(query.Config{
		DB:        events.NewDB(pool, testdb.Schema, `SELECT set_config('role', 'pg_read_all_data', true)`),
		Log:       log,
		ReadModel: runner,
		KeptBytes: 1 << 20,
	})
	s.FindUsers = func(ctx context.Context, prefix string, limit int) ([]query.User, error) {
		return query.FindUsers(ctx, db, prefix, limit)
	}
	s.Verify = func(ctx context.Context, user string, found func(string)) (Verified, error) {
		r, err := projections.Verify(ctx, db, user, func(d projections.Difference) { found(d.String()) })
		return Verified{Events: r.Events, Rows: r.Rows, Differences: r.Differences}, err
	}
	return s, command.NewHandler(
		command.Config{Log: log, Stored: s.Queries.Wrote, Quota: 1000, CacheBytes: 1 << 20},
	), db
}

// The history has from and to side by side, the list is what it was after each event, and both come in pages.
func TestTheAuditOfAUser(t *testing.T) {
	t.Parallel()
	s, commands, db := audited(t)
	const user = `u & "co"`
	at := "/user?id=" + url.QueryEscape(user)
	do := func(c command.Command) command.Result {
		t.Helper()
		result, err := commands.Do(t.Context(), command.Request{UserID: user, RequestID: "r"}, c)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	s.must(200, at, nil, "This user has no events.")
	id := do(command.CreateTask{ID: uuid.Must(uuid.NewV7()), Title: "<script>first</script>"}).Task.ID
	do(command.UpdateTask{ID: id, Title: new("second \u202e")})
	do(command.DeleteTask{ID: id})
	for range maxEntries {
		do(command.CreateTask{ID: uuid.Must(uuid.NewV7()), Title: "more"})
	}
	page := s.must(200, at, nil, fmt.Sprintf("After event %d, TaskCreated", maxEntries+3)).Body.String()
	if n := strings.Count(page, "scope=\"rowgroup\""); n != maxEntries {
		t.Errorf("%d entries on a page", n)
	}
	s.must(200, at+"&before=4", nil, `<td class="from"><bdi class="text">&lt;script&gt;first&lt;/script&gt;</bdi></td>`+
		`<td class="to"><bdi class="text">second [U&#43;202E]</bdi></td>`)
	s.must(200, at+"&at=1", nil, "&lt;script&gt;first&lt;/script&gt;</bdi></th>")
	s.must(200, at+"&at=2", nil, "second [U&#43;202E]</bdi></th>")
	s.must(200, at+"&at=3", nil, "no tasks.")
	s.must(200, at+"&at=0", nil, "Before the first event")
	s.must(200, at+"&time=2001-01-01T00:00", nil, "Before the first event")
	s.must(422, at+"&at=1000", nil, "still to come")
	s.must(422, at+"&time=2999-01-01T00:00:00", nil, "still to come")
	page = s.must(200, at+"&task="+id.String(), nil, "of one task").Body.String()
	if strings.Count(page, "rowgroup") != 3 {
		t.Errorf("the history of a task of three events is %s", page)
	}
	s.must(200, "/users?q=u+%26", nil, "1 found")
	s.must(200, "/users?q=v", nil, "No user")

	verify := url.Values{"csrf": {s.csrf}, "id": {user}}
	s.must(200, "/verify", verify, "are the fold of the ledger")
	if _, err := db.Exec(t.Context(), `UPDATE {schema}.tasks SET version = 9 WHERE id = $1`, id); err != nil {
		t.Fatal(err)
	}
	s.must(200, "/verify", verify, "1 difference between")
}

func TestALongListComesInPages(t *testing.T) {
	t.Parallel()
	s, commands, _ := audited(t)
	const tasks = maxTasks + 30
	for range tasks {
		create := command.CreateTask{ID: uuid.Must(uuid.NewV7()), Title: "one"}
		if _, err := commands.Do(t.Context(), command.Request{UserID: "u", RequestID: "r"}, create); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for next := "/user?id=u&at=" + fmt.Sprint(tasks); next != "" && seen < 2*tasks; {
		page := s.must(200, next, nil, "on this page").Body.String()
		seen += strings.Count(page, `<bdi class="text">one</bdi></th>`)
		link := regexp.MustCompile(`<a href="([^"]*)">Next page of the list`).FindStringSubmatch(page)
		if next = ""; link != nil {
			next = html.UnescapeString(link[1])
		}
	}
	if seen != tasks {
		t.Errorf("%d tasks on all pages, want %d", seen, tasks)
	}
}
