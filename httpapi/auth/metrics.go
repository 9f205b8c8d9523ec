package auth

import "github.com/prometheus/client_golang/prometheus"

// metrics are looked up once: a request finds its counter by index.
type metrics struct {
	accepted [len(kinds)]prometheus.Counter // without kindNone
	refused  map[Reason]*[len(kinds)]prometheus.Counter
}

// newMetrics counts without a registry too, for nobody.
func newMetrics(registry prometheus.Registerer) metrics {
	accepted := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "taskledger_auth_accepted_total",
		Help: "Credentials accepted, by kind; an open stream presents its own again from time to time.",
	}, []string{"credential"})
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "taskledger_auth_refusals_total",
		Help: "Requests refused for their credential, by its kind and the reason.",
	}, []string{"credential", "reason"})
	register(registry, accepted, refused)
	m := metrics{refused: make(map[Reason]*[len(kinds)]prometheus.Counter, len(reasons))}
	for k := kindJWT; int(k) < len(kinds); k++ {
		m.accepted[k] = accepted.WithLabelValues(k.String())
	}
	for _, reason := range reasons {
		m.refused[reason] = new([len(kinds)]prometheus.Counter)
		for k := range kinds {
			m.refused[reason][k] = refused.WithLabelValues(kinds[k], string(reason))
		}
	}
	return m
}

func register(registry prometheus.Registerer, collectors ...prometheus.Collector) {
	if registry != nil {
		registry.MustRegister(collectors...)
	}
}
