package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"taskledger/httpapi/auth"
)

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
