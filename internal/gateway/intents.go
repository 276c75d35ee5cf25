package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

const (
	// grantsFresh is how long it is believed which intents are switched on,
	// when a session is about to begin.
	grantsFresh = time.Minute
	// grantsAsked is the same when somebody is about to be refused: they may
	// just have switched one on.
	grantsAsked = 3 * time.Second
)

// grants is which privileged intents are switched on for the application
// (Discord: Privileged Intents). Discord closes a connection that asks for
// another one with 4014, and the session start is spent.
type grants struct {
	rest *discord.REST
	log  *slog.Logger
	// asking holds a token while Discord is asked: others who would ask want
	// the same answer, and who only looks does not wait for it.
	asking chan struct{}

	mu  sync.Mutex
	app discord.Application
	at  time.Time
}

func newGrants(app discord.Application, rest *discord.REST, log *slog.Logger) *grants {
	return &grants{rest: rest, log: log, asking: make(chan struct{}, 1), app: app, at: time.Now()}
}

func (g *grants) now() (discord.Application, time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.app, g.at
}

// refresh asks Discord unless the answer is fresh. It tells whether something
// was switched on or off. When Discord does not answer, the old answer stands.
func (g *grants) refresh(ctx context.Context, fresh time.Duration) (changed bool) {
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

// missing returns those of the intents that are switched off.
func (g *grants) missing(wanted event.Intents) event.Intents {
	app, _ := g.now()
	return wanted & event.IntentsPrivileged &^ app.Privileged
}

// portal is where the application's intents are switched on.
func (g *grants) portal() string {
	app, _ := g.now()
	return "https://discord.com/developers/applications/" + app.ID.String() + "/bot (Privileged Gateway Intents)"
}

// verdict is what an event's intents mean for whoever registers for it.
type verdict int

const (
	// comes: with all that is in it.
	comes verdict = iota
	// poorer: it comes, but not always, or not with its content.
	poorer
	// never: it can't come.
	never
)

// judge decides whether an event can come. can are the intents that a session
// may have: the fixed ones, or all but those that are switched off.
func judge(t event.Type, can event.Intents) verdict {
	switch {
	case t.Intents == 0:
		return comes
	case t.Intents&can == 0 && t.Name == "GUILD_MEMBER_UPDATE":
		return poorer // it comes for the bot's own member without any (Discord: List of Intents)
	case t.Intents&can == 0:
		return never
	case t.Content && can&event.IntentMessageContent == 0:
		return poorer
	default:
		return comes
	}
}

// Advise says what registering for some events means: in refusal, why they can
// never come, or ""; in notes, what will happen, or what will be missing.
// before are the intents that were needed so far.
func (g *Gateway) Advise(ctx context.Context, p event.Pattern, before event.Intents) (refusal string, notes []string) {
	if !p.Known() {
		return "", nil
	}
	gr := g.known()
	if gr == nil && g.cfg.OnlyEnabled {
		return "", []string{"Discord could not be asked yet which privileged intents are switched on."}
	}
	can := event.IntentsAll
	if g.cfg.OnlyEnabled {
		can &^= gr.missing(can)
	} else {
		can = g.cfg.Intents()
	}
	verdicts := judgeAll(p, can)
	if len(verdicts[never])+len(verdicts[poorer]) > 0 && g.cfg.OnlyEnabled && gr.refresh(ctx, grantsAsked) {
		g.reconsiderIntents()
		can = event.IntentsAll &^ gr.missing(event.IntentsAll)
		verdicts = judgeAll(p, can)
	}
	if len(verdicts[never]) > 0 && len(verdicts[poorer])+len(verdicts[comes]) == 0 {
		return g.refusal(gr, verdicts[never]), nil
	}
	for _, t := range append(verdicts[never], verdicts[poorer]...) {
		notes = append(notes, g.lack(gr, t, can))
	}
	if more := p.Needs() & can &^ before; more != 0 && g.cfg.OnlyEnabled {
		notes = append(notes, g.identifies(more))
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

// refusal says why none of the events can come, and what to do.
func (g *Gateway) refusal(gr *grants, types []event.Type) string {
	var intents event.Intents
	var names []string
	for _, t := range types {
		intents |= t.Intents
		names = append(names, t.Name)
	}
	if !g.cfg.OnlyEnabled {
		return fmt.Sprintf("%s can't come: GATEHOOK_INTENTS is %s; add %s to it, or set it to auto",
			strings.Join(names, ", "), orNone(g.cfg.Intents()), intents)
	}
	return fmt.Sprintf("%s can't come: the bot is not allowed %s; switch it on at %s",
		strings.Join(names, ", "), discord.PrivilegedNames(intents), gr.portal())
}

// lack says what of an event will be missing.
func (g *Gateway) lack(gr *grants, t event.Type, can event.Intents) string {
	what := t.Name + " does not come"
	intents := t.Intents
	if judge(t, can) == poorer {
		if t.Intents&can == 0 {
			what = t.Name + " comes for the bot's own member only"
		} else {
			what, intents = t.Name+" comes without its content", event.IntentMessageContent
		}
	}
	if g.cfg.OnlyEnabled {
		return fmt.Sprintf("%s: the bot is not allowed %s; switch it on at %s.", what, discord.PrivilegedNames(intents), gr.portal())
	}
	return fmt.Sprintf("%s: GATEHOOK_INTENTS is without %s.", what, intents)
}

// identifies says what more intents make the shards do.
func (g *Gateway) identifies(more event.Intents) string {
	g.mu.Lock()
	count, started := g.plan.Current, g.concurrency
	g.mu.Unlock()
	if count == 0 {
		return fmt.Sprintf("The shards will identify with %s.", more)
	}
	rounds := (count + started - 1) / max(started, 1)
	return fmt.Sprintf("The shards (%d) identify again with %s, one after the other, within about %v; until a shard has done so, events that need that do not come.",
		count, more, (time.Duration(rounds) * slotLength).Round(time.Second))
}

func orNone(i event.Intents) string {
	if i == 0 {
		return "empty"
	}
	return i.String()
}

// known is what is known of the application's intents; nil before Discord
// answered.
func (g *Gateway) known() *grants {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grants
}

// intents are those to identify with: all that are wanted, less those that are
// switched off if the gateway may leave out some.
func (g *Gateway) intents() event.Intents {
	wanted := g.cfg.Intents()
	if gr := g.known(); gr != nil && g.cfg.OnlyEnabled {
		wanted &^= gr.missing(wanted)
	}
	return wanted
}

// lacking says for people which wanted intents are switched off, or "".
func (g *Gateway) lacking() string {
	gr := g.known()
	if gr == nil {
		return ""
	}
	missing := gr.missing(g.cfg.Intents())
	if missing == 0 {
		return ""
	}
	return fmt.Sprintf("events are missing: the bot is not allowed %s; switch it on at %s", discord.PrivilegedNames(missing), gr.portal())
}

// reconsiderIntents makes the shards look at the intents again.
func (g *Gateway) reconsiderIntents() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		select {
		case s.changed <- struct{}{}:
		default: // it has not seen the change before this one
		}
	}
}
