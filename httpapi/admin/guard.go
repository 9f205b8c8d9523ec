package admin

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

const (
	// MinToken is how many bytes a token has at least.
	MinToken = 16

	sessionCookie = "taskledger-admin"
	sessionTTL    = 12 * time.Hour

	// Wrong tokens that one address may send at once, and the time after which it may send one more.
	wrongTokens     = 10
	wrongTokenEvery = 5 * time.Second
	// maxAddresses bounds the addresses whose wrong tokens are counted.
	maxAddresses = 1024

	maxForm     = 16 << 10
	formTimeout = 10 * time.Second
)

// policy lets a page load what this server serves, and nothing inline.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// guard stands before everything, metrics and profiles too.
type guard struct {
	server   *Server
	next     http.Handler
	origins  *http.CrossOriginProtection // refuses forms of other origins
	attempts *attempts
}

func newGuard(s *Server, next http.Handler) *guard {
	return &guard{server: s, next: next, origins: http.NewCrossOriginProtection(), attempts: newAttempts()}
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin") // with none a browser would not tell where a form comes from either
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	switch {
	case foreign(r), g.origins.Check(r) != nil:
		http.Error(w, "pages of another site may neither load this nor send to it", http.StatusForbidden)
	case g.server.Token == "" && !isLoopback(r.Host):
		// A name that a stranger can point to the loopback would make their page one of ours.
		http.Error(w, "call this by localhost or an address of the loopback", http.StatusForbidden)
	case g.server.Token == "", r.URL.Path == "/style.css":
		g.next.ServeHTTP(w, r)
	case r.URL.Path == "/sign-in" && r.Method == http.MethodPost:
		g.signIn(w, r)
	case !g.admits(w, r):
	case r.URL.Path == "/sign-out" && r.Method == http.MethodPost:
		g.setSession(w, r, "", -1)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	default:
		g.next.ServeHTTP(w, r)
	}
}

// foreign tells that a page of another site loads this, without leading a person here.
func foreign(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return (site == "cross-site" || site == "same-site") && r.Header.Get("Sec-Fetch-Mode") != "navigate"
}

// isLoopback tells whether a Host header names the loopback.
func isLoopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// admits tells whether the request has the token or a session, and answers if not.
func (g *guard) admits(w http.ResponseWriter, r *http.Request) bool {
	if given, ok := bearer(r); ok {
		return g.try(w, r, given, "")
	}
	cookie, err := r.Cookie(sessionCookie)
	if err == nil && g.isSession(cookie.Value, time.Now()) {
		return true
	}
	g.ask(w, r, http.StatusUnauthorized, "")
	return false
}

func bearer(r *http.Request) (token string, ok bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), strings.EqualFold(scheme, "Bearer")
}

// try compares a token, and answers if it is wrong. Who has sent many wrong ones must wait.
func (g *guard) try(w http.ResponseWriter, r *http.Request, given, next string) bool {
	right, wait := g.attempts.try(clientOf(r), func() bool { return sameText(given, g.server.Token) })
	switch {
	case wait:
		w.Header().Set("Retry-After", strconv.Itoa(int(wrongTokenEvery/time.Second)))
		g.ask(w, r, http.StatusTooManyRequests, next)
	case !right:
		g.ask(w, r, http.StatusUnauthorized, next)
	}
	return right
}

// ask asks for the token: a person in a form, a program in a line.
func (g *guard) ask(w http.ResponseWriter, r *http.Request, status int, next string) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="taskledger admin"`)
	if _, ok := bearer(r); ok || !strings.Contains(r.Header.Get("Accept"), "text/html") {
		http.Error(w, "send ADMIN_TOKEN as bearer", status)
		return
	}
	page := signInPage{Next: next, Wrong: r.Method == http.MethodPost, Wait: status == http.StatusTooManyRequests}
	if page.Next == "" && r.Method == http.MethodGet {
		page.Next = r.URL.RequestURI()
	}
	g.server.render(w, r, status, "sign-in", "Sign in", page)
}

type signInPage struct {
	Next        string
	Wrong, Wait bool
}

func (g *guard) signIn(w http.ResponseWriter, r *http.Request) {
	if !readForm(w, r) {
		return
	}
	next := r.PostForm.Get("next")
	if !isOwnPath(next) {
		next = "/"
	}
	if g.try(w, r, strings.TrimSpace(r.PostForm.Get("token")), next) {
		g.setSession(w, r, session(g.server.Token, time.Now().Add(sessionTTL)), int(sessionTTL/time.Second))
		http.Redirect(w, r, next, http.StatusSeeOther)
	}
}

// isOwnPath refuses what a browser would take for another host.
func isOwnPath(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") && !strings.ContainsAny(path, "\\\t\r\n")
}

func (g *guard) setSession(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	})
}

// session is the end of the session, with a proof that who made it had the token.
func session(token string, end time.Time) string {
	text := strconv.FormatInt(end.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("taskledger admin session until " + text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (g *guard) isSession(value string, now time.Time) bool {
	text, _, _ := strings.Cut(value, ".")
	end, err := strconv.ParseInt(text, 10, 64)
	return err == nil && sameText(value, session(g.server.Token, time.Unix(end, 0))) && now.Unix() < end
}

// sameText takes the same time whatever the two are.
func sameText(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// attempts count the wrong tokens of each address.
type attempts struct {
	sync.Mutex
	left *lru.Cache[netip.Prefix, *rate.Limiter]
}

func newAttempts() *attempts {
	left, err := lru.New[netip.Prefix, *rate.Limiter](maxAddresses)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &attempts{left: left}
}

// try asks isRight, unless the client must wait.
func (a *attempts) try(client netip.Prefix, isRight func() bool) (right, wait bool) {
	a.Lock()
	defer a.Unlock()
	limiter, known := a.left.Get(client)
	if !known {
		limiter = rate.NewLimiter(rate.Every(wrongTokenEvery), wrongTokens)
	}
	if limiter.Tokens() < 1 {
		return false, true
	}
	if isRight() {
		return true, false
	}
	limiter.Allow()
	a.left.Add(client, limiter)
	return false, false
}

// clientOf is the address that the request comes from; of IPv6 the network, in which one client has as many as it
// likes.
func clientOf(r *http.Request) netip.Prefix {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	addr := at.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// form lets through what was sent by a form of this process.
func (s *Server) form(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !readForm(w, r) {
			return
		}
		if !sameText(r.PostForm.Get("csrf"), s.csrf) {
			s.fail(w, r, http.StatusForbidden,
				"This form is not of this server, or older than its last start. Open the page again.")
			return
		}
		next(w, r)
	}
}

// readForm reads a small form in a short time, and answers if it cannot.
func readForm(w http.ResponseWriter, r *http.Request) bool {
	// Where the deadline cannot be set the connection is none of a server.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(formTimeout))
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "this is not one of our forms", http.StatusBadRequest)
		return false
	}
	return true
}
