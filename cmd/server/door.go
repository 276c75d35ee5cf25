package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/gatehook/gatehook/internal/openapi"
)

// door is the HTTP server. It serves from the beginning: a start may take minutes, while
// it waits for the database or migrates it, and whoever asks /healthz must not take the
// process for dead. Until open is called, the server is not ready.
type door struct {
	http    *http.Server
	log     *slog.Logger
	handler atomic.Pointer[http.Handler]
	served  chan struct{} // closed when it serves no more, after err is set
	err     error
	stopped chan struct{} // closed when stop is done
}

// openDoor serves at a listener, which close closes.
func openDoor(listener net.Listener, log *slog.Logger) *door {
	d := &door{log: log, served: make(chan struct{}), stopped: make(chan struct{})}
	d.open(starting())
	d.http = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*d.handler.Load()).ServeHTTP(w, r) }),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(d.served)
		if err := d.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			d.err = fmt.Errorf("serve the API: %w", err)
		}
	}()
	return d
}

// open lets a handler answer from now on.
func (d *door) open(h http.Handler) { d.handler.Store(&h) }

// run waits until stop was called and the requests are done.
func (d *door) run(context.Context) error {
	<-d.served
	if d.err == nil {
		<-d.stopped
	}
	return d.err
}

// stop gives requests in progress some seconds to finish. It does not wait for that.
func (d *door) stop(ctx context.Context) {
	go func() {
		defer close(d.stopped)
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := d.http.Shutdown(ctx); err != nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "requests were cut off", slog.Any("error", errors.Join(err, d.http.Close())))
		}
	}()
}

// close ends the server at once, and waits for that. It may have been stopped before.
func (d *door) close() {
	_ = d.http.Close() // the listener may be closed already
	<-d.served
}

// starting is the handler until the server is up.
func starting() http.Handler {
	const why = "the server is starting: it waits for the database, or brings its schema up to date"
	h := http.NewServeMux()
	h.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"ok"}` + "\n")) // fails only if the client is gone
	})
	h.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		openapi.Refuse(w, &openapi.Error{Status: http.StatusServiceUnavailable, Detail: why, Reasons: []string{why}, RetryAfter: 2 * time.Second})
	})
	return h
}
