package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	// maxInFlight is a listener's default max_in_flight.
	maxInFlight = 16
	// warmUp is how long a server runs before it is measured.
	warmUp = time.Second
)

// bench holds everything that the measurements share.
type bench struct {
	options options
	stderr  io.Writer
	dir     string
	server  string // path of the binary
	pg      *postgres.Embedded
	sink    *receiver
	log     *slog.Logger
	stages  int
}

func open(ctx context.Context, o options, stderr io.Writer) (b *bench, err error) {
	b = &bench{options: o, stderr: stderr, server: o.server}
	if b.dir, err = os.MkdirTemp("", "gatehook-bench-"); err != nil {
		return nil, fmt.Errorf("make a directory for the benchmark: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(ctx))
		}
	}()
	if b.server == "" {
		if b.server, err = buildServer(ctx, b.dir); err != nil {
			return b, err
		}
	}
	b.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	// The server starts its embedded PostgreSQL in the same way.
	if b.pg, err = postgres.StartEmbedded(ctx, postgres.EmbeddedConfig{DataDir: b.dir, Logger: b.log}); err != nil {
		return b, err
	}
	b.sink, err = newReceiver()
	return b, err
}

func (b *bench) close(context.Context) (err error) {
	if b.sink != nil {
		err = b.sink.close()
	}
	if b.pg != nil {
		err = errors.Join(err, b.pg.Close())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

func (b *bench) progress(format string, args ...any) { fmt.Fprintf(b.stderr, format+"\n", args...) }

// stage is one running server, with its own database and simulated Discord.
type stage struct {
	setup   setup
	discord *discordtest.Server
	server  *server
	load    *load
	inboxes []*inbox
	size    int64 // of the database before the start; 0 if it was empty
	stop    []func() error
}

// stage starts a server, registers its listeners, waits for its shards, and
// warms it up.
func (b *bench) stage(ctx context.Context, s setup) (st *stage, err error) {
	st = &stage{setup: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.close())
		}
	}()
	if st.discord, err = discordtest.Start(discordtest.Config{
		Shards: s.Shards, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: time.Hour, MaxConcurrency: s.Shards},
		// Sent frames stay in memory for a RESUME, which does not happen here.
		ReplayLimit: max(64, 8192/s.Shards),
	}); err != nil {
		return st, fmt.Errorf("start the simulated Discord: %w", err)
	}
	st.stop = append(st.stop, func() error { st.discord.Close(); return nil })
	db, err := b.database(ctx)
	if err != nil {
		return st, err
	}
	if s.Stored+s.Listeners > 0 {
		b.progress("  filling the database …")
		if st.size, err = fill(ctx, db, s, b.log); err != nil {
			return st, err
		}
	}
	dataDir, err := os.MkdirTemp(b.dir, "server-")
	if err != nil {
		return st, fmt.Errorf("make a data directory: %w", err)
	}
	st.server, err = startServer(ctx, b.server, dataDir, db, st.discord,
		fmt.Sprintf("GATEHOOK_INTENTS=%d", discordtest.AllIntents), "GATEHOOK_COMPRESSION="+b.options.compression)
	if err != nil {
		return st, err
	}
	st.stop = append(st.stop, st.server.stop)
	for n := range s.Fanout {
		signing, err := st.server.register(ctx, eventName, b.sink.url()+"/"+strconv.Itoa(n))
		if err != nil {
			return st, err
		}
		in, err := newInbox(signing)
		if err != nil {
			return st, err
		}
		st.inboxes = append(st.inboxes, in)
	}
	b.sink.expect(st.inboxes)
	for shard := range s.Shards {
		if _, err := st.discord.WaitReady(ctx, shard); err != nil {
			return st, fmt.Errorf("wait for shard %d: %w", shard, err)
		}
	}
	st.load = newLoad(st.discord, b.sink, s)
	return st, st.load.flood(ctx, warmUp, b.options.window)
}

