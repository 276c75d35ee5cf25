package gateway

import (
	"fmt"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// knownGrants is what is known of the application's intents; nil before Discord
// answered.
func (g *Gateway) knownGrants() *identify.Grants {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grants
}

// intents are those to identify with: all that are wanted, less those that are
// switched off if the gateway may leave out some.
func (g *Gateway) intents() event.Intents {
	wanted := g.cfg.Intents()
	if gr := g.knownGrants(); gr != nil && g.cfg.OnlyEnabled {
		wanted &^= gr.Missing(wanted)
	}
	return wanted
}

// intentsProblem says for people which wanted intents are switched off, or "".
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

// reconsiderIntents makes the shards look at the intents again.
func (g *Gateway) reconsiderIntents() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		wake(s.intentsChanged)
	}
}
