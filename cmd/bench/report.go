package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// report holds all results.
type report struct {
	System     string       `json:"system"`
	Processors int          `json:"processors"`
	Go         string       `json:"go"`
	Throughput []throughput `json:"throughput"`
	Latency    []latency    `json:"latency,omitempty"`
	Quiet      *quiet       `json:"quiet,omitempty"`
}

func newReport() *report {
	return &report{System: runtime.GOOS + "/" + runtime.GOARCH, Processors: runtime.NumCPU(), Go: runtime.Version()}
}

// throughput is the result of one setup at full speed.
type throughput struct {
	setup
	// BodySent is the actual size of a body. Workers is how many POSTs the bare loop
	// had in flight: the maximum of all listeners together.
	BodySent int     `json:"body_sent_bytes"`
	Workers  int     `json:"bare_workers"`
	Rounds   []round `json:"rounds"`

	PerSecond     spread `json:"deliveries_per_second"`
	BarePerSecond spread `json:"bare_per_second"`
	Ratio         spread `json:"ratio_to_bare"`
	// CPURatio divides the total processor time of a bare POST by that of a
	// delivery. It predicts Ratio on a machine that does nothing else.
	CPURatio spread `json:"cpu_ratio_to_bare"`
	// Processor time in microseconds per delivery; the harness is the simulated
	// Discord and the receiver together.
	ServerCPU      spread `json:"server_cpu_us"`
	PostgresCPU    spread `json:"postgres_cpu_us"`
	HarnessCPU     spread `json:"harness_cpu_us"`
	BareCPU        spread `json:"bare_cpu_us"`
	BareHarnessCPU spread `json:"bare_receiver_cpu_us"`
	// PeakMemory is the most memory that the server ever used, in bytes.
	PeakMemory int64 `json:"server_peak_memory_bytes"`
	// DatabaseSize is the size before the start, in bytes, and Pages is how many
	// milliseconds a page of 100 deliveries took. Both are set only if the
	// database was filled before.
	DatabaseSize int64   `json:"database_bytes,omitempty"`
	Pages        *spread `json:"page_ms,omitempty"`

	Deliveries int64 `json:"deliveries"`
	Verified   int64 `json:"signatures_verified"`
	Twice      int64 `json:"came_twice"`
}

// round is one turn of both sides, with the figures of throughput.
type round struct {
	Deliveries     int64         `json:"deliveries"`
	Took           time.Duration `json:"took_ns"`
	PerSecond      float64       `json:"deliveries_per_second"`
	BarePerSecond  float64       `json:"bare_per_second"`
	Ratio          float64       `json:"ratio_to_bare"`
	CPURatio       float64       `json:"cpu_ratio_to_bare"`
	ServerCPU      float64       `json:"server_cpu_us"`
	PostgresCPU    float64       `json:"postgres_cpu_us"`
	HarnessCPU     float64       `json:"harness_cpu_us"`
	BareCPU        float64       `json:"bare_cpu_us"`
	BareHarnessCPU float64       `json:"bare_receiver_cpu_us"`
}

// latency is the time from frame to POST at one rate, in milliseconds.
type latency struct {
	setup
	Rate   int            `json:"events_per_second"`
	Rounds []latencyRound `json:"rounds"`
	Median spread         `json:"median_ms"`
	P99    spread         `json:"p99_ms"`
	Max    spread         `json:"max_ms"`
}

type latencyRound struct {
	Deliveries int     `json:"deliveries"`
	Median     float64 `json:"median_ms"`
	P99        float64 `json:"p99_ms"`
	Max        float64 `json:"max_ms"`
}

// spread is a figure over several rounds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf[R any](rounds []R, figure func(R) float64) spread {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = figure(r)
	}
	slices.Sort(values)
	n := len(values)
	return spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Min: values[0], Max: values[n-1]}
}

