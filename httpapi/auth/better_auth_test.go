package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations/testdb"
)

// betterAuthFixture is what a real Better Auth gave out; .ci/better-auth/run --record writes it anew.
type betterAuthFixture struct {
	Now                time.Time         `json:"now"`
	Secret             string            `json:"secret"`
	BaseURL            string            `json:"base_url"`
	UserID             string            `json:"user_id"`
	SessionToken       string            `json:"session_token"`
	SetAuthToken       string            `json:"set_auth_token"`
	SessionData        string            `json:"session_data"`
	ChunkedUserID      string            `json:"chunked_user_id"`
	ChunkedSessionData map[string]string `json:"chunked_session_data"`
	Token              string            `json:"token"`
	VerificationToken  string            `json:"verification_token"`
	JWKS               json.RawMessage   `json:"jwks"`
	Tables             struct {
		User, Session fixtureTable
	} `json:"tables"`
}

type fixtureTable struct {
	Columns []struct{ Name, Type string }
	Rows    []struct{ Row json.RawMessage }
}

func (f fixtureTable) create(t *testing.T, pool *pgxpool.Pool, name string) {
	t.Helper()
	var columns []string
	for _, column := range f.Columns {
		columns = append(columns, pgx.Identifier{column.Name}.Sanitize()+" "+column.Type)
	}
	table := pgx.Identifier{"public", name}.Sanitize()
	mustExec(t, pool, fmt.Sprintf(`CREATE TABLE %s (%s)`, table, strings.Join(columns, ", ")))
	for _, row := range f.Rows {
		insert := fmt.Sprintf(`INSERT INTO %[1]s SELECT * FROM jsonb_populate_record(NULL::%[1]s, $1)`, table)
		mustExec(t, pool, insert, string(row.Row))
	}
}

// open returns the fixture's authenticator, with the tables and the keys as they were, and the clock at its moment.
func (f betterAuthFixture) open(t *testing.T, clock *testClock) *Authenticator {
	t.Helper()
	pool := testdb.New(t)
	f.Tables.User.create(t, pool, "user")
	f.Tables.Session.create(t, pool, "session")
	clock.at = f.Now
	return newAuthenticator(t, Config{
		Secret: []byte(f.Secret), Issuer: f.BaseURL, Audience: f.BaseURL,
		JWKSURL: serve(t, func() []byte { return f.JWKS }), Sessions: pool, Now: clock.now,
	})
}

func betterAuthFixtures(t *testing.T) map[string]betterAuthFixture {
	t.Helper()
	files, err := filepath.Glob("testdata/better-auth-*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	fixtures := make(map[string]betterAuthFixture, len(files))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var fixture betterAuthFixture
		if err := json.Unmarshal(text, &fixture); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		fixtures[filepath.Base(file)] = fixture
	}
	return fixtures
}

func TestCredentialsOfBetterAuth(t *testing.T) {
	t.Parallel()
	for name, fixture := range betterAuthFixtures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := fixture.open(t, &testClock{})
			decoded, err := url.PathUnescape(fixture.SessionToken)
			if err != nil {
				t.Fatal(err)
			}
			var chunks []string
			for name, value := range fixture.ChunkedSessionData {
				chunks = append(chunks, name+"="+value)
			}
			for credential, test := range map[string]struct {
				request *http.Request
				user    string
			}{
				"session cookie":          {withCookie(cookieSession, fixture.SessionToken), fixture.UserID},
				"session cookie, decoded": {withCookie(cookieSession, decoded), fixture.UserID},
				"session as bearer":       {withBearer(decoded), fixture.UserID},
				"set-auth-token":          {withBearer(fixture.SetAuthToken), fixture.UserID},
				"cookie cache":            {withCookie(cookieCache, fixture.SessionData), fixture.UserID},
				"cookie cache as bearer":  {withBearer(fixture.SessionData), fixture.UserID},
				"cookie cache in chunks":  {headerRequest("Cookie", strings.Join(chunks, "; ")), fixture.ChunkedUserID},
				"token by the JWKS":       {withBearer(fixture.Token), fixture.UserID},
			} {
				caller, err := a.Authenticate(test.request)
				if err != nil || caller.UserID != test.user || !caller.Expires.After(fixture.Now) {
					t.Errorf("%s: got %+v, %v; want %s", credential, caller, err, test.user)
				}
			}
			wantRefused(t, errorOf(a, fixture.VerificationToken), whyBadSub)
		})
	}
}

func TestCredentialsOfBetterAuthEnd(t *testing.T) {
	t.Parallel()
	for name, fixture := range betterAuthFixtures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := &testClock{}
			a := fixture.open(t, clock)
			for credential, test := range map[string]struct {
				value string
				lasts time.Duration
			}{
				"session":           {fixture.SetAuthToken, 7 * 24 * time.Hour},
				"cookie cache":      {fixture.SessionData, 5 * time.Minute},
				"token by the JWKS": {fixture.Token, 15 * time.Minute},
			} {
				clock.at = fixture.Now.Add(test.lasts - time.Minute)
				if err := errorOf(a, test.value); err != nil {
					t.Errorf("%s, a minute before its end: %v", credential, err)
				}
				clock.at = fixture.Now.Add(test.lasts + time.Minute)
				err := errorOf(a, test.value)
				if refused, ok := errors.AsType[*Error](err); !ok || refused.Reason != Expired {
					t.Errorf("%s, a minute after its end: got %v", credential, err)
				}
			}
		})
	}
}
