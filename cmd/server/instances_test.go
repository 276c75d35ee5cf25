package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/journal"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

// These tests run the journals and deliveries of several instances on one
// database. There are no gateways: the tests append the events themselves.

const nodeApp = event.Snowflake(42)

var nodeShard = event.Shard{ID: 0, Count: 1}

// singleListener is a registry with one listener, which wants every event from Discord.
type singleListener event.Listener

func (o *singleListener) Match(e *event.Event) (ids []int64, missed bool) {
	if strings.HasPrefix(e.Name, "GATEHOOK_") {
		return nil, false
	}
	return []int64{1}, false
}

func (o *singleListener) Listener(int64) *event.Listener { return (*event.Listener)(o) }

func (o *singleListener) Disable(context.Context, int64, string, string, func(context.Context, pgx.Tx) error) error {
	return nil
}

// hit is one POST that arrived.
type hit struct {
	node    string
	seq     int64
	channel string
	attempt string
	status  int
}

// target is a callback that records its POSTs, in the order of its answers.
type target struct {
	*httptest.Server
	answer func(hit) int

	mu      sync.Mutex // guards hits
	hits    []hit
	arrived chan hit // POSTs that are not answered yet
	changed chan struct{}
}

func newTarget(t *testing.T, answer func(hit) int) *target {
	t.Helper()
	c := &target{answer: answer, arrived: make(chan hit, 10000), changed: make(chan struct{}, 1)}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Seq  int64
		Data struct {
			Channel string `json:"channel_id"`
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h := hit{
		node: strings.TrimPrefix(r.Header.Get("User-Agent"), "Gatehook/"), seq: body.Seq, channel: body.Data.Channel,
		attempt: r.Header.Get("gatehook-attempt"),
	}
	c.arrived <- h
	h.status = c.answer(h)
	c.mu.Lock()
	c.hits = append(c.hits, h)
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	w.WriteHeader(h.status)
}

// accepted returns the POSTs that were answered with 2xx, in order.
func (c *target) accepted() (hits []hit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hits {
		if h.status < 300 {
			hits = append(hits, h)
		}
	}
	return hits
}

// await waits until n different events were accepted.
func (c *target) await(t *testing.T, n int) {
	t.Helper()
	limit := time.After(90 * time.Second)
	for {
		seen := make(map[int64]bool)
		for _, h := range c.accepted() {
			seen[h.seq] = true
		}
		if len(seen) >= n {
			return
		}
		select {
		case <-c.changed:
		case <-limit:
			t.Fatalf("%d of %d events were accepted", len(seen), n)
		}
	}
}

// node is one instance.
type node struct {
	name     string
	pool     *pgxpool.Pool
	instance *journal.Instance
	journal  *journal.Journal
	delivery *delivery.Delivery
	// pause stops the heartbeats, resume starts them again.
	pause, resume func()
	stop          func()
}

func startNode(t *testing.T, pool *pgxpool.Pool, name string, ttl time.Duration, l *event.Listener, laneQueue int) *node {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	n := &node{name: name, pool: pool}
	log := slog.New(slog.DiscardHandler)
	var err error
	if n.instance, err = journal.Join(ctx, pool, journal.Home{Name: uuid.New()}, ttl, log); err != nil {
		t.Fatal(err)
	}
	store, err := journal.OpenStore(ctx, pool, n.instance, 0, log)
	if err != nil {
		t.Fatal(err)
	}
	n.delivery, err = delivery.Open(ctx, pool, (*singleListener)(l), store, n.instance, delivery.Config{
		Schedule:     delivery.Schedule{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond},
		AllowTargets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Version: name, LaneQueue: laneQueue,
		AttemptTimeout: time.Minute,
	}, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	n.journal = journal.New(store, (*singleListener)(l), n.delivery, journal.Config{}, log, prometheus.NewRegistry())
	n.run(ctx, t)
	return n
}

func (n *node) run(ctx context.Context, t *testing.T) {
	t.Helper()
	var beats sync.WaitGroup
	var cancel context.CancelFunc
	n.pause = func() { cancel(); beats.Wait() }
	n.resume = func() {
		var running context.Context
		running, cancel = context.WithCancel(ctx)
		beats.Go(func() {
			if err := n.instance.Run(running); err != nil {
				t.Error(err)
			}
		})
	}
	n.resume()
	delivered, stored := make(chan error, 1), make(chan error, 1)
	go func() { delivered <- n.delivery.Run(ctx) }()
	go func() { stored <- n.journal.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		// Its journal has cursors to store, for which it needs a lease.
		n.pause()
		n.resume()
		n.journal.Stop()
		if err := <-stored; err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
		n.delivery.Stop()
		if err := <-delivered; err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
		n.pause()
		if err := n.instance.Leave(ctx); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
	})
	t.Cleanup(n.stop)
}

// lapsed reports whether the instance considers its lease to have run out.
func (n *node) lapsed(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := n.instance.Hold(ctx)
	return err != nil
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(90 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("still not true: %s", what)
		}
	}
}

