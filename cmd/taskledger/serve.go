package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"taskledger/command"
	"taskledger/events"
	"taskledger/httpapi"
	"taskledger/httpapi/auth"
	"taskledger/migrations"
	"taskledger/projections"
	"taskledger/query"
)

const (
	// developer is the user whose token is printed at start.
	developer = "developer"
	// streamCache bounds the streams that decisions keep in memory, in bytes.
	streamCache = 32 << 20
	// maxLag is how old an event may be that a read model does not show, before the service is not ready.
	maxLag = 10 * time.Second
)

type serveCmd struct{}

func (serveCmd) Run(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) error {
	if err := cfg.checkServable(); err != nil {
		return err
	}
	return serve(ctx, cfg, log, stdout)
}

// serve runs until ctx ends, then lets what is under way finish.
func serve(ctx context.Context, cfg *settings, log *slog.Logger, stdout io.Writer) (err error) {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(cfg.Port))
	if err != nil {
		return fmt.Errorf("PORT: %w", err)
	}
	defer closeQuietly(listener)
	adminListener, err := listenAdmin(cfg)
	if err != nil {
		return err
	}
	if adminListener != nil {
		defer closeQuietly(adminListener)
	}
	db, err := openOwn(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	if err := migrations.Up(ctx, db.pool); err != nil {
		return err
	}
	secret, err := cfg.secret()
	if err != nil {
		return err
	}
	app, err := newApp(ctx, cfg, db, secret, log)
	if err != nil {
		return err
	}
	defer app.close()
	if err := app.banner(stdout, listener.Addr(), cfg, secret); err != nil {
		return err
	}
	return app.run(ctx, listener, adminListener)
}

// listenAdmin listens for operators; nil when that is off.
func listenAdmin(cfg *settings) (net.Listener, error) {
	if cfg.AdminAddr == "" {
		return nil, nil
	}
	listener, err := net.Listen("tcp", cfg.AdminAddr)
	if err != nil {
		return nil, fmt.Errorf("ADMIN_ADDR: %w", err)
	}
	return listener, nil
}

// closeQuietly closes a listener that a server may have closed before.
func closeQuietly(l net.Listener) { _ = l.Close() }

// app is the running service: every part of it, wired.
type app struct {
	log      *slog.Logger
	ledger   *pgxpool.Pool // for the log and the projections, so that reads never starve them
	sessions *pgxpool.Pool // of Better Auth, if it has a database of its own
	runner   *projections.Runner
	events   *events.Log
	auth     *auth.Authenticator
	server   *httpapi.Server
	admin    *http.Server
}

func newApp(ctx context.Context, cfg *settings, db *database, secret []byte, log *slog.Logger) (*app, error) {
	a := &app{log: log}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if a.ledger, err = pgxpool.NewWithConfig(ctx, sized(db.pool.Config(), ledgerConnections)); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	sessions, sessionURL := db.pool, db.url
	if cfg.BetterAuthDatabaseURL != "" {
		if a.sessions, err = openSessions(ctx, cfg.BetterAuthDatabaseURL); err != nil {
			a.ledger.Close()
			return nil, fmt.Errorf("open BETTER_AUTH_DATABASE_URL: %w", err)
		}
		sessions, sessionURL = a.sessions, cfg.BetterAuthDatabaseURL
	}
	a.auth, err = auth.New(ctx, auth.Config{
		Secret:         secret,
		Issuer:         cfg.JWTIssuer,
		Audience:       cfg.JWTAudience,
		JWKSURL:        cfg.jwksURL(),
		Sessions:       sessions,
		SessionSchema:  sessionSchema(sessionURL),
		AllowedOrigins: cfg.origins(),
		Logger:         log,
		Metrics:        registry,
	})
	if err != nil {
		a.closePools()
		return nil, err
	}
	a.runner = projections.NewRunner(a.ledger, log, projections.NewMetrics(registry))
	a.events = events.Open(a.ledger, a.runner.Signal)
	commands := command.NewHandler(command.Config{
		Log:        a.events,
		Visible:    a.runner.Visible,
		Quota:      cfg.MaxTasksPerUser,
		CacheBytes: streamCache,
	})
	a.runner.OnSkip(commands.Forget)
	a.server = httpapi.New(httpapi.Config{
		Commands:  commands,
		Queries:   query.NewReader(db.pool),
		Auth:      a.auth,
		Log:       log,
		Metrics:   registry,
		Ready:     func(ctx context.Context) error { return a.ready(ctx, db.pool) },
		Moved:     a.runner.Moved,
		Watch:     a.runner.Watch,
		Version:   version(),
		Origins:   cfg.origins(),
		RateRPS:   cfg.RateLimitRPS,
		RateBurst: cfg.RateLimitBurst,
	})
	a.admin = &http.Server{Handler: httpapi.NewAdmin(registry), ReadHeaderTimeout: 5 * time.Second}
	return a, nil
}

