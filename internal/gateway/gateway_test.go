package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gatehook/gatehook/internal/discord"
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
	wrap     func(Store) Store // nil for the store as it is
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
			hello: 2 * time.Second, reconnect: 5 * time.Millisecond, invalid: 5 * time.Millisecond, survey: 10 * time.Millisecond, recommend: time.Hour, grants: 20 * time.Millisecond, overlap: time.Second, margin: time.Minute,
			notice: 100 * time.Millisecond, release: time.Second, load: 10 * time.Second, settle: 50 * time.Millisecond,
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

// start runs a Gateway. stop drains it; it is called at the test's end if not
// before.
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

// legal fails the test if a client did what it must not do.
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

// message is the i-th message of a test; spaces and order of its members are
// not what a re-encoding would make of them.
func message(i int) []byte {
	return fmt.Appendf(nil, `{ "id":"%d","content":"number %d \u2764","guild_id":"7", "channel_id":"8","author":{"id":"9"}}`, i+1, i)
}

// messages waits until the n-th message was told and checks that all came
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

// untold returns the names of what was told, without the messages.
func (r *rig) untold() []string {
	return slices.DeleteFunc(names(r.store.all()), func(name string) bool { return name == "MESSAGE_CREATE" })
}

func TestEventsInOrder(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		compression discord.Compression
		split       int
	}{{discord.ZstdStream, 0}, {discord.ZlibStream, 0}, {discord.ZlibStream, 100}, {discord.NoCompression, 0}, {"", 0}} {
		t.Run(fmt.Sprintf("%s split %d", tt.compression, tt.split), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, discordtest.Config{SplitEvery: tt.split, ApplicationID: 77})
			r.cfg.Compression = tt.compression
			r.start()
			session := r.ready(0)
			r.dispatch(0, 0, 1000)
			if _, err := r.Dispatch(0, "SOMETHING_NEW", bytes.Repeat([]byte(`[1,{"x":"y"}] `), 30000)[:14]); err != nil {
				t.Fatal(err)
			}
			r.named("SOMETHING_NEW", 1)
			events := r.messages(1000)
			if got, want := names(events)[:4], []string{"SHARD_CONNECT", "CONNECT", "READY", "MESSAGE_CREATE"}; !slices.Equal(got, want) {
				t.Errorf("first %v, want %v", got, want)
			}
			seq := int64(0)
			for _, e := range events {
				if e.Shard != shard0 || e.ReceivedAt.IsZero() {
					t.Fatalf("%+v", e)
				}
				if e.Seq == 0 {
					continue
				}
				seq++
				if e.Seq != seq || e.ID != event.DispatchID(77, session.ID, shard0, seq) {
					t.Fatalf("event %d: sequence number %d, id %v", seq, e.Seq, e.ID)
				}
				if e.Name == "MESSAGE_CREATE" && (e.GuildID != 7 || e.ChannelID != 8 || e.UserID != 9) {
					t.Fatalf("ids %v %v %v", e.GuildID, e.ChannelID, e.UserID)
				}
			}
			want := event.Session{ID: session.ID, ResumeURL: r.ResumeURL(), Seq: 1002, Intents: event.Intents(r.intents.Load())}
			if got := r.store.session(shard0); got != want {
				t.Errorf("session %+v, want %+v", got, want)
			}
			st := r.gateway.Status()[0]
			if st.State != StateConnected || st.Received != 1002 || st.Stored != 1002 || st.SessionSince.IsZero() || st.Identifies != 1 {
				t.Errorf("status %+v", st)
			}
			if reasons := r.gateway.Unready(); reasons != nil {
				t.Errorf("unready: %v", reasons)
			}
			r.legal()
		})
	}
}

// wait polls what gives no signal.
func (r *rig) wait(what string, cond func() bool) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			r.t.Fatalf("not in time: %s; status %+v", what, r.gateway.Status())
		}
	}
}

