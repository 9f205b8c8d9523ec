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

func TestSchemaOfTheSessionTables(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://h/d":                                              "public",
		"postgres://h/d?sslmode=require":                              "public",
		"postgres://h/d?schema=app":                                   "app",
		"postgres://h/d?schema=MyApp":                                 "MyApp",
		"postgres://h/d?schema=%22MyApp%22":                           "MyApp",
		"postgres://h/d?schema=":                                      "public",
		"postgresql://h/d?schema=app&search_path=other":               "app",
		"postgres://h1:1,h2:2/d?search_path=app":                      "app",
		"postgres://h/d?search_path=MyApp":                            "myapp",
		"postgres://h/d?search_path=%22MyApp%22,public":               "MyApp",
		"postgres://h/d?search_path=%22a,%20%22%22b%22%22%22":         `a, "b"`,
		"postgres://h/d?search_path=%20app%20,%20public":              "app",
		"postgres://h/d?search_path=%22$user%22,public":               "public",
		"postgres://h/d?search_path=$user,app":                        "app",
		"postgres://h/d?search_path=%22%22":                           "public",
		"postgres://h/d?options=-csearch_path%3Dapp":                  "app",
		"postgres://h/d?options=-c%20search_path%3D%22MyApp%22":       "MyApp",
		"postgres://h/d?options=--search_path%3Dapp":                  "app",
		"postgres://h/d?options=--search-path%3Dapp":                  "app",
		"postgres://h/d?options=-c%20search_path%3Da,%5C%20b":         "a",
		"postgres://h/d?options=-c%20search_path%3D%22a%5C%20b%22":    "a b",
		"postgres://h/d?options=-c%20search_path=a%20-csearch_path=b": "b",
		"postgres://h/d?options=-c%20work_mem%3D8MB":                  "public",
		"postgres://h/d?options=-csearch_path%3Da&search_path=b":      "b",
		"postgres://h/search_path=app":                                "public",
		"postgres://search_path=app@h/d":                              "public",
		"host=h dbname=d":                                             "public",
		"host=h schema=MyApp":                                         "MyApp",
		"host=h search_path=app":                                      "app",
		`host=h search_path='"MyApp", public'`:                        "MyApp",
		`host=h password='it\'s schema=x' search_path = app`:          "app",
		`host=h options='-c search_path=app' dbname=d`:                "app",
		"": "public",
	} {
		if got := sessionSchema(url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

func TestWhereTheKeysAre(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ better, named, want string }{
		{"", "", ""},
		{"https://a.example", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/app", "", "https://a.example/app/api/auth/jwks"},
		{"https://a.example/api/auth", "", "https://a.example/api/auth/jwks"},
		{"https://a.example/app/api/auth/", "", "https://a.example/app/api/auth/jwks"},
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
