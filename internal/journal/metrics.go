package journal

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	stored, unwanted, retried, reverted prometheus.Counter
	batchEvents, commitTime             prometheus.Histogram
	lag                                 prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, q *queue) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "gatehook", Subsystem: "journal", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "gatehook", Subsystem: "journal", Name: name, Help: help, Buckets: buckets,
		})
		reg.MustRegister(h)
		return h
	}
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "gatehook", Subsystem: "journal", Name: name, Help: help}
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("queue_events", "Received events that wait for their commit.")),
			func() float64 { n, _, _ := q.load(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("queue_bytes", "Memory that the events waiting for their commit take, in bytes.")),
			func() float64 { _, n, _ := q.load(); return float64(n) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("queue_full_total", "How often a shard waited because the queue was full.")),
			func() float64 { _, _, n := q.load(); return float64(n) }))
	seconds := prometheus.ExponentialBuckets(0.0005, 2, 14)
	return &metrics{
		stored:      counter("events_stored_total", "Events committed for at least one listener."),
		unwanted:    counter("events_unwanted_total", "Received events that no listener wants."),
		retried:     counter("commit_failures_total", "Commits that failed and were tried again."),
		reverted:    counter("cursors_reverted_total", "Shards that were resumed again because the database had lost commits."),
		batchEvents: histogram("batch_events", "Events in one commit.", prometheus.ExponentialBuckets(1, 2, 11)),
		commitTime:  histogram("commit_seconds", "Time that a commit took.", seconds),
		lag:         histogram("lag_seconds", "Time from an event's receipt to its commit.", seconds),
	}
}
