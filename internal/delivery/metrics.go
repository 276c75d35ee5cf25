package delivery

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

const (
	// maxSeries is how many listeners have their own series at a time. The others share
	// the series of otherListeners. This limits the series to a few thousand, however
	// many listeners there are.
	maxSeries = 100
	// otherListeners is the label that listeners without their own series share.
	otherListeners = "other"
)

// delays are histogram buckets, in seconds, from a millisecond to a day of retries.
var delays = []float64{
	0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 3 * 3600, 24 * 3600,
}

type metrics struct {
	attempts, deliveries, spilled *prometheus.CounterVec
	first, success                *prometheus.HistogramVec
	attemptTime                   prometheus.Histogram
	recordFailures, forsaken      prometheus.Counter
	down, keysSkipped             prometheus.Counter
	disabled                      *prometheus.CounterVec
	sampleFailures                prometheus.Counter

	mu    sync.Mutex
	taken int // how many listeners have their own series
	other *series
}

// series are one listener's metrics. They are resolved once, so that no delivery looks
// up a label.
type series struct {
	label          string
	attempts       [callback.Classes]prometheus.Counter
	deliveries     [kinds]prometheus.Counter
	first, success prometheus.Observer
	spilled        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, d *Delivery) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "gatehook", Subsystem: "delivery", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts(opts(name, help)), append([]string{"listener"}, labels...))
	}
	seconds := func(name, help string) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "gatehook", Subsystem: "delivery", Name: name, Help: help, Buckets: delays}
	}
	m := &metrics{
		attempts:    counters("attempts_total", "POSTs made, by result.", "class"),
		deliveries:  counters("deliveries_total", "Deliveries that reached their final state, by state.", "state"),
		spilled:     counters("spilled_total", "Deliveries moved to the database because the lane was full, or because their ordering key waits there."),
		first:       prometheus.NewHistogramVec(seconds("first_attempt_delay_seconds", "Time from an event's receipt to the start of its first POST."), []string{"listener"}),
		success:     prometheus.NewHistogramVec(seconds("success_delay_seconds", "Time from an event's receipt to the end of the POST that delivered it."), []string{"listener"}),
		attemptTime: prometheus.NewHistogram(seconds("attempt_seconds", "Duration of one POST.")),
		forsaken:    counter("forsaken_total", "Deliveries dropped because another instance had taken them over."),
		down:        counter("callbacks_down_total", "Times that a callback was found to be down; its deliveries then wait while one at a time is tried."),
		keysSkipped: counter("keys_skipped_total", "Times that an ordering key continued without a delivery that was exhausted."),
		disabled: prometheus.NewCounterVec(prometheus.CounterOpts(opts("listeners_disabled_total",
			"Listeners disabled because their callback is gone or has failed for days.")), []string{"reason"}),
		recordFailures: counter("record_failures_total", "Failed transactions that record attempts; each is tried again."),
		sampleFailures: counter("sample_failures_total", "Failed queries for retries_due and oldest_seconds; these two then show old values."),
	}
	reg.MustRegister(m.attempts, m.deliveries, m.spilled, m.first, m.success, m.attemptTime, m.forsaken, m.down, m.keysSkipped, m.disabled,
		m.recordFailures, m.sampleFailures,
		&lanesCollector{d: d},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("keys_parked", "Ordering keys whose deliveries wait in the database behind an older one.")),
			func() float64 { return float64(d.parkedKeys()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("records_queued", "Outcomes that wait to be recorded.")),
			func() float64 { return float64(len(d.recorder.in)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("connections_idle", "Connections to callbacks that wait for the next POST.")),
			func() float64 { return float64(d.client.Idle()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts(opts("connections_opened_total", "Connections opened to callbacks.")),
			func() float64 { return float64(d.client.Opened()) }))
	for _, reason := range []string{reasonGone, reasonFailing} {
		m.disabled.WithLabelValues(reason) // shown from the start
	}
	m.other = m.resolve(otherListeners)
	return m
}

// open returns a listener's series: its own while fewer than maxSeries listeners have
// their own, otherwise the shared ones. The caller must close them.
func (m *metrics) open(listener int64) *series {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.taken >= maxSeries {
		return m.other
	}
	m.taken++
	return m.resolve(event.ListenerID(listener))
}

// close removes the series of a deleted listener, which makes room for another
// listener's.
func (m *metrics) close(s *series) {
	if s == m.other {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.taken--
	labels := prometheus.Labels{"listener": s.label}
	m.attempts.DeletePartialMatch(labels)
	m.deliveries.DeletePartialMatch(labels)
	m.spilled.DeletePartialMatch(labels)
	m.first.DeletePartialMatch(labels)
	m.success.DeletePartialMatch(labels)
}

func (m *metrics) resolve(label string) *series {
	s := &series{
		label: label, first: m.first.WithLabelValues(label), success: m.success.WithLabelValues(label),
		spilled: m.spilled.WithLabelValues(label),
	}
	for c := range callback.Classes {
		s.attempts[c] = m.attempts.WithLabelValues(label, c.String())
	}
	for k := range kinds {
		if k != retryAt { // not a final state
			s.deliveries[k] = m.deliveries.WithLabelValues(label, k.String())
		}
	}
	return s
}

func (s *series) countAttempt(rec *record) {
	s.attempts[rec.result.Class].Inc()
	received := rec.job.stored.ReceivedAt
	if rec.attempt() == 1 {
		s.first.Observe(rec.startedAt.Sub(received).Seconds())
	}
	if rec.outcome.kind == delivered {
		s.success.Observe(rec.startedAt.Add(rec.result.Duration).Sub(received).Seconds())
	}
}
