// Package auth finds out who is calling. A request carries one of four credentials: a JWT under the shared secret, a JWT
// under a key of the configured set, Better Auth's signed session, or Better Auth's cookie cache. This file decides which
// of them counts; token.go, keys.go, session.go and cookie.go check it.
//
// Refusals never quote what was presented: every Reason is a constant text.
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
)

const (
	// maxToken bounds what is read at all of a credential, cookie or bearer, in bytes.
	maxToken = 8 << 10

	// minSecret is the size of a SHA-256: RFC 7518, 3.2 forbids a smaller HS256 key.
	minSecret = 32

	// maxUser bounds a user's id, in bytes: it is part of every key in the database.
	maxUser = 255
)

// Codes of an Error, as they stand in a problem document.
const (
	codeUnauthenticated = "unauthenticated"
	codeInvalid         = "invalid_token"
	codeExpired         = "token_expired"
	codeForbidden       = "forbidden"
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

	// AllowedOrigins may write by cookie besides the server's own origin: scheme://host[:port], compared exactly.
	AllowedOrigins []string

	// Now is the clock for everything a credential says about time. Nil: time.Now.
	Now func() time.Time

	// Logger hears of sources that go away and come back. Nil: slog.Default.
	Logger *slog.Logger
}

// Caller is who a request is from.
type Caller struct {
	// UserID is compared byte for byte and never normalised.
	UserID string

	// Expires is the end that the credential itself names. Within the leeway of 30 seconds it may lie in the past.
	Expires time.Time

	// Cookie is set when the browser sent the credential by itself.
	Cookie bool
}

// Left is how long what the caller asked for may go on after now: to the end that the credential names, or to that of the
// leeway when it was accepted within that.
func (c Caller) Left(now time.Time) time.Duration {
	if left := c.Expires.Sub(now); left > 0 {
		return left
	}
	return c.Expires.Add(tokenLeeway).Sub(now)
}

// Error refuses a request for what its credential is. Any other error of Authenticate means that the
// credential could not be checked, because what it is checked against is away.
type Error struct {
	// Code is unauthenticated (nothing was presented), invalid_token, token_expired or forbidden.
	Code string

	// Reason is for the log and for tests. It holds nothing of the credential.
	Reason string
}

func (e *Error) Error() string { return e.Code + ": " + e.Reason }

func refuse(reason string) error { return &Error{Code: codeInvalid, Reason: reason} }

// Authenticator checks credentials. It is safe for concurrent use.
type Authenticator struct {
	secret           []byte
	issuer, audience string
	now              func() time.Time
	allowedOrigins   map[string]bool
	keys             *keySource     // nil without a JWKS
	sessions         *sessionLookup // nil without a database
	verified         *verifiedTokens
}

// New returns an Authenticator that the caller must Close. It fetches the JWKS in the background until then
// or until ctx ends; it fails only for a configuration that can never work.
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
	if n := len(cfg.Secret); n > 0 && n < minSecret {
		return nil, fmt.Errorf("authentication secret: %d bytes, want at least %d", n, minSecret)
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
		if a.keys, err = newKeySource(cfg.JWKSURL, cfg.Now, cfg.Logger); err != nil {
			return err
		}
	}
	if cfg.Sessions != nil {
		if a.sessions, err = newSessionLookup(cfg.Sessions, cfg.Now, cfg.Logger); err != nil {
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

// JWKSReady returns nil when no JWKS is configured or keys of it are held.
func (a *Authenticator) JWKSReady() error {
	if a.keys == nil || a.keys.count() > 0 {
		return nil
	}
	return errors.New("jwks: no keys held")
}

// Authenticate returns the caller of r, an *Error, or another error when the credential's source is away.
// It reads headers only.
func (a *Authenticator) Authenticate(r *http.Request) (Caller, error) {
	if sent, ok := r.Header["Authorization"]; ok {
		return a.authorization(r.Context(), sent)
	}
	return a.cookies(r)
}

// authorization decides by the Authorization header alone: a client that sends one has chosen its credential, and
// falling back to a cookie would act for somebody else.
func (a *Authenticator) authorization(ctx context.Context, sent []string) (Caller, error) {
	if len(sent) != 1 {
		return Caller{}, refuse("more than one Authorization header")
	}
	scheme, credential, _ := strings.Cut(sent[0], " ")
	if !strings.EqualFold(scheme, "Bearer") { // RFC 9110, 11.1: a scheme is case-insensitive.
		return Caller{}, refuse("not the Bearer scheme")
	}
	credential = strings.TrimLeft(credential, " ")
	if credential == "" {
		return Caller{}, refuse("empty bearer")
	}
	if len(credential) > maxToken {
		return Caller{}, refuse("token over 8 KiB")
	}
	return a.bearer(ctx, credential)
}

// bearer tells a JWT from a signed session by its shape, which neither can imitate: a JWT has three parts.
func (a *Authenticator) bearer(ctx context.Context, credential string) (Caller, error) {
	switch strings.Count(credential, ".") {
	case 2:
		token, err := a.verify(ctx, credential)
		return token.caller(), err
	case 1:
		return a.session(ctx, credential)
	default:
		return Caller{}, refuse("neither a JWT nor a signed session")
	}
}