// jwksURL is where the public keys are: named, or Better Auth's, whose URL may have its base path.
func (s *settings) jwksURL() string {
	if s.JWKSURL != "" || s.BetterAuthURL == "" {
		return s.JWKSURL
	}
	base := strings.TrimRight(s.BetterAuthURL, "/")
	if !strings.HasSuffix(base, "/api/auth") {
		base += "/api/auth"
	}
	return base + "/jwks"
}

// origins may call from a browser and write by cookie: those that are listed, and that of Better Auth.
func (s *settings) origins() []string {
	better, err := url.Parse(s.BetterAuthURL)
	if err != nil || better.Host == "" {
		return s.CORSOrigins
	}
	// As browsers write it: in lower case, without the port that goes without saying.
	port := map[string]string{"http": ":80", "https": ":443"}[better.Scheme]
	origin := better.Scheme + "://" + strings.TrimSuffix(strings.ToLower(better.Host), port)
	if slices.Contains(s.CORSOrigins, origin) {
		return s.CORSOrigins
	}
	return append(slices.Clone(s.CORSOrigins), origin)
}

// ready looks at everything the service needs.
func (a *app) ready(ctx context.Context, pool *pgxpool.Pool) error {
	if err := migrations.Check(ctx, pool); err != nil {
		return err
	}
	lag, err := projections.Lag(ctx, pool)
	if err != nil {
		return err
	}
	if lag > maxLag {
		return fmt.Errorf("the read models are %s behind", lag.Round(time.Second))
	}
	return a.auth.JWKSReady()
}

// run serves until ctx ends or a part fails, then stops the parts in the order of what flows through them: requests, events,
// projections.
func (a *app) run(ctx context.Context, listener, adminListener net.Listener) error {
	projecting, stopProjecting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProjecting()
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	projected, served, administered := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { projected <- a.runner.Run(projecting); stopServing() }()
	go func() { served <- a.server.Serve(serving, listener) }()
	go func() {
		err := a.serveAdmin(adminListener)
		if err != nil {
			stopServing()
		}
		administered <- err
	}()
	err := <-served
	err = errors.Join(err, a.admin.Close(), <-administered)
	a.events.Close()
	stopProjecting()
	return errors.Join(err, <-projected)
}

// serveAdmin serves operators, if there is a listener for them, until a.admin is closed.
func (a *app) serveAdmin(l net.Listener) error {
	if l == nil {
		return nil
	}
	if err := a.admin.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("ADMIN_ADDR: %w", err)
	}
	return nil
}

func (a *app) close() {
	a.auth.Close()
	a.events.Close()
	a.closePools()
}

func (a *app) closePools() {
	a.ledger.Close()
	if a.sessions != nil {
		a.sessions.Close()
	}
}

// banner tells how to call the server. It shows a token only where the secret was made for development.
func (a *app) banner(w io.Writer, addr net.Addr, cfg *settings, secret []byte) error {
	base := fmt.Sprintf("http://localhost:%d", addr.(*net.TCPAddr).Port)
	lines := []string{
		"taskledger " + version(),
		"",
		"  API   " + base + "/api",
		"  docs  " + base + "/docs",
	}
	if cfg.BetterAuthSecret == nil && secret != nil {
		token, err := cfg.mintToken(secret, developer, 30*24*time.Hour, time.Now())
		if err != nil {
			return fmt.Errorf("sign a token: %w", err)
		}
		lines = append(lines,
			"",
			"A development token, for the user "+strconv.Quote(developer)+":",
			"",
			"  "+token,
			"",
			"Try it:",
			"",
			"  curl -H 'Authorization: Bearer "+token+"' -H 'Content-Type: application/json' -d '{\"title\":\"Buy milk\"}' "+base+"/api/tasks",
		)
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}
