package postgres

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// RegisterMetrics registers the statistics of the pools, by purpose: if statements
// wait for a connection the server is slow, and nothing else would show why.
func RegisterMetrics(reg prometheus.Registerer, pools *Pools) {
	for _, p := range pools.named() {
		p.register(reg)
	}
}

func (p namedPool) register(reg prometheus.Registerer) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{
			Namespace: "gatehook", Subsystem: "postgres", Name: name, Help: help, ConstLabels: prometheus.Labels{"pool": p.name},
		}
	}
	gauge := func(name, help string, value func(*pgxpool.Stat) int32) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 { return float64(value(p.Stat())) }))
	}
	gauge("connections_in_use", "Connections to PostgreSQL that are in use.", (*pgxpool.Stat).AcquiredConns)
	gauge("connections_idle", "Connections to PostgreSQL that are not in use.", (*pgxpool.Stat).IdleConns)
	gauge("connections_max", "How many connections to PostgreSQL the pool may open.", (*pgxpool.Stat).MaxConns)
	reg.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("waits_total", "How often a statement had to wait for a connection to PostgreSQL.")),
			func() float64 { return float64(p.Stat().EmptyAcquireCount()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("wait_seconds_total", "Time spent waiting for connections to PostgreSQL.")),
			func() float64 { return p.Stat().EmptyAcquireWaitTime().Seconds() }))
}
