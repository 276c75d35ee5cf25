package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// profiler serves net/http/pprof on its own address, not on the API's: profiles
// reveal the contents of memory, and taking them is expensive.
type profiler struct {
	listener net.Listener
	http     *http.Server
}

// openProfiler listens on GATEHOOK_PPROF_ADDR. It returns nil if addr is "".
func openProfiler(ctx context.Context, addr string, log *slog.Logger) (*profiler, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("GATEHOOK_PPROF_ADDR=%q can't be listened on: %w", addr, err)
	}
	// The configuration accepts "localhost", which may resolve to any address.
	if at, ok := l.Addr().(*net.TCPAddr); !ok || !at.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("GATEHOOK_PPROF_ADDR=%q is %v, which is not a loopback address: give one such as 127.0.0.1:6060", addr, l.Addr()), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	log.LogAttrs(ctx, slog.LevelInfo, "pprof answers", slog.String("pprof", "http://"+l.Addr().String()+"/debug/pprof/"))
	return &profiler{l, &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

// run serves until stop is called.
func (p *profiler) run(context.Context) error {
	if err := p.http.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve pprof: %w", err)
	}
	return nil
}

// stop cuts off profiles under way, since a drain must not wait for them. It may
// be called more than once, and on nil.
func (p *profiler) stop() {
	if p != nil {
		_ = p.http.Close()
		_ = p.listener.Close() // in case run was never called
	}
}
