// Package auth finds out who is calling. A request carries one of four credentials: a JWT under the shared secret, a
// JWT under a key of the configured set, Better Auth's signed session, or Better Auth's cookie cache. This file and
// cookie.go find the one that counts; token.go, keys.go and session.go check it; refusal.go has why one is refused.
package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxToken bounds what is read at all of a credential, cookie or bearer, in bytes.
	maxToken = 8 << 10

	// MinSecret is the size of a SHA-256: RFC 7518, 3.2 forbids a smaller HS256 key.
	MinSecret = 32

	// MaxUserID bounds a user's id, in bytes: it is part of every key in the database.
	MaxUserID = 255
)

// Config says which credentials are believed. The zero value believes none.
type Config struct {
	// Secret is BETTER_AUTH_SECRET, at least 32 bytes. Empty: no HS256 token and no session is accepted.
	Secret []byte

	// Issuer and Audience must be named exactly by a token's iss and aud. Empty: not compared.
	// They do not apply to Better Auth's sessions and cookie cache, which name neither.
	Issuer, Audience string

	// JWKSURL is where the public keys are. Empty: no asymmetric token is accepted.
	JWKSURL string

	// Sessions is the database with Better Auth's tables. Nil: no session is accepted. Not closed by Close.
	Sessions *pgxpool.Pool

	// SessionSchema is where in it the tables are, to the letter. Empty: public.
	SessionSchema string

	// AllowedOrigins may write by cookie besides the server's own origin: scheme://host[:port], compared exactly.
	AllowedOrigins []string

	// Now is the clock for everything a credential says about time. Nil: time.Now.
	Now func() time.Time

	// Logger hears of refused credentials, and of sources that go away and come back. Nil: slog.Default.
	Logger *slog.Logger

	// Metrics is where credentials are counted. Nil: nowhere.
	Metrics prometheus.Registerer
}

// Caller is who a request is from.
type Caller struct {
	// UserID is compared byte for byte and never normalised.
	UserID string

	// Expires is the end that the credential itself names. Within the leeway of 30 seconds it may lie in the past.
	Expires time.Time

	// Cookie is set when the browser sent the credential by itself.
	Cookie bool

	kind kind // of the credential
}

// Left is how long what the caller asked for may go on after now: to the end that the credential names, or to that of
// the leeway when it was accepted within that.
func (c Caller) Left(now time.Time) time.Duration {
	if left := c.Expires.Sub(now); left > 0 {
		return left
	}
	return c.Expires.Add(tokenLeeway).Sub(now)
}

// Authenticator checks credentials. It is safe for concurrent use.
type Authenticator struct {
	secret           []byte
	issuer, audience string
	now              func() time.Time
	allowedOrigins   map[string]bool
	keys             *keySource     // nil without a JWKS
	sessions         *sessionLookup // nil without a database
	verified         *verifiedTokens
	metrics          metrics
	refusals         *refusalLog
}

// New returns an Authenticator that the caller must Close. It fetches the JWKS in the background until then or until
// ctx ends; it fails only for a configuration that can never work.
func New(ctx context.Context, cfg Config) (*Authenticator, error) {
	a, err := build(cfg)
	if err != nil {
		return nil, err
	}
	if a.keys != nil {
		a.keys.start(ctx)
	}
	return a, nil
}

