package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"taskledger/httpapi/admin"
	"taskledger/httpapi/auth"
	"taskledger/migrations/postgres"
)

// settings are what the environment says. An empty text is the same as none, but for the secret.
type settings struct {
	Port        int      `env:"PORT" default:"8000" group:"HTTP" help:"Port of the API; 0 takes a free one."`
	CORSOrigins []string `env:"CORS_ORIGINS" default:"http://localhost:3000" group:"HTTP" help:"Origins of the web pages that may call the API from a browser and write by cookie, separated by commas; that of BETTER_AUTH_URL always may."`
	AdminAddr   string   `env:"ADMIN_ADDR" default:"127.0.0.1:9090" group:"HTTP" help:"Where the page for operators, metrics and profiles are served; empty serves them nowhere. Beyond the loopback it wants ADMIN_TOKEN."`
	AdminToken  string   `env:"ADMIN_TOKEN" placeholder:"TOKEN" group:"HTTP" help:"What ADMIN_ADDR asks for when it is not of the loopback, as bearer or in a form: 16 bytes or more."`

	DatabaseURL    string `env:"DATABASE_URL" placeholder:"URL" group:"Database" help:"The PostgreSQL to use, 14 or newer, pooled or not. Without it taskledger runs one of its own in DATA_DIR."`
	DatabaseSchema string `env:"DATABASE_SCHEMA" default:"taskledger" group:"Database" help:"The schema that everything of ours is in: a ledger of its own."`
	RebuildOnStart bool   `env:"REBUILD_ON_START" default:"false" group:"Database" help:"Make the read model anew in the background when another version of its code has made it."`
	DataDir        string `env:"DATA_DIR" placeholder:"DIR" group:"Database" help:"Where the PostgreSQL of our own and the development secret are kept; by default the user's data directory."`

	BetterAuthSecret      *string `env:"BETTER_AUTH_SECRET" placeholder:"SECRET" group:"Who is calling" help:"The secret that Better Auth has too, of 32 bytes or more. Without it, and without DATABASE_URL, one for development is made and kept in DATA_DIR."`
	BetterAuthURL         string  `env:"BETTER_AUTH_URL" placeholder:"URL" group:"Who is calling" help:"Where Better Auth runs, with its base path if that is not at the root; its keys are read from /api/auth/jwks there."`
	BetterAuthDatabaseURL string  `env:"BETTER_AUTH_DATABASE_URL" placeholder:"URL" group:"Who is calling" help:"The database with Better Auth's session and user tables, if it is not DATABASE_URL; they are looked up in the schema or search_path that its URL names, else in public."`
	JWKSURL               string  `name:"jwks-url" env:"JWKS_URL" placeholder:"URL" group:"Who is calling" help:"A JSON Web Key Set to verify tokens by, if it is not Better Auth's."`
	JWTIssuer             string  `name:"jwt-issuer" env:"JWT_ISSUER" placeholder:"ISS" group:"Who is calling" help:"The issuer that a token must name."`
	JWTAudience           string  `name:"jwt-audience" env:"JWT_AUDIENCE" placeholder:"AUD" group:"Who is calling" help:"The audience that a token must name."`

	RateLimitRPS    float64 `name:"rate-limit-rps" env:"RATE_LIMIT_RPS" default:"50" group:"Limits" help:"Requests a second that a user may make in the long run; 0 is no limit."`
	RateLimitBurst  int     `env:"RATE_LIMIT_BURST" default:"100" group:"Limits" help:"Requests that a user may make at once; 0 is no limit."`
	MaxTasksPerUser int     `env:"MAX_TASKS_PER_USER" default:"10000" group:"Limits" help:"Live tasks that a user may have."`

	OTLPEndpoint string `name:"otel-exporter-otlp-endpoint" env:"OTEL_EXPORTER_OTLP_ENDPOINT" placeholder:"URL" group:"Tracing" help:"The OpenTelemetry collector that traces are sent to, over OTLP/HTTP; without it nobody traces. The other OTEL_ variables are those of its SDK."`

	LogLevel  string `env:"LOG_LEVEL" default:"info" group:"Logging" help:"The least that is logged: debug, info, warn or error."`
	LogFormat string `env:"LOG_FORMAT" default:"text" group:"Logging" help:"How it is logged: text or json."`
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// embedded reports whether the database is the PostgreSQL of our own.
func (s *settings) embedded() bool { return s.DatabaseURL == "" }

// dataDir is where that PostgreSQL and the development secret live.
func (s *settings) dataDir() (string, error) {
	if s.DataDir != "" {
		return s.DataDir, nil
	}
	return postgres.DefaultDir(os.Getenv)
}

// check returns the first setting that cannot be used and what it should be. It shows no value that could have a
// password in it.
func (s *settings) check() error {
	if _, ok := logLevels[s.LogLevel]; !ok {
		return fmt.Errorf("LOG_LEVEL must be debug, info, warn or error, not %q", s.LogLevel)
	}
	if s.LogFormat != "text" && s.LogFormat != "json" {
		return fmt.Errorf("LOG_FORMAT must be text or json, not %q", s.LogFormat)
	}
	if s.OTLPEndpoint != "" && !isWebURL(s.OTLPEndpoint) {
		return errors.New("OTEL_EXPORTER_OTLP_ENDPOINT must be a URL that begins with http:// or https://")
	}
	return first(s.checkHTTP, s.checkLimits, s.checkDatabases, s.checkLogin)
}

// first runs the checks up to the one that fails.
func first(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *settings) checkHTTP() error {
	if !isPort(s.Port) {
		return fmt.Errorf("PORT must be a port number, 0 to 65535, not %d", s.Port)
	}
	for i := range s.CORSOrigins {
		s.CORSOrigins[i] = strings.TrimSpace(s.CORSOrigins[i])
	}
	for _, origin := range s.CORSOrigins {
		if strings.Contains(origin, "@") {
			return errors.New("CORS_ORIGINS must not have a user or password in it")
		}
		if !isOrigin(origin) {
			return fmt.Errorf(
				"CORS_ORIGINS must be origins such as https://app.example.com, without path, separated by commas, "+
					"not %q",
				origin,
			)
		}
	}
	if s.AdminAddr != "" && !isAddress(s.AdminAddr) {
		return fmt.Errorf("ADMIN_ADDR must be host:port such as 127.0.0.1:9090, or empty, not %q", s.AdminAddr)
	}
	if s.AdminToken != "" && len(s.AdminToken) < admin.MinToken {
		return fmt.Errorf("ADMIN_TOKEN must have %d bytes or more, it has %d", admin.MinToken, len(s.AdminToken))
	}
	return nil
}

func (s *settings) checkLimits() error {
	if !(s.RateLimitRPS >= 0) || math.IsInf(s.RateLimitRPS, 0) {
		return fmt.Errorf(
			"RATE_LIMIT_RPS must be a number of requests a second, 0 (off) or more, not %v",
			s.RateLimitRPS,
		)
	}
	if s.RateLimitBurst < 0 {
		return fmt.Errorf("RATE_LIMIT_BURST must be a number of requests, 0 (off) or more, not %d", s.RateLimitBurst)
	}
	if s.MaxTasksPerUser < 1 {
		return fmt.Errorf("MAX_TASKS_PER_USER must be a number of tasks, 1 or more, not %d", s.MaxTasksPerUser)
	}
	return nil
}

// schemaNames are those that need no quotes, and leave room for what is put behind them.
var schemaNames = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,39}$`)

func (s *settings) checkDatabases() error {
	if !schemaNames.MatchString(s.DatabaseSchema) || strings.HasPrefix(s.DatabaseSchema, "pg_") ||
		s.DatabaseSchema == "public" {
		return fmt.Errorf(
			"DATABASE_SCHEMA must be a name of a schema of its own, in a-z, 0-9 and _, not %q",
			s.DatabaseSchema,
		)
	}
	for name, value := range map[string]string{
		"DATABASE_URL": s.DatabaseURL, "BETTER_AUTH_DATABASE_URL": s.BetterAuthDatabaseURL,
	} {
		if value == "" {
			continue
		}
		if _, err := readDatabaseURL(value); err != nil {
			return fmt.Errorf("%s %w", name, err)
		}
	}
	return nil
}

func (s *settings) checkLogin() error {
	for name, value := range map[string]string{"BETTER_AUTH_URL": s.BetterAuthURL, "JWKS_URL": s.JWKSURL} {
		if value != "" && !isWebURL(value) {
			return fmt.Errorf("%s must be a URL that begins with http:// or https://", name)
		}
	}
	if u, err := url.Parse(s.BetterAuthURL); err == nil && u.User != nil { // its origin is what browsers send
		return errors.New("BETTER_AUTH_URL must not have a user or password in it")
	}
	if s.BetterAuthSecret != nil && len(*s.BetterAuthSecret) < auth.MinSecret {
		return fmt.Errorf("BETTER_AUTH_SECRET must have %d bytes or more, it has %d",
			auth.MinSecret, len(*s.BetterAuthSecret))
	}
	return nil
}

// checkServable is about the server alone: migrate, say, needs nobody to log in.
func (s *settings) checkServable() error {
	if s.AdminAddr != "" && !isLoopback(s.AdminAddr) && s.AdminToken == "" {
		return errors.New(
			"ADMIN_TOKEN must be set, to 16 bytes or more, when ADMIN_ADDR is not an address of the loopback",
		)
	}
	if !s.embedded() && s.BetterAuthSecret == nil && s.BetterAuthURL == "" && s.JWKSURL == "" {
		return errors.New(
			"BETTER_AUTH_SECRET, BETTER_AUTH_URL or JWKS_URL must be set when DATABASE_URL is: " +
				"nobody could log in without",
		)
	}
	return nil
}

func isPort(n int) bool { return 0 <= n && n <= 65535 }

func isAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && isPort(n)
}

// isLoopback reports whether only this machine can call an address. A name other than localhost could be anyone's.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// isOrigin reports whether a browser could send s as an Origin: those are compared to the letter.
func isOrigin(s string) bool {
	u, err := url.Parse(s)
	return err == nil && isWebURL(s) && s == u.Scheme+"://"+u.Host && s == strings.ToLower(s) &&
		!strings.Contains(s, "*")
}

func isWebURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && slices.Contains([]string{"http", "https"}, u.Scheme) && u.Hostname() != ""
}
