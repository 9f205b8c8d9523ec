package auth

// Credentials that a browser sends by itself, and the proof that it was our frontend that made it write.

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Better Auth's cookies. Under https their names have the prefix.
const (
	cookieSecure  = "__Secure-"
	cookieSession = "better-auth.session_token"
	cookieCache   = "better-auth.session_data"
)

// fromCookies decides by the cookies of a request: a session token, which can be taken back, before a cookie cache.
func fromCookies(r *http.Request) (presented, error) {
	jar, ok := readCookies(r)
	if !ok {
		return presented{}, refuse(Ambiguous, "a credential cookie with two values")
	}
	p := presented{kind: kindSession, value: jar.value(cookieSession), cookie: true}
	if p.value == "" {
		p.kind, p.value = kindCache, jar.chunked(cookieCache)
	}
	if p.value == "" {
		return presented{}, refuse(NoCredentials, "neither an Authorization header nor a cookie of Better Auth")
	}
	if len(p.value) > maxToken {
		return p, refuse(TooLong, overLong)
	}
	return p, nil
}

// credentialCookies are those cookies of a request.
type credentialCookies map[string]string

// readCookies refuses a name with two values: which of them the browser means for us cannot be told, and a sibling
// domain may have set one (RFC 6265, 8.6).
func readCookies(r *http.Request) (credentialCookies, bool) {
	jar := credentialCookies{}
	for _, cookie := range r.Cookies() {
		name := strings.TrimPrefix(cookie.Name, cookieSecure)
		if name != cookieSession && name != cookieCache && !strings.HasPrefix(name, cookieCache+".") {
			continue
		}
		if other, twice := jar[cookie.Name]; twice && other != cookie.Value {
			return nil, false
		}
		jar[cookie.Name] = cookie.Value
	}
	return jar, true
}

// value prefers the name with the prefix, which only https can have set. An empty cookie is one that was deleted.
func (jar credentialCookies) value(name string) string {
	if secure := jar[cookieSecure+name]; secure != "" {
		return secure
	}
	return jar[name]
}

// chunked returns a cookie that may have been cut into name.0, name.1, …
func (jar credentialCookies) chunked(name string) string {
	if whole := jar.value(name); whole != "" {
		return whole
	}
	for _, name := range []string{cookieSecure + name, name} {
		if joined := jar.join(name); joined != "" {
			return joined
		}
	}
	return ""
}

// join ends at the first chunk that is missing. What it may add up to is bounded by what the server reads of a header.
func (jar credentialCookies) join(name string) string {
	var joined strings.Builder
	for i := 0; ; i++ {
		chunk := jar[name+"."+strconv.Itoa(i)]
		if chunk == "" {
			return joined.String()
		}
		joined.WriteString(chunk)
	}
}

// safeMethod names the methods that change nothing (RFC 9110, 9.2.1).
func safeMethod(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// ownSite holds the rule against forged requests: the browser itself must say that the page is ours. No script can set
// these two headers, and a client that sends neither is no browser with our frontend in it. That the page is of the
// same site is not enough: any subdomain and any port is.
func (a *Authenticator) ownSite(r *http.Request) bool {
	if soleValue(r.Header["Sec-Fetch-Site"]) == "same-origin" {
		return true
	}
	origin := soleValue(r.Header["Origin"])
	if origin == "" {
		return false
	}
	return a.allowedOrigins[origin] || originIsHost(origin, r.Host)
}

// originIsHost does not compare schemes: behind a proxy that ends TLS we do not know ours.
func originIsHost(origin, host string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return false
	}
	if !strings.EqualFold(origin, u.Scheme+"://"+u.Host) { // more than an origin: no browser sent it
		return false
	}
	port := ":80"
	if u.Scheme == "https" {
		port = ":443"
	}
	return strings.EqualFold(strings.TrimSuffix(u.Host, port), strings.TrimSuffix(host, port))
}

// soleValue returns the only value of a header, and nothing when there are several.
func soleValue(values []string) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}
