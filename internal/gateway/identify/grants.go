package identify

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// Grants knows which privileged intents are switched on for the application
// (Discord: Privileged Intents). Discord closes a connection that asks for any
// other privileged intent with 4014, and the session start is spent. It is safe
// for concurrent use.
type Grants struct {
	rest *discord.REST
	log  *slog.Logger
	// asking holds a token while a call asks Discord. Other calls that would ask
	// wait for the same answer; calls that only read do not wait.
	asking chan struct{}

	mu  sync.Mutex // guards the fields below
	app discord.Application
	at  time.Time // when Discord returned app
}

func newGrants(app discord.Application, rest *discord.REST, log *slog.Logger) *Grants {
	return &Grants{rest: rest, log: log, asking: make(chan struct{}, 1), app: app, at: time.Now()}
}

func (g *Grants) now() (discord.Application, time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.app, g.at
}

// Refresh asks Discord unless the last answer is younger than fresh, and
// reports whether an intent was switched on or off since. When Discord does not
// answer, or ctx ends, the old answer stands.
func (g *Grants) Refresh(ctx context.Context, fresh time.Duration) (changed bool) {
	select {
	case g.asking <- struct{}{}:
		defer func() { <-g.asking }()
	case <-ctx.Done():
		return false
	}
	before, at := g.now()
	if time.Since(at) < fresh {
		return false
	}
	app, err := g.rest.Application(ctx)
	if err != nil {
		g.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord which intents are switched on", slog.Any("error", err))
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.app, g.at = app, time.Now()
	return app.Privileged != before.Privileged
}

// Missing returns the intents among wanted that are switched off.
func (g *Grants) Missing(wanted event.Intents) event.Intents {
	app, _ := g.now()
	return wanted & event.IntentsPrivileged &^ app.Privileged
}

// Portal returns, for people, where to switch the application's intents on.
func (g *Grants) Portal() string {
	app, _ := g.now()
	return "https://discord.com/developers/applications/" + app.ID.String() + "/bot (Privileged Gateway Intents)"
}
