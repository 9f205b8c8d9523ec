package command

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a Handler counts, registered or not.
type metrics struct {
	retries, alone prometheus.Counter
	bytes          prometheus.GaugeFunc
}

func newMetrics(bytes func() int) metrics {
	return metrics{
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "taskledger_command_retries_total",
			Help: "Times that a command was decided again because its stream had moved on.",
		}),
		alone: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "taskledger_command_exclusive_total",
			Help: "Commands that took the log for themselves, because others were always first.",
		}),
		bytes: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "taskledger_command_streams_bytes",
			Help: "Memory that the streams take which decisions keep, about.",
		}, func() float64 { return float64(bytes()) }),
	}
}

// RegisterMetrics has a registry show what the Handler counts.
func (h *Handler) RegisterMetrics(registry prometheus.Registerer) {
	registry.MustRegister(h.metrics.retries, h.metrics.alone, h.metrics.bytes)
}
