package projections

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"taskledger/events"
)

// Metrics count what the projections do. A nil *Metrics counts nothing.
type Metrics struct {
	events, parks              *prometheus.CounterVec
	batchEvents, batchSeconds  *prometheus.HistogramVec
	delay                      *prometheus.HistogramVec
	failing                    *prometheus.GaugeVec
	parkedUsers, surveyed      prometheus.Gauge
	rebuilding                 prometheus.Gauge
	rebuildDone, rebuildEvents prometheus.Gauge
	registry                   prometheus.Registerer
}

// NewMetrics registers the projections' metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := newMetrics()
	m.registry = registry
	registry.MustRegister(
		m.events,
		m.parks,
		m.batchEvents,
		m.batchSeconds,
		m.delay,
		m.failing,
		m.parkedUsers,
		m.surveyed,
		m.rebuilding,
		m.rebuildDone,
		m.rebuildEvents,
	)
	return m
}

func newMetrics() *Metrics {
	labels := []string{"projection"}
	return &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskledger_projection_events_total",
			Help: "Events applied to a read model by this process.",
		}, labels),
		parks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskledger_projection_parked_total",
			Help: "Streams parked by this process because an event could not be applied.",
		}, labels),
		batchEvents: histogram(labels, "taskledger_projection_batch_events",
			"Events that one statement of this process applied to a read model.",
			1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
		batchSeconds: histogram(labels, "taskledger_projection_batch_duration_seconds",
			"Time that one batch took to be folded and written.",
			.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5),
		delay: histogram(labels, "taskledger_projection_delay_seconds",
			"Age of the oldest event of a batch when the read model showed it.",
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 300),
		failing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "taskledger_projection_failing",
			Help: "Whether the projection is held up (1) or not (0), in this process.",
		}, labels),
		parkedUsers: gauge("taskledger_parked_users",
			"Users whom the read model no longer follows, as of taskledger_survey_timestamp_seconds."),
		surveyed: gauge(
			"taskledger_survey_timestamp_seconds",
			"When parked users and rebuilds were last looked for in the database; "+
				"a process without work does not look.",
		),
		rebuilding: gauge(
			"taskledger_rebuild_running",
			"Whether a read model is being made anew by any process (1) or not (0), "+
				"as of taskledger_survey_timestamp_seconds.",
		),
		rebuildDone: gauge("taskledger_rebuild_done_events",
			"Events that the rebuild has folded, as of taskledger_survey_timestamp_seconds."),
		rebuildEvents: gauge("taskledger_rebuild_total_events",
			"Events that the rebuild has to fold, as estimated, as of taskledger_survey_timestamp_seconds."),
	}
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func histogram(labels []string, name, help string, buckets ...float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, labels)
}

// counters are those of one projection.
type counters struct {
	applied, parked                  prometheus.Counter
	batchEvents, batchSeconds, delay prometheus.Observer
	failing                          prometheus.Gauge
}

func (m *Metrics) of(projection string) counters {
	if m == nil {
		m = newMetrics()
	}
	return counters{
		applied:      m.events.WithLabelValues(projection),
		parked:       m.parks.WithLabelValues(projection),
		batchEvents:  m.batchEvents.WithLabelValues(projection),
		batchSeconds: m.batchSeconds.WithLabelValues(projection),
		delay:        m.delay.WithLabelValues(projection),
		failing:      m.failing.WithLabelValues(projection),
	}
}

// written counts a batch.
func (c counters) written(batch []events.Event, took time.Duration) {
	c.applied.Add(float64(len(batch)))
	c.batchEvents.Observe(float64(len(batch)))
	c.batchSeconds.Observe(took.Seconds())
	c.delay.Observe(max(0, time.Since(batch[0].RecordedAt).Seconds()))
}

// showLag has the registry show how far a projection is behind, as this process knows without asking the database.
func (m *Metrics) showLag(projection string, lag func() events.Lag) {
	if m == nil {
		return
	}
	show := func(name, help string, value func(events.Lag) float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"projection": projection},
		}, func() float64 { return value(lag()) }))
	}
	show("taskledger_projection_lag_events",
		"Events of the log, as far as this process has heard of it, that the read model does not show yet.",
		func(l events.Lag) float64 { return float64(l.Events) })
	show("taskledger_projection_lag_seconds",
		"Age of the oldest event that this process knows the read model does not show yet; 0 without any.",
		func(l events.Lag) float64 {
			if l.Oldest.IsZero() {
				return 0
			}
			return max(0, time.Since(l.Oldest).Seconds())
		})
	show("taskledger_projection_checked_timestamp_seconds",
		"When the database last said how far the read model is; 0 is never.",
		func(l events.Lag) float64 {
			if l.Checked.IsZero() {
				return 0
			}
			return float64(l.Checked.UnixMilli()) / 1000
		})
}
