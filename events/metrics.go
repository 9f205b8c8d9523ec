package events

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the log counts, registered or not.
type metrics struct {
	batchEvents, batchSeconds prometheus.Histogram
	conflicts, failures       prometheus.Counter
}

func newMetrics() metrics {
	return metrics{
		batchEvents: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "taskledger_append_batch_events",
			Help: "Events stored by one append to the log, which takes what all users have waiting.",
			Buckets: []float64{
				1, 2, 5, 10, 20, 50, 100, 200, 500, 1000,
			},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
		batchSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "taskledger_append_duration_seconds",
			Help: "Time that one append to the log took, until it was durable or had failed.",
			Buckets: []float64{
				.0005,
				.001,
				.0025,
				.005,
				.01,
				.025,
				.05,
				.1,
				.25,
				.5,
				1,
				2.5,
				5,
			},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "taskledger_append_conflicts_total",
			Help: "Commands that were not stored because their stream had moved on, most often by another process.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "taskledger_append_failures_total",
			Help: "Appends to the log that the database failed or refused.",
		}),
	}
}

// RegisterMetrics has a registry show what the log counts.
func (l *Log) RegisterMetrics(registry prometheus.Registerer) {
	m := l.metrics
	registry.MustRegister(m.batchEvents, m.batchSeconds, m.conflicts, m.failures)
}

// appended counts one append.
func (m metrics) appended(events int, took time.Duration, err error) {
	m.batchSeconds.Observe(took.Seconds())
	switch {
	case err != nil:
		m.failures.Inc()
	case events > 0:
		m.batchEvents.Observe(float64(events))
	}
}

// Lag is how far a projection is behind the log, as far as its Subscriber knows: nothing is asked.
type Lag struct {
	// Events is how many positions the log is known to be ahead.
	Events int64
	// Oldest is when the oldest of those events was recorded, or the process first heard of one; zero without any.
	Oldest time.Time
	// Checked is when the database last said where the projection stands.
	Checked time.Time
}

// known is what a Subscriber knows of the log and of its projection.
type known struct {
	head    int64     // the last position of the log that was heard of
	applied int64     // the last one that is applied
	oldest  time.Time // see Lag.Oldest
	checked time.Time
}

// heard notes that the log goes on to a position, with an event that was recorded then.
func (k *known) heard(head int64, recorded time.Time) {
	k.head = max(k.head, head)
	if k.oldest.IsZero() && k.head > k.applied {
		k.oldest = recorded
	}
}

// stands notes what the database has said: how far the projection is, and how far the log is known to be. next is when
// the first event behind it was recorded, as good as that is known.
func (k *known) stands(applied, head int64, next time.Time) {
	*k = known{head: max(applied, head), applied: applied, checked: time.Now()}
	if k.head > applied {
		k.oldest = next
	}
}

// Lag tells how far the projection is behind.
func (s *Subscriber) Lag() Lag {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Lag{Events: s.known.head - s.known.applied, Oldest: s.known.oldest, Checked: s.known.checked}
}
