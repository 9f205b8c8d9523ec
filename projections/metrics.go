package projections

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what the projections do. A nil *Metrics counts nothing.
type Metrics struct {
	events, parks *prometheus.CounterVec
}

// NewMetrics registers the projections' metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskledger_projection_events_total",
			Help: "Events applied to a read model by this process.",
		}, []string{"projection"}),
		parks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskledger_projection_parked_total",
			Help: "Streams parked by this process because an event could not be applied.",
		}, []string{"projection"}),
	}
	registry.MustRegister(m.events, m.parks)
	return m
}

func (m *Metrics) applied(projection string, n int) {
	if m != nil {
		m.events.WithLabelValues(projection).Add(float64(n))
	}
}

func (m *Metrics) parked(projection string) {
	if m != nil {
		m.parks.WithLabelValues(projection).Inc()
	}
}
