package postgres

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// RegisterMetrics registers a pool's statistics: if statements wait for a connection,
// the server is slow, and nothing else would show why.
func RegisterMetrics(reg prometheus.Registerer, pool *pgxpool.Pool) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "gatehook", Subsystem: "postgres", Name: name, Help: help}
	}
	gauge := func(name, help string, value func(*pgxpool.Stat) int32) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 { return float64(value(pool.Stat())) }))
	}
	gauge("connections_in_use", "Connections to PostgreSQL that are in use.", (*pgxpool.Stat).AcquiredConns)
	gauge("connections_idle", "Connections to PostgreSQL that are not in use.", (*pgxpool.Stat).IdleConns)
	gauge("connections_max", "How many connections to PostgreSQL the pool may open.", (*pgxpool.Stat).MaxConns)
	reg.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("waits_total", "How often a statement had to wait for a connection to PostgreSQL.")),
			func() float64 { return float64(pool.Stat().EmptyAcquireCount()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("wait_seconds_total", "Time spent waiting for connections to PostgreSQL.")),
			func() float64 { return pool.Stat().EmptyAcquireWaitTime().Seconds() }))
}
