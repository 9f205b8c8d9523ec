package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/httpapi/admin"
	"taskledger/migrations/testdb"
)

// shownMetrics are all metrics of ours, and their types: what dashboards and alerts can be made of.
var shownMetrics = map[string]string{
	"taskledger_answers_total":                            "counter",
	"taskledger_append_batch_events":                      "histogram",
	"taskledger_append_conflicts_total":                   "counter",
	"taskledger_append_duration_seconds":                  "histogram",
	"taskledger_append_failures_total":                    "counter",
	"taskledger_auth_accepted_total":                      "counter",
	"taskledger_auth_jwks_keys":                           "gauge",
	"taskledger_auth_jwks_last_success_timestamp_seconds": "gauge",
	"taskledger_auth_refusals_total":                      "counter",
	"taskledger_command_exclusive_total":                  "counter",
	"taskledger_command_retries_total":                    "counter",
	"taskledger_command_streams_bytes":                    "gauge",
	"taskledger_http_request_duration_seconds":            "histogram",
	"taskledger_http_streams":                             "gauge",
	"taskledger_kept_answers_bytes":                       "gauge",
	"taskledger_parked_users":                             "gauge",
	"taskledger_pool_acquires_total":                      "counter",
	"taskledger_pool_connections":                         "gauge",
	"taskledger_pool_max_connections":                     "gauge",
	"taskledger_pool_wait_seconds_total":                  "counter",
	"taskledger_pool_waits_total":                         "counter",
	"taskledger_projection_batch_duration_seconds":        "histogram",
	"taskledger_projection_batch_events":                  "histogram",
	"taskledger_projection_checked_timestamp_seconds":     "gauge",
	"taskledger_projection_delay_seconds":                 "histogram",
	"taskledger_projection_events_total":                  "counter",
	"taskledger_projection_failing":                       "gauge",
	"taskledger_projection_lag_events":                    "gauge",
	"taskledger_projection_lag_seconds":                   "gauge",
	"taskledger_projection_parked_total":                  "counter",
	"taskledger_read_wait_seconds":                        "histogram",
	"taskledger_rebuild_done_events":                      "gauge",
	"taskledger_rebuild_running":                          "gauge",
	"taskledger_rebuild_total_events":                     "gauge",
	"taskledger_row_level_security":                       "gauge",
	"taskledger_stale_answers_total":                      "counter",
	"taskledger_survey_timestamp_seconds":                 "gauge",
}

// usedMetrics are lines of a server that was asked for two tasks, and for their list.
var usedMetrics = []string{
	`taskledger_answers_total{from="kept"} [1-9]`,
	`taskledger_answers_total{from="read"} [1-9]`,
	`taskledger_append_batch_events_sum 2\b`,
	`taskledger_append_duration_seconds_count 2\b`,
	`taskledger_http_request_duration_seconds_count{method="POST",route="/api/tasks",status="201"} 2\b`,
	`taskledger_kept_answers_bytes [1-9]`,
	`taskledger_pool_acquires_total{pool="reader"} [1-9]`,
	`taskledger_pool_connections{pool="ledger",state="idle"} \d`,
	`taskledger_pool_max_connections{pool="sessions"} 4\b`,
	`taskledger_projection_batch_events_sum{projection="tasks"} 2\b`,
	`taskledger_projection_checked_timestamp_seconds{projection="tasks"} [1-9]`,
	`taskledger_projection_lag_events{projection="tasks"} 0\b`,
	`taskledger_read_wait_seconds_count [1-9]`,
}

// Every metric is in the table with its type and follows Prometheus's conventions, and a used server shows that.
func TestMetricsOfAUsedServer(t *testing.T) {
	t.Parallel()
	keys := httptest.NewServer(http.NotFoundHandler())
	defer keys.Close()
	db, err := connect(t.Context(), testdb.URL(t), testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.ledger.Pool().Close()
	cfg := &settings{MaxTasksPerUser: 100, JWKSURL: keys.URL}
	a, err := newApp(t.Context(), cfg, db, []byte(serveSecret), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	s := &served{t: t, stderr: &lockedBuffer{}}
	stop := s.runApp(a)
	for range 2 {
		s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
		s.must(200, "u", "GET", "/api/tasks", "") // waits for the read model
		s.must(200, "u", "GET", "/api/tasks", "") // kept
	}
	shown := scrape(t, a)
	types := map[string]string{}
	for _, line := range strings.Split(shown, "\n") {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "taskledger_") {
			types[f[2]] = f[3]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(types)) {
		if types[name] != shownMetrics[name] {
			t.Errorf("%s is a %s, in the table %q", name, types[name], shownMetrics[name])
		}
		if (types[name] == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s", name, types[name])
		}
	}
	for name := range shownMetrics {
		if types[name] == "" {
			t.Errorf("%s is not shown", name)
		}
	}
	for _, want := range usedMetrics {
		if !regexp.MustCompile(want).MatchString(shown) {
			t.Errorf("no %s in\n%s", want, shown)
		}
	}
	stop()
}

func TestWhatThePagePlotsIsMeasured(t *testing.T) {
	t.Parallel()
	for _, name := range admin.PlottedMetrics() {
		if shownMetrics[name] == "" {
			t.Errorf("there is no metric %s", name)
		}
	}
}

// Who scrapes an idle server has it ask its database nothing.
func TestAScrapeWakesNoDatabase(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	s, a, stop := serveHere(t, url, &settings{MaxTasksPerUser: 100})
	defer stop()
	s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
	s.must(200, "u", "GET", "/api/tasks", "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	onDatabase(t, url, func(_ context.Context, conn *pgx.Conn) error {
		state := func() (state string, err error) {
			err = conn.QueryRow(ctx, `
				SELECT string_agg(concat_ws(' ', pid, state, state_change), ', ' ORDER BY pid)
				FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&state)
			return state, err
		}
		for {
			before, err := state()
			if err != nil {
				return err
			}
			for range 20 {
				scrape(t, a)
				tick(ctx)
			}
			after, err := state()
			if err != nil || before == after {
				return err
			}
			if ctx.Err() != nil {
				return fmt.Errorf("never silent: %s, then %s", before, after)
			}
		}
	})
}

// serveHere runs a server in this process until stop is called.
func serveHere(t *testing.T, url string, cfg *settings) (s *served, a *app, stop func()) {
	t.Helper()
	db, err := connect(t.Context(), url, testdb.Schema)
	if err != nil {
		t.Fatal(err)
	}
	a, err = newApp(t.Context(), cfg, db, []byte(serveSecret), slog.New(slog.DiscardHandler))
	if err != nil {
		db.ledger.Pool().Close()
		t.Fatal(err)
	}
	s = &served{t: t, stderr: &lockedBuffer{}}
	end := s.runApp(a)
	return s, a, func() {
		end()
		a.close()
		db.ledger.Pool().Close()
	}
}

// runApp serves until stop is called.
func (s *served) runApp(a *app) (stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.base = fmt.Sprintf("http://%s", listener.Addr())
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx, listener, nil) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("run: %v", err)
		}
	}
}

// scrape is what Prometheus is shown.
func scrape(t *testing.T, a *app) string {
	t.Helper()
	answer := httptest.NewRecorder()
	a.admin.Handler.ServeHTTP(answer, httptest.NewRequest("GET", "http://localhost/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("%d %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}