// database creates an empty database and returns its URL.
func (b *bench) database(ctx context.Context) (secret.Value, error) {
	conn, err := pgx.Connect(ctx, b.pg.URL().Reveal())
	if err != nil {
		return secret.Value{}, fmt.Errorf("make a database: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is lost with it
	b.stages++
	name := "bench" + strconv.Itoa(b.stages)
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return secret.Value{}, fmt.Errorf("make a database: %w", err)
	}
	u, err := url.Parse(b.pg.URL().Reveal())
	if err != nil {
		return secret.Value{}, errors.New("make a database: the URL of the embedded PostgreSQL can't be parsed")
	}
	q := u.Query()
	q.Set("dbname", name)
	u.RawQuery = q.Encode()
	return secret.New(u.String()), nil
}

// close stops everything that was started, in reverse order.
func (st *stage) close() (err error) {
	for _, stop := range slices.Backward(st.stop) {
		err = errors.Join(err, stop())
	}
	if st.discord != nil && err == nil {
		for _, e := range st.discord.Illegal() {
			err = errors.Join(err, fmt.Errorf("the server broke a rule of Discord: %s", e.Detail))
		}
	}
	return err
}

// throughput measures one setup.
func (b *bench) throughput(ctx context.Context, s setup) (t throughput, err error) {
	b.progress("throughput with %v …", s)
	st, err := b.stage(ctx, s)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	same := st.inboxes[0].sample
	same.URL, same.Workers = b.sink.url()+"/"+bareCommand, s.Fanout*maxInFlight
	limit, err := startBare(ctx, same, b.stderr)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, limit.close()) }()
	if _, err := limit.round(warmUp); err != nil {
		return t, err
	}
	t = throughput{setup: s, BodySent: len(same.Body), Workers: same.Workers}
	for range b.options.rounds {
		r, err := b.round(ctx, st, limit)
		if err != nil {
			return t, err
		}
		t.Rounds = append(t.Rounds, r)
	}
	if t.PeakMemory, err = peakMemory(st.server.pid()); err != nil && !errors.Is(err, errNoUsage) {
		return t, err
	}
	if st.size > 0 {
		t.DatabaseSize = st.size
		pages, err := st.pages(ctx)
		if err != nil {
			return t, err
		}
		t.Pages = &pages
	}
	t.sum(st.inboxes)
	return t, nil
}

// round measures the bare loop, and then the server.
func (b *bench) round(ctx context.Context, st *stage, limit *bare) (r round, err error) {
	measure := func() (usage, error) {
		u, err := readUsage(st.server.pid(), limit.pid())
		if errors.Is(err, errNoUsage) {
			err = nil
		}
		return u, err
	}
	u0, err := measure()
	if err != nil {
		return r, err
	}
	result, err := limit.round(b.options.roundTime)
	if err != nil {
		return r, err
	}
	u1, err := measure()
	if err != nil {
		return r, err
	}
	before, began := b.sink.delivered.Load(), time.Now()
	if err := st.load.flood(ctx, b.options.roundTime, b.options.window); err != nil {
		return r, err
	}
	n, took := b.sink.delivered.Load()-before, time.Since(began)
	u2, err := measure()
	if err != nil {
		return r, err
	}
	r = round{Deliveries: n, Took: took, PerSecond: per(n, took), BarePerSecond: per(result.Posts, result.Took)}
	r.Ratio = r.PerSecond / r.BarePerSecond
	bare, full := u1.minus(u0), u2.minus(u1)
	each := func(d time.Duration, n int64) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(max(n, 1)) }
	r.ServerCPU, r.PostgresCPU, r.HarnessCPU = each(full.server, n), each(full.postgres, n), each(full.harness, n)
	r.BareCPU, r.BareHarnessCPU = each(bare.bare, result.Posts), each(bare.harness, result.Posts)
	if whole := r.ServerCPU + r.PostgresCPU + r.HarnessCPU; whole > 0 {
		r.CPURatio = (r.BareCPU + r.BareHarnessCPU) / whole
	}
	b.progress("  %8.0f deliveries/s, bare %8.0f/s, ratio %.2f, by CPU %.2f", r.PerSecond, r.BarePerSecond, r.Ratio, r.CPURatio)
	return r, nil
}

func per(n int64, d time.Duration) float64 { return float64(n) / d.Seconds() }

// latency measures the time from frame to POST, at each rate in turn.
func (b *bench) latency(ctx context.Context, s setup) (list []latency, err error) {
	b.progress("latency with %v …", s)
	st, err := b.stage(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	list = make([]latency, len(b.options.rates))
	for range b.options.rounds {
		for i, rate := range b.options.rates {
			r, err := b.latencyRound(ctx, st, rate)
			if err != nil {
				return nil, err
			}
			list[i].setup, list[i].Rate = s, rate
			list[i].Rounds = append(list[i].Rounds, r)
		}
	}
	for i := range list {
		list[i].sum()
	}
	return list, nil
}

func (b *bench) latencyRound(ctx context.Context, st *stage, rate int) (r latencyRound, err error) {
	for _, in := range st.inboxes {
		in.takeLatencies(true)
	}
	if err := st.load.pace(ctx, b.options.roundTime, rate); err != nil {
		return r, err
	}
	var all []time.Duration
	for _, in := range st.inboxes {
		all = append(all, in.takeLatencies(false)...)
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[int(share*float64(len(all)-1))].Microseconds()) / 1e3
	}
	r = latencyRound{Deliveries: len(all), Median: at(0.5), P99: at(0.99), Max: at(1)}
	b.progress("  %d events/s: median %.2f ms, p99 %.2f ms, max %.2f ms", rate, r.Median, r.P99, r.Max)
	return r, nil
}
