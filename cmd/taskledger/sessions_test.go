package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
)

func TestWhereTheKeysAre(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ better, named, want string }{
		{"", "", ""},
		{"https://a.example", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/app", "", "https://a.example/app/api/auth/jwks"},
		{"https://a.example/api/auth", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/app/api/auth/", "", "https://a.example/app/api/auth/jwks"},
		{"https://a.example/api/auth//", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/api/auth?x=y#z", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/?", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/my-api/auth", "", "https://a.example/my-api/auth/api/auth/jwks"},
		{"https://a.example", "https://b.example/keys", "https://b.example/keys"},
		{"", "https://b.example/keys", "https://b.example/keys"},
	} {
		s := settings{BetterAuthURL: test.better, JWKSURL: test.named}
		if got := s.jwksURL(); got != test.want {
			t.Errorf("%q, %q: %s, want %s", test.better, test.named, got, test.want)
		}
	}
}

func TestOriginsThatMayWrite(t *testing.T) {
	t.Parallel()
	listed := []string{"http://localhost:3000"}
	for better, want := range map[string][]string{
		"":                               listed,
		"http://localhost:3000":          listed,
		"http://localhost:3000/api/auth": listed,
		"https://a.example":              {listed[0], "https://a.example"},
		"https://A.Example/api/auth/":    {listed[0], "https://a.example"},
		"https://a.example:443":          {listed[0], "https://a.example"},
		"http://a.example:443":           {listed[0], "http://a.example:443"},
		"http://a.example:80/":           {listed[0], "http://a.example"},
		"http://[::1]:80":                {listed[0], "http://[::1]"},
		"https://u:p@a.example?x#y":      {listed[0], "https://a.example"},
	} {
		s := settings{CORSOrigins: slices.Clip(listed), BetterAuthURL: better}
		if got := s.origins(); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", better, got, want)
		}
	}
}

// Better Auth's tables stand in a schema of a database of its own, whose URL says so as its other clients need it. A
// page of Better Auth's own origin may write, though CORS_ORIGINS does not name it.
func TestSessionsOfAnotherDatabaseAndSchema(t *testing.T) {
	t.Parallel()
	better := testdb.EmptyURL(t)
	conn, err := pgx.Connect(t.Context(), better)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	_, err = conn.Exec(t.Context(), `
		CREATE SCHEMA "MyApp";
		CREATE TABLE "MyApp"."user" ("id" text);
		CREATE TABLE "MyApp"."session" ("token" text, "userId" text, "expiresAt" timestamptz);
		INSERT INTO "MyApp"."user" VALUES ('u');
		INSERT INTO "MyApp"."session" VALUES ('a-session', 'u', 'tomorrow')`)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(serveSecret))
	mac.Write([]byte("a-session"))
	session := fmt.Sprint("a-session.", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	s := startServer(t, "DATABASE_URL="+testdb.URL(t), "BETTER_AUTH_SECRET="+serveSecret,
		"BETTER_AUTH_DATABASE_URL="+better+"&schema=MyApp", "BETTER_AUTH_URL=http://127.0.0.1:1/api/auth")
	if status, answer, err := s.callAs(session, "GET", "/api/tasks", ""); err != nil || status != 200 {
		t.Errorf("%d %v %v; the server said:\n%s", status, answer, err, s.stderr)
	}
	for origin, want := range map[string]int{
		"http://127.0.0.1:1": 201, "http://localhost:3000": 201, "http://127.0.0.1": 403,
	} {
		req, err := http.NewRequest("POST", s.base+"/api/tasks", strings.NewReader(`{"title":"a"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		req.Header.Set("Cookie", "better-auth.session_token="+session)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		allowed := resp.Header.Get("Access-Control-Allow-Origin")
		if resp.StatusCode != want || (allowed == origin) != (want == 201) {
			t.Errorf("a write from %s: %d, allowed %q, want %d", origin, resp.StatusCode, allowed, want)
		}
	}
	s.terminate()
}