// TestFatalIntentsLifted: when the listeners no longer need what was refused,
// the shard connects.
func TestFatalIntentsLifted(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: discordtest.NoFlags})
	r.intents.Store(int64(event.IntentGuilds | event.IntentMessageContent))
	r.start()
	r.wait("the shard failed", func() bool {
		st := r.gateway.Status()
		return len(st) == 1 && st[0].State == StateFailed && strings.Contains(st[0].Problem, "MESSAGE_CONTENT")
	})
	r.intents.Store(int64(event.IntentGuilds))
	r.changed <- struct{}{}
	r.ready(0)
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

// TestFatalForAll: what one shard learned about the application costs the
// others no IDENTIFY, until the intents change.
func TestFatalForAll(t *testing.T) {
	t.Parallel()
	const shards = 4
	r := newRig(t, discordtest.Config{Shards: shards})
	r.slots = pacedBuckets(t, 20*time.Millisecond)
	r.intents.Store(int64(event.IntentGuilds | event.IntentMessageContent))
	r.Arm(discordtest.AtIdentify, discordtest.AnyShard, 1, discordtest.Close(4014)) // switched off this very moment
	r.start()
	for _, st := range r.failed(shards) {
		if !strings.Contains(st.Problem, "MESSAGE_CONTENT") {
			t.Errorf("status %+v", st)
		}
	}
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 1 {
		t.Errorf("%d IDENTIFYs, want 1", n)
	}
	r.intents.Store(int64(event.IntentGuilds))
	r.changed <- struct{}{}
	for shard := range shards {
		r.ready(shard)
	}
}

// TestRetry: a shard that has failed tries again when a person asks for it,
// and so does every one that is asked. What the token may not be used for any
// more is nothing to a session that goes on.
func TestRetry(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Shards: 2, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 2}})
	r.start()
	r.named("READY", 2)
	r.Arm(discordtest.AtIdentify, 0, 1, discordtest.Close(4004))
	r.do(0, discordtest.Invalidate(false))
	r.failed(1)
	r.do(1, discordtest.Drop())
	r.count(discordtest.Resumed, 1, 1)
	r.do(1, discordtest.Invalidate(false))
	if st := r.failed(2)[1]; !strings.Contains(st.Problem, "DISCORD_TOKEN") {
		t.Errorf("status %+v", st)
	}
	if n := r.Count(discordtest.Identify, 1); n != 1 {
		t.Errorf("%d IDENTIFYs of the shard that could have known", n)
	}
	for shard := range 2 {
		r.gateway.mu.Lock()
		s := r.gateway.shards[event.Shard{ID: shard, Count: 2}]
		r.gateway.mu.Unlock()
		s.retry()
		s.retry() // asked twice, tried once
		r.ready(shard)
	}
	r.legal()
}

// TestRestart: the drain leaves sessions that the next process resumes.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Shards: 3, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 3}})
	stop := r.start()
	r.named("READY", 3)
	r.dispatch(0, 0, 50)
	r.messages(50)
	start := time.Now()
	stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the drain took %v", took)
	}
	for shard := range 3 {
		if e := r.count(discordtest.ClientClosed, shard, 1); e.Code != int(discord.CodeKeepSession) {
			t.Errorf("shard %d was closed with %d, want %d", shard, e.Code, discord.CodeKeepSession)
		}
	}
	r.dispatch(0, 50, 50)
	r.start()
	for shard := range 3 {
		r.count(discordtest.Resumed, shard, 1)
	}
	r.messages(100)
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 3 {
		t.Errorf("%d IDENTIFYs", n)
	}
	r.legal()
}

// TestRestartTooLate: a session that expired meanwhile is resumed in vain, and
// it is said what is lost.
func TestRestartTooLate(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{SessionLifetime: time.Nanosecond})
	stop := r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 5)
	r.messages(5)
	stop()
	r.count(discordtest.ClientClosed, 0, 1)
	r.start()
	lost := r.named("GATEHOOK_SESSION_LOST", 1)
	var got lostData
	if err := json.Unmarshal(lost.Data, &got); err != nil || got.SessionID != old.ID || got.AfterSeq != 6 || got.NextSessionID == "" {
		t.Errorf("%s, %v", lost.Data, err)
	}
	if n := r.Count(discordtest.Resume, 0); n != 1 {
		t.Errorf("%d RESUMEs", n)
	}
	r.legal()
}

