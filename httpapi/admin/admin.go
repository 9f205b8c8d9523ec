// Package admin serves what only operators may see, on an address of its own: pages for people at /, /metrics and
// /debug/pprof/.
//
// The page at / shows the status, plots of the last hour, which a sampler keeps in memory, and the users whom the read
// model no longer follows. The others are an audit browser: find a user, read the history, see the list as it was,
// verify. All that is read works without JavaScript. Nothing here asks the database unless a person looks: an idle
// server stays silent.
package admin

import (
	"context"
	"crypto/rand"
	"embed"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"taskledger/query"
)

// Config configures a Server. All of it is needed, but for the token.
type Config struct {
	Version string
	Metrics prometheus.Gatherer
	Log     *slog.Logger

	// Token is asked for, as bearer or in a form. Empty = none is, and the server answers only those who call it by a
	// name of the loopback.
	Token string

	// Status tells how the service does, in a value that is shown by its JSON.
	Status func(context.Context) (any, error)
	// Queries reads one user's tasks and history.
	Queries *query.Reader
	// FindUsers lists users whose id begins with the prefix, ordered by id, at most limit of them.
	FindUsers func(ctx context.Context, prefix string, limit int) ([]query.User, error)
	// Verify compares a user's chain and read model with the fold of the log. It calls found for each difference.
	Verify func(ctx context.Context, user string, found func(difference string)) (Verified, error)

	// Parked lists the users whom the read model does not follow.
	Parked func(context.Context) ([]Parked, error)
	// Retry applies the events of a parked user again.
	Retry func(ctx context.Context, user string) error
	// Skip passes over the event that a user is parked at, for good, if it is the one at seq.
	Skip func(ctx context.Context, user string, seq int64) error
}

// Parked is a user whom the read model does not follow.
type Parked struct {
	UserID string
	Seq    int64 // of the event that could not be applied
	Reason string
	Since  time.Time
}

// Verified says how much was compared.
type Verified struct {
	Events, Rows, Differences int64
	Parked                    bool // compared up to where the read model stands
}

// Server serves operators. Sample must run beside it.
type Server struct {
	Config
	handler http.Handler
	samples *samples
	csrf    string
	busy    chan struct{} // taken by the one verification that runs
}

//go:embed style.css page.js
var assets embed.FS

// New returns a Server; it does no I/O.
func New(cfg Config) *Server {
	s := &Server{Config: cfg, samples: newSamples(), csrf: rand.Text(), busy: make(chan struct{}, 1)}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	// The command line is not served: it may have the password of a database in it.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)

	mux.HandleFunc("GET /style.css", asset("style.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /page.js", asset("page.js", "text/javascript; charset=utf-8"))
	mux.HandleFunc("GET /{$}", s.overview)
	mux.HandleFunc("GET /parked", s.confirmParked)
	mux.HandleFunc("POST /parked", s.form(s.changeParked))
	mux.HandleFunc("GET /users", s.users)
	mux.HandleFunc("GET /user", s.user)
	mux.HandleFunc("POST /verify", s.form(s.verify))
	s.handler = newGuard(s, mux)
	return s
}

// asset serves a file of ours, as the type it is: the table of the machine may know another.
func asset(name, contentType string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		http.ServeFileFS(w, r, assets, name)
	}
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Sample keeps what the plots show, until ctx ends.
func (s *Server) Sample(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for now := time.Now(); ; {
		if err := s.samples.take(s.Metrics, now); err != nil {
			s.Log.Warn("some metrics could not be read for the plots", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case now = <-ticker.C:
		}
	}
}
