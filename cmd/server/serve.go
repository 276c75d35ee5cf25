package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// serve runs the server until ctx ends or a part of it fails.
func serve(ctx context.Context, getenv func(string) string, stdout, stderr io.Writer) error {
	cfg, err := readConfig(getenv, true)
	if err != nil {
		return err
	}
	return serveConfig(ctx, cfg, newLogger(cfg, stderr), stdout, nil)
}

// serveConfig runs the server with this configuration. ready, if not nil, is called
// with the API's base URL and key when the API answers. The end of ctx is never an
// error: before the server is up, there is nothing to drain.
func serveConfig(ctx context.Context, cfg config, log *slog.Logger, stdout io.Writer, ready func(url string, key secret.Value)) (err error) {
	up := false
	defer func() {
		if err != nil && !up && ctx.Err() != nil {
			log.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "stopped before it was up", slog.Any("error", err))
			err = nil
		}
	}()
	dir, dirErr := openDataDir(cfg.dataDir)
	defer func() { err = errors.Join(err, dir.close()) }()
	if dirErr != nil && (cfg.apiKey.Empty() || cfg.databaseURL.Empty()) {
		return dirErr
	}
	key, err := apiKey(cfg, dir, stdout)
	if err != nil {
		return err
	}
	// First, so that an address in use is reported before anything starts.
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("GATEHOOK_ADDR=%q can't be listened on: %w", cfg.addr, err)
	}
	door := openDoor(listener, log)
	defer door.close()
	profiler, err := openProfiler(ctx, cfg.pprofAddr, log)
	if err != nil {
		return err
	}
	defer profiler.stop()

	url, closeServer, err := openDatabase(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeServer()) }()
	pools, err := postgres.OpenPools(ctx, url, cfg.directURL, log)
	if err != nil {
		return err
	}
	defer pools.Close()

	if cfg.encryption.Empty() {
		log.LogAttrs(ctx, slog.LevelWarn, "secrets are stored in plain text: set GATEHOOK_ENCRYPTION_KEY to encrypt them (openssl rand -base64 32)")
	}
	if total := cfg.schedule.Total(); cfg.retention < total {
		log.LogAttrs(ctx, slog.LevelWarn, "GATEHOOK_RETENTION is shorter than GATEHOOK_RETRY_SCHEDULE: deliveries that still wait by then expire",
			slog.Duration("retention", cfg.retention), slog.Duration("schedule", total))
	}
	registry := prometheus.NewRegistry()
	traces, err := openTracing(ctx, cfg.tracing, log.With(slog.String("part", "tracing")), registry)
	if err != nil {
		return err
	}
	defer traces.close(ctx)
	s, err := wire(ctx, cfg, key, dir, pools, traces.traces(), log, registry)
	if err != nil {
		return err
	}
	over := time.Time{} // when the drain has to be over
	defer func() { s.leave(ctx, over) }()

	up = true
	l := newLifecycle(ctx, log)
	if profiler != nil {
		l.add("pprof", profiler.run, profiler.stop)
	}
	l.add("tracing", traces.run, traces.stop)
	s.start(l, door) //nolint:contextcheck // the parts are stopped one by one, in order
	base := "http://" + listener.Addr().String()
	log.LogAttrs(ctx, slog.LevelInfo, "the API answers", slog.String("url", base), slog.String("version", version()))
	if ready != nil {
		ready(base, key)
	}
	failed := l.wait(ctx)
	s.draining.Store(true)
	over = time.Now().Add(cfg.shutdownTimeout)
	log.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "draining", slog.Duration("at_most", cfg.shutdownTimeout))
	return errors.Join(failed, l.stop(cfg.shutdownTimeout))
}

// apiKey returns the configured key, or the one that the data directory keeps. It
// prints a new key once.
func apiKey(cfg config, dir *dataDir, stdout io.Writer) (secret.Value, error) {
	if !cfg.apiKey.Empty() {
		return cfg.apiKey, nil
	}
	key, fresh, err := dir.apiKey()
	if err == nil && fresh {
		_, err = fmt.Fprintf(stdout, "API key (kept in %s, shown this once): %s\n", dir.path, key.Reveal())
	}
	return key, err
}

// openDatabase waits for the configured database, or starts the embedded one, migrates
// it, and returns how to connect. The caller calls the function to stop it, after it has
// closed its connections.
func openDatabase(ctx context.Context, cfg config, log *slog.Logger) (url secret.Value, closeServer func() error, err error) {
	url, closeServer = cfg.databaseURL, func() error { return nil }
	if url.Empty() {
		pg, err := postgres.StartEmbedded(ctx, postgres.EmbeddedConfig{DataDir: cfg.dataDir, Logger: log})
		if err != nil {
			return url, nil, err
		}
		url, closeServer = pg.URL(), pg.Close
	}
	migrator := url
	if !cfg.directURL.Empty() {
		migrator = cfg.directURL
	}
	pool, err := postgres.Open(ctx, migrator, log)
	if err != nil {
		return url, nil, errors.Join(err, closeServer())
	}
	err = postgres.Migrate(ctx, pool, log)
	pool.Close()
	if err != nil {
		return url, nil, errors.Join(err, closeServer())
	}
	return url, closeServer, nil
}

// migrate applies the migrations.
func migrate(ctx context.Context, getenv func(string) string, stderr io.Writer) error {
	cfg, err := readConfig(getenv, false)
	if err != nil {
		return err
	}
	_, closeServer, err := openDatabase(ctx, cfg, newLogger(cfg, stderr))
	if err != nil {
		return err
	}
	return closeServer()
}

// start adds the parts to the lifecycle, consumers before producers.
func (s *server) start(l *lifecycle, door *door) {
	l.addCancelled("instance", s.instance.Run)
	l.addCancelled("listeners", s.listeners.Run)
	l.add("delivery", s.delivery.Run, s.delivery.Stop)
	door.open(s.api)
	l.add("http", door.run, func() { door.stop(l.ctx) })
	l.add("journal", s.runJournal, s.journal.Stop)
	l.addCancelled("commands", func(ctx context.Context) error { return s.commands.Run(postgres.WithPool(ctx, s.pools.API)) })
	l.addCancelled("gateway", s.gateway.Run)
}

// runJournal first dispatches the batches that an earlier run left unsettled, so that
// older events are delivered before newer ones. Then it runs the journal.
func (s *server) runJournal(ctx context.Context) error {
	if err := s.journal.Recover(ctx); err != nil && !errors.Is(err, delivery.ErrStopped) {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the batches of an earlier run are taken over later", slog.Any("error", err))
	}
	return s.journal.Run(ctx)
}