// TestJournalBusy: while the journal takes nothing, the connection is kept
// alive and not taken for dead, and nothing is lost.
func TestJournalBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 400 * time.Millisecond, HeartbeatGrace: 10 * time.Second})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.store.setBusy(true)
	r.dispatch(0, 10, 500)
	r.count(discordtest.Heartbeat, 0, r.Count(discordtest.Heartbeat, 0)+4)
	r.store.setBusy(false)
	r.messages(510)
	r.count(discordtest.Heartbeat, 0, r.Count(discordtest.Heartbeat, 0)+2)
	if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 1 {
		t.Errorf("%d connections; last close %+v", n, r.gateway.Status()[0].LastClose)
	}
	r.legal()
}

// TestJournalBusyAtDrain: a drain does not wait for a journal that takes
// nothing; what it did not take is replayed.
func TestJournalBusyAtDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	stop := r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.store.setBusy(true)
	r.dispatch(0, 10, 10)
	stop()
	r.store.setBusy(false)
	r.start()
	r.count(discordtest.Resumed, 0, 1)
	r.messages(20)
	r.legal()
}

// TestStoredSequence: heartbeats and RESUMEs carry what is stored, not what
// was received, and the replay of the rest is dropped.
func TestStoredSequence(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 50 * time.Millisecond, TrimAcked: true})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	if err := r.WaitAcked(r.ctx, 0, 11); err != nil {
		t.Fatal(err)
	}
	r.store.setFrozen(true)
	r.dispatch(0, 10, 10)
	r.messages(20)
	if e := r.count(discordtest.Heartbeat, 0, r.Count(discordtest.Heartbeat, 0)+2); e.Seq != 11 {
		t.Errorf("a heartbeat with %d, want 11", e.Seq)
	}
	r.do(0, discordtest.Drop())
	if e := r.count(discordtest.Resume, 0, 1); e.Seq != 11 {
		t.Errorf("RESUME from %d, want 11", e.Seq)
	}
	r.store.setFrozen(false)
	r.dispatch(0, 20, 10)
	r.messages(30)
	r.legal()
}

// TestFirstHeartbeat: before READY there is no sequence number to carry.
func TestFirstHeartbeat(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 20 * time.Millisecond})
	hold := make(chan struct{})
	r.slots = &identifytest.Slots{OnWait: func(ctx context.Context, _ int) error {
		select {
		case <-hold:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}}
	r.start()
	if e := r.count(discordtest.Heartbeat, discordtest.AnyShard, 3); e.Seq != -1 {
		t.Errorf("a heartbeat with %d before READY", e.Seq)
	}
	if st := r.gateway.Status()[0]; st.State != StateIdentifying || len(r.gateway.Unready()) != 1 {
		t.Errorf("status %+v", st)
	}
	close(hold)
	r.ready(0)
	r.legal()
}

// TestBucketsOfShards: many shards keep to max_concurrency with the waits that
// the database gives them.
func TestBucketsOfShards(t *testing.T) {
	t.Parallel()
	const shards, window = 6, 100 * time.Millisecond
	r := newRig(t, discordtest.Config{
		Shards: shards, IdentifyWindow: window,
		SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 2},
	})
	r.slots = pacedBuckets(t, 3*window)
	r.start()
	for shard := range shards {
		r.ready(shard)
	}
	var order [2][]int
	for _, e := range r.Log() {
		if e.Kind == discordtest.Identify {
			order[e.Shard%2] = append(order[e.Shard%2], e.Shard)
		}
	}
	for _, bucket := range order {
		// Whoever comes first is not kept waiting for a lower one.
		if len(bucket) != shards/2 || !slices.IsSorted(bucket[1:]) {
			t.Errorf("IDENTIFYs in the order %v", order)
		}
	}
	r.legal()
}