func (t *throughput) sum(inboxes []*inbox) {
	t.PerSecond = spreadOf(t.Rounds, func(r round) float64 { return r.PerSecond })
	t.BarePerSecond = spreadOf(t.Rounds, func(r round) float64 { return r.BarePerSecond })
	t.Ratio = spreadOf(t.Rounds, func(r round) float64 { return r.Ratio })
	t.CPURatio = spreadOf(t.Rounds, func(r round) float64 { return r.CPURatio })
	t.ServerCPU = spreadOf(t.Rounds, func(r round) float64 { return r.ServerCPU })
	t.PostgresCPU = spreadOf(t.Rounds, func(r round) float64 { return r.PostgresCPU })
	t.HarnessCPU = spreadOf(t.Rounds, func(r round) float64 { return r.HarnessCPU })
	t.BareCPU = spreadOf(t.Rounds, func(r round) float64 { return r.BareCPU })
	t.BareHarnessCPU = spreadOf(t.Rounds, func(r round) float64 { return r.BareHarnessCPU })
	for _, in := range inboxes {
		in.mu.Lock()
		t.Deliveries, t.Verified, t.Twice = t.Deliveries+in.count, t.Verified+in.verified, t.Twice+in.twice
		in.mu.Unlock()
	}
}

func (l *latency) sum() {
	l.Median = spreadOf(l.Rounds, func(r latencyRound) float64 { return r.Median })
	l.P99 = spreadOf(l.Rounds, func(r latencyRound) float64 { return r.P99 })
	l.Max = spreadOf(l.Rounds, func(r latencyRound) float64 { return r.Max })
}

func (r *report) write(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.writeText(w)
}

func (r *report) writeText(out io.Writer) error {
	fmt.Fprintf(out, "%s, %d processors, %s\n", r.System, r.Processors, r.Go)
	if r.Quiet != nil {
		return r.Quiet.writeText(out)
	}
	fmt.Fprint(out, `
Throughput: medians of the rounds. Times are processor time in µs: per delivery in the server,
in PostgreSQL, and in the harness (the simulated Discord and the receiver, which share the
machine); per bare POST in the loop and in the receiver. Ratio is deliveries/s divided by
bare/s, with the lowest and highest; by CPU is the total time of a bare POST divided by that of
a delivery, the figure that other work on the machine disturbs least.

`)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "fan-out\tbody\tshards\tstored\tlisteners\tdeliveries/s\tbare/s\tratio\t\tby CPU\tserver\tPostgreSQL\tharness\tbare\treceiver\tpeak MiB\tverified\ttwice\t")
	for _, t := range r.Throughput {
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%.0f\t%.0f\t%.2f\t%.2f–%.2f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%d of %d\t%d\t\n",
			t.Fanout, t.BodySent, t.Shards, t.Stored, t.Fanout+t.Listeners, t.PerSecond.Median, t.BarePerSecond.Median, t.Ratio.Median, t.Ratio.Min, t.Ratio.Max,
			t.CPURatio.Median, t.ServerCPU.Median, t.PostgresCPU.Median, t.HarnessCPU.Median, t.BareCPU.Median, t.BareHarnessCPU.Median,
			float64(t.PeakMemory)/(1<<20), t.Verified, t.Deliveries, t.Twice)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, t := range r.Throughput {
		if t.Pages != nil {
			fmt.Fprintf(out, "\nWith %d stored events and %d other listeners (%.1f MiB) a page of 100 deliveries took %.1f ms (%.1f–%.1f).\n",
				t.Stored, t.Listeners, float64(t.DatabaseSize)/(1<<20), t.Pages.Median, t.Pages.Min, t.Pages.Max)
		}
	}
	if len(r.Latency) == 0 {
		return nil
	}
	fmt.Fprint(out, "\nLatency from frame to POST in ms: medians of the rounds, with the lowest and highest.\n\n")
	fmt.Fprintln(w, "fan-out\tbody\tshards\tevents/s\tmedian\t\tp99\t\tmax\t\t")
	for _, l := range r.Latency {
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%.2f\t%.2f–%.2f\t%.2f\t%.2f–%.2f\t%.2f\t%.2f–%.2f\t\n", l.Fanout, l.Body, l.Shards, l.Rate,
			l.Median.Median, l.Median.Min, l.Median.Max, l.P99.Median, l.P99.Min, l.P99.Max, l.Max.Median, l.Max.Min, l.Max.Max)
	}
	return w.Flush()
}
