package auth

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations/testdb"
)

const testSession = "2gIFf9Aq3xWJ0nRkT7sYbVhLcEoZpMuD"

// signSession signs as Better Auth does: standard base64, padded.
func signSession(token string) string { return signSessionWith(testSecret, token) }

func signSessionWith(secret []byte, token string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(token))
	return token + "." + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// encodeCookie does what JavaScript's encodeURIComponent does to a signed session.
func encodeCookie(value string) string {
	return strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(value)
}

// sessionWithPlus is a token whose signature has a + and a /, on which wrong decoders stumble.
func sessionWithPlus(t *testing.T) string {
	t.Helper()
	for i := range 1000 {
		token := fmt.Sprint("session", i)
		if signed := signSession(token); strings.Contains(signed, "+") && strings.Contains(signed, "/") {
			return token
		}
	}
	t.Fatal("no signature with + and /")
	return ""
}

// createSessionTables makes what Better Auth's migration makes of the two tables, as far as we look at them.
func createSessionTables(t *testing.T, pool *pgxpool.Pool, idType, userIDType, expiresType string) {
	t.Helper()
	mustExec(t, pool, `CREATE TABLE public."user" ("id" `+idType+` PRIMARY KEY, "email" text NOT NULL)`)
	mustExec(t, pool, `
CREATE TABLE public."session" (
	"id" text PRIMARY KEY DEFAULT gen_random_uuid()::text,
	"expiresAt" `+expiresType+` NOT NULL,
	"token" text NOT NULL UNIQUE,
	"userId" `+userIDType+` NOT NULL
)`)
}

func mustExec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func addSession(t *testing.T, pool *pgxpool.Pool, token, user string, expires time.Time) {
	t.Helper()
	mustExec(t, pool, `INSERT INTO public."user" ("id", "email") VALUES ($1, $2) ON CONFLICT DO NOTHING`,
		user, user+"@test")
	mustExec(t, pool, `INSERT INTO public."session" ("token", "userId", "expiresAt") VALUES ($1, $2, $3)`,
		token, user, expires)
}

func sessionDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := testdb.New(t)
	createSessionTables(t, pool, "text", `text REFERENCES public."user" ("id")`, "timestamptz")
	return pool
}

func withCookie(name, value string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/api/tasks", nil)
	r.Header.Set("Cookie", name+"="+value)
	return r
}

func TestSessionInEverySpelling(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	token, expires := sessionWithPlus(t), testNow.Add(time.Hour)
	addSession(t, pool, token, "ada", expires)
	signed := signSession(token)
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Issuer: testIssuer, Audience: testAudience})
	for name, test := range map[string]struct {
		request *http.Request
		cookie  bool
	}{
		"bearer":                  {withBearer(signed), false},
		"bearer, encoded":         {withBearer(encodeCookie(signed)), false},
		"cookie":                  {withCookie("better-auth.session_token", signed), true},
		"cookie, encoded":         {withCookie("better-auth.session_token", encodeCookie(signed)), true},
		"cookie, encoded in part": {withCookie(cookieSession, strings.ReplaceAll(signed, "=", "%3d")), true},
		"secure cookie":           {withCookie("__Secure-better-auth.session_token", encodeCookie(signed)), true},
	} {
		caller, err := a.Authenticate(test.request)
		if err != nil || caller.UserID != "ada" || !caller.Expires.Equal(expires) || caller.Cookie != test.cookie {
			t.Errorf("%s: got %+v, %v", name, caller, err)
		}
	}
}

