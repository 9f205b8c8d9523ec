package auth

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// cacheClaims are what Better Auth puts into its cookie cache, strategy jwt.
func cacheClaims(changes map[string]any) map[string]any {
	claims := map[string]any{
		"sub": nil, "iss": nil, "aud": nil,
		"session":   map[string]any{"id": "s1", "userId": "ada", "token": testSession, "expiresAt": "2026-11-29T19:43:57.105Z"},
		"user":      map[string]any{"id": "ada", "email": "ada@test", "name": "Ada", "emailVerified": false, "image": nil},
		"updatedAt": testNow.UnixMilli(), "version": "1",
		"iat": seconds(0), "exp": seconds(5 * time.Minute),
	}
	for name, value := range changes {
		claims[name] = value
	}
	return claims
}

func cacheToken(changes map[string]any) string {
	return signRaw(`{"alg":"HS256"}`, claimsWith(cacheClaims(changes)))
}

func TestCookieCache(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, strictConfig())
	token := cacheToken(nil)
	chunks := func(prefix string) *http.Request {
		r := withCookie(prefix+"better-auth.session_data.1", token[100:150])
		r.Header.Set("Cookie", r.Header.Get("Cookie")+"; "+prefix+"better-auth.session_data.2="+token[150:]+"; "+prefix+"better-auth.session_data.0="+token[:100])
		return r
	}
	for name, test := range map[string]struct {
		request *http.Request
		cookie  bool
	}{
		"bearer":           {withBearer(token), false},
		"cookie":           {withCookie("better-auth.session_data", token), true},
		"secure cookie":    {withCookie("__Secure-better-auth.session_data", token), true},
		"chunks":           {chunks(""), true},
		"secure chunks":    {chunks("__Secure-"), true},
		"beside others":    {withCookie("theme=dark; better-auth.session_data", token+"; better-auth.dont_remember=x"), true},
		"empty session":    {withCookie("better-auth.session_token=; better-auth.session_data", token), true},
		"cleared chunks":   {withCookie("better-auth.session_data.0=; better-auth.session_data", token), true},
		"the same twice":   {withCookie("better-auth.session_data="+token+"; better-auth.session_data", token), true},
		"secure and plain": {withCookie("better-auth.session_data=old; __Secure-better-auth.session_data", token), true},
	} {
		caller, err := a.Authenticate(test.request)
		if err != nil || caller.UserID != "ada" || caller.Cookie != test.cookie || !caller.Expires.Equal(testNow.Add(5*time.Minute)) {
			t.Errorf("%s: got %+v, %v", name, caller, err)
		}
	}
}

func TestHostileCookieCaches(t *testing.T) {
	t.Parallel()
	const (
		noOne  = "session and user name no one user"
		object = "session or user is not an object"
		badSub = "sub is not a string"
	)
	tests := []struct{ name, token, code, reason string }{
		{"another user", cacheToken(map[string]any{"user": map[string]any{"id": "eve"}}), codeInvalid, noOne},
		{"no userId", cacheToken(map[string]any{"session": map[string]any{"id": "s1"}}), codeInvalid, noOne},
		{"no id", cacheToken(map[string]any{"user": map[string]any{}}), codeInvalid, noOne},
		{"neither", cacheToken(map[string]any{"session": map[string]any{}, "user": map[string]any{}}), codeInvalid, noOne},
		{"ids are numbers", cacheToken(map[string]any{"session": map[string]any{"userId": 7}, "user": map[string]any{"id": 7}}), codeInvalid, noOne},
		{"ids are null", cacheToken(map[string]any{"session": raw(`{"userId":null}`), "user": raw(`{"id":null}`)}), codeInvalid, noOne},
		{"userid for userId", cacheToken(map[string]any{"session": map[string]any{"userid": "ada"}}), codeInvalid, noOne},
		{"id twice", cacheToken(map[string]any{"user": raw(`{"id":"eve","id":"ada"}`)}), codeInvalid, "claims are not a strict JSON object"},
		{"empty ids", cacheToken(map[string]any{"session": map[string]any{"userId": ""}, "user": map[string]any{"id": ""}}), codeInvalid, "user id is empty, too long or has control characters"},
		{"session a string", cacheToken(map[string]any{"session": "ada"}), codeInvalid, object},
		{"user an array", cacheToken(map[string]any{"user": []string{"ada"}}), codeInvalid, object},
		{"session null", cacheToken(map[string]any{"session": raw(`null`)}), codeInvalid, object},
		{"no session", cacheToken(map[string]any{"session": nil}), codeInvalid, badSub},
		{"no user", cacheToken(map[string]any{"user": nil}), codeInvalid, badSub},
		{"sub null", cacheToken(map[string]any{"sub": raw(`null`)}), codeInvalid, badSub},
		{"no exp", cacheToken(map[string]any{"exp": nil}), codeInvalid, "no exp"},
		{"expired", cacheToken(map[string]any{"exp": seconds(-31 * time.Second)}), codeExpired, "exp has passed"},
		{"another secret", signRawWith(sha256.New, []byte(strings.Repeat("x", 32)), plainHeader, claimsWith(cacheClaims(nil))), codeInvalid, "wrong signature"},
		{"encrypted: strategy jwe", "a.b.c.d.e", codeInvalid, ""},
		{"strategy compact", b64(`{"session":{},"expiresAt":1,"signature":"x"}`), codeInvalid, ""},
		{"over 8 KiB", cacheToken(nil) + strings.Repeat("A", 8<<10), codeInvalid, "token over 8 KiB"},
	}
	a := newAuthenticator(t, Config{Secret: testSecret})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []*http.Request{withBearer(test.token), withCookie("better-auth.session_data", test.token)} {
				_, err := a.Authenticate(r)
				if test.reason == "" { // The two ways differ in the reason, not in the answer.
					if err == nil {
						t.Fatal("accepted")
					}
					continue
				}
				wantRefused(t, err, test.code, test.reason)
			}
		})
	}
}

