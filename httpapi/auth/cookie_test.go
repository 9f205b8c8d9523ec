package auth

import (
	"crypto/sha256"
	"errors"
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
		"session": map[string]any{
			"id": "s1", "userId": "ada", "token": testSession, "expiresAt": "2026-11-29T19:43:57.105Z",
		},
		"user": map[string]any{
			"id": "ada", "email": "ada@test", "name": "Ada", "emailVerified": false, "image": nil,
		},
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
		name := prefix + cookieCache
		return headerRequest("Cookie", name+".1="+token[99:150]+"; "+name+".2="+token[150:]+"; "+name+".0="+token[:99])
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
		"beside others":    {withCookie("theme=dark; "+cookieCache, token+"; better-auth.dont_remember=x"), true},
		"empty session":    {withCookie("better-auth.session_token=; better-auth.session_data", token), true},
		"cleared chunks":   {withCookie("better-auth.session_data.0=; better-auth.session_data", token), true},
		"the same twice":   {withCookie("better-auth.session_data="+token+"; better-auth.session_data", token), true},
		"secure and plain": {withCookie(cookieCache+"=old; "+cookieSecure+cookieCache, token), true},
	} {
		caller, err := a.Authenticate(test.request)
		if err != nil || caller.UserID != "ada" || caller.Cookie != test.cookie {
			t.Errorf("%s: got %+v, %v", name, caller, err)
		}
		if !caller.Expires.Equal(testNow.Add(5 * time.Minute)) {
			t.Errorf("%s: expires %v", name, caller.Expires)
		}
	}
}

func TestHostileCookieCaches(t *testing.T) {
	t.Parallel()
	noOne := Error{NotALogin, "session and user name no one user"}
	object := Error{NotALogin, "session or user is not an object"}
	claims := claimsWith(cacheClaims(nil))
	named := func(userID, id any) string {
		return cacheToken(map[string]any{"session": map[string]any{"userId": userID}, "user": map[string]any{"id": id}})
	}
	tests := []hostileToken{
		{"another user", named("ada", "eve"), noOne},
		{"no userId", cacheToken(map[string]any{"session": map[string]any{"id": "s1"}}), noOne},
		{"no id", cacheToken(map[string]any{"user": map[string]any{}}), noOne},
		{"neither", cacheToken(map[string]any{"session": map[string]any{}, "user": map[string]any{}}), noOne},
		{"ids are numbers", named(7, 7), noOne},
		{"ids are null", named(nil, nil), noOne},
		{"userid for userId", cacheToken(map[string]any{"session": map[string]any{"userid": "ada"}}), noOne},
		{"id twice", cacheToken(map[string]any{"user": raw(`{"id":"eve","id":"ada"}`)}), whyBadClaims},
		{"empty ids", named("", ""), whyBadUser},
		{"session a string", cacheToken(map[string]any{"session": "ada"}), object},
		{"user an array", cacheToken(map[string]any{"user": []string{"ada"}}), object},
		{"session null", cacheToken(map[string]any{"session": raw(`null`)}), object},
		{"no session", cacheToken(map[string]any{"session": nil}), whyBadSub},
		{"no user", cacheToken(map[string]any{"user": nil}), whyBadSub},
		{"sub null", cacheToken(map[string]any{"sub": raw(`null`)}), whyBadSub},
		{"no exp", cacheToken(map[string]any{"exp": nil}), whyNoExp},
		{"expired", cacheToken(map[string]any{"exp": seconds(-31 * time.Second)}), whyExpired},
		{"another secret", signRawWith(sha256.New, otherTestSecret, plainHeader, claims), whySecret},
		{"encrypted: strategy jwe", "a.b.c.d.e", Error{}},
		{"strategy compact", b64(`{"session":{},"expiresAt":1,"signature":"x"}`), Error{}},
		{"over 8 KiB", cacheToken(nil) + strings.Repeat("A", 8<<10), whyTooLong},
	}
	a := newAuthenticator(t, Config{Secret: testSecret})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []*http.Request{withBearer(test.token), withCookie(cookieCache, test.token)} {
				_, err := a.Authenticate(r)
				if test.why == (Error{}) { // The two ways differ in the reason, not in the answer.
					if err == nil {
						t.Fatal("accepted")
					}
					continue
				}
				wantRefused(t, err, test.why)
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
			wantRefused(t, err, whyNoCache)
		}
		wantRefused(t, err, whyNoCache)
		if err := errorOf(a, token); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.Authenticate(withCookie("better-auth.session_token", token))
	wantRefused(t, err, whyBase64)
}

