package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/gateway"
	"github.com/gatehook/gatehook/internal/listeners"
	"github.com/gatehook/gatehook/internal/openapi"
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

// makeHTTP makes the HTTP server of the API and the metrics.
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

// serveHTTP serves until stopHTTP was called and the requests are done.
func (s *server) serveHTTP(listener net.Listener) error {
	if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	<-s.httpDone
	return nil
}

// stopHTTP gives requests in progress some seconds to finish.
func (s *server) stopHTTP(ctx context.Context) {
	go func() {
		defer close(s.httpDone)
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "requests were cut off", slog.Any("error", errors.Join(err, s.http.Close())))
		}
	}()
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