func TestALoginTokenIsNoCookieCache(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, strictConfig())
	token := withClaims(nil)
	for _, state := range []string{"unseen", "verified before as bearer"} {
		_, err := a.Authenticate(withCookie("better-auth.session_data", token))
		if state == "unseen" {
			wantRefused(t, err, codeInvalid, "cookie is not a cookie cache")
		}
		wantRefused(t, err, codeInvalid, "cookie is not a cookie cache")
		if err := errorOf(a, token); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.Authenticate(withCookie("better-auth.session_token", token))
	wantRefused(t, err, codeInvalid, "session signature is wrong")
}

func TestWhatDecides(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	addSession(t, pool, testSession, "grace", testNow.Add(time.Hour))
	session, cached, bearer := signSession(testSession), cacheToken(nil), withClaims(nil)
	const invalid = codeInvalid
	tests := []struct{ name, authorization, cookies, user, code string }{
		{"nothing", "", "", "", codeUnauthenticated},
		{"cookies of others", "", "theme=dark; better-auth.session_tokens=x; session_token=y; Better-Auth.session_token=z", "", codeUnauthenticated},
		{"empty cookies", "", "better-auth.session_token=; better-auth.session_data=", "", codeUnauthenticated},
		{"a chunk without the first", "", "better-auth.session_data.1=" + cached, "", codeUnauthenticated},
		{"session before cache", "", "better-auth.session_data=" + cached + "; better-auth.session_token=" + session, "grace", ""},
		{"good session, bad cache", "", "better-auth.session_data=x; better-auth.session_token=" + session, "grace", ""},
		{"bad session, good cache", "", "better-auth.session_data=" + cached + "; better-auth.session_token=" + session + "A", "", invalid},
		{"gone session, good cache", "", "better-auth.session_data=" + cached + "; better-auth.session_token=" + signSession("gone"), "", invalid},
		{"cache alone", "", "better-auth.session_data=" + cached, "ada", ""},
		{"header before cookies", "Bearer " + bearer, "better-auth.session_token=" + session, "ada", ""},
		{"bad header, good cookies", "Bearer x", "better-auth.session_token=" + session, "", invalid},
		{"other scheme, good cookies", "Basic YTpi", "better-auth.session_token=" + session, "", invalid},
		{"two sessions, the good one first", "", "better-auth.session_token=" + session + "; better-auth.session_token=x", "", invalid},
		{"two sessions, the good one last", "", "better-auth.session_token=x; better-auth.session_token=" + session, "", invalid},
		{"secure session before plain", "", "better-auth.session_token=x; __Secure-better-auth.session_token=" + session, "grace", ""},
		{"bad secure session, good plain", "", "__Secure-better-auth.session_token=x; better-auth.session_token=" + session, "", invalid},
		{"two caches", "", "better-auth.session_data=" + cached + "; better-auth.session_data=x", "", invalid},
	}
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
			if test.authorization != "" {
				r.Header.Set("Authorization", test.authorization)
			}
			r.Header.Set("Cookie", test.cookies)
			caller, err := a.Authenticate(r)
			if test.code == "" {
				if err != nil || caller.UserID != test.user {
					t.Fatalf("got %+v, %v; want %s", caller, err, test.user)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), test.code) {
				t.Fatalf("got %+v, %v; want %s", caller, err, test.code)
			}
		})
	}
}

func TestChunksAreBounded(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{Secret: testSecret})
	var cookies []string
	for i := range 50 {
		cookies = append(cookies, fmt.Sprintf("better-auth.session_data.%d=%s", i, strings.Repeat("A", 1000)))
	}
	r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
	r.Header.Set("Cookie", strings.Join(cookies, "; "))
	_, err := a.Authenticate(r)
	wantRefused(t, err, codeInvalid, "token over 8 KiB")
}

