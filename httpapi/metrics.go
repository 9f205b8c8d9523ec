package httpapi

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the server counts.
type metrics struct {
	requests *prometheus.HistogramVec
	streams  prometheus.Gauge
	kinds    *sync.Map // of kind to prometheus.Observer: looking one up by its labels costs more than counting
}

// kind is what requests are counted by; there are few.
type kind struct {
	method, route string
	status        int
}

func newMetrics(registry prometheus.Registerer) metrics {
	m := metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "taskledger_http_request_duration_seconds",
			Help:    "Requests by method, route and status; a stream counts when it ends.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
			// Native too, for who scrapes them.
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"method", "route", "status"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "taskledger_http_streams",
			Help: "Streams of events that are open.",
		}),
		kinds: &sync.Map{},
	}
	registry.MustRegister(m.requests, m.streams)
	return m
}

func (m metrics) request(k kind, took time.Duration) {
	observer, ok := m.kinds.Load(k)
	if !ok {
		observer, _ = m.kinds.LoadOrStore(k, m.requests.WithLabelValues(k.method, k.route, strconv.Itoa(k.status)))
	}
	observer.(prometheus.Observer).Observe(took.Seconds())
}
