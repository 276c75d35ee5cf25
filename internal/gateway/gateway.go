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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// ErrHeld is what Store.Claim returns while a live instance owns the shard.
var ErrHeld = errors.New("another live instance owns the shard")

// Store hands out the durable side of a shard.
type Store interface {
	// Claim takes the shard's lease and tells where its session stands. The
	// error is ErrHeld while another instance has it.
	Claim(ctx context.Context, applicationID event.Snowflake, shard event.Shard) (Claim, error)
}

// Claim is the lease on one shard. It is used by one goroutine at a time, save
// for Stored and Lost.
type Claim interface {
	// Session is where the session stood at the claim; the zero value means
	// that there is nothing to resume.
	Session() event.Session
	// Append hands over an event together with where the session stands after
	// it. It blocks only while the journal's queue is full.
	Append(ctx context.Context, session event.Session, e *event.Event) error
	// Stored is the highest committed sequence number of the session that was
	// appended to last; 0 for none.
	Stored() int64
	// Lost is closed when another instance has the lease.
	Lost() <-chan struct{}
	// Release gives the lease back once all that was appended is committed.
	Release(ctx context.Context) error
}

// Config of a Gateway.
type Config struct {
	// Token of the bot, with or without the prefix "Bot ".
	Token secret.Value
	// APIURL is the base of the REST API, such as https://discord.com/api/v10.
	APIURL string
	// Shards are those that this process keeps connected. The zero value means
	// all.
	Shards Shards
	// Compression of what Discord sends. The zero value means ZstdStream.
	Compression Compression
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
}

// Gateway keeps the shards of one bot connected. Make it with New, then Run
// it.
type Gateway struct {
	cfg     Config
	agent   string
	rest    *restClient
	store   Store
	slots   Starts
	timing  timing
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	shards  []*shard
	problem string // why there are no shards yet
}

// New makes a Gateway and registers its metrics. It starts nothing.
func New(cfg Config, store Store, slots Starts, log *slog.Logger, reg prometheus.Registerer) *Gateway {
	if cfg.Compression == "" {
		cfg.Compression = ZstdStream
	}
	// Discord wants the prefix on REST calls and refuses it in IDENTIFY.
	cfg.Token = secret.New(strings.TrimSpace(strings.TrimPrefix(cfg.Token.Reveal(), "Bot ")))
	agent := fmt.Sprintf("DiscordBot (https://github.com/gatehook/gatehook, %s)", cfg.Version)
	g := &Gateway{
		cfg: cfg, agent: agent, store: store, slots: slots, timing: usualTiming, log: log, metrics: newMetrics(reg),
		rest:    newRESTClient(cfg.APIURL, cfg.Token, agent, log),
		problem: "Discord's API was not asked yet",
	}
	reg.MustRegister(newStatusCollector(g.Status))
	return g
}

// Run keeps the shards connected until ctx ends, then closes their connections
// so that the sessions can be resumed, gives the shards back and returns nil.
// The error is ErrUnauthorized if Discord does not know the token. It is
// called once.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.rest.close()
	starts, list, err := g.discover(ctx)
	if errors.Is(err, ErrUnauthorized) {
		return err
	}
	if err != nil {
		return nil // ctx has ended
	}
	// Whatever ended ctx, for the shards it is the drain.
	shardsCtx, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(errDrain)
	stop := context.AfterFunc(ctx, func() { end(errDrain) })
	defer stop()
	g.makeShards(starts, list)
	var running sync.WaitGroup
	for _, s := range g.shards {
		running.Go(func() { s.run(shardsCtx) })
	}
	running.Go(func() { g.spread(shardsCtx) })
	running.Wait()
	return nil
}

// discover asks Discord who the bot is and how to connect.
func (g *Gateway) discover(ctx context.Context) (*starts, []event.Shard, error) {
	report := func(err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.problem = "Discord's API: " + err.Error()
	}
	var app application
	var info gatewayInfo
	err := g.rest.insist(ctx, report, func(ctx context.Context) (err error) {
		app, err = g.rest.application(ctx)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = g.rest.insist(ctx, report, func(ctx context.Context) (err error) {
		info, err = g.rest.gateway(ctx)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if g.cfg.OnlyEnabled {
		g.cfg.Intents = g.enabled(ctx, g.cfg.Intents, app)
	}
	list := g.cfg.Shards.list(info.Shards)
	g.log.LogAttrs(ctx, slog.LevelInfo, "connecting shards", slog.String("application", app.id.String()),
		slog.Int("shards", len(list)), slog.Int("of", list[0].Count), slog.Int("recommended", info.Shards),
		slog.Int("session_starts_left", info.Limit.Remaining))
	return newStarts(app.id, info, g.rest, g.slots, g.log), list, nil
}

// enabled leaves out of what is wanted the privileged intents that are not
// switched on, and says so whenever what is left out changes.
func (g *Gateway) enabled(ctx context.Context, want func() event.Intents, app application) func() event.Intents {
	var told atomic.Int64
	return func() event.Intents {
		all := want()
		missing := all & event.IntentsPrivileged &^ app.privileged
		if told.Swap(int64(missing)) != int64(missing) && missing != 0 {
			g.log.LogAttrs(ctx, slog.LevelWarn, "listeners need privileged intents that are not switched on: "+
				"switch them on in the developer portal (Bot, Privileged Gateway Intents) and start the server again",
				slog.String("intents", missing.String()))
		}
		return all &^ missing
	}
}

// maxDials is how many connections are opened at a time: Discord counts no
// resumes, but thousands of handshakes at once would be rude.
const maxDials = 16

func (g *Gateway) makeShards(starts *starts, list []event.Shard) {
	dials := semaphore.NewWeighted(maxDials)
	shards := make([]*shard, len(list))
	for i, id := range list {
		shards[i] = &shard{
			id: id, token: g.cfg.Token, agent: g.agent, compression: g.cfg.Compression,
			store: g.store, starts: starts, dials: dials, intents: g.cfg.Intents, changed: make(chan struct{}, 1),
			timing: g.timing, log: g.log.With(slog.String("shard", id.String())), metrics: g.metrics,
			status: ShardStatus{Shard: id, State: StateStandby},
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shards, g.problem = shards, ""
}

// spread passes a change of the intents on to every shard.
func (g *Gateway) spread(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.cfg.IntentsChanged:
		}
		for _, s := range g.shards {
			select {
			case s.changed <- struct{}{}:
			default: // it has not seen the change before this one
			}
		}
	}
}

// Status tells how every shard is doing, in the order of their ids. It is
// empty until Discord has said how many there are.
func (g *Gateway) Status() []ShardStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]ShardStatus, len(g.shards))
	for i, s := range g.shards {
		list[i] = s.snapshot()
	}
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