// TestStartsUsedUp: with nothing left of the day's session starts no IDENTIFY
// is sent, or Discord would reset the token.
func TestStartsUsedUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{SessionStart: discordtest.SessionStart{Total: 1000, ResetAfter: 500 * time.Millisecond}})
	r.start()
	r.ready(0)
	log := r.Log()
	i := slices.IndexFunc(log, func(e discordtest.Entry) bool { return e.Kind == discordtest.Identify })
	if waited := log[i].At.Sub(log[0].At); waited < 300*time.Millisecond {
		t.Errorf("IDENTIFY %v after the connection", waited)
	}
	r.legal()
}

// TestAPIDown: Discord's API may fail for as long as it likes.
func TestAPIDown(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.Arm(discordtest.AtApplication, discordtest.AnyShard, 1, discordtest.Status(500))
	r.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.RateLimit(10*time.Millisecond))
	r.start()
	r.wait("the reason is told", func() bool {
		reasons := r.gateway.Unready()
		return len(reasons) == 1 && strings.Contains(reasons[0], "HTTP 500")
	})
	r.ready(0)
}

func TestWrongToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.cfg.Token = secret.New("wrong")
	g := New(r.cfg, r.store.join(), r.slots, quiet, prometheus.NewRegistry())
	err := g.Run(r.ctx)
	if !errors.Is(err, discord.ErrUnauthorized) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %v", err)
	}
}

// TestLeaseLost: when another instance has the shard, the connection is closed
// and nothing more is told; when it is free again, the session goes on.
func TestLeaseLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	told := len(r.messages(10))
	r.store.steal(shard0)
	if e := r.count(discordtest.ClientClosed, 0, 1); e.Code != int(discord.CodeKeepSession) {
		t.Errorf("closed with %d", e.Code)
	}
	r.wait("standby", func() bool { return r.gateway.Status()[0].State == StateStandby })
	if got := names(r.store.all()[told:]); len(got) != 0 {
		t.Errorf("told %v after the lease was lost", got)
	}
	if reasons := r.gateway.Unready(); reasons != nil {
		t.Errorf("unready because of another instance's shard: %v", reasons)
	}
	r.dispatch(0, 10, 10)
	r.store.free(shard0)
	r.count(discordtest.Resumed, 0, 1)
	r.messages(20)
	r.legal()
}

// TestMoreIntents: a session with more intents takes over without a gap and
// without telling anything twice.
func TestMoreIntents(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Guilds: []uint64{5, 6}, HeartbeatInterval: discord.MaxInterval})
	r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	// Both get these; the new session is not complete without its guilds.
	r.dispatch(0, 10, 10)
	if _, err := r.Dispatch(0, "GUILD_CREATE", []byte(`{"id":"5"}`)); err != nil {
		t.Fatal(err)
	}
	r.dispatch(0, 20, 10)
	r.messages(30)
	for n := range 2 { // time enough for the first connection to end, if it did
		r.do(0, discordtest.RequestHeartbeat())
		r.count(discordtest.Heartbeat, 0, 2*(n+1))
	}
	if n := r.Count(discordtest.ClientClosed, 0); n != 0 {
		t.Error("the new session took over before its guilds came")
	}
	if _, err := r.Dispatch(0, "GUILD_DELETE", []byte(`{"id":"6","unavailable":true}`)); err != nil {
		t.Fatal(err)
	}
	if e := r.count(discordtest.ClientClosed, 0, 1); e.Code != int(discord.CodeKeepSession) || e.Session != old.ID {
		t.Errorf("%+v", e)
	}
	r.wait("the new session", func() bool { return r.store.session(shard0).ID != old.ID })
	r.dispatch(0, 30, 20)
	r.messages(50)
	want := []string{
		"SHARD_CONNECT", "CONNECT", "READY", "GUILD_CREATE", "SHARD_DISCONNECT", "DISCONNECT",
		"SHARD_CONNECT", "CONNECT", "RESUMED", "SHARD_RESUME", "SHARD_DISCONNECT", "DISCONNECT",
		"SHARD_CONNECT", "CONNECT", "READY",
	}
	told := r.untold()
	// It may come before the first connection ends, or with the RESUME.
	at := slices.Index(told, "GUILD_DELETE")
	if at < 0 {
		t.Fatal("GUILD_DELETE was not told")
	}
	if diff := cmp.Diff(want, slices.Delete(told, at, at+1)); diff != "" {
		t.Error(diff)
	}
	now := r.ready(0)
	r.wait("the status tells of it", func() bool { return r.gateway.Status()[0].Received == now.Seq })
	st := r.gateway.Status()[0]
	if now.Intents != r.intents.Load() || int64(st.Intents) != now.Intents || st.State != StateConnected {
		t.Errorf("session %+v, status %+v", now, st)
	}
	// The new one is resumed like any other.
	r.do(0, discordtest.Drop())
	r.dispatch(0, 50, 10)
	r.messages(60)
	r.legal()
}