func TestSessionTablesOfEveryKind(t *testing.T) {
	t.Parallel()
	const aUUID = "0190a5c2-7b0e-7c3d-9a53-0c5f3f1f6b11"
	for _, test := range []struct{ id, userID, expires, user string }{
		{"text", `text REFERENCES public."user" ("id")`, "timestamptz", "ada"},
		{"text", `text REFERENCES public."user" ("id")`, "timestamp", "ada"},
		{"uuid", `uuid REFERENCES public."user" ("id")`, "timestamptz(3)", aUUID},
		{"integer", `integer REFERENCES public."user" ("id")`, "timestamp(3)", "7"},
		{"bigint", `integer REFERENCES public."user" ("id")`, "timestamptz", "7"},
		{"uuid", "text", "timestamptz", aUUID},
		{"integer", "text", "timestamp", "7"},
	} {
		t.Run(test.id+" "+test.userID+" "+test.expires, func(t *testing.T) {
			t.Parallel()
			pool := testdb.New(t)
			// A server far from UTC must not move a timestamp without time zone.
			mustExec(t, pool, `DO $$ BEGIN
				EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database());
			END $$`)
			pool.Reset()
			createSessionTables(t, pool, test.id, test.userID, test.expires)
			mustExec(t, pool, `INSERT INTO public."user" ("id", "email")
				VALUES ($1::text::`+test.id+`, 'a@test')`, test.user)
			mustExec(t, pool, `INSERT INTO public."session" ("token", "userId", "expiresAt")
				SELECT $1, "id"::text::`+strings.Fields(test.userID)[0]+`, $2::timestamp FROM public."user"`,
				testSession, testNow.Add(time.Minute))
			if strings.HasPrefix(test.expires, "timestamptz") {
				mustExec(t, pool, `UPDATE public."session" SET "expiresAt" = $1::timestamptz`, testNow.Add(time.Minute))
			}
			a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool})
			caller, err := a.Authenticate(withBearer(signSession(testSession)))
			if err != nil || caller.UserID != test.user || !caller.Expires.Equal(testNow.Add(time.Minute)) {
				t.Errorf("got %+v, %v", caller, err)
			}
		})
	}
}

// That ids need a cast is found out once, not at each lookup.
func TestALookupIsOneStatement(t *testing.T) {
	t.Parallel()
	for name, userID := range map[string]string{"ids that compare": "uuid", "ids that do not": "text"} {
		pool := testdb.New(t)
		createSessionTables(t, pool, "uuid", userID, "timestamptz")
		mustExec(t, pool, `INSERT INTO public."user" ("id", "email") VALUES (gen_random_uuid(), 'a@test')`)
		mustExec(t, pool, `INSERT INTO public."session" ("token", "userId", "expiresAt")
			SELECT $1, "id"::text::`+userID+`, $2 FROM public."user"`, testSession, testNow.Add(time.Hour))
		clock := &testClock{at: testNow}
		a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Now: clock.now})
		for lookup := range 3 {
			before := pool.Stat().AcquireCount()
			if err := errorOf(a, signSession(testSession)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if n := pool.Stat().AcquireCount() - before; lookup > 0 && n != 1 {
				t.Errorf("%s: lookup %d took %d statements", name, lookup, n)
			}
			clock.at = clock.at.Add(sessionFresh)
		}
	}
}

func TestHostileSessions(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	token := sessionWithPlus(t)
	addSession(t, pool, token, "ada", testNow.Add(time.Hour))
	addSession(t, pool, "expired", "ada", testNow)
	addSession(t, pool, "control", "ada\n", testNow.Add(time.Hour))
	addSession(t, pool, "has.dot", "ada", testNow.Add(time.Hour))
	mustExec(t, pool, `INSERT INTO public."session" ("token", "userId", "expiresAt")
		VALUES ('for ever', 'ada', 'infinity'), ('forever', 'ada', 'infinity')`)
	signed := signSession(token)
	name, signature, _ := strings.Cut(signed, ".")
	tests := []hostileToken{
		{"no signature", token + ".", whySecret},
		{"no token", "." + signature, whyBadToken},
		{"no token, signed", signSession(""), whyBadToken},
		{"the signature of another", token + signSession("other")[5:], whySecret},
		{"another secret", signSessionWith(otherTestSecret, token), whySecret},
		{"an empty secret", signSessionWith(nil, token), whySecret},
		{"base64url", name + "." + strings.NewReplacer("+", "-", "/", "_").Replace(signature), whyBase64},
		{"without padding", strings.TrimRight(signed, "="), whyBase64},
		{"padded twice", signed + "=", whyBase64},
		{"last character not canonical", name + "." + otherLastCharacterStd(signature), whyBase64},
		{"line break in the signature", name + "." + signature[:8] + "%0A" + signature[8:], whyBase64},
		{"cut short", signed[:len(signed)-4], whySecret},
		{"a blank for the plus", strings.ReplaceAll(signed, "+", "%20"), whyBase64},
		{"bad escape", signed + "%", whyBadEscape},
		{"encoded twice", url.PathEscape(encodeCookie(signed)), whyBase64},
		{"a dot in the token", strings.Replace(signSession("has.dot"), ".", "%2E", 1), whyBase64},
		{"NUL in the token", strings.Replace(signSession("a\x00b"), "\x00", "%00", 1), whyBadToken},
		{"a blank in the token", strings.Replace(signSession("for ever"), " ", "%20", 1), whyBadToken},
		{"not UTF-8 in the token", strings.Replace(signSession("a\xffb"), "\xff", "%FF", 1), whyBadToken},
		{"never created", signSession("nobody"), whyNoSession},
		{"another signed cookie of Better Auth", signSession("true"), whyNoSession},
		{"in another case", signSession(strings.ToUpper(token)), whyNoSession},
		{"a pattern", strings.Replace(signSession("%"), "%", "%25", 1), whyNoSession},
		{"expired, to the instant", signSession("expired"), whySessionExpired},
		{"infinite", signSession("forever"), Error{Malformed, "expiresAt is not a date"}},
		{"user with a control character", signSession("control"), whyBadUser},
		{"over 8 KiB", signed + strings.Repeat("A", 8<<10), whyTooLong},
	}
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []*http.Request{withBearer(test.token), withCookie(cookieSession, test.token)} {
				_, err := a.Authenticate(r)
				wantRefused(t, err, test.why)
			}
		})
	}
}

