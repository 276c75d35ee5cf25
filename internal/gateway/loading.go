package gateway

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// loading tracks the guilds of a new session that have not come yet: until all
// have, the session does not receive everything (Discord: Guild Availability). Only
// the link's reader calls expect and note.
type loading struct {
	came chan struct{} // holds a token after a guild came
	done chan struct{} // closed once no guild is missing
	// settled is closed once the session receives everything that it ever will: a
	// guild in an outage may never come.
	settled chan struct{}

	mu      sync.Mutex // guards missing
	missing map[event.Snowflake]bool
	loaded  bool // done is closed; used by the reader only
}

func newLoading() *loading {
	return &loading{came: make(chan struct{}, 1), done: make(chan struct{}), settled: make(chan struct{})}
}

// expect notes the guilds that READY lists. Only the first call counts.
func (l *loading) expect(guilds []discord.Guild) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.missing != nil {
		return
	}
	l.missing = make(map[event.Snowflake]bool, len(guilds))
	for _, g := range guilds {
		if id, ok := g.Snowflake(); ok {
			l.missing[id] = true
		}
	}
	l.endLocked()
}

// note crosses off a guild that came or is in an outage.
func (l *loading) note(e *event.Event) {
	if l.loaded || e.Name != "GUILD_CREATE" && e.Name != "GUILD_DELETE" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.missing[e.GuildID] {
		delete(l.missing, e.GuildID)
		wake(l.came)
		l.endLocked()
	}
}

func (l *loading) endLocked() {
	if len(l.missing) == 0 && !l.loaded {
		l.loaded = true
		close(l.done)
	}
}

// watch closes settled once no guild is missing, or none has come for the patience, or
// the bound has passed. It returns the guilds that are missing then, in order. The
// session has just begun.
func (l *loading) watch(ctx context.Context, patience, bound time.Duration) []event.Snowflake {
	quiet, limit := time.NewTimer(patience), time.NewTimer(bound)
	defer quiet.Stop()
	defer limit.Stop()
	for waiting := true; waiting; {
		select {
		case <-l.came:
			quiet.Reset(patience)
		case <-l.done:
			waiting = false
		case <-quiet.C:
			waiting = false
		case <-limit.C:
			waiting = false
		case <-ctx.Done():
			return nil
		}
	}
	close(l.settled)
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := make([]event.Snowflake, 0, len(l.missing))
	for id := range l.missing {
		missing = append(missing, id)
	}
	slices.Sort(missing)
	return missing
}