// TestMoreIntentsBehind: a session that is far behind is read to its end all
// the same. Discord may acknowledge a heartbeat before it has sent all that was
// dispatched earlier.
func TestMoreIntentsBehind(t *testing.T) {
	t.Parallel()
	const events, size = 2000, 512 // more than the sockets between the two take
	r := newRig(t, discordtest.Config{HeartbeatInterval: discord.MaxInterval, Listen: func() (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		return smallSockets{l}, err
	}})
	r.cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c, c.(*net.TCPConn).SetReadBuffer(8 << 10)
	}
	r.start()
	r.ready(0)
	r.wait("the status tells of it", func() bool { return r.gateway.Status()[0].State == StateConnected })
	r.store.setBusy(true)
	for i := range events {
		data := fmt.Appendf(nil, `{"id":"%d","content":"%s","guild_id":"7","channel_id":"8","author":{"id":"9"}}`, i+1, strings.Repeat("x", size))
		if _, err := r.Dispatch(0, "MESSAGE_CREATE", data); err != nil {
			t.Fatal(err)
		}
	}
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	r.store.setBusy(false)
	r.named("READY", 2)
	told := slices.DeleteFunc(r.store.all(), func(e *event.Event) bool { return e.Name != "MESSAGE_CREATE" })
	if n := len(told); n != events {
		t.Errorf("%d messages of %d were told", n, events)
	}
	r.legal()
}

// smallSockets keep little of what is written to them.
type smallSockets struct{ net.Listener }

func (s smallSockets) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetWriteBuffer(8 << 10)
}

// TestInterruptedPut: an event that the journal had not taken when its
// connection ended comes again.
func TestInterruptedPut(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: discord.MaxInterval})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 1)
	r.messages(1)
	r.store.setBusy(true)
	r.dispatch(0, 1, 1)
	r.wait("the event waits", func() bool {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		return r.store.waiting > 0
	})
	r.gateway.find(shard0).restart()
	r.count(discordtest.Resumed, 0, 1)
	r.store.setBusy(false)
	r.messages(2)
	r.legal()
}

// TestMoreIntentsAfterRestart: a stored session that has too few intents is
// resumed first, so that nothing is lost, and replaced then.
func TestMoreIntentsAfterRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	stop := r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	stop()
	r.dispatch(0, 10, 10)
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.start()
	r.count(discordtest.Resumed, 0, 1)
	r.count(discordtest.Ready, 0, 2)
	r.wait("the new session", func() bool {
		st := r.gateway.Status()[0]
		return st.Intents == event.Intents(r.intents.Load())
	})
	r.dispatch(0, 20, 10)
	r.messages(30)
	if got := names(r.store.all()); slices.Contains(got, "GATEHOOK_SESSION_LOST") {
		t.Error("a session was lost")
	}
	r.legal()
}

