package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"
	"github.com/pb33f/go-yaml"

	"taskledger/migrations/testdb"
)

var metricNames = regexp.MustCompile(`\btaskledger_[a-z_]+`)

// What the alerts and the dashboard are about is measured.
func TestAlertsAndDashboardNameMetricsThatAre(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"alerts.yaml", "grafana.json"} {
		names := metricNames.FindAllString(readTop(t, "cmd/taskledger/"+file), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range names {
			plain := name
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				if of, cut := strings.CutSuffix(name, part); cut && shownMetrics[of] == "histogram" {
					plain = of
				}
			}
			if shownMetrics[plain] == "" || plain == name && shownMetrics[plain] == "histogram" {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

// alertRule is a rule of alerts.yaml.
type alertRule struct {
	Alert       string
	Annotations map[string]string
}

func readAlerts(t *testing.T) []alertRule {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alertRule }
	}
	if err := yaml.Unmarshal([]byte(readTop(t, "cmd/taskledger/alerts.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	return file.Groups[0].Rules
}

// findPromtool finds the program that evaluates rules. Where it is missing, the rest of the suite says as much as it
// can, except where the project is checked for good.
func findPromtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err == nil {
		return path
	}
	const missing = "promtool is missing, which evaluates the alerts: it is in the package prometheus"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// observed is a server that is looked at twice, as Prometheus would, with what happens in between.
type observed struct {
	*served
	app           *app
	before, after string
}

// observe starts a server and looks at it before and after do.
func observe(t *testing.T, jwks string, do func(o *observed)) *observed {
	t.Helper()
	url := testdb.URL(t)
	s, a, stop := serveHere(t, url, &settings{MaxTasksPerUser: 100, DatabaseURL: url, JWKSURL: jwks})
	defer stop()
	o := &observed{served: s, app: a}
	use := func() {
		o.must(201, "used", "POST", "/api/tasks", `{"title":"a"}`)
		o.must(200, "used", "GET", "/api/tasks", "")
	}
	use()
	o.awaitShown("taskledger_survey_timestamp_seconds [1-9]")
	o.before = scrape(t, a)
	use()
	if do(o); o.after == "" {
		o.after = scrape(t, a)
	}
	return o
}

// awaitShown waits until the server shows a metric that matches.
func (o *observed) awaitShown(pattern string) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	for !regexp.MustCompile("(?m)^" + pattern).MatchString(scrape(o.t, o.app)) {
		if !tick(ctx) {
			o.t.Fatalf("%s is not shown", pattern)
		}
	}
}

// shownValues are the samples of a scrape by their series.
func shownValues(t *testing.T, shown string) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for line := range strings.Lines(shown) {
		at := strings.LastIndex(line, " ")
		if line[0] == '#' || at < 0 {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		if err != nil {
			t.Fatal(err)
		}
		values[line[:at]] = value
	}
	return values
}

const testMinutes = 45

// inputSeries are those of a server as they would go on: what it counted between the two looks it counts every minute,
// what is not shown gets older, what was looked for is looked for again, and the rest stays as it is.
func inputSeries(before, after map[string]float64, now time.Time) string {
	series := func(name string, from, step float64) string {
		return fmt.Sprintf("      - {series: '%s', values: '%f%+fx%d'}\n", withTarget(name), from, step, testMinutes)
	}
	var b strings.Builder
	if _, told := after["up"]; !told {
		b.WriteString(series("up", 1, 0))
	}
	for name, value := range after {
		metric, _, _ := strings.Cut(name, "{")
		switch {
		case regexp.MustCompile(`_(total|bucket|sum|count)$`).MatchString(metric):
			b.WriteString(series(name, before[name], math.Max(0, value-before[name])))
		case strings.HasSuffix(metric, "_lag_seconds") && value > 0:
			b.WriteString(series(name, value, 60))
		case strings.HasSuffix(metric, "_timestamp_seconds"):
			step := 60.0
			if value == 0 { // never
				step = 0
			}
			b.WriteString(series(name, value-float64(now.UnixMilli())/1000, step)) // promtool's clock begins with 0
		default:
			b.WriteString(series(name, value, 0))
		}
	}
	return b.String()
}

// withTarget adds the labels that Prometheus does.
func withTarget(series string) string {
	const target = `job="taskledger",instance="here:9090"`
	if name, labels, ok := strings.Cut(series, "{"); ok {
		return name + "{" + target + "," + labels
	}
	return series + "{" + target + "}"
}

// evaluate has promtool evaluate the rules on series, and compare what expressions give in the end: samples, as
// promtool writes them.
func evaluate(t *testing.T, promtool, series string, want map[string]string) {
	t.Helper()
	rules := filepath.Join(moduleRoot(t), "cmd", "taskledger", "alerts.yaml")
	text := "rule_files: ['" + rules + "']\nevaluation_interval: 1m\ntests:\n" +
		"  - interval: 1m\n    input_series:\n" + series + "    promql_expr_test:\n"
	for expr, samples := range want {
		quoted, err := json.Marshal(expr)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("      - {eval_time: %dm, expr: %s, exp_samples: [%s]}\n", testMinutes-5, quoted, samples)
	}
	file := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// firing is what the alerts should be in the end. How fast the machine is that the test runs on says nothing.
func firing(alerts ...string) map[string]string {
	slices.Sort(alerts)
	var samples []string
	for _, name := range alerts {
		samples = append(samples, fmt.Sprintf(`{labels: '{alertname="%s"}', value: 1}`, name))
	}
	unsure := `, alertname!="TaskledgerSlow"`
	if slices.Contains(alerts, "TaskledgerSlow") {
		unsure = ""
	}
	expr := `count by (alertname) (ALERTS{alertstate="firing"` + unsure + `})`
	return map[string]string{expr: strings.Join(samples, ", ")}
}

// The alerts fire on what they are for, in a server that is in that state, and on nothing else.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	promtool := findPromtool(t)
	check := func(t *testing.T, o *observed, alerts ...string) {
		t.Helper()
		series := inputSeries(shownValues(t, o.before), shownValues(t, o.after), time.Now())
		evaluate(t, promtool, series, firing(alerts...))
	}
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		check(t, observe(t, serveKeys(t, `{"keys":[`+goodKey+`]}`), func(*observed) {}))
	})
	t.Run("held projector", func(t *testing.T) {
		t.Parallel()
		o := observe(t, "", func(o *observed) {
			release := o.hold(`SELECT FROM taskledger.checkpoints FOR UPDATE`)
			defer release()
			o.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
			o.must(200, "u", "GET", "/api/tasks", "") // stale
			o.awaitShown(`taskledger_projection_failing\{.*\} 1$`)
			o.after = scrape(o.t, o.app)
		})
		check(t, o, "TaskledgerReadModelBehind", "TaskledgerProjectionHeldUp", "TaskledgerStaleAnswers")
	})
	t.Run("parked user", func(t *testing.T) {
		t.Parallel()
		check(t, observe(t, "", func(o *observed) {
			o.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)
			appendUnreadable(t, o.app.ledger.Pool().Config().ConnString())
			o.must(201, "v", "POST", "/api/tasks", `{"title":"behind it"}`)
			o.must(200, "v", "GET", "/api/tasks", "") // shows it when the event has been passed
			o.awaitShown(`taskledger_parked_users 1$`)
		}), "TaskledgerParkedUsers")
	})
	t.Run("key set that verifies nothing", func(t *testing.T) {
		t.Parallel()
		check(t, observe(t, serveKeys(t, `{"keys":[]}`), func(o *observed) {
			o.awaitShown(`taskledger_auth_jwks_last_success_timestamp_seconds [1-9]`)
			for range 10 {
				if status, _, err := o.callAs(tokenOfKey(t, "k"), "GET", "/api/tasks", ""); status != 401 {
					t.Fatal(status, err)
				}
			}
		}), "TaskledgerNoKeys", "TaskledgerTokensRefused")
	})
	t.Run("key set that is away", func(t *testing.T) {
		t.Parallel()
		check(t, observe(t, "http://127.0.0.1:1/jwks", func(o *observed) {
			if status, _, err := o.callAs(tokenOfKey(t, "k"), "GET", "/api/tasks", ""); status != 503 {
				t.Fatal(status, err)
			}
		}), "TaskledgerNoKeys", "TaskledgerKeysAway", "TaskledgerErrors")
	})
}