// claim claims the shard once it is free.
func (n *node) claim(t *testing.T) (s *journal.Claim) {
	t.Helper()
	until(t, n.name+" has the shard", func() bool {
		claimed, err := n.journal.Claim(t.Context(), nodeApp, []event.Shard{nodeShard})
		if err != nil {
			// On a busy machine the lease, which is short here, may have run out. The
			// next try is under a new number.
			t.Logf("%s claims again: %v", n.name, err)
		}
		if len(claimed) == 0 {
			return false
		}
		s = claimed[0]
		return true
	})
	return s
}

// send appends events with the sequence numbers from..to, to the channels in turn.
func send(t *testing.T, s *journal.Claim, from, to int64, channels int64) {
	t.Helper()
	for seq := from; seq <= to; seq++ {
		e := &event.Event{
			ID: event.DispatchID(nodeApp, "session", nodeShard, seq), Name: "MESSAGE_CREATE", Shard: nodeShard, Seq: seq, ReceivedAt: time.Now(),
			GuildID: 1, ChannelID: event.Snowflake(1 + seq%channels), Data: fmt.Appendf(nil, `{"id":"%d","channel_id":"%d","author":{"id":"3"}}`, seq+1, 1+seq%channels),
		}
		if err := s.Append(t.Context(), event.Session{ID: "session", Seq: seq}, e); err != nil {
			t.Fatal(err)
		}
	}
}

