package admin

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

const (
	sampleEvery = 10 * time.Second
	sampleCount = int(time.Hour / sampleEvery)
)

// plot is a picture of a few lines over the last hour.
type plot struct {
	name  string
	unit  unit
	lines []line
}

// line is one number over time, made of a metric as it was at two moments.
type line struct {
	name   string
	metric string
	value  func(now, before *dto.MetricFamily, seconds float64) float64
}

// Names of metrics that more than one line is of.
const requestsMetric = "taskledger_http_request_duration_seconds"

// plots are what the page shows. A line whose metric has not been counted yet is left out.
var plots = []plot{
	{"Requests", perSecond, []line{
		{"all", requestsMetric, rateOf(everything)},
		{"failed (5xx)", requestsMetric, rateOf(failed)},
	}},
	{"Latency of requests", seconds, []line{
		{"median", requestsMetric, quantileOf(0.5, isNoStream)},
		{"95th percentile", requestsMetric, quantileOf(0.95, isNoStream)},
	}},
	{"Lag of the read model", seconds, []line{
		{"oldest event not shown", "taskledger_projection_lag_seconds", highest},
		{"95th percentile of what was shown", "taskledger_projection_delay_seconds", quantileOf(0.95, everything)},
	}},
	{"Events a batch, on average", amount, []line{
		{"appended to the log", "taskledger_append_batch_events", meanOf},
		{"applied to the read model", "taskledger_projection_batch_events", meanOf},
	}},
	{
		"Growth of the log, by this process",
		perSecond,
		[]line{
			{
				"events appended",
				"taskledger_append_batch_events",
				func(now, before *dto.MetricFamily, seconds float64) float64 {
					return max(observed(now)-observed(before), 0) / seconds
				},
			},
		},
	},
	{"Events into the read model", perSecond, []line{
		{"events applied", "taskledger_projection_events_total", rateOf(everything)},
	}},
}

// PlottedMetrics are the names of the metrics that the page plots.
func PlottedMetrics() (names []string) {
	for _, p := range plots {
		for _, l := range p.lines {
			names = append(names, l.metric)
		}
	}
	return names
}

// samples keep what the plots show.
type samples struct {
	sync.Mutex
	at     [sampleCount]time.Time
	values [sampleCount][]float64 // of each line, NaN = nothing
	taken  int
	before map[string]*dto.MetricFamily
	known  map[string]bool
}

func newSamples() *samples { return &samples{known: map[string]bool{}} }

// take reads the metrics. What could be read is used when there is an error too.
func (s *samples) take(from prometheus.Gatherer, now time.Time) error {
	families, err := from.Gather()
	s.Lock()
	defer s.Unlock()
	found := map[string]*dto.MetricFamily{}
	for _, p := range plots {
		for _, l := range p.lines {
			i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == l.metric })
			if i >= 0 {
				found[l.metric] = families[i]
				s.known[l.metric] = true
			}
		}
	}
	if s.before != nil {
		s.add(found, now)
	}
	at := s.taken % sampleCount
	s.at[at], s.before = now, found
	s.taken++
	return err
}

func (s *samples) add(found map[string]*dto.MetricFamily, now time.Time) {
	last := (s.taken - 1) % sampleCount
	elapsed := max(now.Sub(s.at[last]).Seconds(), 1)
	var values []float64
	for _, p := range plots {
		for _, l := range p.lines {
			value := math.NaN()
			if family := found[l.metric]; family != nil {
				value = l.value(family, s.before[l.metric], elapsed)
			}
			values = append(values, value)
		}
	}
	s.values[s.taken%sampleCount] = values
}

// series is a line as it is now.
type series struct {
	name   string
	points []point
}

type point struct {
	at    time.Time
	value float64
}

// drawing is a plot as it is now.
type drawing struct {
	plot
	series []series
}