// TestMoreIntentsRefused: the session that there is goes on, and it is said
// what is missing.
func TestMoreIntentsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.Arm(discordtest.AtIdentify, 0, 1, discordtest.Close(4014))
	r.intents.Store(r.intents.Load() | int64(event.IntentMessageContent))
	r.changed <- struct{}{}
	r.wait("the problem is told", func() bool { return strings.Contains(r.gateway.Status()[0].Problem, "MESSAGE_CONTENT") })
	r.dispatch(0, 10, 10)
	r.messages(20)
	if st := r.gateway.Status()[0]; st.State != StateConnected || r.gateway.Unready() != nil {
		t.Errorf("status %+v", st)
	}
	if diff := cmp.Diff([]string{"SHARD_CONNECT", "CONNECT", "READY"}, r.untold()); diff != "" {
		t.Error(diff)
	}
	if n := r.Count(discordtest.Identify, 0); n != 2 {
		t.Errorf("%d IDENTIFYs", n)
	}
}

// TestMoreIntentsInterrupted: when the first connection breaks before the
// second could take over, its session is resumed: that is where the gap would
// be.
func TestMoreIntentsInterrupted(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Guilds: []uint64{5}})
	r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	r.do(discordtest.AnyShard, discordtest.Drop())
	r.dispatch(0, 10, 10)
	if e := r.count(discordtest.Resumed, 0, 1); e.Session != old.ID {
		t.Errorf("resumed %q, want %q", e.Session, old.ID)
	}
	r.messages(20)
	r.legal()
}

// TestRepeatedRESUMED: Discord does not say which number RESUMED has. With
// that of the event before, it is still told.
func TestRepeatedRESUMED(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 3)
	r.messages(3)
	r.do(0, discordtest.Send([]byte(`{"op":0,"t":"RESUMED","s":4,"d":{"_trace":[]}}`)))
	r.named("SHARD_RESUME", 1)
	if e := r.named("RESUMED", 1); e.Seq != 0 || string(e.Data) != `{"_trace":[]}` {
		t.Errorf("%+v", e)
	}
	if got := r.store.session(shard0).Seq; got != 4 {
		t.Errorf("the session stands at %d", got)
	}
	r.legal()
}

// TestLogsTellNoSecrets: neither the token nor a session's id, which together
// let anybody take the session over, are in the log.
func TestLogsTellNoSecrets(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 50 * time.Millisecond})
	var logs bytes.Buffer
	r.log = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	stop := r.start()
	session := r.ready(0)
	for n, act := range []discordtest.Action{
		discordtest.Drop(), discordtest.Reconnect(), discordtest.Corrupt(), discordtest.Close(4000),
	} {
		r.do(0, act)
		r.count(discordtest.Resumed, 0, n+1)
		r.ready(0)
	}
	r.do(0, discordtest.Send([]byte(`{"op":99}`)), discordtest.Invalidate(false))
	r.named("GATEHOOK_SESSION_LOST", 1)
	second := r.ready(0)
	stop()
	for _, secret := range []string{r.Token(), session.ID, second.ID} {
		if strings.Contains(logs.String(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, &logs)
		}
	}
	for _, want := range []string{"session in service", "disconnected", "session lost", "shard=0/1"} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("%q is not in the log:\n%s", want, &logs)
		}
	}
}

// TestOnlyEnabledIntents: a listener for everything must not cost a bot its
// connection because a privileged intent is not switched on.
func TestOnlyEnabledIntents(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: 1 << 15}) // GUILD_MEMBERS, of a small bot
	r.intents.Store(int64(event.IntentsAll))
	r.cfg.OnlyEnabled = true
	r.start()
	r.ready(0)
	var sent struct{ Intents event.Intents }
	for _, e := range r.Log() {
		if e.Kind == discordtest.Identify {
			if err := json.Unmarshal(e.Data, &sent); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := event.IntentsAll &^ (event.IntentGuildPresences | event.IntentMessageContent); sent.Intents != want {
		t.Errorf("identified with %v, want %v", sent.Intents, want)
	}
	r.legal()
}
