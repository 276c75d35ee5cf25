package gateway

import (
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// justJoined is the age up to which a membership makes a GUILD_CREATE a join. It
// is longer than a session lives without a connection: a replay comes that late.
const justJoined = 10 * time.Minute

// origins knows why the guilds of a session come and go, so that a receiver
// does not take the start of a session for a hundred joins. What a payload says
// comes before what is remembered: a process that resumed a session remembers
// little. Only the link's reader uses it. All times are by Discord's clock.
type origins struct {
	guilds map[event.Snowflake]standing
	// away is since when a guild is unavailable.
	away map[event.Snowflake]time.Time
	// joined is the joined_at of the available guilds that were just joined.
	joined map[event.Snowflake]time.Time
}

// standing is what is known of a guild.
type standing byte

const (
	unknown standing = iota
	listed           // READY listed it, and no GUILD_CREATE came yet
	member           // the bot was in it before the next event
)

func newOrigins(ready []discord.Guild) *origins {
	o := &origins{
		guilds: make(map[event.Snowflake]standing, len(ready)),
		away:   map[event.Snowflake]time.Time{}, joined: map[event.Snowflake]time.Time{},
	}
	for _, g := range ready {
		if id, ok := g.Snowflake(); ok {
			o.guilds[id] = listed
		}
	}
	return o
}

// of returns why an event came that was sent at a time (Discord: Guild
// Availability). It changes nothing: the event may have to come again.
func (o *origins) of(e *event.Event, at time.Time) event.Origin {
	if e.Name != "GUILD_CREATE" && e.Name != "GUILD_DELETE" {
		return event.OriginNone
	}
	unavailable, joinedAt := event.GuildState(e.Data)
	switch {
	case e.Name == "GUILD_DELETE" && unavailable:
		return event.OriginOutage
	case e.Name == "GUILD_DELETE":
		return event.OriginRemoved
	case o.guilds[e.GuildID] == listed:
		return event.OriginStartup
	case unavailable:
		return event.OriginOutage
	case o.isJoin(e.GuildID, joinedAt, at):
		return event.OriginJoin
	default:
		return event.OriginAvailable
	}
}

// isJoin reports whether the GUILD_CREATE of an available guild that READY did
// not list is a join. joinedAt is zero if it does not say: then it is one unless
// the bot was in the guild, because a join told twice costs less than one that is
// never told.
func (o *origins) isJoin(id event.Snowflake, joinedAt, at time.Time) bool {
	since, away := o.away[id]
	was := o.guilds[id] == member
	switch {
	case joinedAt.IsZero():
		return !was
	case joinedAt.Equal(o.joined[id]):
		return false // it is sent again
	case away && was:
		return joinedAt.After(since)
	case away:
		at = since
	}
	return at.Sub(joinedAt) <= justJoined
}

// note remembers an event that was handed on.
func (o *origins) note(e *event.Event, at time.Time) {
	if e.GuildID == 0 || e.Name != "GUILD_CREATE" && e.Name != "GUILD_DELETE" {
		return
	}
	id := e.GuildID
	unavailable, joinedAt := event.GuildState(e.Data)
	switch {
	case unavailable:
		if _, already := o.away[id]; !already {
			o.away[id] = at
		}
		delete(o.joined, id)
		// A guild that READY listed stays listed after a GUILD_DELETE: its first
		// GUILD_CREATE is still to come. The bot may just have been added to an
		// unknown one that came as unavailable.
		isDelete := e.Name == "GUILD_DELETE"
		if known := o.guilds[id]; isDelete && known == unknown || !isDelete && known == listed {
			o.guilds[id] = member
		}
	case e.Name == "GUILD_DELETE":
		delete(o.guilds, id)
		delete(o.away, id)
		delete(o.joined, id)
	default:
		o.guilds[id] = member
		delete(o.away, id)
		for other, t := range o.joined {
			if at.Sub(t) > justJoined {
				delete(o.joined, other)
			}
		}
		if at.Sub(joinedAt) <= justJoined {
			o.joined[id] = joinedAt
		}
	}
}
