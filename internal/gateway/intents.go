package gateway

import (
	"fmt"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// knownGrants returns the application's grants; nil until Discord has answered.
func (g *Gateway) knownGrants() *identify.Grants {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grants
}

// intents returns the intents to identify with: the wanted ones. If
// Config.OnlyEnabled is set, it leaves out those that are switched off.
func (g *Gateway) intents() event.Intents {
	wanted := g.cfg.Intents()
	if gr := g.knownGrants(); gr != nil && g.cfg.OnlyEnabled {
		wanted &^= gr.Missing(wanted)
	}
	return wanted
}

// intentsProblem returns a text for people that names the wanted intents that
// are switched off; "" for none.
func (g *Gateway) intentsProblem() string {
	gr := g.knownGrants()
	if gr == nil {
		return ""
	}
	missing := gr.Missing(g.cfg.Intents())
	if missing == 0 {
		return ""
	}
	return fmt.Sprintf("events are missing: the bot is not allowed %s; switch it on at %s", discord.PrivilegedNames(missing), gr.Portal())
}

// reconsiderIntents makes the shards check the intents again.
func (g *Gateway) reconsiderIntents() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		wake(s.intentsChanged)
	}
}