// drawings returns the plots that have a metric, with the points after a time, oldest first.
func (s *samples) drawings(after time.Time) []drawing {
	s.Lock()
	defer s.Unlock()
	var out []drawing
	place := 0
	for _, p := range plots {
		d := drawing{plot: p}
		for _, l := range p.lines {
			if s.known[l.metric] {
				d.series = append(d.series, series{l.name, s.points(place, after)})
			}
			place++
		}
		if len(d.series) > 0 {
			out = append(out, d)
		}
	}
	return out
}

func (s *samples) points(place int, after time.Time) []point {
	var out []point
	for n := max(0, s.taken-sampleCount); n < s.taken; n++ {
		i := n % sampleCount
		if s.at[i].After(after) && place < len(s.values[i]) {
			out = append(out, point{s.at[i], s.values[i][place]})
		}
	}
	return out
}

type filter func(*dto.Metric) bool

func everything(*dto.Metric) bool { return true }

func failed(m *dto.Metric) bool { return strings.HasPrefix(labelOf(m, "status"), "5") }

// isNoStream leaves out what is open for as long as somebody listens.
func isNoStream(m *dto.Metric) bool { return labelOf(m, "route") != "/api/events" }

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// counted is how much a counter has counted, or how many observations a histogram has.
func counted(f *dto.MetricFamily, of filter) (sum float64) {
	for _, m := range f.GetMetric() {
		if of(m) {
			sum += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// rateOf is how much was counted, a second.
func rateOf(of filter) func(now, before *dto.MetricFamily, seconds float64) float64 {
	return func(now, before *dto.MetricFamily, seconds float64) float64 {
		return max(counted(now, of)-counted(before, of), 0) / seconds
	}
}

// observed is the sum of what a histogram has observed.
func observed(f *dto.MetricFamily) (sum float64) {
	for _, m := range f.GetMetric() {
		sum += m.GetHistogram().GetSampleSum()
	}
	return sum
}

// meanOf is the mean of what a histogram observed, NaN without anything.
func meanOf(now, before *dto.MetricFamily, _ float64) float64 {
	return (observed(now) - observed(before)) / (counted(now, everything) - counted(before, everything))
}

// highest is the highest of a gauge's values.
func highest(now, _ *dto.MetricFamily, _ float64) float64 {
	value := math.NaN()
	for _, m := range now.GetMetric() {
		if v := m.GetGauge().GetValue(); !(v <= value) {
			value = v
		}
	}
	return value
}

// quantileOf is a quantile of what a histogram observed, as Prometheus would estimate it of its buckets.
func quantileOf(q float64, of filter) func(now, before *dto.MetricFamily, seconds float64) float64 {
	return func(now, before *dto.MetricFamily, _ float64) float64 {
		counts := map[float64]float64{}
		addBuckets(counts, now, of, 1)
		addBuckets(counts, before, of, -1)
		all := max(counted(now, of)-counted(before, of), 0)
		return quantile(q, counts, all)
	}
}

func addBuckets(counts map[float64]float64, f *dto.MetricFamily, of filter, sign float64) {
	for _, m := range f.GetMetric() {
		if !of(m) {
			continue
		}
		for _, b := range m.GetHistogram().GetBucket() {
			counts[b.GetUpperBound()] += sign * float64(b.GetCumulativeCount())
		}
	}
}

// quantile estimates a quantile of all observations, of which counts says how many were at most a bound; NaN without
// any.
func quantile(q float64, counts map[float64]float64, all float64) float64 {
	if all == 0 {
		return math.NaN()
	}
	var bounds []float64
	for bound := range counts {
		if !math.IsInf(bound, 1) {
			bounds = append(bounds, bound)
		}
	}
	slices.SortFunc(bounds, cmp.Compare[float64])
	rank, low, below := q*all, 0.0, 0.0
	for _, bound := range bounds {
		if count := counts[bound]; count >= rank && count > below {
			return low + (bound-low)*(rank-below)/(count-below)
		}
		low, below = bound, counts[bound]
	}
	return low // beyond the last bound
}