// siteHeaders are what a browser says of the page that writes, for the host tasks.test:8000 and the allowed origin
// http://localhost:3000.
var siteHeaders = []struct {
	name   string
	header http.Header
	want   bool
}{
	{"nothing", http.Header{}, false},
	{"fetch site same-origin", http.Header{"Sec-Fetch-Site": {"same-origin"}}, true},
	{"fetch site same-site", http.Header{"Sec-Fetch-Site": {"same-site"}}, true},
	{"fetch site cross-site", http.Header{"Sec-Fetch-Site": {"cross-site"}}, false},
	{"fetch site none", http.Header{"Sec-Fetch-Site": {"none"}}, false},
	{"fetch site in another case", http.Header{"Sec-Fetch-Site": {"Same-Origin"}}, false},
	{"two fetch sites", http.Header{"Sec-Fetch-Site": {"same-origin", "cross-site"}}, false},
	{"fetch site list", http.Header{"Sec-Fetch-Site": {"same-origin, cross-site"}}, false},
	{"own origin", http.Header{"Origin": {"http://tasks.test:8000"}}, true},
	{"own origin behind TLS", http.Header{"Origin": {"https://tasks.test:8000"}}, true},
	{"own origin in another case", http.Header{"Origin": {"http://Tasks.test:8000"}}, true},
	{"allowed origin", http.Header{"Origin": {"http://localhost:3000"}}, true},
	{"allowed origin, cross-site", http.Header{"Origin": {"http://localhost:3000"}, "Sec-Fetch-Site": {"cross-site"}}, true},
	{"allowed origin, other scheme", http.Header{"Origin": {"https://localhost:3000"}}, false},
	{"allowed origin with a slash", http.Header{"Origin": {"http://localhost:3000/"}}, false},
	{"allowed origin, other port", http.Header{"Origin": {"http://localhost:3001"}}, false},
	{"other port of the host", http.Header{"Origin": {"http://tasks.test:9000"}}, false},
	{"no port", http.Header{"Origin": {"http://tasks.test"}}, false},
	{"evil", http.Header{"Origin": {"https://evil.test"}}, false},
	{"evil that begins like us", http.Header{"Origin": {"http://tasks.test:8000.evil.test"}}, false},
	{"evil with our name as user", http.Header{"Origin": {"http://tasks.test:8000@evil.test"}}, false},
	{"evil subdomain", http.Header{"Origin": {"http://evil.tasks.test:8000"}}, false},
	{"opaque", http.Header{"Origin": {"null"}}, false},
	{"empty", http.Header{"Origin": {""}}, false},
	{"file", http.Header{"Origin": {"file://tasks.test:8000"}}, false},
	{"two origins", http.Header{"Origin": {"http://localhost:3000", "http://localhost:3000"}}, false},
	{"only a referer", http.Header{"Referer": {"http://tasks.test:8000/page"}}, false},
}

func TestWritesByCookie(t *testing.T) {
	t.Parallel()
	const host = "tasks.test:8000"
	a := newAuthenticator(t, Config{Secret: testSecret, AllowedOrigins: []string{"http://localhost:3000"}})
	cookie := "better-auth.session_data=" + cacheToken(nil)
	for _, test := range siteHeaders {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, "PROPFIND", "get"} {
				r := httptest.NewRequest(http.MethodGet, "http://"+host+"/api/tasks", nil)
				r.Method, r.Header = method, test.header.Clone()
				r.Header.Set("Cookie", cookie)
				caller, err := a.Authenticate(r)
				if !test.want {
					wantRefused(t, err, codeForbidden, "write by cookie from another site")
				} else if err != nil || !caller.Cookie {
					t.Errorf("%s: got %+v, %v", method, caller, err)
				}
			}
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions} {
				r := httptest.NewRequest(method, "http://"+host+"/api/tasks", nil)
				r.Header = test.header.Clone()
				r.Header.Set("Cookie", cookie)
				if _, err := a.Authenticate(r); err != nil {
					t.Errorf("%s: %v", method, err)
				}
			}
		})
	}
}

func TestWritesOfOthersNeedNoOrigin(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{Secret: testSecret})
	r := withBearer(cacheToken(nil))
	r.Method = http.MethodPost
	r.Header.Set("Origin", "https://evil.test")
	if _, err := a.Authenticate(r); err != nil {
		t.Errorf("by bearer: %v", err)
	}
	r = withCookie("better-auth.session_data", cacheToken(nil)+"A")
	r.Method = http.MethodPost
	_, err := a.Authenticate(r)
	wantRefused(t, err, codeInvalid, "wrong signature") // 401 comes before 403.
}

func TestDefaultPortsAreTheSameOrigin(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		origin, host string
		want         bool
	}{
		{"https://a.test", "a.test", true},
		{"https://a.test", "a.test:443", true},
		{"https://a.test:443", "a.test", true},
		{"http://a.test", "a.test:80", true},
		{"http://a.test", "a.test:443", false},
		{"https://a.test", "a.test:80", false},
		{"http://[::1]:8000", "[::1]:8000", true},
		{"http://[::1]:80", "[::1]", true},
		{"https://a.test", "", false},
		{"https:", "", false},
	} {
		if got := originIsHost(test.origin, test.host); got != test.want {
			t.Errorf("%q, %q: got %v", test.origin, test.host, got)
		}
	}
}
