package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/secret"
)

// Config of a Gateway.
type Config struct {
	// Token of the bot, with or without the prefix "Bot ".
	Token secret.Value
	// APIURL is the base of the REST API, such as https://discord.com/api/v10.
	APIURL string
	// Shards are the shards that this process keeps connected. The zero value
	// means all.
	Shards Shards
	// Compression of the messages from Discord. The zero value means zlib-stream.
	Compression discord.Compression
	// MaxPayload bounds one payload from Discord, in bytes; 0 means 64 MiB.
	MaxPayload int
	// Dial opens all sockets to Discord; nil means the default dialer.
	Dial discord.DialFunc
	// UnnamedCompression is that of sessions whose stored URL names none: older
	// versions stored none. The zero value means ZstdStream, their default.
	UnnamedCompression discord.Compression
	// Version of this program, for the User-Agent.
	Version string
	// Intents returns the intents that sessions should have now. It must be safe
	// for concurrent use.
	Intents func() event.Intents
	// OnlyEnabled leaves out the privileged intents that are not switched on for
	// the application: Discord refuses a connection with one of them.
	OnlyEnabled bool
	// IntentsChanged receives a value when the result of Intents changes; nil if
	// it never does.
	IntentsChanged <-chan struct{}
	// Discovered, if not nil, is called with the id of the token's application as
	// soon as Discord has returned it.
	Discovered func(event.Snowflake)
	// Relay keeps the presence and passes commands on to other instances; nil
	// for a Gateway without Commands.
	Relay *Relay
	// Now returns the time by which every server goes, for what is stored with an
	// event: the database's. nil means this machine's.
	Now func() time.Time
}

// Gateway keeps the shards of one bot connected. Make it with New, then Run
// it.
type Gateway struct {
	cfg     Config
	dialer  *discord.Dialer
	rest    *discord.REST
	store   Store
	room    *room // for all events that are held back
	slots   identify.Slots
	timing  timing
	log     *slog.Logger
	metrics *metrics
	// application is the bot's application id; 0 until Discord has returned it.
	application atomic.Uint64

	mu     sync.Mutex // guards the fields below
	shards map[event.Shard]*shard
	plan   event.Plan
	grants *identify.Grants // nil until Discord has answered
	// concurrency is how many IDENTIFYs Discord takes every 5 s.
	concurrency int
	problem     string // why there are no shards yet
}

// New makes a Gateway and registers its metrics. It starts nothing.
func New(cfg Config, store Store, slots identify.Slots, log *slog.Logger, reg prometheus.Registerer) *Gateway {
	// Discord wants the prefix on REST calls and refuses it in IDENTIFY.
	cfg.Token = secret.New(strings.TrimSpace(strings.TrimPrefix(cfg.Token.Reveal(), "Bot ")))
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	agent := fmt.Sprintf("DiscordBot (https://github.com/gatehook/gatehook, %s)", cfg.Version)
	m := newMetrics(reg)
	g := &Gateway{
		cfg: cfg, store: store, slots: slots, timing: usualTiming, log: log, metrics: m,
		dialer: discord.NewDialer(discord.Config{
			Agent: agent, Compression: cfg.Compression, MaxPayload: cfg.MaxPayload, Dial: cfg.Dial, Received: m.received,
		}),
		rest:    discord.NewREST(discord.RESTConfig{URL: cfg.APIURL, Token: cfg.Token, Agent: agent, Dial: cfg.Dial}),
		problem: "Discord's API has not been called yet",
		room:    newRoom(maxHeldBack),
		shards:  make(map[event.Shard]*shard),
	}
	reg.MustRegister(newStatusCollector(g.Status), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "gatehook", Subsystem: "gateway", Name: "held_back_events",
		Help: "Received events that wait while another session or set of shards still delivers.",
	}, g.heldBack), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "gatehook", Subsystem: "gateway", Name: "held_back_bytes",
		Help: "Memory of the events that are held back.",
	}, func() float64 {
		used, _ := g.room.load(maxHeldBack)
		return float64(used)
	}), prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "gatehook", Subsystem: "gateway", Name: "held_back_full_total",
		Help: "Times that a connection was not read because too much was held back.",
	}, func() float64 {
		_, waits := g.room.load(maxHeldBack)
		return float64(waits)
	}))
	return g
}

