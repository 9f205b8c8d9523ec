package admin

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestSamplesBecomePlots(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	requests := prometheus.NewHistogramVec(
		prometheus.HistogramOpts{Name: requestsMetric, Buckets: []float64{.1, .2, 1}},
		[]string{"route", "status"},
	)
	registry.MustRegister(requests)
	s, now := newSamples(), time.Unix(1e9, 0)
	take := func() {
		t.Helper()
		if err := s.take(registry, now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(sampleEvery)
	}
	take()
	for range 90 {
		requests.WithLabelValues("/api/tasks", "200").Observe(.05)
	}
	for range 10 {
		requests.WithLabelValues("/api/tasks", "503").Observe(.15)
	}
	requests.WithLabelValues("/api/events", "200").Observe(3600)
	take()
	take()
	got := map[string]string{}
	for _, d := range s.drawings(time.Unix(0, 0)) {
		for _, line := range d.series {
			for _, p := range line.points {
				got[line.name] += fmt.Sprintf(" %.3g", p.value)
			}
		}
	}
	for name, want := range map[string]string{
		"all": " 10.1 0", "failed (5xx)": " 1 0", "median": " 0.0556 NaN", "95th percentile": " 0.15 NaN",
	} {
		if got[name] != want {
			t.Errorf("%s:%s, want%s", name, got[name], want)
		}
	}
	if len(got) != 4 {
		t.Errorf("lines of metrics that nobody registered: %v", got)
	}
}

func TestSamplesOfAnHourAreKept(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewHistogram(prometheus.HistogramOpts{Name: requestsMetric}))
	s, now := newSamples(), time.Unix(1e9, 0)
	for range 3 * sampleCount {
		if err := s.take(registry, now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(sampleEvery)
	}
	points := s.drawings(time.Unix(0, 0))[0].series[0].points
	if len(points) != sampleCount {
		t.Fatalf("%d points are kept", len(points))
	}
	for i, p := range points {
		if want := now.Add(-time.Duration(sampleCount-i) * sampleEvery); !p.at.Equal(want) {
			t.Fatalf("point %d is of %v, want %v", i, p.at, want)
		}
	}
}

func TestAPathHasGapsWhereNothingIsKnown(t *testing.T) {
	t.Parallel()
	from := time.Unix(1e9, 0)
	at := func(seconds int, value float64) point {
		return point{from.Add(time.Duration(seconds) * time.Second), value}
	}
	path := pathOf([]point{at(0, 0), at(10, 10), at(20, math.NaN()), at(30, 5), at(1800, 5), at(3600, 20)}, from, 10)
	if want := "M2.0 98.0h0L3.0 2.0M5.0 50.0h0M180.0 50.0h0M358.0 2.0h0"; path != want {
		t.Errorf("%s, want %s", path, want)
	}
}

func TestNumbersOfAPlot(t *testing.T) {
	t.Parallel()
	for value, want := range map[float64]float64{0: 1, -1: 1, 0.07: 0.1, 1: 1, 1.1: 2, 42: 50, 51: 100, 700: 1000} {
		if got := roundUp(value); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v is rounded up to %v, want %v", value, got, want)
		}
	}
	var texts []string
	for _, v := range []float64{0, 0.0042, 0.25, 1.5, 12345.6} {
		texts = append(texts, seconds(v), perSecond(v))
	}
	want := "0 s, 0/s, 4.2 ms, 0.0042/s, 250 ms, 0.25/s, 1.5 s, 1.5/s, 12346 s, 12346/s"
	if got := strings.Join(texts, ", "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
