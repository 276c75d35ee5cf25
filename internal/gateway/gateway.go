// Package gateway keeps a bot's shards connected to Discord's Gateway and
// hands every dispatch on, in the order in which a session numbers them.
//
// It promises that no payload's d is decoded or changed on the way, that a
// session which can be resumed is resumed (after a broken connection, a
// restart, a take-over by another instance), that what could not be resumed is
// said with a GATEHOOK_SESSION_LOST, and that IDENTIFYs keep to Discord's
// limits however many instances share the token. It never ends a session on
// purpose: it closes with code 4900, not with 1000 or 1001. It never waits for
// a callback, only for a journal whose queue is full, and keeps the connection
// alive meanwhile.
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
	// Shards are those that this process keeps connected. The zero value means
	// all.
	Shards Shards
	// Compression of what Discord sends. The zero value means zstd-stream.
	Compression discord.Compression
	// MaxPayload bounds one payload of Discord's, in bytes; 0 means 64 MiB.
	MaxPayload int
	// Dial opens all sockets to Discord; nil means the system's.
	Dial discord.DialFunc
	// Version of this program, for the User-Agent.
	Version string
	// Intents tells what sessions should receive at the moment. Safe for
	// concurrent use.
	Intents func() event.Intents
	// OnlyEnabled leaves out the privileged intents that are not switched on
	// for the application: with one of them Discord refuses the connection.
	OnlyEnabled bool
	// IntentsChanged tells that Intents returns something else; nil if it
	// never does.
	IntentsChanged <-chan struct{}
	// Discovered is called when Discord has said which application the token
	// belongs to; nil for nobody.
	Discovered func(event.Snowflake)
	// Relay keeps the presence and passes commands on to other instances; nil
	// for a Gateway without Commands.
	Relay *Relay
}

// Gateway keeps the shards of one bot connected. Make it with New, then Run
// it.
type Gateway struct {
	cfg     Config
	dialer  *discord.Dialer
	rest    *discord.REST
	store   Store
	slots   identify.Slots
	timing  timing
	log     *slog.Logger
	metrics *metrics
	// application is its id; 0 until Discord told it.
	application atomic.Uint64

	mu     sync.Mutex
	shards map[event.Shard]*shard
	plan   event.Plan
	grants *identify.Grants // nil until Discord answered
	// concurrency is how many IDENTIFYs may be sent every 5 s.
	concurrency int
	problem     string // why there are no shards yet
}

// New makes a Gateway and registers its metrics. It starts nothing.
func New(cfg Config, store Store, slots identify.Slots, log *slog.Logger, reg prometheus.Registerer) *Gateway {
	// Discord wants the prefix on REST calls and refuses it in IDENTIFY.
	cfg.Token = secret.New(strings.TrimSpace(strings.TrimPrefix(cfg.Token.Reveal(), "Bot ")))
	agent := fmt.Sprintf("DiscordBot (https://github.com/gatehook/gatehook, %s)", cfg.Version)
	m := newMetrics(reg)
	g := &Gateway{
		cfg: cfg, store: store, slots: slots, timing: usualTiming, log: log, metrics: m,
		dialer: discord.NewDialer(discord.Config{
			Agent: agent, Compression: cfg.Compression, MaxPayload: cfg.MaxPayload, Dial: cfg.Dial, Received: m.received,
		}),
		rest:    discord.NewREST(discord.RESTConfig{URL: cfg.APIURL, Token: cfg.Token, Agent: agent, Dial: cfg.Dial}),
		problem: "Discord's API was not asked yet",
		shards:  make(map[event.Shard]*shard),
	}
	reg.MustRegister(newStatusCollector(g.Status), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "gatehook", Subsystem: "gateway", Name: "held_back_events",
		Help: "Events received that wait while another session or set of shards still delivers.",
	}, g.heldBack))
	return g
}

// Run keeps the shards connected until ctx ends, then closes their connections
// so that the sessions can be resumed, gives the shards back and returns nil.
// The error is discord.ErrUnauthorized if Discord does not know the token. It
// is called once.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.rest.Close()
	turns, recommended, err := g.discover(ctx)
	if errors.Is(err, discord.ErrUnauthorized) {
		return err
	}
	if err != nil {
		return nil // ctx has ended
	}
	// Whatever ended ctx, for the shards it is the drain.
	tenures, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(errDrain)
	f := g.newFleet(tenures, turns, recommended)
	f.run(ctx)
	f.stop(ctx, end)
	return nil
}

// discover asks Discord who the bot is and how to connect.
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

func (g *Gateway) heldBack() (n float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		n += float64(s.heldBack())
	}
	return n
}

// Status tells how every shard is doing: those of the set that delivers in the
// order of their ids, then those of the next one. It is empty until it is
// known how many there are.
func (g *Gateway) Status() []ShardStatus {
	lacking := g.intentsProblem()
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]ShardStatus, 0, len(g.shards))
	for id, s := range g.shards {
		st := s.snapshot()
		st.Role = roleOf(dutyOf(g.plan, id.Count))
		if st.State == StateConnected && st.Problem == "" {
			st.Problem = lacking
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

// Unready tells why the gateway is not ready: one line for every shard of this
// instance that is neither connected nor resuming. Shards that another
// instance has don't count. Empty means ready.
func (g *Gateway) Unready() []string {
	g.mu.Lock()
	problem := g.problem
	g.mu.Unlock()
	if problem != "" {
		return []string{problem}
	}
	var reasons []string
	for _, s := range g.Status() {
		if reason := s.unready(); reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

// find returns the shard of that name if this process runs it or may come to
// run it, else nil.
func (g *Gateway) find(id event.Shard) *shard {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shards[id]
}

// commandTarget tells whose shards these are and how many there are in the set that
// commands go to; each is 0 until it is known.
func (g *Gateway) commandTarget() (applicationID event.Snowflake, count int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	count = g.plan.Current
	if g.plan.Phase == event.Overlapping || g.plan.Phase == event.Switching {
		// What answers a command is dispatched to one session only. The old
		// set has the whole overlap for what it was asked before; the next one
		// keeps its answers until it delivers.
		count = g.plan.Next
	}
	return event.Snowflake(g.application.Load()), count
}

// owned are the shards that this process has, of all sets.
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
