package gateway

import (
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// justJoined is the age up to which a membership makes a GUILD_CREATE count as
// a join, if nothing else is known about the guild. It is longer than a session
// survives without a connection.
const justJoined = 10 * time.Minute

// origins knows why the guilds of a session come and go, so that a receiver
// does not mistake the start of a session for a hundred joins. Only the link's
// reader uses it.
type origins struct {
	// listed are the guilds of READY for which no event came since; nil if this
	// process did not see READY.
	listed map[event.Snowflake]bool
	// away are the unavailable guilds.
	away map[event.Snowflake]bool
}

func newOrigins(listed []discord.Guild) *origins {
	o := &origins{listed: make(map[event.Snowflake]bool, len(listed)), away: map[event.Snowflake]bool{}}
	for _, g := range listed {
		if id, ok := g.Snowflake(); ok {
			o.listed[id] = true
		}
	}
	return o
}

// of returns why an event came (Discord: Guild Availability). After a restart
// READY is not known: then a membership of less than justJoined is a join, and
// any other guild was unavailable.
func (o *origins) of(e *event.Event) event.Origin {
	switch e.Name {
	case "GUILD_CREATE":
		unavailable, joinedAt := event.GuildState(e.Data)
		origin := event.OriginJoin
		switch {
		case o.listed[e.GuildID]:
			origin = event.OriginStartup
		case o.away[e.GuildID], o.listed == nil && e.ReceivedAt.Sub(joinedAt) > justJoined:
			origin = event.OriginAvailable
		}
		o.note(e.GuildID, unavailable)
		return origin
	case "GUILD_DELETE":
		unavailable, _ := event.GuildState(e.Data)
		// A guild that READY listed stays listed: its first GUILD_CREATE is
		// still to come.
		if !unavailable || !o.listed[e.GuildID] {
			o.note(e.GuildID, unavailable)
		}
		if unavailable {
			return event.OriginOutage
		}
		return event.OriginRemoved
	default:
		return event.OriginNone
	}
}

// note remembers a guild only while it is unavailable.
func (o *origins) note(id event.Snowflake, unavailable bool) {
	delete(o.listed, id)
	delete(o.away, id)
	if unavailable {
		o.away[id] = true
	}
}