func TestWhatDecides(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	addSession(t, pool, testSession, "grace", testNow.Add(time.Hour))
	const plain, secure = "better-auth.session_token=", "__Secure-better-auth.session_token="
	session, cached := signSession(testSession), "better-auth.session_data="+cacheToken(nil)
	tests := []struct {
		name, authorization, cookies, user string
		why                                Reason
	}{
		{"nothing", "", "", "", NoCredentials},
		{"cookies of others", "", "theme=dark; better-auth.session_tokens=x; session_token=y", "", NoCredentials},
		{"in another case", "", "Better-Auth.session_token=z", "", NoCredentials},
		{"empty cookies", "", plain + "; better-auth.session_data=", "", NoCredentials},
		{"a chunk without the first", "", "better-auth.session_data.1=x", "", NoCredentials},
		{"session before cache", "", cached + "; " + plain + session, "grace", ""},
		{"session before cache, the other way round", "", plain + session + "; " + cached, "grace", ""},
		{"good session, bad cache", "", "better-auth.session_data=x; " + plain + session, "grace", ""},
		{"bad session, good cache", "", cached + "; " + plain + session + "A", "", Malformed},
		{"gone session, good cache", "", cached + "; " + plain + signSession("gone"), "", NoSession},
		{"cache alone", "", cached, "ada", ""},
		{"header before cookies", "Bearer " + withClaims(nil), plain + session, "ada", ""},
		{"bad header, good cookies", "Bearer x", plain + session, "", Malformed},
		{"other scheme, good cookies", "Basic YTpi", plain + session, "", Malformed},
		{"two sessions, the good one first", "", plain + session + "; " + plain + "x", "", Ambiguous},
		{"two sessions, the good one last", "", plain + "x; " + plain + session, "", Ambiguous},
		{"secure session before plain", "", plain + "x; " + secure + session, "grace", ""},
		{"bad secure session, good plain", "", secure + "x; " + plain + session, "", Malformed},
		{"two caches", "", cached + "; better-auth.session_data=x", "", Ambiguous},
		{"two of another plugin", "", cached + "; better-auth.session_token_x=1; better-auth.session_token_x=2",
			"ada", ""},
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
			if test.why == "" {
				if err != nil || caller.UserID != test.user {
					t.Fatalf("got %+v, %v; want %s", caller, err, test.user)
				}
				return
			}
			if refused, ok := errors.AsType[*Error](err); !ok || refused.Reason != test.why {
				t.Fatalf("got %+v, %v; want %s", caller, err, test.why)
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
	wantRefused(t, err, whyTooLong)
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
	{"fetch site same-site", http.Header{"Sec-Fetch-Site": {"same-site"}}, false},
	{"same-site, of an origin not allowed", http.Header{
		"Sec-Fetch-Site": {"same-site"}, "Origin": {"http://tasks.test:9000"},
	}, false},
	{"same-site, of an allowed origin", http.Header{
		"Sec-Fetch-Site": {"same-site"}, "Origin": {"http://localhost:3000"},
	}, true},
	{"fetch site cross-site", http.Header{"Sec-Fetch-Site": {"cross-site"}}, false},
	{"fetch site none", http.Header{"Sec-Fetch-Site": {"none"}}, false},
	{"fetch site in another case", http.Header{"Sec-Fetch-Site": {"Same-Origin"}}, false},
	{"two fetch sites", http.Header{"Sec-Fetch-Site": {"same-origin", "cross-site"}}, false},
	{"fetch site list", http.Header{"Sec-Fetch-Site": {"same-origin, cross-site"}}, false},
	{"own origin", http.Header{"Origin": {"http://tasks.test:8000"}}, true},
	{"own origin behind TLS", http.Header{"Origin": {"https://tasks.test:8000"}}, true},
	{"own origin in another case", http.Header{"Origin": {"http://Tasks.test:8000"}}, true},
	{"allowed origin", http.Header{"Origin": {"http://localhost:3000"}}, true},
	{"allowed origin, cross-site", http.Header{
		"Sec-Fetch-Site": {"cross-site"}, "Origin": {"http://localhost:3000"},
	}, true},
	{"allowed origin, other scheme", http.Header{"Origin": {"https://localhost:3000"}}, false},
	{"allowed origin with a slash", http.Header{"Origin": {"http://localhost:3000/"}}, false},
	{"allowed origin, other port", http.Header{"Origin": {"http://localhost:3001"}}, false},
	{"other port of the host", http.Header{"Origin": {"http://tasks.test:9000"}}, false},
	{"no port", http.Header{"Origin": {"http://tasks.test"}}, false},
	{"evil", http.Header{"Origin": {"https://evil.test"}}, false},
	{"evil that begins like us", http.Header{"Origin": {"http://tasks.test:8000.evil.test"}}, false},
	{"evil with our name as user", http.Header{"Origin": {"http://tasks.test:8000@evil.test"}}, false},
	{"own origin with a slash", http.Header{"Origin": {"http://tasks.test:8000/"}}, false},
	{"own origin with a path", http.Header{"Origin": {"http://tasks.test:8000/page"}}, false},
	{"own origin with a query", http.Header{"Origin": {"http://tasks.test:8000?page"}}, false},
	{"own origin with a user", http.Header{"Origin": {"http://user@tasks.test:8000"}}, false},
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
			for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "PROPFIND", "get"} {
				r := httptest.NewRequest(http.MethodGet, "http://"+host+"/api/tasks", nil)
				r.Method, r.Header = method, test.header.Clone()
				r.Header.Set("Cookie", cookie)
				caller, err := a.Authenticate(r)
				if !test.want {
					wantRefused(t, err, whyCrossSite)
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
	wantRefused(t, err, whySecret) // 401 comes before 403.
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
