package main

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/journal"
	"github.com/gatehook/gatehook/internal/listeners"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// server holds all parts of the program.
type server struct {
	log       *slog.Logger
	pools     *postgres.Pools
	instance  *journal.Instance
	listeners *listeners.Listeners
	calls     *listeners.Calls
	delivery  *delivery.Delivery
	journal   *journal.Journal
	gateway   *gateway.Gateway
	commands  *gateway.Commands
	registry  *prometheus.Registry
	api       http.Handler
	draining  atomic.Bool
	// application is the id of the bot's application. Until Discord reports it, it is
	// the id from an earlier run, or 0.
	application atomic.Uint64
}

// wire creates the parts, each after those that it needs, and connects them. No other
// function knows them all, or hands out connections. The parts use the engine's
// connections, except in the calls of the API (onPool), in the commands (start), and where
// another pool is named here.
func wire(ctx context.Context, cfg config, key secret.Value, dir *dataDir, pools *postgres.Pools, traces delivery.Traces,
	log *slog.Logger, registry *prometheus.Registry,
) (*server, error) {
	s := &server{log: log, pools: pools, registry: registry}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	postgres.RegisterMetrics(s.registry, pools)
	part := func(name string) *slog.Logger { return log.With(slog.String("part", name)) }
	var err error
	if s.instance, err = journal.Join(ctx, pools.Heartbeat, dir.home(), 0, part("instance")); err != nil {
		return nil, dir.refused(err)
	}
	known, err := journal.KnownApplication(ctx, pools.Engine)
	if err != nil {
		return nil, err
	}
	s.application.Store(uint64(known))
	if s.listeners, err = listeners.Open(ctx, pools.Engine, listeners.Config{
		Keys: cfg.encryption, Forget: delivery.Forget, Renew: delivery.Renew, Direct: pools.Direct, Peers: journal.NewPeers(pools.Engine, s.instance),
	}, part("listeners")); err != nil {
		return nil, err
	}
	store, err := journal.OpenStore(ctx, pools.Engine, s.instance, cfg.retention, part("journal"))
	if err != nil {
		return nil, err
	}
	if s.delivery, err = delivery.Open(ctx, pools.Engine, s.listeners, store, s.instance, delivery.Config{
		Schedule: cfg.schedule, AttemptTimeout: cfg.attemptTimeout, AllowTargets: cfg.allowTargets, Proxy: cfg.proxy, Keys: cfg.encryption,
		Version: version(), Retention: cfg.retention, Traces: traces,
		Bulk:        max(1, min(2, int(pools.API.Config().MaxConns)-1)),
		Application: func() event.Snowflake { return event.Snowflake(s.application.Load()) },
	}, part("delivery"), s.registry); err != nil {
		return nil, err
	}
	s.journal = journal.New(store, s.listeners, s.delivery, journal.Config{Writer: pools.Journal}, part("journal"), s.registry)
	gw := gateway.Config{
		Token: cfg.token, APIURL: cfg.discordURL, Shards: cfg.shards, Compression: cfg.compression, UnnamedCompression: cfg.unnamedCompression, Version: version(),
		Intents: s.listeners.Needs, IntentsChanged: s.listeners.NeedsChanged(), OnlyEnabled: cfg.intents.auto,
		Relay: gateway.NewRelay(pools.Engine), Now: s.instance.Now, Discovered: func(id event.Snowflake) { s.application.Store(uint64(id)) },
	}
	if !cfg.intents.auto {
		gw.Intents, gw.IntentsChanged = func() event.Intents { return cfg.intents.fixed }, nil
	}
	s.gateway = gateway.New(gw, gatewayStore{s.journal}, identify.NewBuckets(pools.Engine, part("gateway")), part("gateway"), s.registry)
	s.commands = gateway.NewCommands(s.gateway, part("commands"))
	s.calls = listeners.NewCalls(s.listeners, listeners.CallsConfig{
		AllowTargets: cfg.allowTargets, Gateway: s.gateway, Callbacks: s.delivery,
	})
	s.api, err = s.handler(key)
	return s, err
}

// leave ends this instance's lease, after all parts have stopped, so that other servers
// need not wait until it runs out. It tries for some seconds: right after a failover of the
// database, the pool's connections are to the server that failed. But it does not try
// beyond a time, unless that is zero.
func (s *server) leave(ctx context.Context, over time.Time) {
	until := time.Now().Add(5 * time.Second)
	if !over.IsZero() && over.Before(until) {
		until = over
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	defer cancel()
	if err := retry.Do(ctx, postgres.Backoff(), func(ctx context.Context) error {
		return retry.RetryableError(s.instance.Leave(ctx))
	}); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not end this server's lease: other servers wait until it runs out", slog.Any("error", err))
	}
}

// gatewayStore adapts the journal to the gateway. It converts the claims, because a
// slice of the journal's type is not a slice of the gateway's interface.
type gatewayStore struct{ *journal.Journal }

// Claim implements gateway.Store.
func (s gatewayStore) Claim(ctx context.Context, applicationID event.Snowflake, shards []event.Shard) ([]gateway.Claim, error) {
	claimed, err := s.Journal.Claim(ctx, applicationID, shards)
	claims := make([]gateway.Claim, len(claimed))
	for i, c := range claimed {
		claims[i] = c
	}
	return claims, err
}