// The rest of the alerts fire on what a healthy server shows, changed by what they are for.
func TestTheOtherAlertsFire(t *testing.T) {
	t.Parallel()
	promtool := findPromtool(t)
	o := observe(t, "", func(*observed) {})
	const requests = "taskledger_http_request_duration_seconds"
	for alert, change := range map[string]map[string]float64{
		"TaskledgerDown":     {"up": 0},
		"TaskledgerNotReady": {requests + `_count{method="GET",route="/readyz",status="503"}`: 6},
		"TaskledgerErrors":   {requests + `_count{method="GET",route="/api/tasks",status="500"}`: 6},
		"TaskledgerSlow": {
			requests + `_bucket{method="PUT",route="/api/tasks/:id",status="200",le="0.1"}`:  0,
			requests + `_bucket{method="PUT",route="/api/tasks/:id",status="200",le="0.25"}`: 100,
			requests + `_bucket{method="PUT",route="/api/tasks/:id",status="200",le="+Inf"}`: 100,
		},
		"TaskledgerPoolWaits":      {`taskledger_pool_wait_seconds_total{pool="reader"}`: 90},
		"TaskledgerAppendFailures": {`taskledger_append_failures_total`: 1},
		"TaskledgerNoSecondLock":   {`taskledger_row_level_security`: 0},
		"TaskledgerRebuildStuck":   {`taskledger_rebuild_running`: 1, `taskledger_rebuild_done_events`: 100},
	} {
		t.Run(alert, func(t *testing.T) {
			t.Parallel()
			after := shownValues(t, o.after)
			for series, value := range change {
				after[series] = value
				if strings.HasSuffix(series, "_total") {
					after[series] += shownValues(t, o.before)[series]
				}
			}
			evaluate(t, promtool, inputSeries(shownValues(t, o.before), after, time.Now()), firing(alert))
		})
	}
}

