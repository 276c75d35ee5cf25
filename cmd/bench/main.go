// Command bench measures what Gatehook does and costs: it runs the real server
// binary with PostgreSQL, a simulated Discord and a receiver, and beside it, in
// turns, the bare limit: a loop that POSTs the same signed body to the same
// receiver and stores nothing.
//
// It promises that every delivery is counted and the signatures of a sample are
// verified: a run in which one is missing fails. docs/benchmark.md says what
// the figures mean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(mainCode()) }

func mainCode() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 2 && os.Args[1] == bareCommand {
		err = bareLoop(ctx, os.Stdin, os.Stdout)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

var errUsage = errors.New("usage")

// options are the flags.
type options struct {
	fanouts, bodies, shards numbers
	stored, listeners       numbers
	full                    bool
	rates                   numbers
	rounds                  int
	roundTime               time.Duration
	window                  int
	compression             string
	server                  string
	json                    bool
}

// numbers is a flag: whole numbers joined with commas.
type numbers []int

// String implements flag.Value.
func (n *numbers) String() string {
	texts := make([]string, len(*n))
	for i, v := range *n {
		texts[i] = strconv.Itoa(v)
	}
	return strings.Join(texts, ",")
}

// Set implements flag.Value. An empty list leaves the measurement out.
func (n *numbers) Set(s string) error {
	*n = nil
	for _, text := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
		v, err := strconv.Atoi(text)
		if err != nil || v < 0 {
			return fmt.Errorf("%q is no whole number", text)
		}
		*n = append(*n, v)
	}
	return nil
}

func readOptions(args []string, stderr io.Writer) (options, error) {
	o := options{
		fanouts: numbers{1, 10, 100}, bodies: numbers{1024, 300, 16384}, shards: numbers{1, 16, 256}, rates: numbers{100, 500, 1000},
		stored: numbers{0}, listeners: numbers{0},
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Var(&o.fanouts, "fanout", "listeners of every event, joined with commas; the first is the usual one")
	flags.Var(&o.bodies, "body", "sizes of a POST's body in bytes, joined with commas; the first is the usual one")
	flags.Var(&o.shards, "shards", "numbers of shards, joined with commas; the first is the usual one")
	flags.Var(&o.stored, "stored", "events that were delivered in the last days, joined with commas; the first is the usual number")
	flags.Var(&o.listeners, "listeners", "further listeners registered, each for a guild, joined with commas; the first is the usual number")
	flags.BoolVar(&o.full, "full", false, "measure every combination, not only one change at a time")
	flags.Var(&o.rates, "rates", "events a second at which latency is measured, joined with commas; empty for none")
	flags.IntVar(&o.rounds, "rounds", 3, "how often each measurement is made, in turns with the bare limit")
	flags.DurationVar(&o.roundTime, "time", 3*time.Second, "how long a round takes, on either side")
	flags.IntVar(&o.window, "window", 512, "events that are under way at once, at most")
	flags.StringVar(&o.compression, "compression", "none", "how the simulated Discord compresses, as GATEHOOK_COMPRESSION: Discord's own machines do so in earnest")
	flags.StringVar(&o.server, "server", "", "a server binary to measure; without it the present source is built")
	flags.BoolVar(&o.json, "json", false, "print JSON instead of text")
	if err := flags.Parse(args); err != nil {
		return o, errors.Join(errUsage, err)
	}
	zero := slices.Contains(slices.Concat(o.fanouts, o.shards, o.rates), 0)
	lists := len(o.fanouts) * len(o.bodies) * len(o.shards) * len(o.stored) * len(o.listeners)
	if flags.NArg() > 0 || zero || lists == 0 || o.rounds < 1 || o.roundTime <= 0 || o.window < 1 {
		fmt.Fprintln(stderr, "bench takes flags only: lists that are not empty (but --rates), and positive numbers")
		return o, errUsage
	}
	return o, nil
}

// run is the program, so that a test starts the very same one.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := readOptions(args, stderr)
	if err != nil {
		return err
	}
	b, err := open(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(ctx)) }()
	r := newReport()
	for _, s := range o.setups() {
		t, err := b.throughput(ctx, s)
		if err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		r.Throughput = append(r.Throughput, t)
	}
	if len(o.rates) > 0 {
		usual := o.setups()[0]
		if r.Latency, err = b.latency(ctx, usual); err != nil {
			return fmt.Errorf("latency with %v: %w", usual, err)
		}
	}
	if o.json {
		return r.writeJSON(stdout)
	}
	return r.writeText(stdout)
}

// setup is what is varied.
type setup struct {
	Fanout int `json:"fanout"`
	Body   int `json:"body_bytes"`
	Shards int `json:"shards"`
	// Stored is how many events were delivered before, Listeners how many
	// others are registered.
	Stored    int `json:"stored_events"`
	Listeners int `json:"other_listeners"`
}

// String implements fmt.Stringer.
func (s setup) String() string {
	text := fmt.Sprintf("fan-out %d, bodies of %d bytes, %d shards", s.Fanout, s.Body, s.Shards)
	if s.Stored > 0 {
		text += fmt.Sprintf(", %d stored events", s.Stored)
	}
	if s.Listeners > 0 {
		text += fmt.Sprintf(", %d other listeners", s.Listeners)
	}
	return text
}

// setups are the usual one, then those that differ from it in one thing; or all
// combinations.
func (o options) setups() (list []setup) {
	usual := setup{o.fanouts[0], o.bodies[0], o.shards[0], o.stored[0], o.listeners[0]}
	axes := []struct {
		values numbers
		at     func(*setup) *int
	}{
		{o.fanouts, func(s *setup) *int { return &s.Fanout }},
		{o.bodies, func(s *setup) *int { return &s.Body }},
		{o.shards, func(s *setup) *int { return &s.Shards }},
		{o.stored, func(s *setup) *int { return &s.Stored }},
		{o.listeners, func(s *setup) *int { return &s.Listeners }},
	}
	list = []setup{usual}
	for _, axis := range axes {
		from := list[:1]
		if o.full {
			from = list
		}
		for _, s := range from {
			for _, v := range axis.values[1:] {
				*axis.at(&s) = v
				list = append(list, s)
			}
		}
	}
	return list
}
