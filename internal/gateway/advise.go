package gateway

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// grantsAsked is how old an answer about the switched-on intents may be when a
// registration is about to be refused: a person may just have switched one on.
const grantsAsked = 3 * time.Second

// verdict is whether an event can come with the intents that a session may
// have.
type verdict int

const (
	// comes: the event always comes, and is complete.
	comes verdict = iota
	// partial: the event comes, but not always, or without its content.
	partial
	// never: the event can't come.
	never
)

// judge decides whether an event can come. can are the intents that a session
// may have: the fixed ones, or all but those that are switched off.
func judge(t event.Type, can event.Intents) verdict {
	switch {
	case t.Intents == 0:
		return comes
	case t.Intents&can == 0 && t.Name == "GUILD_MEMBER_UPDATE":
		return partial // without any intent it comes for the bot's own member (Discord: List of Intents)
	case t.Intents&can == 0:
		return never
	case t.Content && can&event.IntentMessageContent == 0:
		return partial
	default:
		return comes
	}
}

// Advise returns advice for a registration for the events that match p.
// refusal says why none of them can ever come; "" if one can. notes say what
// will happen and what will be missing. before are the intents that were
// needed so far.
func (g *Gateway) Advise(ctx context.Context, p event.Pattern, before event.Intents) (refusal string, notes []string) {
	if !p.Known() {
		return "", nil
	}
	gr := g.knownGrants()
	if gr == nil && g.cfg.OnlyEnabled {
		return "", []string{"It is not known yet which privileged intents are switched on, because Discord has not answered."}
	}
	can := event.IntentsAll
	if g.cfg.OnlyEnabled {
		can &^= gr.Missing(can)
	} else {
		can = g.cfg.Intents()
	}
	verdicts := judgeAll(p, can)
	if len(verdicts[never])+len(verdicts[partial]) > 0 && g.cfg.OnlyEnabled && gr.Refresh(ctx, grantsAsked) {
		g.reconsiderIntents()
		can = event.IntentsAll &^ gr.Missing(event.IntentsAll)
		verdicts = judgeAll(p, can)
	}
	if len(verdicts[never]) > 0 && len(verdicts[partial])+len(verdicts[comes]) == 0 {
		return g.refusal(gr, verdicts[never]), nil
	}
	for _, t := range append(verdicts[never], verdicts[partial]...) {
		notes = append(notes, g.missingNote(gr, t, can))
	}
	if more := p.Needs() & can &^ before; more != 0 && g.cfg.OnlyEnabled {
		notes = append(notes, g.identifyNote(more))
	}
	return "", notes
}

func judgeAll(p event.Pattern, can event.Intents) map[verdict][]event.Type {
	all := make(map[verdict][]event.Type)
	for _, t := range event.Types() {
		if p.Matches(t.Name) {
			v := judge(t, can)
			all[v] = append(all[v], t)
		}
	}
	return all
}

// refusal returns why none of the events can come, and what to do about it.
func (g *Gateway) refusal(gr *identify.Grants, types []event.Type) string {
	var intents event.Intents
	var names []string
	for _, t := range types {
		intents |= t.Intents
		names = append(names, t.Name)
	}
	if !g.cfg.OnlyEnabled {
		return fmt.Sprintf("%s can't come: GATEHOOK_INTENTS is %s; add %s to it, or set it to auto",
			strings.Join(names, ", "), orEmpty(g.cfg.Intents()), intents)
	}
	return fmt.Sprintf("%s can't come: the bot is not allowed %s; switch it on at %s",
		strings.Join(names, ", "), discord.PrivilegedNames(intents), gr.Portal())
}

// missingNote returns a note on the part of an event that will be missing.
func (g *Gateway) missingNote(gr *identify.Grants, t event.Type, can event.Intents) string {
	effect := t.Name + " does not come"
	intents := t.Intents
	if judge(t, can) == partial {
		if t.Intents&can == 0 {
			effect = t.Name + " comes for the bot's own member only"
		} else {
			effect, intents = t.Name+" comes without its content", event.IntentMessageContent
		}
	}
	if g.cfg.OnlyEnabled {
		return fmt.Sprintf("%s: the bot is not allowed %s; switch it on at %s.", effect, discord.PrivilegedNames(intents), gr.Portal())
	}
	return fmt.Sprintf("%s: GATEHOOK_INTENTS does not include %s.", effect, intents)
}

// identifyNote returns a note on what the shards do to get more intents.
func (g *Gateway) identifyNote(more event.Intents) string {
	g.mu.Lock()
	count, started := g.plan.Current, g.concurrency
	g.mu.Unlock()
	if count == 0 {
		return fmt.Sprintf("The shards will identify with %s.", more)
	}
	rounds := (count + started - 1) / max(started, 1)
	return fmt.Sprintf("The shards (%d) identify again with %s, one after the other, within about %v; until a shard has done so, it does not receive the events that need them.",
		count, more, (time.Duration(rounds) * identify.SlotLength).Round(time.Second))
}

func orEmpty(i event.Intents) string {
	if i == 0 {
		return "empty"
	}
	return i.String()
}
