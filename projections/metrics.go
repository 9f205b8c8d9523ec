package projections

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what the projections do. A nil *Metrics counts nothing.
type Metrics struct {
	events, parks *prometheus.CounterVec
}

// NewMetrics registers the projections' metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := newMetrics()
	registry.MustRegister(m.events, m.parks)
	return m
}

func newMetrics() *Metrics {
	return &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskledger_projection_events_total",
			Help: "Events applied to a read model by this process.",
		}, []string{"projection"}),
		parks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskledger_projection_parked_total",
			Help: "Streams parked by this process because an event could not be applied.",
		}, []string{"projection"}),
	}
}

// counters are those of one projection.
type counters struct {
	applied, parked prometheus.Counter
}

func (m *Metrics) of(projection string) counters {
	if m == nil {
		m = newMetrics()
	}
	return counters{m.events.WithLabelValues(projection), m.parks.WithLabelValues(projection)}
}
