package main

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// poolMetrics are those of pools of connections, by name; nothing is asked of the database.
type poolMetrics map[string]*pgxpool.Pool

var (
	poolConnections = prometheus.NewDesc("taskledger_pool_connections",
		"Connections by pool, and whether they are acquired, idle or being made.", []string{"pool", "state"}, nil)
	poolMax = prometheus.NewDesc("taskledger_pool_max_connections",
		"Connections that a pool may have.", []string{"pool"}, nil)
	poolAcquires = prometheus.NewDesc("taskledger_pool_acquires_total",
		"Times that a connection was taken from a pool.", []string{"pool"}, nil)
	poolWaits = prometheus.NewDesc("taskledger_pool_waits_total",
		"Times that a connection was waited for, because none was idle.", []string{"pool"}, nil)
	poolWaited = prometheus.NewDesc("taskledger_pool_wait_seconds_total",
		"Time that was waited for connections, because none was idle.", []string{"pool"}, nil)
)

// Describe implements prometheus.Collector.
func (poolMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{poolConnections, poolMax, poolAcquires, poolWaits, poolWaited} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (p poolMetrics) Collect(out chan<- prometheus.Metric) {
	for name, pool := range p {
		s := pool.Stat()
		gauge := func(desc *prometheus.Desc, n int32, labels ...string) {
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n),
				append([]string{name}, labels...)...)
		}
		counter := func(desc *prometheus.Desc, v float64) {
			out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, name)
		}
		gauge(poolConnections, s.AcquiredConns(), "acquired")
		gauge(poolConnections, s.IdleConns(), "idle")
		gauge(poolConnections, s.ConstructingConns(), "constructing")
		gauge(poolMax, s.MaxConns())
		counter(poolAcquires, float64(s.AcquireCount()))
		counter(poolWaits, float64(s.EmptyAcquireCount()))
		counter(poolWaited, s.EmptyAcquireWaitTime().Seconds())
	}
}
