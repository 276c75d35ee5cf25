package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	h, err := openapi.NewHandler(parts, openapi.Options{APIKey: key, Logger: s.log})
	if err != nil {
		return nil, fmt.Errorf("make the API: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", onPool(h, s.pools.API))
	// Prometheus' own handler negotiates the format and compresses.
	mux.Handle("GET /metrics", promhttp.HandlerFor(&snapshot{of: s.registry}, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	return mux, nil
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
