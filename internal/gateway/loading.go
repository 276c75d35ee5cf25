package gateway

import (
	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// loading tracks the guilds of a new session that have not come yet: until all
// have, the session does not receive everything (Discord: Guild Availability).
// Only the link's reader calls its methods.
type loading struct {
	missing map[event.Snowflake]bool // nil before expect
	done    chan struct{}            // closed once no guild is missing
}

// expect notes the guilds that READY lists. Only the first call counts.
func (l *loading) expect(guilds []discord.Guild) {
	if l.missing != nil {
		return
	}
	l.missing = make(map[event.Snowflake]bool, len(guilds))
	for _, g := range guilds {
		if id, ok := g.Snowflake(); ok {
			l.missing[id] = true
		}
	}
	if len(l.missing) == 0 {
		close(l.done)
	}
}

// note crosses off a guild that came or is in an outage.
func (l *loading) note(e *event.Event) {
	if len(l.missing) == 0 || e.Name != "GUILD_CREATE" && e.Name != "GUILD_DELETE" {
		return
	}
	delete(l.missing, e.GuildID)
	if len(l.missing) == 0 {
		close(l.done)
	}
}
