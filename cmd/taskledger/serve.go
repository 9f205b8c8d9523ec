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
	"sync"
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
	// streamCache bounds what decisions keep of streams in memory, in bytes.
	streamCache = 16 << 20
	// keptBytes bounds the answers that are kept.
	keptBytes = 24 << 20
	// maxLag is how old an event may be that the read model does not show, before the service is not ready.
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
	if err := db.migrate(ctx, log); err != nil {
		return err
	}
	if err := tellEarlier(ctx, db, log); err != nil {
		return err
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	besideCtx, stopBeside := context.WithCancel(ctx)
	defer stopBeside()
	beside.Go(func() { tellPredecessor(besideCtx, db, log) })
	outdated, err := tellOutdated(ctx, cfg, db, log)
	if err != nil {
		return err
	}
	if outdated && cfg.RebuildOnStart {
		beside.Go(func() { rebuildOutdated(besideCtx, db, log) })
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

// tellEarlier says in one line what a database of an earlier build is not good for.
func tellEarlier(ctx context.Context, db *database, log *slog.Logger) error {
	found, err := migrations.FindEarlier(ctx, db.ledger.Pool())
	if found {
		log.Warn(
			"the schema public holds a ledger of a build before version 1: it is not carried over, and left as it is",
			"schema",
			db.schema,
		)
	}
	return err
}

// app is the running service: every part of it, wired.
type app struct {
	log    *slog.Logger
	pools  []*pgxpool.Pool
	ledger *events.DB // for the log and the projections, so that reads never starve them
	reader *events.DB // for answers from the read model
	runner *projections.Runner
	events *events.Log
	auth   *auth.Authenticator
	traces *tracing
	server *httpapi.Server
	admin  *http.Server
	sample func(context.Context) // keeps what the page for operators plots
}

func newApp(ctx context.Context, cfg *settings, db *database, secret []byte, log *slog.Logger) (a *app, err error) {
	a = &app{log: log}
	defer func() {
		if err != nil {
			a.closePools()
		}
	}()
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if err := a.openLedger(ctx, db, registry); err != nil {
		return nil, err
	}
	sessions, err := a.openAuth(ctx, cfg, db, secret, registry)
	if err != nil {
		return nil, err
	}
	a.events = events.Open(a.ledger)
	a.events.RegisterMetrics(registry)
	registry.MustRegister(poolMetrics{"ledger": a.ledger.Pool(), "reader": a.reader.Pool(), "sessions": sessions})
	a.runner = projections.NewRunner(a.events, log, projections.NewMetrics(registry))
	queries := query.NewReader(query.Config{DB: a.reader, Log: a.events, ReadModel: a.runner, KeptBytes: keptBytes})
	queries.RegisterMetrics(registry)
	commands := command.NewHandler(command.Config{
		Log:        a.events,
		Stored:     queries.Wrote,
		Quota:      cfg.MaxTasksPerUser,
		CacheBytes: streamCache,
	})
	commands.RegisterMetrics(registry)
	if a.traces, err = startTracing(ctx, cfg, log); err != nil {
		return nil, err
	}
	a.server = httpapi.New(httpapi.Config{
		Commands:  commands,
		Queries:   queries,
		Auth:      a.auth,
		Log:       log,
		Tracer:    a.traces.tracer(),
		Metrics:   registry,
		Ready:     a.ready,
		Watch:     a.runner.Watch,
		Version:   version(),
		Origins:   cfg.origins(),
		RateRPS:   cfg.RateLimitRPS,
		RateBurst: cfg.RateLimitBurst,
	})
	operators := a.newAdmin(cfg, db, registry, queries)
	a.admin = &http.Server{Handler: operators, ReadHeaderTimeout: 5 * time.Second}
	a.sample = operators.Sample
	return a, nil
}

// openLedger opens what the server writes and reads the ledger with.
func (a *app) openLedger(ctx context.Context, db *database, registry *prometheus.Registry) (err error) {
	if a.ledger, err = db.openLedger(ctx, ledgerConnections, events.Settings); err != nil {
		return err
	}
	a.pools = append(a.pools, a.ledger.Pool())
	if a.reader, err = db.openReader(ctx, db.config.MaxConns, events.Settings); err != nil {
		return err
	}
	a.pools = append(a.pools, a.reader.Pool())
	return a.tellSecondLock(ctx, db.traits, registry)
}

// openAuth makes what tells who is calling, and returns the pool that it reads sessions with.
func (a *app) openAuth(
	ctx context.Context, cfg *settings, db *database, secret []byte, registry *prometheus.Registry,
) (*pgxpool.Pool, error) {
	url, err := cfg.sessionURL(db, a.log)
	if err != nil {
		return nil, err
	}
	sessions, err := openSessions(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("open BETTER_AUTH_DATABASE_URL: %w", err)
	}
	a.pools = append(a.pools, sessions)
	a.auth, err = auth.New(ctx, auth.Config{
		Secret:         secret,
		Issuer:         cfg.JWTIssuer,
		Audience:       cfg.JWTAudience,
		JWKSURL:        cfg.jwksURL(),
		Sessions:       sessions,
		SessionSchema:  url.schema,
		AllowedOrigins: cfg.origins(),
		Logger:         a.log,
		Metrics:        registry,
	})
	return sessions, err
}

// jwksURL is where the public keys are: named, or Better Auth's, whose URL may have its base path.
func (s *settings) jwksURL() string {
	if s.JWKSURL != "" || s.BetterAuthURL == "" {
		return s.JWKSURL
	}
	better, err := url.Parse(s.BetterAuthURL)
	if err != nil {
		return s.BetterAuthURL // check has refused it
	}
	better.RawQuery, better.Fragment = "", ""
	base := strings.TrimRight(better.String(), "/?")
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

// tellSecondLock says once whether row level security binds the connections that read, and has a gauge show it.
func (a *app) tellSecondLock(ctx context.Context, role traits, registry prometheus.Registerer) error {
	var binds bool
	_, err := events.One(ctx, a.reader, `
		SELECT row_security_active('{schema}.tasks') AND row_security_active('{schema}.task_history')`, nil, &binds)
	if err != nil {
		return fmt.Errorf("ask whether row level security binds this database role: %w", err)
	}
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "taskledger_row_level_security",
		Help: "Whether row level security, the second lock between users, binds the connections that read (1) " +
			"or not (0).",
	})
	registry.MustRegister(gauge)
	if binds {
		gauge.Set(1)
		return nil
	}
	mend := "run taskledger migrate as the owner of the ledger"
	if role.bypasses {
		mend = "GRANT " + readingRole + " TO the role, or use one without BYPASSRLS"
	}
	a.log.Warn(
		"row level security does not bind this database role: a second lock between users is not there",
		"mend",
		mend,
	)
	return nil
}

// readable reads nothing from each table that answers are read from.
const readable = `
	SELECT
	FROM {schema}.task_events
	CROSS JOIN {schema}.tasks
	CROSS JOIN {schema}.task_history
	CROSS JOIN {schema}.users
	CROSS JOIN {schema}.checkpoints
	LIMIT 0`

// ready looks at everything the service needs: a database that takes writes, a schema that this program can work on and
// rights to, a read model that can be read and follows the log.
func (a *app) ready(ctx context.Context) error {
	if err := a.events.CheckWritable(ctx); err != nil {
		return err
	}
	if err := migrations.Check(ctx, a.ledger.Pool(), a.ledger.Schema()); err != nil {
		return err
	}
	if _, err := events.One(ctx, a.reader, readable, nil); err != nil {
		return fmt.Errorf("read the read model: %w", err)
	}
	lag, err := projections.Lag(ctx, a.ledger)
	if err != nil {
		return err
	}
	if lag > 0 {
		a.runner.Look() // nobody else may do so before the service is ready
	}
	if lag > maxLag {
		return fmt.Errorf("the read model is %s behind", lag.Round(time.Second))
	}
	return a.auth.JWKSReady()
}

// drainTimeout bounds the wait for the projections at the end.
const drainTimeout = time.Second

// run serves until ctx ends or a part fails, then stops the parts in the order of what flows through them: requests,
// events, projections.
func (a *app) run(ctx context.Context, listener, adminListener net.Listener) error {
	projecting, stopProjecting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProjecting()
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	projected, served, administered := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { projected <- a.runner.Run(projecting); stopServing() }()
	go func() { served <- a.server.Serve(serving, listener) }()
	go func() {
		err := a.serveAdmin(serving, adminListener)
		if err != nil {
			stopServing()
		}
		administered <- err
	}()
	err := <-served
	err = errors.Join(err, a.admin.Close(), <-administered)
	a.events.Close()
	draining, stopDraining := context.WithTimeout(projecting, drainTimeout)
	defer stopDraining()
	if err := a.runner.Drain(draining); err != nil {
		a.log.Warn("the read model is left behind the log: the next process goes on with it", "err", events.Cause(err))
	}
	stopProjecting()
	return errors.Join(err, <-projected)
}

// serveAdmin serves operators, if there is a listener for them, until a.admin is closed.
func (a *app) serveAdmin(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	var sampling sync.WaitGroup
	sampling.Go(func() { a.sample(ctx) })
	defer sampling.Wait()
	defer stop()
	if err := a.admin.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("ADMIN_ADDR: %w", err)
	}
	return nil
}

func (a *app) close() {
	a.auth.Close()
	a.events.Close()
	a.traces.close()
	a.closePools()
}

func (a *app) closePools() {
	for _, pool := range a.pools {
		pool.Close()
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
		lines = append(
			lines,
			"",
			"A development token, for the user "+strconv.Quote(developer)+":",
			"",
			"  "+token,
			"",
			"Try it:",
			"",
			"  curl -H 'Authorization: Bearer "+token+"' -H 'Content-Type: application/json' "+
				"-d '{\"title\":\"Buy milk\"}' "+base+"/api/tasks",
		)
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}
