package listeners

import (
	"slices"
	"sync"

	"github.com/gatehook/gatehook/internal/event"
)

// table is the registrations in memory: who wants an event is asked for every
// event that Discord sends. It is safe for concurrent use.
//
// It is changed in place: with thousands of listeners a copy for every change
// would cost more than the lock.
type table struct {
	mu      sync.RWMutex
	version int64
	byID    map[int64]*entry
	// exact and prefixed hold them by what they registered for: the name of one
	// event, or the beginning of many. Those that are disabled too: what they
	// miss is kept for them, and so has to come.
	exact    map[event.Pattern]*bucket
	prefixed []*bucket
	needs    event.Intents
	changed  chan struct{} // holds a token when needs changed
}

func newTable() *table {
	return &table{byID: map[int64]*entry{}, exact: map[event.Pattern]*bucket{}, changed: make(chan struct{}, 1)}
}

// entry is one listener, its filter as sets; nil lets everything pass.
type entry struct {
	listener *event.Listener
	pattern  event.Pattern
	guilds   []event.Snowflake
	channels map[event.Snowflake]bool
	users    map[event.Snowflake]bool
}

func newEntry(l *event.Listener) *entry {
	// What is stored was checked; what can't be read matches nothing.
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

// bucket holds the listeners of one pattern. Those with a list of
// guilds are under each of them: where every customer of a bot registers for
// their own guild, an event does not look at all the others.
type bucket struct {
	pattern event.Pattern
	needs   event.Intents
	byGuild map[event.Snowflake][]*entry
	rest    []*entry // those of all guilds
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

// match appends the ids of those whose filter lets an event pass; missed tells
// that there are disabled ones among them, whose ids it leaves out.
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

// match returns the ids of the enabled listeners that want an event: the raw
// ones first, because raw deliveries are dispatched first. What it returns is
// the caller's. missed: disabled ones want it as well.
func (t *table) match(e *event.Event) (_ []int64, missed bool) {
	var few [64]int64 // on the stack: a usual answer is allocated once, none not at all
	ids := few[:0]
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, raw := range [...]bool{true, false} {
		if b := t.exact[event.Pattern{Raw: raw, Name: e.Name}]; b != nil {
			ids = b.match(e, ids, &missed)
		}
		for _, b := range t.prefixed {
			if b.pattern.Raw == raw && b.pattern.Matches(e.Name) {
				ids = b.match(e, ids, &missed)
			}
		}
	}
	if len(ids) == 0 {
		return nil, missed
	}
	return slices.Clone(ids), missed // always: what could be returned itself is not on the stack
}

func (t *table) listener(id int64) *event.Listener {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.byID[id]; e != nil {
		return e.listener
	}
	return nil
}

func (t *table) intents() event.Intents {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.needs
}

func (t *table) at() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.version
}

// replace takes all registrations as they are at a version, unless it has a
// newer one.
func (t *table) replace(version int64, all []*event.Listener) {
	// Before the lock: no event waits for thousands of listeners to be sorted.
	fresh := newTable()
	for _, l := range all {
		fresh.put(newEntry(l))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if version < t.version {
		return
	}
	t.version = version
	t.byID, t.exact, t.prefixed = fresh.byID, fresh.exact, fresh.prefixed
	t.count()
}

// apply takes one change, if it is the next one: l is nil for a removal. It
// returns false if the table has missed others and must be replaced.
func (t *table) apply(version, id int64, l *event.Listener) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if version <= t.version {
		return true
	}
	if version != t.version+1 {
		return false
	}
	t.version = version
	t.remove(id)
	if l != nil {
		t.put(newEntry(l))
	}
	t.count()
	return true
}

// put and remove are called with the lock held.
func (t *table) put(e *entry) {
	t.byID[e.listener.ID] = e
	b := t.bucket(e.pattern)
	if b == nil {
		b = newBucket(e.pattern)
		if e.pattern.Prefix {
			t.prefixed = append(t.prefixed, b)
		} else {
			t.exact[e.pattern] = b
		}
	}
	b.put(e)
}

func (t *table) remove(id int64) {
	e := t.byID[id]
	if e == nil {
		return
	}
	delete(t.byID, id)
	b := t.bucket(e.pattern)
	if b.remove(e); b.empty() {
		delete(t.exact, e.pattern)
		t.prefixed = slices.DeleteFunc(t.prefixed, func(x *bucket) bool { return x == b })
	}
}

// bucket is that of a pattern, or nil.
func (t *table) bucket(p event.Pattern) *bucket {
	if i := slices.IndexFunc(t.prefixed, func(b *bucket) bool { return b.pattern == p }); i >= 0 {
		return t.prefixed[i]
	}
	return t.exact[p]
}

// count works out what the listeners need.
func (t *table) count() {
	var needs event.Intents
	for _, b := range t.exact {
		needs |= b.needs
	}
	for _, b := range t.prefixed {
		needs |= b.needs
	}
	if needs == t.needs {
		return
	}
	t.needs = needs
	select {
	case t.changed <- struct{}{}:
	default:
	}
}