func rows(t *testing.T, pool *pgxpool.Pool, query string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func nodeListener(url string, ordering event.Ordering, inFlight int) *event.Listener {
	return &event.Listener{
		ID: 1, Event: "*", URL: url, Format: event.FormatStandard, Ordering: ordering, MaxInFlight: inFlight, Enabled: true,
		Secrets: []secret.Value{secret.New("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")},
	}
}

// TestPausedInstanceNeitherStoresNorDelivers pauses an instance for longer than
// its lease, with events to store, deliveries in its lane and POSTs in flight. It
// checks that the instance stores and sends nothing more.
func TestPausedInstanceNeitherStoresNorDelivers(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	release := make(chan struct{})
	c := newTarget(t, func(h hit) int {
		if h.node == "a" {
			<-release
		}
		return http.StatusOK
	})
	l := nodeListener(c.URL, event.OrderingNone, 2)
	a := startNode(t, pool, "a", time.Second, l, 0)
	s := a.claim(t)
	send(t, s, 1, 10, 3)
	for range 2 {
		<-c.arrived
	}
	until(t, "all events are stored", func() bool { return rows(t, pool, `SELECT count(*) FROM events`) == 10 })
	a.pause()
	until(t, "the lease has run out", func() bool { return a.lapsed(t) })
	send(t, s, 11, 20, 3) // received before the pause, never stored

	b := startNode(t, pool, "b", 0, l, 0)
	if got := b.claim(t).Session().Seq; got != 10 {
		t.Errorf("the session is resumed after %d, want 10", got)
	}
	c.await(t, 10)
	if n := len(c.accepted()); n != 10 {
		t.Errorf("b made %d POSTs for the 10 events that a had stored", n)
	}
	was := a.instance.ID()
	a.resume()
	select {
	case <-s.Lost():
	case <-time.After(60 * time.Second):
		t.Fatal("a has not noticed that it lost its shard")
	}
	if a.instance.ID() == was {
		t.Error("a has kept its number")
	}
	close(release)
	a.stop()
	b.stop()
	byNode := make(map[string]int)
	for _, h := range c.accepted() {
		byNode[h.node]++
	}
	if byNode["a"] != 2 || byNode["b"] != 10 {
		t.Errorf("POSTs by instance: %v, want 2 from a, which were in flight, and 10 from b", byNode)
	}
	got := [4]int{
		rows(t, pool, `SELECT count(*) FROM events`), rows(t, pool, `SELECT count(*) FROM attempts WHERE delivered`),
		rows(t, pool, `SELECT count(*) FROM batches`), rows(t, pool, `SELECT count(*) FROM retries`),
	}
	if want := [4]int{10, 12, 0, 0}; got != want {
		t.Errorf("events, attempts, unsettled batches, retries: %v, want %v", got, want)
	}
	if n := rows(t, pool, `SELECT seq FROM shards`); n > 10 { // it may be behind the events
		t.Errorf("a moved the cursor to %d", n)
	}
}

// TestOutageLongerThanTheLeaseDeliversNothingTwice checks that an outage of the
// database alone, although longer than the lease, makes no instance an heir: each
// delivery in memory is made exactly once.
func TestOutageLongerThanTheLeaseDeliversNothingTwice(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	release := make(chan struct{})
	c := newTarget(t, func(hit) int { <-release; return http.StatusOK })
	a := startNode(t, pool, "a", time.Second, nodeListener(c.URL, event.OrderingChannel, 2), 0)
	s := a.claim(t)
	send(t, s, 1, 40, 10)
	for range 2 {
		<-c.arrived
	}
	back := cutOff(t, pool)
	until(t, "the lease has run out", func() bool { return a.lapsed(t) })
	close(release)
	send(t, s, 41, 50, 10)
	until(t, "the POSTs in flight are answered", func() bool { return len(c.accepted()) == 2 })
	if n := len(c.arrived); n != 0 {
		t.Errorf("%d POSTs were started without a lease", n)
	}
	was := a.instance.ID()
	back()
	c.await(t, 50)
	a.stop()
	if n := len(c.accepted()); n != 50 {
		t.Errorf("%d POSTs for 50 events", n)
	}
	if a.instance.ID() != was {
		t.Error("the instance lost its number, although there was no heir")
	}
	if n := rows(t, pool, `SELECT count(*) FROM batches`) + rows(t, pool, `SELECT count(*) FROM retries`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// cutOff makes the database unreachable until back is called.
func cutOff(t *testing.T, pool *pgxpool.Pool) (back func()) {
	t.Helper()
	cfg := pool.Config().ConnConfig.Copy()
	name := pgx.Identifier{cfg.Database}.Sanitize()
	cfg.Database = "postgres"
	admin, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	execute := func(query string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	execute(`ALTER DATABASE ` + name + ` ALLOW_CONNECTIONS false`)
	execute(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, pool.Config().ConnConfig.Database)
	return func() { execute(`ALTER DATABASE ` + name + ` ALLOW_CONNECTIONS true`) }
}

// TestOrderHoldsWhileTheShardMoves moves a shard between two instances, and lets
// the last owner die. Meanwhile the callback of an ordered listener fails and
// hangs, and its lanes are too small.
func TestOrderHoldsWhileTheShardMoves(t *testing.T) {
	t.Parallel()
	const channels, part = 5, 40
	pool := postgrestest.New(t)
	var mu sync.Mutex
	failed := make(map[int64]bool)
	slow := make(chan struct{})
	c := newTarget(t, func(h hit) int {
		mu.Lock()
		fails := h.seq%6 == 0 && !failed[h.seq]
		failed[h.seq] = failed[h.seq] || fails
		mu.Unlock()
		if h.channel == "3" && h.seq < 2*part {
			<-slow // in flight while the shard moves
		}
		if fails {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	l := nodeListener(c.URL, event.OrderingChannel, 4)
	a := startNode(t, pool, "a", time.Second, l, 12)
	b := startNode(t, pool, "b", 0, l, 12)
	seq := int64(0)
	var s *journal.Claim
	for i := range 6 {
		owner := []*node{a, b}[i%2]
		s = owner.claim(t)
		send(t, s, seq+1, seq+part, channels)
		seq += part
		if i == 3 {
			close(slow)
		}
		if err := s.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s = a.claim(t)
	send(t, s, seq+1, seq+part, channels)
	seq += part
	until(t, "all is stored", func() bool { return s.Stored() == seq })
	a.pause()
	s = b.claim(t)
	send(t, s, seq+1, seq+part, channels)
	seq += part
	c.await(t, int(seq))
	b.stop()

	last := make(map[string]int64)
	seen := make(map[int64]bool)
	nodes := make(map[string]int)
	for _, h := range c.accepted() {
		nodes[h.node]++
		if seen[h.seq] {
			continue // POSTs that the dead instance had in flight may be repeated
		}
		seen[h.seq] = true
		if h.seq < last[h.channel] {
			t.Errorf("channel %s: %d after %d, from %s", h.channel, h.seq, last[h.channel], h.node)
		}
		last[h.channel] = h.seq
	}
	if nodes["a"] == 0 || nodes["b"] == 0 || len(failed) == 0 {
		t.Errorf("POSTs by instance %v, %d failures: the test did not exercise both instances and failures", nodes, len(failed))
	}
	if n := rows(t, pool, `SELECT count(*) FROM batches`) + rows(t, pool, `SELECT count(*) FROM retries`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	ids := make([]int64, 0)
	if err := pool.QueryRow(t.Context(), `SELECT array_agg(seq ORDER BY batch_id, ordinal) FROM events`).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(ids) {
		t.Error("the batches are not numbered in the order in which their events were received")
	}
}
