package auth

import (
	"bytes"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counted returns what a registry has counted, zeros left out, by name and labels such as name{a,b}.
func counted(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, label.GetValue())
			}
			if value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue(); value != 0 {
				values[family.GetName()+"{"+strings.Join(labels, ",")+"}"] = value
			}
		}
	}
	return values
}

// logger logs everything into a buffer, without times.
func logger(level slog.Level) (*slog.Logger, *bytes.Buffer) {
	logged := &bytes.Buffer{}
	return slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})), logged
}

func TestWhatIsRefusedIsCountedAndLogged(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	foreign := withCookie(cookieCache, cacheToken(nil))
	foreign.Method = http.MethodPost
	expired := map[string]any{"exp": 1}
	twice := withBearer("a")
	twice.Header.Add("Authorization", "Bearer b")
	for name, test := range map[string]struct {
		request            *http.Request
		credential, reason string
	}{
		"nothing":             {headerRequest("Accept", "*/*"), "none", "no_credentials"},
		"two headers":         {twice, "none", "ambiguous"},
		"Basic":               {headerRequest("Authorization", "Basic YTpi"), "none", "malformed"},
		"long bearer":         {withBearer(strings.Repeat("a", maxToken+1)), "none", "too_long"},
		"long session cookie": {withCookie(cookieSession, strings.Repeat("a", maxToken+1)), "session", "too_long"},
		"expired token":       {withBearer(withClaims(expired)), "jwt", "expired"},
		"token without sub":   {withBearer(withClaims(map[string]any{"sub": nil})), "jwt", "not_a_login"},
		"session as bearer":   {withBearer(signSession("gone")), "session", "no_session"},
		"session as cookie":   {withCookie(cookieSession, signSession("gone")), "session", "no_session"},
		"other secret":        {withBearer(signSessionWith(otherTestSecret, "a")), "session", "bad_signature"},
		"cookie cache":        {withCookie(cookieCache, cacheToken(expired)), "cookie_cache", "expired"},
		"login in the cache":  {withCookie(cookieCache, withClaims(nil)), "cookie_cache", "not_a_login"},
		"write from afar":     {foreign, "cookie_cache", "cross_site"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewRegistry()
			log, logged := logger(slog.LevelDebug)
			a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Logger: log, Metrics: registry})
			if _, err := a.Authenticate(test.request); err == nil {
				t.Fatal("accepted")
			}
			want := map[string]float64{"taskledger_auth_refusals_total{" + test.credential + "," + test.reason + "}": 1}
			if got := counted(t, registry); !maps.Equal(got, want) {
				t.Errorf("counted %v, want %v", got, want)
			}
			level := "WARN"
			if test.reason == "no_credentials" {
				level = "DEBUG"
			}
			line := "level=" + level + ` msg="credential refused" credential=` + test.credential +
				" reason=" + test.reason + ` detail="`
			if got := logged.String(); !strings.HasPrefix(got, line) || strings.Count(got, "\n") != 1 {
				t.Errorf("logged %s, want one line that begins %s", got, line)
			}
		})
	}
}

func TestWhatIsAcceptedIsCountedAndNotLogged(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	addSession(t, pool, testSession, "ada", testNow.Add(time.Hour))
	registry := prometheus.NewRegistry()
	log, logged := logger(slog.LevelDebug)
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Logger: log, Metrics: registry})
	for _, r := range []*http.Request{
		withBearer(withClaims(nil)), withBearer(withClaims(nil)),
		withBearer(cacheToken(nil)), withCookie(cookieCache, cacheToken(nil)), withCookie(cookieCache, cacheToken(nil)),
		withCookie(cookieSession, signSession(testSession)),
	} {
		if _, err := a.Authenticate(r); err != nil {
			t.Error(err)
		}
	}
	want := map[string]float64{
		"taskledger_auth_accepted_total{jwt}":          2,
		"taskledger_auth_accepted_total{cookie_cache}": 3,
		"taskledger_auth_accepted_total{session}":      1,
	}
	if got := counted(t, registry); !maps.Equal(got, want) || logged.Len() > 0 {
		t.Errorf("counted %v, want %v; logged %s", got, want, logged)
	}
}

// What cannot be checked is no refusal: who is told is whoever answers.
func TestWhatCannotBeCheckedIsNotCounted(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	registry := prometheus.NewRegistry()
	log, logged := logger(slog.LevelDebug)
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Logger: log, Metrics: registry})
	pool.Close()
	if err := errorOf(a, signSession(testSession)); err == nil {
		t.Fatal("accepted")
	}
	if got := counted(t, registry); len(got) > 0 || logged.Len() > 0 {
		t.Errorf("counted %v, logged %s", got, logged)
	}
}

func TestAFloodOfRefusalsIsALineASecondAndReason(t *testing.T) {
	t.Parallel()
	clock := &testClock{at: testNow}
	registry := prometheus.NewRegistry()
	log, logged := logger(slog.LevelInfo)
	a := newAuthenticator(t, Config{Secret: testSecret, Logger: log, Now: clock.now, Metrics: registry})
	flood := func() {
		for range 100 {
			_ = errorOf(a, "garbage")
			_ = errorOf(a, withClaims(map[string]any{"exp": 1}))
			_, _ = a.Authenticate(headerRequest("Accept", "*/*"))
		}
	}
	lines := func() []string {
		defer logged.Reset()
		return strings.Split(strings.TrimSpace(logged.String()), "\n")
	}
	flood()
	clock.at = testNow.Add(refusalsEvery - time.Nanosecond)
	flood()
	got := lines()
	if len(got) != 2 || !strings.Contains(got[0], "malformed") || !strings.Contains(got[1], "expired") {
		t.Errorf("within a second: %q", got)
	}
	clock.at = testNow.Add(refusalsEvery)
	flood()
	got = lines()
	if len(got) != 2 || !strings.HasSuffix(got[0], "left_out=199") || !strings.HasSuffix(got[1], "left_out=199") {
		t.Errorf("a second later: %q", got)
	}
	clock.at = testNow.Add(2 * refusalsEvery)
	flood()
	got = lines()
	if len(got) != 2 || !strings.HasSuffix(got[0], "left_out=99") {
		t.Errorf("two seconds later: %q", got)
	}
	if n := counted(t, registry)["taskledger_auth_refusals_total{none,malformed}"]; n != 400 {
		t.Errorf("%v counted, want all", n)
	}
}

func TestNothingIsCountedWithoutARegistry(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{Secret: testSecret, JWKSURL: serve(t, newKeyIssuer(threeKeys()).set)})
	if err := errorOf(a, withClaims(nil)); err != nil {
		t.Error(err)
	}
	wantRefused(t, errorOf(a, "x"), whyShape)
}
