package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/gateway/identify/identifytest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

var quiet = slog.New(slog.DiscardHandler)

// rig is a Gateway between a simulated Discord and a store in memory.
type rig struct {
	*discordtest.Server
	t        *testing.T
	ctx      context.Context // ends before the test would time out
	store    *memory
	cfg      Config
	slots    identify.Slots
	timing   timing
	wrap     func(Store) Store // nil to use the store directly
	gateway  *Gateway
	registry *prometheus.Registry // the gateway's
	intents  atomic.Int64
	changed  chan struct{}
	log      *slog.Logger
}

// newRig starts the simulated Discord only.
func newRig(t *testing.T, cfg discordtest.Config) *rig {
	t.Helper()
	if cfg.IdentifyWindow == 0 {
		cfg.IdentifyWindow = time.Nanosecond
	}
	srv, err := discordtest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	r := &rig{
		Server: srv, t: t, ctx: ctx, store: newMemory(), slots: &identifytest.Slots{}, changed: make(chan struct{}, 1), log: quiet,
		timing: timing{
			hello: 2 * time.Second, resume: 2 * time.Second, reconnect: 5 * time.Millisecond, start: 5 * time.Millisecond, gather: 5 * time.Millisecond, invalid: 5 * time.Millisecond, survey: 10 * time.Millisecond, lease: 5 * time.Millisecond, stopped: time.Minute, alone: time.Hour, lapsed: time.Hour, recommend: time.Hour, grants: 20 * time.Millisecond, overlap: time.Second, margin: time.Minute,
			notice: 100 * time.Millisecond, release: time.Second, begin: time.Second, load: 10 * time.Second, loadBound: time.Minute, settle: 50 * time.Millisecond,
		},
	}
	r.intents.Store(int64(event.IntentGuilds | event.IntentGuildMessages))
	r.cfg = Config{
		Token: secret.New("Bot " + srv.Token()), APIURL: srv.APIURL(), Version: "test",
		Intents:        func() event.Intents { return event.Intents(r.intents.Load()) },
		IntentsChanged: r.changed,
	}
	return r
}

// start runs a Gateway. stop drains it; if nothing has called stop by then, the
// end of the test does.
func (r *rig) start() (stop func()) {
	r.t.Helper()
	var store Store = r.store.join()
	if r.wrap != nil {
		store = r.wrap(store)
	}
	r.registry = prometheus.NewRegistry()
	r.gateway = New(r.cfg, store, r.slots, r.log, r.registry)
	r.gateway.timing = r.timing
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.ctx))
	done := make(chan error, 1)
	gateway := r.gateway // a second one may be started
	go func() { done <- gateway.Run(ctx) }()
	var stopped bool
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel(errors.New("the test ends"))
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
	r.t.Cleanup(stop)
	return stop
}

// pacedBuckets are Buckets with a shorter slot.
func pacedBuckets(t *testing.T, slot time.Duration) *identify.Buckets {
	t.Helper()
	b := identify.NewBuckets(postgrestest.New(t), quiet)
	b.Slot = slot
	return b
}

// scrape returns what GET /metrics would show of the gateway.
func (r *rig) scrape() string {
	r.t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequestWithContext(r.ctx, http.MethodGet, "/metrics", http.NoBody))
	return w.Body.String()
}

// legal fails the test if a client did something illegal.
func (r *rig) legal() {
	r.t.Helper()
	for _, e := range r.Illegal() {
		r.t.Errorf("illegal: %v", e)
	}
}

func (r *rig) ready(shard int) discordtest.Session {
	r.t.Helper()
	s, err := r.WaitReady(r.ctx, shard)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) dispatch(shard, from, n int) {
	r.t.Helper()
	for i := from; i < from+n; i++ {
		if _, err := r.Dispatch(shard, "MESSAGE_CREATE", message(i)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) do(shard int, actions ...discordtest.Action) {
	r.t.Helper()
	if err := r.Do(shard, actions...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) count(k discordtest.Kind, shard, n int) discordtest.Entry {
	r.t.Helper()
	e, err := r.WaitCount(r.ctx, k, shard, n)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// message returns the i-th message of a test. Encoding it again would change
// its spaces and the order of its members.
func message(i int) []byte {
	return fmt.Appendf(nil, `{ "id":"%d","content":"number %d \u2764","guild_id":"7", "channel_id":"8","author":{"id":"9"}}`, i+1, i)
}

// messages waits until the n-th message was delivered, and checks that all came
// once and in order.
func (r *rig) messages(n int) []*event.Event {
	r.t.Helper()
	last := message(n - 1)
	events := r.store.wait(r.ctx, r.t, fmt.Sprintf("message %d", n), func(events []*event.Event) bool {
		return slices.ContainsFunc(events, func(e *event.Event) bool { return bytes.Equal(e.Data, last) })
	})
	i := 0
	for _, e := range events {
		if e.Name != "MESSAGE_CREATE" {
			continue
		}
		if want := message(i); !bytes.Equal(e.Data, want) {
			r.t.Fatalf("message %d is %s, want %s", i, e.Data, want)
		}
		i++
	}
	return events
}

// named waits for the n-th event of a name.
func (r *rig) named(name string, n int) *event.Event {
	r.t.Helper()
	var found *event.Event
	r.store.wait(r.ctx, r.t, fmt.Sprintf("%s number %d", name, n), func(events []*event.Event) bool {
		seen := 0
		for _, e := range events {
			if e.Name == name {
				if seen++; seen == n {
					found = e
					return true
				}
			}
		}
		return false
	})
	return found
}

// withoutMessages returns the names of the delivered events other than
// messages.
func (r *rig) withoutMessages() []string {
	return slices.DeleteFunc(names(r.store.all()), func(name string) bool { return name == "MESSAGE_CREATE" })
}

// wait polls a condition that sends no signal.
func (r *rig) wait(goal string, cond func() bool) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			r.t.Fatalf("not in time: %s; status %+v", goal, r.gateway.Status())
		}
	}
}

// failed waits until n shards have failed and returns their statuses.
func (r *rig) failed(n int) (list []ShardStatus) {
	r.t.Helper()
	r.wait(fmt.Sprintf("%d shards failed", n), func() bool {
		list = slices.DeleteFunc(r.gateway.Status(), func(st ShardStatus) bool { return st.State != StateFailed })
		return len(list) == n
	})
	return list
}

// entries returns the simulated Discord's log entries of one kind.
func (r *rig) entries(k discordtest.Kind) []discordtest.Entry {
	return slices.DeleteFunc(r.Log(), func(e discordtest.Entry) bool { return e.Kind != k })
}

// gaps returns the times between entries.
func gaps(entries []discordtest.Entry) (list []time.Duration) {
	for i := 1; i < len(entries); i++ {
		list = append(list, entries[i].At.Sub(entries[i-1].At))
	}
	return list
}
