package gateway

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxEventNames bounds the label values of events_total, because the names come
// from outside. Discord has about 80.
const maxEventNames = 256

type metrics struct {
	dropped       *prometheus.CounterVec
	dialsFailed   *prometheus.CounterVec
	reconnects    *prometheus.CounterVec
	identifies    prometheus.Counter
	resumes       prometheus.Counter
	heartbeats    prometheus.Counter
	startsLeft    prometheus.Gauge
	lost          prometheus.Counter
	commands      *prometheus.CounterVec
	bytesIn       prometheus.Counter
	bytesInflated prometheus.Counter
	latency       prometheus.Histogram

	events *prometheus.CounterVec
	mu     sync.RWMutex
	names  map[string]eventName
}

// eventName is the name of an event, allocated once, with its counter.
type eventName struct {
	name    string
	counter prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "gatehook", Subsystem: "gateway", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(opts(name, help))
		reg.MustRegister(c)
		return c
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(opts(name, help), []string{label})
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		events:      counters("events_total", "Events passed on, by name.", "event"),
		dropped:     counters("frames_dropped_total", "Payloads not passed on: replays of events received before, or payloads that could not be understood.", "reason"),
		dialsFailed: counters("dials_failed_total", "Connections to the gateway that could not be opened.", "reason"),
		reconnects:  counters("reconnects_total", "Connections that ended, by Discord's close code or by their cause.", "reason"),
		identifies:  counter("identifies_total", "IDENTIFYs sent."),
		resumes:     counter("resumes_total", "RESUMEs sent."),
		heartbeats:  counter("heartbeats_total", "Heartbeats sent."),
		startsLeft: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "gatehook", Subsystem: "gateway", Name: "session_starts_left",
			Help: "IDENTIFYs left until the daily reset, as last reported by Discord.",
		}),
		lost:          counter("sessions_lost_total", "Sessions that could not be resumed."),
		bytesIn:       counter("received_bytes_total", "Bytes received, before decompression."),
		bytesInflated: counter("inflated_bytes_total", "Bytes of payloads after decompression."),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "gatehook", Subsystem: "gateway", Name: "heartbeat_seconds",
			Help: "Time from a heartbeat to its acknowledgement.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		names: make(map[string]eventName),
	}
	// Shown before the first failure, so that an alert sees the first one, too.
	for reason := range dialFailures {
		m.dialsFailed.WithLabelValues(reason)
	}
	m.commands = prometheus.NewCounterVec(
		opts("commands_total", "Commands to this server's shards, and commands to other servers' shards that were not answered."), []string{"command", "outcome"})
	reg.MustRegister(m.latency, m.commands, m.startsLeft)
	return m
}

// received counts what a connection read, in bytes. All readers share the
// counters, so adding 0 would not be free.
func (m *metrics) received(wire, inflated int) {
	if wire > 0 {
		m.bytesIn.Add(float64(wire))
	}
	if inflated > 0 {
		m.bytesInflated.Add(float64(inflated))
	}
}

// event counts an event and returns its name, for which event.IsName holds, as a
// string.
func (m *metrics) event(name []byte) string {
	m.mu.RLock()
	known, ok := m.names[string(name)]
	m.mu.RUnlock()
	if !ok {
		known = m.learn(string(name))
	}
	known.counter.Inc()
	return known.name
}

func (m *metrics) learn(name string) eventName {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok := m.names[name]; ok {
		return known
	}
	if len(m.names) >= maxEventNames {
		return eventName{name, m.events.WithLabelValues("other")}
	}
	known := eventName{name, m.events.WithLabelValues(name)}
	m.names[name] = known
	return known
}
