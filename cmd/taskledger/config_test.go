package main

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"taskledger/httpapi/auth"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// tick waits for the next look at a condition and reports false when ctx ended.
func tick(ctx context.Context) bool {
	timer := time.NewTimer(10 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func TestExampleNamesEverySettingWithItsDefault(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(moduleRoot(t), ".env.example"))
	if err != nil {
		t.Fatal(err)
	}
	example := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`).FindAllStringSubmatch(string(content), -1) {
		example[match[1]] = match[2]
	}
	for field := range reflect.TypeFor[settings]().Fields() {
		name := field.Tag.Get("env")
		value, ok := example[name]
		if name == "" || !ok || value != field.Tag.Get("default") {
			t.Errorf("%s: the example has %q (%v), the default is %q", name, value, ok, field.Tag.Get("default"))
		}
		delete(example, name)
	}
	for name := range example {
		t.Errorf("%s is in the example and is no setting", name)
	}
}

func TestGoodSettings(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*settings){
		"defaults":    func(*settings) {},
		"no admin":    func(s *settings) { s.AdminAddr = "" },
		"all origins": func(s *settings) { s.CORSOrigins = []string{"https://a.example", "http://[::1]:3000"} },
		"no origins":  func(s *settings) { s.CORSOrigins = nil },
		"free port":   func(s *settings) { s.Port = 0 },
		"no limits":   func(s *settings) { s.RateLimitRPS, s.RateLimitBurst = 0, 0 },
		"32 bytes":    func(s *settings) { s.BetterAuthSecret = new(strings.Repeat("s", 32)) },
		"pooled": func(s *settings) {
			s.DatabaseURL = "postgres://u:p@h/d?default_query_exec_mode=exec&sslmode=require"
		},
		"keys": func(s *settings) {
			s.JWKSURL, s.BetterAuthURL = "https://a.example/keys", "http://localhost:3000"
		},
		"other admin":  func(s *settings) { s.AdminAddr = ":9091" },
		"other schema": func(s *settings) { s.DatabaseSchema = "ledger_2" },
		"other format": func(s *settings) { s.LogFormat, s.LogLevel = "json", "debug" },
	} {
		s := settings{
			Port:            8000,
			AdminAddr:       "127.0.0.1:9090",
			DatabaseSchema:  "taskledger",
			RateLimitRPS:    50,
			RateLimitBurst:  100,
			MaxTasksPerUser: 1,
			LogLevel:        "info",
			LogFormat:       "text",
		}
		change(&s)
		if err := s.check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDevelopmentSecretIsMadeOnceAndKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	var group sync.WaitGroup
	secrets := make([]string, 8)
	for i := range secrets {
		group.Go(func() {
			secret, err := (&settings{DataDir: dir}).secret()
			if err != nil {
				t.Error(err)
			}
			secrets[i] = string(secret)
		})
	}
	group.Wait()
	for _, secret := range secrets {
		if len(secret) < auth.MinSecret || secret != secrets[0] {
			t.Errorf("a secret of %d bytes, the same: %v", len(secret), secret == secrets[0])
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v in the directory (%v), want the secret alone", files, err)
	}
	if info, err := files[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
}

func TestSpoiledDevelopmentSecretIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (&settings{DataDir: dir}).secret(); err == nil {
		t.Error("a secret of five bytes was taken")
	}
}

func TestTokenCommand(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	env := []string{"BETTER_AUTH_SECRET=" + secret, "JWT_ISSUER=https://issuer.example", "JWT_AUDIENCE=tasks"}
	got := finish(t, program(t, env, "token", "--user", "Zoë", "--ttl", "90s"))
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit code %d, stderr %q", got.code, got.stderr)
	}
	var claims jwt.RegisteredClaims
	_, err := jwt.ParseWithClaims(
		strings.TrimSpace(got.stdout),
		&claims,
		func(*jwt.Token) (any, error) { return []byte(secret), nil },
		jwt.WithValidMethods([]string{"HS256"}),
		jwt.WithIssuer("https://issuer.example"),
		jwt.WithAudience("tasks"),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
	)
	if err != nil {
		t.Fatal(err)
	}
	if claims.Subject != "Zoë" || claims.ExpiresAt.Sub(claims.IssuedAt.Time) != 90*time.Second {
		t.Errorf("claims %+v", claims)
	}
}

func TestTokenCommandRefuses(t *testing.T) {
	t.Parallel()
	withSecret := []string{"BETTER_AUTH_SECRET=0123456789abcdef0123456789abcdef"}
	for _, tt := range []struct {
		env, args []string
		want      string
	}{
		{withSecret, []string{"--user", ""}, "--user"},
		{withSecret, []string{"--user", strings.Repeat("u", 256)}, "--user"},
		{withSecret, []string{"--user", "a\nb"}, "--user"},
		{withSecret, []string{"--user", "u", "--ttl", "0s"}, "--ttl"},
		{
			[]string{"DATABASE_URL=postgres://h/d", "JWKS_URL=https://a.example/keys"}, []string{"--user", "u"},
			"BETTER_AUTH_SECRET",
		},
	} {
		got := finish(t, program(t, tt.env, append([]string{"token"}, tt.args...)...))
		if got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, tt.want) {
			t.Errorf("token %.20q: exit code %d, stdout %q, stderr %q", tt.args, got.code, got.stdout, got.stderr)
		}
	}
}