// otherLastCharacterStd sets a pad bit of a padded standard base64 text of 32 bytes.
func otherLastCharacterStd(signature string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	end := len(signature) - 2
	return signature[:end] + string(alphabet[strings.IndexByte(alphabet, signature[end])^1]) + "="
}

// The tables of the schema that is configured count, whatever the connection would find by itself.
func TestSessionTablesAreThoseOfTheirSchema(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	schemas := map[string]string{"": "ada", "MyApp": "grace", `a "b".c`: "joan"}
	for schema, user := range schemas {
		quoted := pgx.Identifier{cmp.Or(schema, "public")}.Sanitize()
		mustExec(t, pool, `CREATE SCHEMA IF NOT EXISTS `+quoted)
		mustExec(t, pool, `CREATE TABLE `+quoted+`."user" ("id" text)`)
		mustExec(t, pool, `CREATE TABLE `+quoted+`."session" ("token" text, "userId" text, "expiresAt" timestamptz)`)
		mustExec(t, pool, `INSERT INTO `+quoted+`."user" VALUES ($1)`, user)
		mustExec(t, pool, `INSERT INTO `+quoted+`."session" VALUES ($1, $2, 'tomorrow')`, testSession, user)
	}
	for _, path := range []string{"public", `"MyApp"`, `nowhere`} {
		config := pool.Config()
		config.ConnConfig.RuntimeParams["search_path"] = path
		other, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		for schema, user := range schemas {
			a := newAuthenticator(t, Config{Secret: testSecret, Sessions: other, SessionSchema: schema, Now: time.Now})
			caller, err := a.Authenticate(withBearer(signSession(testSession)))
			if err != nil || caller.UserID != user {
				t.Errorf("schema %q, search_path %s: got %+v, %v; want %s", schema, path, caller, err, user)
			}
		}
	}
}

func TestSessionOfADeletedUser(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	createSessionTables(t, pool, "text", "text", "timestamptz")
	addSession(t, pool, testSession, "ada", testNow.Add(time.Hour))
	mustExec(t, pool, `DELETE FROM public."user"`)
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool})
	wantRefused(t, errorOf(a, signSession(testSession)), whyNoSession)
}

func TestSignOutWorksWithinFiveSeconds(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	addSession(t, pool, testSession, "ada", testNow.Add(time.Hour))
	clock := &testClock{at: testNow}
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Now: clock.now})
	signed := signSession(testSession)
	if err := errorOf(a, signed); err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, `DELETE FROM public."session"`)
	clock.at = testNow.Add(sessionFresh - time.Nanosecond)
	if err := errorOf(a, signed); err != nil {
		t.Fatalf("not cached: %v", err)
	}
	clock.at = testNow.Add(sessionFresh)
	wantRefused(t, errorOf(a, signed), whyNoSession)
	if sessionFresh >= 5*time.Second {
		t.Errorf("a session is believed for %v", sessionFresh)
	}
}

func TestACachedSessionEndsWhenItEnds(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	addSession(t, pool, testSession, "ada", testNow.Add(time.Second))
	clock := &testClock{at: testNow}
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool, Now: clock.now})
	if err := errorOf(a, signSession(testSession)); err != nil {
		t.Fatal(err)
	}
	clock.at = testNow.Add(time.Second)
	wantRefused(t, errorOf(a, signSession(testSession)), whySessionExpired)
}

