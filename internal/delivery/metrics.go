package delivery

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	attempts, deliveries    *prometheus.CounterVec
	attemptTime, latency    prometheus.Histogram
	spilled, recordFailures prometheus.Counter
	forsaken                prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, d *Delivery) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "gatehook", Subsystem: "delivery", Name: name, Help: help}
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "gatehook", Subsystem: "delivery", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		})
	}
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts(opts("attempts_total",
			"POSTs made, by what became of them.")), []string{"class"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts(opts("deliveries_total",
			"Deliveries that reached a final state, by that state.")), []string{"state"}),
		attemptTime: seconds("attempt_seconds", "Time that one POST took."),
		latency:     seconds("first_attempt_delay_seconds", "Time from an event's receipt to the start of its first POST."),
		spilled: prometheus.NewCounter(prometheus.CounterOpts(opts("spilled_total",
			"Deliveries that went to the database because their lane was full or their key waits there."))),
		forsaken: prometheus.NewCounter(prometheus.CounterOpts(opts("forsaken_total",
			"Deliveries let go of because another instance had taken them over."))),
		recordFailures: prometheus.NewCounter(prometheus.CounterOpts(opts("record_failures_total",
			"Transactions that record attempts, failed and tried again."))),
	}
	reg.MustRegister(m.attempts, m.deliveries, m.attemptTime, m.latency, m.spilled, m.forsaken, m.recordFailures,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("in_flight", "POSTs under way.")),
			func() float64 { _, n := d.load(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("queued", "Deliveries that the lanes hold in memory.")),
			func() float64 { n, _ := d.load(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("records_queued", "Outcomes that wait to be recorded.")),
			func() float64 { return float64(len(d.recorder.in)) }))
	return m
}

// load sums up the lanes.
func (d *Delivery) load() (held, inFlight int) {
	for _, l := range d.all() {
		h, f := l.load()
		held += h
		inFlight += f
	}
	return held, inFlight
}
