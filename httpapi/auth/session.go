package auth

// Better Auth's own signed session: <token>.<base64 HMAC-SHA256(secret, token)>, looked up in its tables.

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"sync/atomic"
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
// Better Auth writes it. The ids are compared as they are, for the index, and cast only to be read.
const selectSession = `
SELECT u."id"::text,
       coalesce(extract(epoch FROM s."expiresAt"), 0)::float8
FROM "session" s
JOIN "user" u ON u."id" = s."userId"
WHERE s."token" = $1`

// selectSessionCast is for tables whose two id columns have types that do not compare.
const selectSessionCast = `
SELECT u."id"::text,
       coalesce(extract(epoch FROM s."expiresAt"), 0)::float8
FROM "session" s
JOIN "user" u ON u."id"::text = s."userId"::text
WHERE s."token" = $1`

// sessionRow is what the database said, and when it was asked.
type sessionRow struct {
	user           string
	expires, asked time.Time
}

// sessionLookup finds sessions by their token.
type sessionLookup struct {
	pool   *pgxpool.Pool
	now    func() time.Time
	logger *slog.Logger
	known  *lru.Cache[[sha256.Size]byte, sessionRow]
	noted  atomic.Bool // that the tables are missing has been logged
}

func newSessionLookup(pool *pgxpool.Pool, now func() time.Time, logger *slog.Logger) (*sessionLookup, error) {
	known, err := lru.New[[sha256.Size]byte, sessionRow](sessionsKept)
	if err != nil {
		return nil, fmt.Errorf("session cache: %w", err)
	}
	return &sessionLookup{pool: pool, now: now, logger: logger, known: known}, nil
}

// session checks a signed session. The signature comes first: without the secret nobody reaches the database.
func (a *Authenticator) session(ctx context.Context, credential string) (Caller, error) {
	if len(a.secret) == 0 {
		return Caller{}, refuse("no secret for sessions")
	}
	token, ok := signedSession(a.secret, credential)
	if !ok {
		return Caller{}, refuse("session signature is wrong")
	}
	if a.sessions == nil {
		return Caller{}, refuse("no session database")
	}
	row, err := a.sessions.find(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	if !a.now().Before(row.expires) {
		return Caller{}, &Error{Code: codeExpired, Reason: "session has expired"}
	}
	return Caller{UserID: row.user, Expires: row.expires}, nil
}

// signedSession returns the token of a credential, percent-encoded or not, that carries its signature.
func signedSession(secret []byte, credential string) (string, bool) {
	// Not QueryUnescape: that would make a blank of the + that base64 is full of.
	plain, err := url.PathUnescape(credential)
	if err != nil {
		return "", false
	}
	token, encoded, _ := strings.Cut(plain, ".")
	if token == "" || strings.ContainsFunc(token, notVisibleASCII) || strings.ContainsAny(encoded, "\r\n") {
		return "", false
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return "", false
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(token))
	return token, hmac.Equal(signature, mac.Sum(nil))
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
	err := l.pool.QueryRow(ctx, selectSession, token).Scan(&user, &epoch)
	if sessionSQLState(err) == "42883" { // undefined_function: text = uuid
		err = l.pool.QueryRow(ctx, selectSessionCast, token).Scan(&user, &epoch)
	}
	if err != nil {
		return sessionRow{}, l.explain(ctx, err)
	}
	if !validUserID(user) || math.IsInf(epoch, 0) || epoch > tokenMaxDate {
		return sessionRow{}, refuse("session row is not usable")
	}
	return sessionRow{user: user, expires: time.UnixMicro(int64(epoch * 1e6))}, nil
}

// explain tells a session that is not there from a database that is not there.
func (l *sessionLookup) explain(ctx context.Context, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return refuse("no such session")
	}
	switch state := sessionSQLState(err); state {
	case "42P01", "42703", "3F000": // undefined_table, undefined_column, invalid_schema_name
		if l.noted.CompareAndSwap(false, true) {
			l.logger.WarnContext(ctx, "no session tables of Better Auth: sessions are refused until they are there", "sqlstate", state)
		}
		return refuse("no session tables")
	}
	return fmt.Errorf("look up session: %w", err)
}

func sessionSQLState(err error) string {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Code
}
