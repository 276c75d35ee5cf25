package listeners

import (
	"slices"

	"github.com/gatehook/gatehook/internal/event"
)

// index finds listeners by the name or the prefix of names that they registered for.
// It includes disabled listeners, because the events that they miss are received and
// stored for them.
type index struct {
	byID     map[int64]*entry
	exact    map[event.Pattern]*bucket
	prefixed []*bucket
}

func newIndex() index {
	return index{byID: map[int64]*entry{}, exact: map[event.Pattern]*bucket{}}
}

func (x *index) put(l *event.Listener) {
	e := newEntry(l)
	x.byID[l.ID] = e
	b := x.bucket(e.pattern)
	if b == nil {
		b = newBucket(e.pattern)
		if e.pattern.Prefix {
			x.prefixed = append(x.prefixed, b)
		} else {
			x.exact[e.pattern] = b
		}
	}
	b.put(e)
}

func (x *index) remove(id int64) {
	e := x.byID[id]
	if e == nil {
		return
	}
	delete(x.byID, id)
	b := x.bucket(e.pattern)
	if b.remove(e); b.empty() {
		delete(x.exact, e.pattern)
		x.prefixed = slices.DeleteFunc(x.prefixed, func(other *bucket) bool { return other == b })
	}
}

// bucket returns the bucket of a pattern, or nil.
func (x *index) bucket(p event.Pattern) *bucket {
	if i := slices.IndexFunc(x.prefixed, func(b *bucket) bool { return b.pattern == p }); i >= 0 {
		return x.prefixed[i]
	}
	return x.exact[p]
}

// needs returns the intents that the listeners need.
func (x *index) needs() (needs event.Intents) {
	for _, b := range x.exact {
		needs |= b.needs
	}
	for _, b := range x.prefixed {
		needs |= b.needs
	}
	return needs
}

// entry is one listener with its filter as sets; a nil set lets everything pass.
type entry struct {
	listener *event.Listener
	pattern  event.Pattern
	guilds   []event.Snowflake
	channels map[event.Snowflake]bool
	users    map[event.Snowflake]bool
}

func newEntry(l *event.Listener) *entry {
	// The pattern was checked before it was stored. An invalid one matches nothing.
	pattern, err := event.ParsePattern(l.Event)
	if err != nil {
		pattern = event.Pattern{Name: "\x00"}
	}
	guilds := slices.Clone(l.Filter.GuildIDs)
	slices.Sort(guilds)
	return &entry{
		listener: l, pattern: pattern,
		guilds: slices.Compact(guilds), channels: set(l.Filter.ChannelIDs), users: set(l.Filter.UserIDs),
	}
}

func set(ids []event.Snowflake) map[event.Snowflake]bool {
	if len(ids) == 0 {
		return nil
	}
	m := make(map[event.Snowflake]bool, len(ids))
	for _, id := range ids {
		m[id] = true
	}
	return m
}

// bucket holds the listeners of one pattern. A listener with a list of guilds is stored
// under each of them. So if every customer of a bot registers for their own guild, an
// event is not compared with the listeners of all other customers.
type bucket struct {
	pattern event.Pattern
	needs   event.Intents
	byGuild map[event.Snowflake][]*entry
	rest    []*entry // listeners without a list of guilds
}

func newBucket(p event.Pattern) *bucket {
	return &bucket{pattern: p, needs: p.Needs(), byGuild: map[event.Snowflake][]*entry{}}
}

func (b *bucket) empty() bool { return len(b.byGuild) == 0 && len(b.rest) == 0 }

func (b *bucket) put(e *entry) {
	if len(e.guilds) == 0 {
		b.rest = append(b.rest, e)
	}
	for _, id := range e.guilds {
		b.byGuild[id] = append(b.byGuild[id], e)
	}
}

func (b *bucket) remove(e *entry) {
	is := func(x *entry) bool { return x == e }
	if len(e.guilds) == 0 {
		b.rest = slices.DeleteFunc(b.rest, is)
	}
	for _, id := range e.guilds {
		if b.byGuild[id] = slices.DeleteFunc(b.byGuild[id], is); len(b.byGuild[id]) == 0 {
			delete(b.byGuild, id)
		}
	}
}

// match appends the ids of the enabled listeners whose filter lets an event pass,
// and sets missed if a disabled listener's filter lets it pass.
func (b *bucket) match(e *event.Event, ids []int64, missed *bool) []int64 {
	for _, list := range [...][]*entry{b.byGuild[e.GuildID], b.rest} {
		for _, x := range list {
			if (x.channels == nil || x.channels[e.ChannelID]) && (x.users == nil || x.users[e.UserID]) {
				if x.listener.Enabled {
					ids = append(ids, x.listener.ID)
				} else {
					*missed = true
				}
			}
		}
	}
	return ids
}
