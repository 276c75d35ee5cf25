package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/journal"
	"github.com/gatehook/gatehook/internal/listeners"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// server is the parts, joined.
type server struct {
	log       *slog.Logger
	pool      *pgxpool.Pool
	instance  *journal.Instance
	listeners *listeners.Listeners
	calls     *listeners.Calls
	delivery  *delivery.Delivery
	journal   *journal.Journal
	gateway   *gateway.Gateway
	commands  *gateway.Commands
	registry  *prometheus.Registry
	http      *http.Server
	httpDone  chan struct{}
	draining  atomic.Bool
	// application is the bot's: that of an earlier run, or 0, until Discord says
	// which it is.
	application atomic.Uint64
}

// wire makes the parts and joins them. Only here do they learn of each other.
func wire(ctx context.Context, cfg config, key secret.Value, dir *dataDir, pool *pgxpool.Pool, traces delivery.Traces,
	log *slog.Logger, registry *prometheus.Registry,
) (*server, error) {
	s := &server{log: log, pool: pool, registry: registry, httpDone: make(chan struct{})}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	postgres.RegisterMetrics(s.registry, pool)
	part := func(name string) *slog.Logger { return log.With(slog.String("part", name)) }
	var err error
	if s.instance, err = journal.Join(ctx, pool, dir.name, 0, part("instance")); err != nil {
		return nil, err
	}
	known, err := journal.KnownApplication(ctx, pool)
	if err != nil {
		return nil, err
	}
	s.application.Store(uint64(known))
	if s.listeners, err = listeners.Open(ctx, pool, listeners.Config{
		Keys: cfg.encryption, Forget: delivery.Forget, Renew: delivery.Renew,
	}, part("listeners")); err != nil {
		return nil, err
	}
	store, err := journal.OpenStore(ctx, pool, s.instance, cfg.retention, part("journal"))
	if err != nil {
		return nil, err
	}
	if s.delivery, err = delivery.Open(ctx, pool, s.listeners, store, s.instance, delivery.Config{
		Schedule: cfg.schedule, AttemptTimeout: cfg.attemptTimeout, AllowTargets: cfg.allowTargets, Proxy: cfg.proxy, Keys: cfg.encryption,
		Version: version(), Retention: cfg.retention, Traces: traces,
		Application: func() event.Snowflake { return event.Snowflake(s.application.Load()) },
	}, part("delivery"), s.registry); err != nil {
		return nil, err
	}
	s.journal = journal.New(store, s.listeners, s.delivery, journal.Config{}, part("journal"), s.registry)
	gw := gateway.Config{
		Token: cfg.token, APIURL: cfg.discordURL, Shards: cfg.shards, Compression: cfg.compression, Version: version(),
		Intents: s.listeners.Needs, IntentsChanged: s.listeners.NeedsChanged(), OnlyEnabled: cfg.intents.auto,
		Relay: gateway.NewRelay(pool), Discovered: func(id event.Snowflake) { s.application.Store(uint64(id)) },
	}
	if !cfg.intents.auto {
		gw.Intents, gw.IntentsChanged = func() event.Intents { return cfg.intents.fixed }, nil
	}
	s.gateway = gateway.New(gw, gatewayStore{s.journal}, identify.NewBuckets(pool, part("gateway")), part("gateway"), s.registry)
	s.commands = gateway.NewCommands(s.gateway, part("commands"))
	s.calls = listeners.NewCalls(s.listeners, listeners.CallsConfig{
		CheckTarget: func(u *url.URL) error { return delivery.CheckTarget(cfg.allowTargets, u) },
		Locate:      func(ctx context.Context, u *url.URL) error { return delivery.Locate(ctx, cfg.allowTargets, nil, u) },
		Gateway:     s.gateway, Callbacks: s.delivery,
	})
	return s, s.makeHTTP(key)
}

// leave gives up what names this instance, when all parts have stopped.
func (s *server) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return s.instance.Leave(ctx)
}

// gatewayStore lets the gateway use the journal without either knowing the
// other: a slice of the journal's claims is none of the gateway's.
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

// calls is the REST API: every package implements its own operations.
type calls struct {
	*listeners.Calls
	*delivery.Delivery
	*gateway.Handler
	*gateway.Commands
	*server
}

func (s *server) makeHTTP(key secret.Value) error {
	parts := calls{s.calls, s.delivery, s.gateway.Handler(), s.commands, s}
	h, err := openapi.NewHandler(parts, openapi.Options{APIKey: key, Logger: s.log})
	if err != nil {
		return fmt.Errorf("make the API: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", h)
	// Prometheus' own handler negotiates the format and compresses.
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return nil
}

// GetHealth implements GET /healthz.
func (s *server) GetHealth(context.Context, openapi.GetHealthRequestObject) (openapi.GetHealthResponseObject, error) {
	return openapi.GetHealth200JSONResponse{Status: openapi.Ok}, nil
}

// GetReadiness implements GET /readyz.
func (s *server) GetReadiness(ctx context.Context, _ openapi.GetReadinessRequestObject) (openapi.GetReadinessResponseObject, error) {
	reasons := s.unready(ctx)
	if len(reasons) == 0 {
		return openapi.GetReadiness200JSONResponse{Status: openapi.Ok}, nil
	}
	e := openapi.Error{Status: http.StatusServiceUnavailable, Detail: reasons[0], Reasons: reasons}
	return openapi.GetReadiness503ApplicationProblemPlusJSONResponse(e.Problem()), nil
}

// unready lists what keeps events from being received and stored. Everybody may
// ask: the address and the user that the database's errors name are not told.
func (s *server) unready(ctx context.Context) (reasons []string) {
	if s.draining.Load() {
		reasons = append(reasons, "the server is draining: it was told to stop")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.pool.Ping(ctx); err != nil {
		reasons = append(reasons, "the database does not answer: "+cause(err))
	}
	if err := s.journal.Err(); err != nil {
		reasons = append(reasons, "events can't be stored at the moment: "+cause(err))
	}
	if err := s.delivery.Err(); err != nil {
		reasons = append(reasons, "attempts can't be recorded at the moment: "+cause(err))
	}
	return append(reasons, s.gateway.Unready()...)
}

// cause is what everybody may know of an error of the database; the log has all.
func cause(err error) string {
	refused := (*pgconn.PgError)(nil)
	switch {
	case errors.As(err, &refused):
		return "SQLSTATE " + refused.Code
	case postgres.Unavailable(err):
		return "no connection, or no answer in time"
	default:
		return "the log says why"
	}
}

// GetMetrics implements GET /metrics, which the router takes before it comes
// here.
func (s *server) GetMetrics(context.Context, openapi.GetMetricsRequestObject) (openapi.GetMetricsResponseObject, error) {
	return nil, errors.New("the metrics are served by their own handler")
}

// GetContract implements GET /openapi.json.
func (s *server) GetContract(context.Context, openapi.GetContractRequestObject) (openapi.GetContractResponseObject, error) {
	return contract(openapi.Contract()), nil
}

// contract writes the document as it is.
type contract json.RawMessage

// VisitGetContractResponse implements openapi.GetContractResponseObject.
func (c contract) VisitGetContractResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(c)
	return err
}

var _ openapi.StrictServerInterface = calls{}
