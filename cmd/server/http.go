package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/gateway"
	"github.com/gatehook/gatehook/internal/listeners"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// calls is the REST API: every package implements its own operations.
type calls struct {
	*listeners.Calls
	*delivery.Delivery
	*gateway.Handler
	*gateway.Commands
	*server
}

var _ openapi.StrictServerInterface = calls{}

// handler makes the handler of the API and the metrics.
func (s *server) handler(key secret.Value) (http.Handler, error) {
	parts := calls{s.calls, s.delivery, s.gateway.Handler(), s.commands, s}
	h, err := openapi.NewHandler(parts, openapi.Options{APIKey: key, Refused: s.countRefused(), Logger: s.log})
	if err != nil {
		return nil, fmt.Errorf("make the API: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", onPool(h, s.pools.API))
	// Prometheus' own handler negotiates the format and compresses.
	mux.Handle("GET /metrics", promhttp.HandlerFor(&snapshot{of: s.registry}, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	return mux, nil
}

// refusedEvery is how often refused keys are logged at most.
const refusedEvery = time.Minute

// countRefused returns the function that counts requests whose key is missing or wrong,
// and logs some: somebody may be guessing, or a client has an old key.
func (s *server) countRefused() func(*http.Request) {
	refused := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gatehook_api_refused_total", Help: "Requests to the API whose key was missing or wrong.",
	})
	s.registry.MustRegister(refused)
	var (
		mu       sync.Mutex // guards the variables below
		logged   time.Time
		unlogged int
	)
	return func(r *http.Request) {
		refused.Inc()
		mu.Lock()
		defer mu.Unlock()
		if time.Since(logged) < refusedEvery {
			unlogged++
			return
		}
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "the key of an API request is missing or wrong",
			slog.String("from", from), slog.String("method", r.Method), slog.Int("not_logged", unlogged))
		logged, unlogged = time.Now(), 0
	}
}

// onPool lets the calls of a handler use the connections of this pool.
func onPool(h http.Handler, pool *pgxpool.Pool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(postgres.WithPool(r.Context(), pool)))
	})
}

const (
	// maxScrapes bounds the scrapes at once. More are answered with 503.
	maxScrapes = 8
	// snapshotAge is how old the metrics may be that a scrape is answered with.
	snapshotAge = time.Second
)

// snapshot gathers at most once in snapshotAge, and shares what it got: everybody may ask
// for the metrics, and as often as they like.
type snapshot struct {
	of prometheus.Gatherer

	mu       sync.Mutex // guards the fields below
	at       time.Time
	families []*dto.MetricFamily
	err      error
}

// Gather implements prometheus.Gatherer.
func (s *snapshot) Gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) >= snapshotAge {
		s.families, s.err = s.of.Gather()
		s.at = time.Now()
	}
	return s.families, s.err
}

// GetMetrics implements the contract only: the router sends GET /metrics to
// Prometheus' handler.
func (s *server) GetMetrics(context.Context, openapi.GetMetricsRequestObject) (openapi.GetMetricsResponseObject, error) {
	return nil, errors.New("the metrics are served by their own handler")
}

// GetContract implements GET /openapi.json.
func (s *server) GetContract(context.Context, openapi.GetContractRequestObject) (openapi.GetContractResponseObject, error) {
	return contract(openapi.Contract()), nil
}

// contract is the answer that writes the document as it is.
type contract json.RawMessage

// VisitGetContractResponse implements openapi.GetContractResponseObject.
func (c contract) VisitGetContractResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(c)
	return err
}
