package httpapi

import (
	"encoding/base64"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"taskledger/httpapi/auth"
)

// What is away is told of once in a while, not with each request.
func TestAnOutageDoesNotFloodTheLog(t *testing.T) {
	t.Parallel()
	away, err := auth.New(t.Context(), auth.Config{
		JWKSURL: "http://127.0.0.1:1/jwks", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer away.Close()
	s := start(t, func(c *Config) { c.Auth = away })
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","kid":"k"}`))
	token := http.Header{"Authorization": {"Bearer " + header + ".e30.AAAA"}}
	for range 50 {
		s.refused(503, "unavailable", call{method: "GET", path: "/api/tasks", header: token})
	}
	s.http.Close()
	logged := s.logged.String()
	n := strings.Count(logged, `level=WARN msg="request failed"`)
	if n != 1 || strings.Count(logged, "status=503") != 50 {
		t.Errorf("%d lines for 50 requests in %s", n, logged)
	}
	o := outages{told: map[string]time.Time{}}
	at := time.Now()
	for _, tc := range []struct {
		cause string
		after time.Duration
		news  bool
	}{
		{"a", 0, true}, {"b", 0, true}, {"a", outageEvery - 1, false}, {"a", outageEvery, true},
		{"b", 3 * outageEvery, true},
	} {
		if got := o.isNews(tc.cause, at.Add(tc.after)); got != tc.news {
			t.Errorf("%s after %v is news: %v", tc.cause, tc.after, got)
		}
	}
	if len(o.told) != 1 {
		t.Errorf("%d causes are remembered", len(o.told))
	}
}

func TestWhoIsNotCalling(t *testing.T) {
	t.Parallel()
	s := start(t)
	expired, err := auth.SignToken(testSecret, "u", "", "", time.Now().Add(-time.Hour), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	session := "better-auth.session_token=" + s.signIn("u")
	bearer := func(tokens ...string) http.Header {
		h := http.Header{}
		for _, token := range tokens {
			h.Add("Authorization", "Bearer "+token)
		}
		return h
	}
	const invalid = `Bearer error="invalid_token"`
	for name, test := range map[string]struct {
		header                  http.Header
		status                  int
		code, challenge, detail string
	}{
		"nobody":         {http.Header{}, 401, "unauthenticated", "Bearer", "are needed"},
		"garbage":        {bearer("x"), 401, "invalid_token", invalid, "not valid"},
		"two":            {bearer("x", "y"), 401, "invalid_token", invalid, "not valid"},
		"expired":        {bearer(expired), 401, "token_expired", invalid, "have expired"},
		"another's page": {http.Header{"Cookie": {session}}, 403, "forbidden", "", "CORS_ORIGINS"},
		"a page same-site": {http.Header{
			"Cookie": {session}, "Sec-Fetch-Site": {"same-site"}, "Origin": {"http://localhost:3001"},
		}, 403, "forbidden", "", "an Origin that is this server's own"},
	} {
		a := s.want(test.status, call{method: "POST", path: "/api/tasks", header: test.header})
		p := as[problemJSON](t, a)
		if p.Code != test.code || p.Message != p.Detail || !strings.Contains(p.Detail, test.detail) {
			t.Errorf("%s: %+v, want %s: %s", name, p, test.code, test.detail)
		}
		if got := a.Header.Get("WWW-Authenticate"); got != test.challenge {
			t.Errorf("%s: WWW-Authenticate %q, want %q", name, got, test.challenge)
		}
	}
	for _, header := range []http.Header{
		{"Cookie": {session}, "Origin": {"http://localhost:3000"}, "Sec-Fetch-Site": {"same-site"}},
		{"Cookie": {session}, "Origin": {s.http.URL}},
		{"Cookie": {session}, "Sec-Fetch-Site": {"same-origin"}},
	} {
		s.want(201, call{method: "POST", path: "/api/tasks", body: `{"title":"a"}`, header: header})
	}
}
