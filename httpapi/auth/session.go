package auth

// Better Auth's own signed session: <token>.<base64 HMAC-SHA256(secret, token)>, looked up in its tables.

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// sessionFresh is how long a session is believed without looking again. Sign-out deletes the row and must work
	// within 5 seconds.
	sessionFresh = 4 * time.Second

	// sessionsKept bounds the cache of sessions: some 300 bytes each, so 3 MB.
	sessionsKept = 10_000

	// sessionTimeout bounds a lookup, with the wait for a connection.
	sessionTimeout = 3 * time.Second
)

// selectSession reads both kinds of expiresAt: the epoch of a timestamp without time zone takes it for UTC, as which
// Better Auth writes it. The ids are compared as they are, for the index, and cast only to be read. The tables are
// named with their schema, so that no search_path finds others.
const selectSession = `
SELECT u."id"::text,
       coalesce(extract(epoch FROM s."expiresAt"), 0)::float8
FROM %[1]s."session" s
JOIN %[1]s."user" u ON u."id" = s."userId"
WHERE s."token" = $1`

// selectSessionCast is for tables whose two id columns have types that do not compare.
const selectSessionCast = `
SELECT u."id"::text,
       coalesce(extract(epoch FROM s."expiresAt"), 0)::float8
FROM %[1]s."session" s
JOIN %[1]s."user" u ON u."id"::text = s."userId"::text
WHERE s."token" = $1`

// sessionRow is what the database said, and when it was asked.
type sessionRow struct {
	user           string
	expires, asked time.Time
}

// sessionLookup finds sessions by their token.
type sessionLookup struct {
	pool              *pgxpool.Pool
	query, castingIDs string      // selectSession and selectSessionCast
	casts             atomic.Bool // the ids were found to need it
	now               func() time.Time
	known             *lru.Cache[[sha256.Size]byte, sessionRow]
}

func newSessionLookup(cfg Config) (*sessionLookup, error) {
	known, err := lru.New[[sha256.Size]byte, sessionRow](sessionsKept)
	if err != nil {
		return nil, fmt.Errorf("session cache: %w", err)
	}
	schema := pgx.Identifier{cmp.Or(cfg.SessionSchema, "public")}.Sanitize()
	return &sessionLookup{
		pool:       cfg.Sessions,
		query:      fmt.Sprintf(selectSession, schema),
		castingIDs: fmt.Sprintf(selectSessionCast, schema),
		now:        cfg.Now,
		known:      known,
	}, nil
}

// session checks a signed session. The signature comes first: without the secret nobody reaches the database.
func (a *Authenticator) session(ctx context.Context, credential string) (Caller, error) {
	if len(a.secret) == 0 {
		return Caller{}, refuse(NoKey, noSecret)
	}
	token, err := signedSession(a.secret, credential)
	if err != nil {
		return Caller{}, err
	}
	if a.sessions == nil {
		return Caller{}, refuse(NoSessionTables, "no database is configured")
	}
	row, err := a.sessions.find(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	if !a.now().Before(row.expires) {
		return Caller{}, refuse(Expired, "expiresAt has passed")
	}
	return Caller{UserID: row.user, Expires: row.expires, kind: kindSession}, nil
}

// signedSession returns the token of a credential, percent-encoded or not, that carries its signature.
func signedSession(secret []byte, credential string) (string, error) {
	// Not QueryUnescape: that would make a blank of the + that base64 is full of.
	plain, err := url.PathUnescape(credential)
	if err != nil {
		return "", refuse(Malformed, "bad percent-encoding")
	}
	token, encoded, dotted := strings.Cut(plain, ".")
	if token == "" || !dotted || strings.ContainsFunc(token, notVisibleASCII) {
		return "", refuse(Malformed, "no token of visible ASCII before the dot")
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || strings.ContainsAny(encoded, "\r\n") { // It skips them even when strict.
		return "", refuse(Malformed, "no base64 behind the dot")
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(token))
	if !hmac.Equal(signature, mac.Sum(nil)) {
		return "", refuse(BadSignature, otherSecret)
	}
	return token, nil
}

func notVisibleASCII(r rune) bool { return r <= ' ' || r > '~' }

func (l *sessionLookup) find(ctx context.Context, token string) (sessionRow, error) {
	id := sha256.Sum256([]byte(token))
	now := l.now() // Before the question, so that the answer is never older than it seems.
	if row, ok := l.known.Get(id); ok && now.Sub(row.asked) < sessionFresh {
		return row, nil
	}
	row, err := l.ask(ctx, token)
	if err != nil {
		l.known.Remove(id)
		return sessionRow{}, err
	}
	row.asked = now
	l.known.Add(id, row)
	return row, nil
}

func (l *sessionLookup) ask(ctx context.Context, token string) (sessionRow, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	var (
		user  string
		epoch float64
	)
	query := l.query
	if l.casts.Load() {
		query = l.castingIDs
	}
	err := l.pool.QueryRow(ctx, query, token).Scan(&user, &epoch)
	if sqlState(err) == "42883" { // undefined_function: text = uuid
		l.casts.Store(true)
		err = l.pool.QueryRow(ctx, l.castingIDs, token).Scan(&user, &epoch)
	}
	if err != nil {
		return sessionRow{}, explain(err)
	}
	if !ValidUserID(user) {
		return sessionRow{}, refuse(NotALogin, badUser)
	}
	if math.IsInf(epoch, 0) || epoch > maxDate {
		return sessionRow{}, refuse(Malformed, "expiresAt is not a date")
	}
	return sessionRow{user: user, expires: time.UnixMicro(int64(epoch * 1e6))}, nil
}

// explain tells a session that is not there from a database that is not there.
func explain(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return refuse(NoSession, "signed out, or never there")
	}
	switch sqlState(err) {
	case "42P01", "42703", "3F000": // undefined_table, undefined_column, invalid_schema_name
		return refuse(NoSessionTables, noTables)
	}
	return fmt.Errorf("look up session (in BETTER_AUTH_DATABASE_URL, else DATABASE_URL): %s", plainCause(err))
}

// plainCause leaves out what pgx tells of a connection: user, database and host are values of the database's URL.
func plainCause(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return "SQLSTATE " + refused.Code
	}
	for _, ended := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, ended) {
			return ended.Error()
		}
	}
	if system, ok := errors.AsType[syscall.Errno](err); ok {
		return system.Error()
	}
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return untrusted.Error()
	}
	return "no connection"
}

func sqlState(err error) string {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Code
}