func TestTheSessionCacheIsBounded(t *testing.T) {
	t.Parallel()
	lookup, err := newSessionLookup(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range sessionsKept + 10 {
		lookup.known.Add(sha256.Sum256(fmt.Append(nil, i)), sessionRow{})
	}
	if n := lookup.known.Len(); n != sessionsKept {
		t.Errorf("%d sessions kept, want %d", n, sessionsKept)
	}
}

func TestSessionTablesMayComeLater(t *testing.T) {
	t.Parallel()
	pool := testdb.New(t)
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool})
	signed := signSession(testSession)
	wantRefused(t, errorOf(a, signed), whyNoTables)
	mustExec(t, pool, `CREATE TABLE public."session" ("token" text)`)
	mustExec(t, pool, `CREATE TABLE public."user" ("id" text)`)
	wantRefused(t, errorOf(a, signed), whyNoTables)
	mustExec(t, pool, `DROP TABLE public."session", public."user"`)
	createSessionTables(t, pool, "text", "text", "timestamptz")
	wantRefused(t, errorOf(a, signed), whyNoSession)
	addSession(t, pool, testSession, "ada", testNow.Add(time.Hour))
	if err := errorOf(a, signed); err != nil {
		t.Error(err)
	}
}

func TestADatabaseThatIsAwayConcernsSessionsOnly(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	addSession(t, pool, testSession, "ada", testNow.Add(time.Hour))
	a := newAuthenticator(t, Config{Secret: testSecret, Sessions: pool})
	pool.Close()
	signed := signSession(testSession)
	for name, r := range map[string]*http.Request{
		"bearer": withBearer(signed), "cookie": withCookie(cookieSession, signed),
	} {
		_, err := a.Authenticate(r)
		var refused *Error
		if err == nil || errors.As(err, &refused) {
			t.Errorf("session as %s: got %v, want an error that is no refusal", name, err)
		}
		if err != nil && strings.Contains(err.Error(), testSession) {
			t.Errorf("the error has the session in it: %v", err)
		}
	}
	wantRefused(t, errorOf(a, signed+"A"), whyBase64)
	if err := errorOf(a, signRaw(plainHeader, claimsWith(nil))); err != nil {
		t.Errorf("a JWT meanwhile: %v", err)
	}
	if _, err := a.Authenticate(withCookie("better-auth.session_data", cacheToken(nil))); err != nil {
		t.Errorf("a cookie cache meanwhile: %v", err)
	}
}

// What pgx tells of a connection names the user, the database and the host.
func TestALookupThatFailsTellsNothingOfItsURL(t *testing.T) {
	t.Parallel()
	pool := sessionDatabase(t)
	url := pool.Config().ConnString()
	for name, test := range map[string]struct{ url, want string }{
		"nobody listens":   {"postgres://private@localhost:1/private?sslmode=disable", "connection refused"},
		"no such socket":   {"postgres://private@/private?host=/private", "no such file"},
		"no such database": {strings.ReplaceAll(url, pool.Config().ConnConfig.Database, "private"), "SQLSTATE 3D000"},
	} {
		other, err := pgxpool.New(t.Context(), test.url)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		a := newAuthenticator(t, Config{Secret: testSecret, Sessions: other})
		err = errorOf(a, signSession(testSession))
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "private") {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}

func TestSessionsWithoutDatabaseOrSecret(t *testing.T) {
	t.Parallel()
	signed := signSession(testSession)
	a := newAuthenticator(t, Config{Secret: testSecret})
	wantRefused(t, errorOf(a, signed), Error{NoSessionTables, "no database is configured"})
	a = newAuthenticator(t, Config{Sessions: testdb.New(t)})
	for _, secret := range [][]byte{nil, testSecret} {
		wantRefused(t, errorOf(a, signSessionWith(secret, testSession)), whyNoSecret)
	}
}

func FuzzSignedSession(f *testing.F) {
	f.Add(signSession(testSession))
	f.Add(encodeCookie(signSession("a")))
	f.Add("%2E.%")
	f.Fuzz(func(t *testing.T, credential string) {
		token, err := signedSession(testSecret, credential)
		if err != nil {
			return
		}
		if plain, err := url.PathUnescape(credential); err != nil || plain != signSession(token) {
			t.Fatalf("accepted what is not the signature of %q", token)
		}
	})
}
