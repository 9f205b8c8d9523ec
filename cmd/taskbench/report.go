package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

const rateLimitHint = "the server limits its users' rate; start it with RATE_LIMIT_RPS=0 to measure it"

// loadResult is one line of the report. Times are in milliseconds; errors are counted by status or kind.
type loadResult struct {
	Op          string           `json:"op"`
	Connections int              `json:"connections"`
	Requests    int64            `json:"requests"`
	Rate        float64          `json:"requests_per_second"`
	P50         float64          `json:"p50_ms"`
	P95         float64          `json:"p95_ms"`
	P99         float64          `json:"p99_ms"`
	Max         float64          `json:"max_ms"`
	Errors      map[string]int64 `json:"errors"`
}

func newLoadResult(op string, connections int, total *tally, from time.Time) loadResult {
	return loadResult{
		Op: op, Connections: connections,
		Requests: total.latency.TotalCount(),
		Rate:     total.rate(from),
		P50:      total.quantile(50), P95: total.quantile(95), P99: total.quantile(99),
		Max:    total.quantile(100),
		Errors: total.errors,
	}
}

type pairsResult struct {
	Connections int              `json:"connections"`
	Pairs       int64            `json:"pairs"`
	Misses      int64            `json:"misses"`
	Examples    []string         `json:"examples,omitempty"`
	Errors      map[string]int64 `json:"errors"`
}

func (o *options) printLoad(w io.Writer, results []loadResult) error {
	if o.JSON {
		return printJSON(w, results)
	}
	lines := []string{
		"| op | connections | req/s | p50 ms | p95 ms | p99 ms | max ms | errors |",
		"|---|---:|---:|---:|---:|---:|---:|---|",
	}
	for _, r := range results {
		lines = append(lines, fmt.Sprintf("| %s | %d | %.0f | %.2f | %.2f | %.2f | %.2f | %s |",
			r.Op, r.Connections, r.Rate, r.P50, r.P95, r.P99, r.Max, errorCell(r.Errors)))
	}
	for _, r := range results {
		if isRateLimited(r.Errors) {
			lines = append(lines, "", "429: "+rateLimitHint)
			break
		}
	}
	return printLines(w, lines)
}

func (o *options) printPairs(w io.Writer, results []pairsResult) error {
	if o.JSON {
		return printJSON(w, results)
	}
	lines := []string{"| connections | pairs | misses | errors |", "|---:|---:|---:|---|"}
	var notes []string
	for _, r := range results {
		lines = append(
			lines,
			fmt.Sprintf("| %d | %d | %d | %s |", r.Connections, r.Pairs, r.Misses, errorCell(r.Errors)),
		)
		for _, example := range r.Examples {
			notes = append(notes, "miss: "+example)
		}
		if isRateLimited(r.Errors) {
			notes = append(notes, "429: "+rateLimitHint)
		}
	}
	if len(notes) > 0 {
		lines = append(append(lines, ""), notes...)
	}
	return printLines(w, lines)
}

func printLines(w io.Writer, lines []string) error {
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func printJSON(w io.Writer, results any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(results)
}

// errorCell is like "3 × 429 rate_limited, 1 × timeout", or "0".
func errorCell(errors map[string]int64) string {
	if len(errors) == 0 {
		return "0"
	}
	var cells []string
	for _, name := range slices.Sorted(maps.Keys(errors)) {
		cells = append(cells, fmt.Sprintf("%d × %s", errors[name], name))
	}
	return strings.Join(cells, ", ")
}

func isRateLimited(errors map[string]int64) bool {
	for name := range errors {
		if strings.HasPrefix(name, "429") {
			return true
		}
	}
	return false
}

func withHint(err error) error {
	var bad *badAnswer
	if errors.As(err, &bad) && bad.status == http.StatusTooManyRequests {
		return fmt.Errorf("%w: %s", err, rateLimitHint)
	}
	return err
}
