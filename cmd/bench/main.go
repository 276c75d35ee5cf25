// Command bench measures Gatehook's throughput, latency and cost. It runs the real
// server binary with PostgreSQL, a simulated Discord and a receiver. It alternates
// this with the bare limit: a loop that POSTs the same signed body to the same
// receiver and stores nothing.
//
// It counts every delivery and verifies the signatures of a sample. A run fails if a
// delivery is missing or a signature is wrong. docs/benchmark.md explains the figures.
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
	quiet                   int
	compression             string
	server                  string
	json                    bool
}

// numbers is the value of a flag: whole numbers joined with commas.
type numbers []int

// String implements flag.Value.
func (n *numbers) String() string {
	texts := make([]string, len(*n))
	for i, v := range *n {
		texts[i] = strconv.Itoa(v)
	}
	return strings.Join(texts, ",")
}

// Set implements flag.Value.
func (n *numbers) Set(s string) error {
	*n = nil
	for _, text := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
		v, err := strconv.Atoi(text)
		if err != nil || v < 0 {
			return fmt.Errorf("%q is not a whole number of 0 or more", text)
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
	flags.Var(&o.fanouts, "fanout", "numbers of listeners per event, joined with commas; the first is the default")
	flags.Var(&o.bodies, "body", "sizes of a POST's body in bytes, joined with commas; the first is the default")
	flags.Var(&o.shards, "shards", "numbers of shards, joined with commas; the first is the default")
	flags.Var(&o.stored, "stored", "numbers of events already delivered during the last days, joined with commas; the first is the default")
	flags.Var(&o.listeners, "listeners", "numbers of other listeners, each for a guild of its own, joined with commas; the first is the default")
	flags.BoolVar(&o.full, "full", false, "measure every combination, not only one change at a time")
	flags.Var(&o.rates, "rates", "events per second at which to measure latency, joined with commas; empty for none")
	flags.IntVar(&o.rounds, "rounds", 3, "how often to repeat each measurement, in turns with the bare limit")
	flags.DurationVar(&o.roundTime, "time", 3*time.Second, "how long a round lasts, on either side")
	flags.IntVar(&o.window, "window", 512, "the maximum number of events under way at once")
	flags.IntVar(&o.quiet, "quiet", 0, "measure only what this many shards without events cost: start, rest, more intents, and from half of them to all")
	flags.StringVar(&o.compression, "compression", "none", "how the simulated Discord compresses, as in GATEHOOK_COMPRESSION; with the real Discord, its machines pay for this")
	flags.StringVar(&o.server, "server", "", "the server binary to measure; by default one is built from the source here")
	flags.BoolVar(&o.json, "json", false, "print JSON instead of text")
	if err := flags.Parse(args); err != nil {
		return o, errors.Join(errUsage, err)
	}
	zero := slices.Contains(slices.Concat(o.fanouts, o.shards, o.rates), 0)
	lists := len(o.fanouts) * len(o.bodies) * len(o.shards) * len(o.stored) * len(o.listeners)
	if flags.NArg() > 0 || zero || lists == 0 || o.rounds < 1 || o.roundTime <= 0 || o.window < 1 || o.quiet < 0 || o.quiet == 1 {
		fmt.Fprintln(stderr, "bench takes only flags: lists must not be empty (except --rates), and numbers must be positive, and --quiet at least 2")
		return o, errUsage
	}
	return o, nil
}

// run is the whole program, for main and for the test.
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
	if o.quiet > 0 {
		if r.Quiet, err = b.quiet(ctx, o.quiet); err != nil {
			return fmt.Errorf("%d quiet shards: %w", o.quiet, err)
		}
		return r.write(stdout, o.json)
	}
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
	return r.write(stdout, o.json)
}

// setup is one combination of the varied settings.
type setup struct {
	Fanout int `json:"fanout"`
	Body   int `json:"body_bytes"`
	Shards int `json:"shards"`
	// Stored is how many events were delivered before; Listeners is how many
	// other listeners are registered.
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

// setups returns the default setup, followed by those that differ from it in one
// setting, or with --full by all other combinations.
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