// Each alert is in one of the two tests above, and tells people what it is and what to do.
func TestEachAlertIsTestedAndExplained(t *testing.T) {
	t.Parallel()
	self, err := os.ReadFile("alerts_test.go")
	if err != nil {
		t.Fatal(err)
	}
	rules := readAlerts(t)
	for _, rule := range rules {
		if !strings.Contains(string(self), `"`+rule.Alert+`"`) {
			t.Errorf("%s has not been seen to fire", rule.Alert)
		}
		if rule.Annotations["summary"] == "" || rule.Annotations["runbook"] == "" {
			t.Errorf("%s says nothing to who is woken by it", rule.Alert)
		}
	}
	if len(rules) == 0 {
		t.Error("there are no alerts")
	}
}

// Each panel of the dashboard shows something of a server that is used.
func TestDashboardShowsAUsedServer(t *testing.T) {
	t.Parallel()
	promtool := findPromtool(t)
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal([]byte(readTop(t, "cmd/taskledger/grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$__rate_interval", "5m", "$job", "taskledger", "$instance", ".*")
	want := map[string]string{}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			want["count("+fill.Replace(target.Expr)+" >= 0) > bool 0"] = "{labels: '{}', value: 1}"
		}
	}
	if len(want) == 0 {
		t.Fatal("the dashboard shows nothing")
	}
	o := observe(t, serveKeys(t, `{"keys":[`+goodKey+`]}`), func(*observed) {})
	series := inputSeries(shownValues(t, o.before), shownValues(t, o.after), time.Now())
	evaluate(t, promtool, series, want)
}

const goodKey = `{"kid":"k","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

// serveKeys serves a key set.
func serveKeys(t *testing.T, set string) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(set))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// tokenOfKey is a token that says which key it is signed with.
func tokenOfKey(t *testing.T, kid string) string {
	t.Helper()
	claims := jwt.MapClaims{"sub": "u", "exp": time.Now().Add(time.Hour).Unix()}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	token.Header["kid"] = kid
	signed, err := token.SignedString(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// hold takes the locks of a statement, until release is called.
func (o *observed) hold(statement string) (release func()) {
	o.t.Helper()
	conn, err := pgx.ConnectConfig(o.t.Context(), o.app.ledger.Pool().Config().ConnConfig)
	if err != nil {
		o.t.Fatal(err)
	}
	if _, err = conn.Exec(o.t.Context(), "BEGIN"); err == nil {
		_, err = conn.Exec(o.t.Context(), statement)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	return func() { _ = conn.Close(context.WithoutCancel(o.t.Context())) }
}
