package auth

// A credential that is refused: why, in words that never quote what was presented, and how the log is told.

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Reason says in a word why a credential is refused. It stands in the log and is a label of a metric.
type Reason string

// Everything that a credential is refused for.
const (
	NoCredentials   Reason = "no_credentials"    // nothing was sent
	Ambiguous       Reason = "ambiguous"         // two Authorization headers, or a cookie with two values
	TooLong         Reason = "too_long"          // over 8 KiB
	Malformed       Reason = "malformed"         // not in the form that such a credential has
	Unsupported     Reason = "unsupported"       // a JWT that is compressed, encrypted, nested or extended
	BadAlgorithm    Reason = "bad_algorithm"     // an algorithm that is not taken, or not that of the key
	NoKey           Reason = "no_key"            // no secret, or no key set, is configured to check it by
	UnknownKey      Reason = "unknown_key"       // the key set has no key of that name, or none was named
	BadSignature    Reason = "bad_signature"     // signed with another secret or key
	Expired         Reason = "expired"           // a token or session whose end has come
	NotYetValid     Reason = "not_yet_valid"     // nbf or iat lies ahead: clocks differ
	WrongIssuer     Reason = "wrong_issuer"      // iss is not the one configured
	WrongAudience   Reason = "wrong_audience"    // aud does not name the one configured
	NotALogin       Reason = "not_a_login"       // well signed, but it names no user, or is made for something else
	NoSession       Reason = "no_session"        // well signed, but signed out or never there
	NoSessionTables Reason = "no_session_tables" // Better Auth's tables are not there
	CrossSite       Reason = "cross_site"        // a write by cookie, and no proof that it is from our frontend
)

var reasons = []Reason{
	NoCredentials, Ambiguous, TooLong, Malformed, Unsupported, BadAlgorithm, NoKey, UnknownKey, BadSignature, Expired,
	NotYetValid, WrongIssuer, WrongAudience, NotALogin, NoSession, NoSessionTables, CrossSite,
}

// Error refuses a request for what its credential is.
type Error struct {
	Reason Reason

	// Detail is a constant text that says more than the reason. It may be shown: it holds nothing of the credential.
	Detail string
}

func (e *Error) Error() string { return string(e.Reason) + ": " + e.Detail }

// Details that are long, or told of more than one kind of credential.
const (
	overLong    = "over 8 KiB"
	noSecret    = "no secret is configured: BETTER_AUTH_SECRET"
	otherSecret = "not signed with our secret: BETTER_AUTH_SECRET must be the same on both sides"
	noTables    = "no tables of Better Auth in the schema of its database URL, public by default"
	badUser     = "the user id is empty, over 255 bytes or has control characters"
)

func refuse(reason Reason, detail string) error { return &Error{Reason: reason, Detail: detail} }

// refusalsEvery is the least time between two lines of one reason: a flood of bad credentials must not flood the log.
const refusalsEvery = time.Second

// refusalLog tells an operator of refused credentials.
type refusalLog struct {
	logger *slog.Logger
	now    func() time.Time

	mu    sync.Mutex
	lines map[Reason]refusalLine
}

// refusalLine is when a reason was last logged, and how many refusals were left out since.
type refusalLine struct {
	at      time.Time
	leftOut int
}

func newRefusalLog(logger *slog.Logger, now func() time.Time) *refusalLog {
	return &refusalLog{logger: logger, now: now, lines: make(map[Reason]refusalLine, len(reasons))}
}

func (l *refusalLog) tell(ctx context.Context, k kind, refused *Error) {
	level := slog.LevelWarn
	if refused.Reason == NoCredentials { // Anybody who looks in.
		level = slog.LevelDebug
	}
	if !l.logger.Enabled(ctx, level) {
		return
	}
	leftOut, now := l.turn(refused.Reason)
	if !now {
		return
	}
	l.logger.Log(ctx, level, "credential refused",
		"credential", k.String(), "reason", refused.Reason, "detail", refused.Detail, "left_out", leftOut)
}

// turn reports whether a line may be logged now, and how many were left out before it.
func (l *refusalLog) turn(reason Reason) (leftOut int, now bool) {
	at := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	line, before := l.lines[reason]
	if before && at.Sub(line.at) < refusalsEvery {
		line.leftOut++
		l.lines[reason] = line
		return 0, false
	}
	l.lines[reason] = refusalLine{at: at}
	return line.leftOut, true
}
