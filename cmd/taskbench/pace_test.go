package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestScheduleGivesLateRequestsTheTimeTheyWereDue(t *testing.T) {
	t.Parallel()
	start := time.Now().Add(-time.Minute)
	s := &schedule{start: start, until: start.Add(time.Second), rate: 4}
	for i := range 5 {
		due, ok := s.next(t.Context())
		if want := start.Add(time.Duration(i) * 250 * time.Millisecond); !due.Equal(want) || ok != (i < 4) {
			t.Errorf("request %d is due after %s, %t", i, due.Sub(start), ok)
		}
	}
}

func TestScheduleWaitsUntilARequestIsDue(t *testing.T) {
	t.Parallel()
	start := time.Now().Add(30 * time.Millisecond)
	s := &schedule{start: start, until: start.Add(time.Hour), rate: 1}
	if at, ok := s.next(t.Context()); !ok || at.Before(start) || time.Now().Before(start) {
		t.Errorf("%t, %s before it was due", ok, start.Sub(at))
	}
}

func openLoop(t *testing.T, api *fakeAPI, more ...string) (loadResult, outcome) {
	t.Helper()
	args := append([]string{"--url", api.start(t), "--users", "3", "--tasks", "2", "--warmup", "0s", "--json"}, more...)
	got := bench(t, args...)
	var results []loadResult
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || len(results) == 0 {
		t.Fatalf("exit %d: %v: %s", got.code, err, got.stderr)
	}
	return results[0], got
}

func TestOpenLoopSendsAtItsRate(t *testing.T) {
	t.Parallel()
	r, got := openLoop(t, &fakeAPI{}, "--rate", "100", "--op", "create", "--duration", "300ms")
	if got.code != 0 || r.Requests != 30 || r.Connections != 64 || r.Rate > 110 {
		t.Errorf("exit %d: %+v, want 30 requests", got.code, r)
	}
}

// slow answers one request after the other, each after 20 ms.
func slow(busy chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		busy <- struct{}{}
		<-time.After(20 * time.Millisecond)
		<-busy
		writeTask(w, r.PathValue("id"), 1)
	}
}

func TestOpenLoopCountsTheWaitForAConnection(t *testing.T) {
	t.Parallel()
	api := &fakeAPI{get: slow(make(chan struct{}, 1))}
	r, got := openLoop(t, api, "--rate", "100", "--op", "get", "--duration", "100ms", "--connections", "1")
	// Due every 10 ms, done every 20: the last of 10 waits some 90 ms before its own 20.
	if got.code != 0 || r.Requests != 10 || r.Max < 100 {
		t.Errorf("exit %d: %+v, want the wait in it", got.code, r)
	}
}

func TestOpenLoopGivesUpWhatNobodyWouldWaitFor(t *testing.T) {
	t.Parallel()
	api := &fakeAPI{get: slow(make(chan struct{}, 1))}
	r, got := openLoop(t, api,
		"--rate", "1000", "--op", "get", "--duration", "500ms", "--connections", "1", "--request-timeout", "100ms")
	if timeouts := r.Errors["timeout"]; got.code != 1 || r.Requests+timeouts != 500 || timeouts < 400 {
		t.Errorf("exit %d: %+v, want most of 500 requests to time out", got.code, r)
	}
}

func TestFreshness(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		late    time.Duration
		forgets bool // the stream never has anything
		timeout string
		code    int
		check   func(written int64, visible loadResult) bool
	}{
		{"as soon as written", 0, false, "10s", 0, func(n int64, r loadResult) bool {
			return r.Requests == n && r.P99 < 5000 && len(r.Errors) == 0
		}},
		{"late", 50 * time.Millisecond, false, "10s", 0, func(n int64, r loadResult) bool {
			return r.Requests == n && r.P50 > 40
		}},
		{"never", 0, true, "300ms", 1, func(n int64, r loadResult) bool {
			return r.Requests == 0 && r.Errors["never arrived"] == n
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			api := &fakeAPI{streamLate: tt.late, streamForgets: tt.forgets}
			_, got := openLoop(t, api, "--rate", "100", "--op", "create,toggle", "--freshness", "--duration", "200ms",
				"--request-timeout", tt.timeout)
			var results []loadResult
			if err := json.Unmarshal(
				[]byte(got.stdout),
				&results,
			); err != nil || got.code != tt.code ||
				len(results) != 4 {
				t.Fatalf("exit %d: %v: %s%s", got.code, err, got.stdout, got.stderr)
			}
			for i, name := range []string{"create to stream", "toggle to stream"} {
				written, visible := results[2*i], results[1+2*i]
				if written.Requests == 0 || visible.Op != name || !tt.check(written.Requests, visible) {
					t.Errorf("%+v, of %+v", visible, written)
				}
			}
		})
	}
}

func TestFreshnessNeedsStreams(t *testing.T) {
	t.Parallel()
	api := &fakeAPI{noStreams: true}
	got := bench(t, "--url", api.start(t), "--rate", "100", "--op", "create", "--freshness", "--duration", "50ms")
	if got.code != 1 || !strings.Contains(got.stderr, "404") {
		t.Errorf("exit %d: %s", got.code, got.stderr)
	}
}

func TestWhatArrivesBeforeItsAcknowledgementTookNoTime(t *testing.T) {
	t.Parallel()
	from := time.Now()
	l := (&options{}).newListener(from)
	l.arrive(1, from.Add(time.Millisecond))
	l.acknowledge(1, from.Add(3*time.Millisecond))
	l.acknowledge(2, from.Add(4*time.Millisecond))
	l.acknowledge(3, from.Add(-time.Millisecond)) // in the warm-up
	l.arrive(3, from.Add(5*time.Millisecond))
	if l.missing() != 1 || l.measured.latency.TotalCount() != 1 || l.measured.quantile(100) != 0 {
		t.Errorf("%d missing, %d measured, at most %.2f ms",
			l.missing(), l.measured.latency.TotalCount(), l.measured.quantile(100))
	}
}