// Run keeps the shards connected until ctx ends. Then it closes their
// connections so that the sessions can be resumed, releases the shards and
// returns nil. The error is discord.ErrUnauthorized if Discord does not know
// the token. Call it once.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.rest.Close()
	turns, recommended, err := g.discover(ctx)
	if errors.Is(err, discord.ErrUnauthorized) {
		return err
	}
	if err != nil {
		return nil // ctx has ended
	}
	// The shards close with errDrain, whatever ended ctx.
	tenures, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(errDrain)
	f := g.newFleet(tenures, turns, recommended)
	f.running.Go(func() { f.lapse.watch(tenures) })
	f.run(ctx)
	f.stop(ctx, end)
	return nil
}

// discover asks Discord who the bot is and how to connect, until it answers.
func (g *Gateway) discover(ctx context.Context) (turns *identify.Turns, recommended int, err error) {
	report := func(err error) {
		g.log.LogAttrs(ctx, slog.LevelWarn, "Discord's API did not answer, trying again", slog.Any("error", err))
		g.mu.Lock()
		defer g.mu.Unlock()
		g.problem = "Discord's API: " + err.Error()
	}
	var app discord.Application
	var info discord.GatewayInfo
	err = discord.Insist(ctx, report, func(ctx context.Context) (err error) {
		app, err = g.rest.Application(ctx)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	err = discord.Insist(ctx, report, func(ctx context.Context) (err error) {
		info, err = g.rest.Gateway(ctx)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	g.application.Store(uint64(app.ID))
	if g.cfg.Discovered != nil {
		g.cfg.Discovered(app.ID)
	}
	left := func(remaining int) { g.metrics.startsLeft.Set(float64(remaining)) }
	left(info.Limit.Remaining)
	turns = identify.NewTurns(identify.Config{Application: app, Info: info, REST: g.rest, Slots: g.slots, Log: g.log, Left: left})
	g.mu.Lock()
	g.grants, g.concurrency = turns.Grants(), info.Limit.MaxConcurrency
	g.mu.Unlock()
	g.log.LogAttrs(ctx, slog.LevelInfo, "Discord's API answers", slog.String("application", app.ID.String()),
		slog.Int("recommended_shards", info.Shards), slog.Int("session_starts_left", info.Limit.Remaining))
	return turns, info.Shards, nil
}

// heldBack returns the number of events that all shards together hold back.
func (g *Gateway) heldBack() (n float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		n += float64(s.heldBack())
	}
	return n
}

// Status returns the status of every shard: first the set that delivers, then
// the next one, each in the order of the ids. It is empty until the number of
// shards is known.
func (g *Gateway) Status() []ShardStatus {
	problem := g.intentsProblem()
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]ShardStatus, 0, len(g.shards))
	for id, s := range g.shards {
		st := s.snapshot()
		st.Role = roleOf(dutyOf(g.plan, id.Count))
		if st.State == StateConnected && st.Problem == "" {
			st.Problem = problem
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b ShardStatus) int {
		if a.Shard.Count != b.Shard.Count && a.Shard.Count == g.plan.Next {
			return 1
		}
		if a.Shard.Count != b.Shard.Count && b.Shard.Count == g.plan.Next {
			return -1
		}
		return cmp.Or(a.Shard.Count-b.Shard.Count, a.Shard.ID-b.Shard.ID)
	})
	return list
}

// Unready returns why the gateway is not ready: one line per shard of this
// instance that is neither connected nor resuming, or cannot connect. Shards of other instances
// don't count. Empty means ready.
func (g *Gateway) Unready() []string {
	g.mu.Lock()
	problem := g.problem
	g.mu.Unlock()
	if problem != "" {
		return []string{problem}
	}
	var reasons []string
	for _, s := range g.Status() {
		if reason := s.unready(time.Now()); reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

// find returns a shard that this process runs or may run later; nil for any
// other.
func (g *Gateway) find(id event.Shard) *shard {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shards[id]
}

// commandTarget returns the application's id and the number of shards of the
// set that commands go to; each is 0 until it is known.
func (g *Gateway) commandTarget() (applicationID event.Snowflake, count int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	count = g.plan.Current
	if g.plan.Phase == event.Overlapping || g.plan.Phase == event.Switching {
		// Discord dispatches the answers to a command to one session only. The old
		// set has the whole overlap to deliver the answers to earlier commands. The
		// next set holds its answers back until it delivers.
		count = g.plan.Next
	}
	return event.Snowflake(g.application.Load()), count
}

// owned returns the shards that this process runs, of all sets.
func (g *Gateway) owned() (list []*shard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		if s.tenure.Load() != nil {
			list = append(list, s)
		}
	}
	return list
}