// build checks the configuration; nothing runs yet.
func build(cfg Config) (*Authenticator, error) {
	if n := len(cfg.Secret); n > 0 && n < MinSecret {
		return nil, fmt.Errorf("authentication secret: %d bytes, want at least %d", n, MinSecret)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	a := &Authenticator{
		secret: cfg.Secret, issuer: cfg.Issuer, audience: cfg.Audience,
		now: cfg.Now, allowedOrigins: make(map[string]bool, len(cfg.AllowedOrigins)),
		metrics: newMetrics(cfg.Metrics), refusals: newRefusalLog(cfg.Logger, cfg.Now),
	}
	for _, origin := range cfg.AllowedOrigins {
		a.allowedOrigins[origin] = true
	}
	return a, a.open(cfg)
}

func (a *Authenticator) open(cfg Config) (err error) {
	if a.verified, err = newVerifiedTokens(); err != nil {
		return fmt.Errorf("token cache: %w", err)
	}
	if cfg.JWKSURL != "" {
		if a.keys, err = newKeySource(cfg); err != nil {
			return err
		}
	}
	if cfg.Sessions != nil {
		if a.sessions, err = newSessionLookup(cfg); err != nil {
			return err
		}
	}
	return nil
}

// Close stops what the Authenticator does in the background and waits for it.
func (a *Authenticator) Close() {
	if a.keys != nil {
		a.keys.close()
	}
}

// JWKSReady returns an error while keys of a JWKS are all that a credential could be verified by, and none is held.
func (a *Authenticator) JWKSReady() error {
	if a.keys == nil || len(a.secret) > 0 || a.keys.count() > 0 {
		return nil
	}
	return errors.New("jwks: no keys held")
}

// Authenticate returns the caller of r, an *Error, or another error when the credential cannot be checked because what
// it is checked against is away. It reads headers only.
func (a *Authenticator) Authenticate(r *http.Request) (Caller, error) {
	p, err := present(r)
	var caller Caller
	if err == nil {
		caller, err = a.check(r, p)
	}
	if err != nil {
		if refused, ok := errors.AsType[*Error](err); ok {
			a.metrics.refused[refused.Reason][p.kind].Inc()
			a.refusals.tell(r.Context(), p.kind, refused)
		}
		return Caller{}, err
	}
	a.metrics.accepted[caller.kind].Inc()
	return caller, nil
}

// kind is what a credential is.
type kind int

const (
	kindNone kind = iota // nothing that could be told to be one of the others
	kindJWT
	kindSession
	kindCache
)

var kinds = [...]string{kindNone: "none", kindJWT: "jwt", kindSession: "session", kindCache: "cookie_cache"}

func (k kind) String() string { return kinds[k] }

// presented is the one credential of a request that counts, with its kind as place and shape tell it.
type presented struct {
	kind   kind
	value  string
	cookie bool
}

func present(r *http.Request) (presented, error) {
	if sent, ok := r.Header["Authorization"]; ok {
		return fromHeader(sent)
	}
	return fromCookies(r)
}

// fromHeader decides by the Authorization header alone: a client that sends one has chosen its credential, and falling
// back to a cookie would act for somebody else.
func fromHeader(sent []string) (presented, error) {
	if len(sent) != 1 {
		return presented{}, refuse(Ambiguous, "more than one Authorization header")
	}
	scheme, credential, _ := strings.Cut(sent[0], " ")
	if !strings.EqualFold(scheme, "Bearer") { // RFC 9110, 11.1: a scheme is case-insensitive.
		return presented{}, refuse(Malformed, "not the Bearer scheme")
	}
	credential = strings.TrimLeft(credential, " ")
	if credential == "" {
		return presented{}, refuse(Malformed, "empty bearer")
	}
	if len(credential) > maxToken {
		return presented{}, refuse(TooLong, overLong)
	}
	return bearer(credential)
}

// bearer tells a JWT from a signed session by its shape, which neither can imitate: a JWT has three parts.
func bearer(credential string) (presented, error) {
	switch strings.Count(credential, ".") {
	case 2:
		return presented{kind: kindJWT, value: credential}, nil
	case 1:
		return presented{kind: kindSession, value: credential}, nil
	}
	return presented{}, refuse(Malformed, "neither a JWT nor a signed session")
}

// check returns who presents a credential. That it is good comes before where the request is from.
func (a *Authenticator) check(r *http.Request, p presented) (Caller, error) {
	caller, err := a.checkCredential(r.Context(), p)
	if err != nil {
		return Caller{}, err
	}
	if p.cookie && !safeMethod(r.Method) && !a.ownSite(r) {
		return Caller{}, refuse(CrossSite, "a write by cookie needs Sec-Fetch-Site: same-origin, or an Origin that is "+
			"this server's own, that of BETTER_AUTH_URL or one of CORS_ORIGINS")
	}
	caller.Cookie = p.cookie
	return caller, nil
}

func (a *Authenticator) checkCredential(ctx context.Context, p presented) (Caller, error) {
	if p.kind == kindSession {
		return a.session(ctx, p.value)
	}
	token, err := a.verify(ctx, p.value)
	if err != nil {
		return Caller{}, err
	}
	if p.cookie && token.kind != kindCache { // A login token has no business in that cookie.
		return Caller{}, refuse(NotALogin, "the cookie holds no cookie cache")
	}
	return token.caller(), nil
}
