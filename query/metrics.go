package query

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a Reader counts, registered or not.
type metrics struct {
	hits, unchanged, misses prometheus.Counter
	answers                 *prometheus.CounterVec // the three above
	bytes                   prometheus.GaugeFunc
	waits                   prometheus.Histogram
	stale                   prometheus.Counter
}

func newMetrics(bytes func() int) metrics {
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "taskledger_answers_total",
		Help: "Reads by where their answer came from: kept in memory, unchanged (the client has it), " +
			"or the read model.",
	}, []string{"from"})
	return metrics{
		answers:   answers,
		hits:      answers.WithLabelValues("kept"),
		unchanged: answers.WithLabelValues("unchanged"),
		misses:    answers.WithLabelValues("read"),
		bytes: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "taskledger_kept_answers_bytes",
			Help: "Memory that the kept answers take, about.",
		}, func() float64 { return float64(bytes()) }),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:                            "taskledger_read_wait_seconds",
			Help:                            "Time that reads waited for the read model, of those that had to.",
			Buckets:                         []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "taskledger_stale_answers_total",
			Help: "Reads answered without events that they should show: the read model was too late, " +
				"or the user is parked.",
		}),
	}
}

// RegisterMetrics has a registry show what the Reader counts.
func (r *Reader) RegisterMetrics(registry prometheus.Registerer) {
	m := r.metrics
	registry.MustRegister(m.answers, m.bytes, m.waits, m.stale)
}
