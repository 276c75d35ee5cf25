package listeners

import (
	"slices"
	"sync"

	"github.com/gatehook/gatehook/internal/event"
)

// table is the registrations in memory: who wants an event is asked for every
// event that Discord sends. It is safe for concurrent use.
type table struct {
	mu      sync.RWMutex
	version int64
	byID    map[int64]*entry
	// exact and prefixed hold the enabled ones: by the event's name, and
	// those that match many names.
	exact    map[string][]*entry
	prefixed []*entry
	needs    event.Intents
	changed  chan struct{} // holds a token when needs changed
}

type entry struct {
	listener *event.Listener
	pattern  event.Pattern
	guilds   map[event.Snowflake]bool
	channels map[event.Snowflake]bool
	users    map[event.Snowflake]bool
}

func newTable() *table {
	return &table{byID: map[int64]*entry{}, exact: map[string][]*entry{}, changed: make(chan struct{}, 1)}
}

func newEntry(l *event.Listener) *entry {
	// What is stored was checked; what can't be read matches nothing.
	pattern, err := event.ParsePattern(l.Event)
	if err != nil {
		pattern = event.Pattern{Name: "\x00"}
	}
	return &entry{
		listener: l, pattern: pattern,
		guilds: set(l.Filter.GuildIDs), channels: set(l.Filter.ChannelIDs), users: set(l.Filter.UserIDs),
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

// passes tells whether an event is in every list that is given.
func (e *entry) passes(ev *event.Event) bool {
	return (e.guilds == nil || e.guilds[ev.GuildID]) && (e.channels == nil || e.channels[ev.ChannelID]) &&
		(e.users == nil || e.users[ev.UserID])
}

// match returns the ids of the enabled listeners that want an event: the raw
// ones first, because raw deliveries are dispatched first.
func (t *table) match(e *event.Event) []int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	exact := t.exact[e.Name]
	if len(exact) == 0 && len(t.prefixed) == 0 {
		return nil
	}
	var ids []int64
	for _, raw := range []bool{true, false} {
		for _, x := range exact {
			if x.pattern.Raw == raw && x.passes(e) {
				ids = append(ids, x.listener.ID)
			}
		}
		for _, x := range t.prefixed {
			if x.pattern.Raw == raw && x.pattern.Matches(e.Name) && x.passes(e) {
				ids = append(ids, x.listener.ID)
			}
		}
	}
	return ids
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
	t.mu.Lock()
	defer t.mu.Unlock()
	if version < t.version {
		return
	}
	t.version = version
	t.byID = make(map[int64]*entry, len(all))
	t.exact, t.prefixed = map[string][]*entry{}, nil
	for _, l := range all {
		t.put(newEntry(l))
	}
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

// put and remove are called with the lock held. The slices that match reads
// are changed under it too.
func (t *table) put(e *entry) {
	t.byID[e.listener.ID] = e
	switch {
	case !e.listener.Enabled:
	case e.pattern.Prefix:
		t.prefixed = append(t.prefixed, e)
	default:
		t.exact[e.pattern.Name] = append(t.exact[e.pattern.Name], e)
	}
}

func (t *table) remove(id int64) {
	e := t.byID[id]
	if e == nil {
		return
	}
	delete(t.byID, id)
	is := func(x *entry) bool { return x == e }
	t.prefixed = slices.DeleteFunc(t.prefixed, is)
	if list := slices.DeleteFunc(t.exact[e.pattern.Name], is); len(list) > 0 {
		t.exact[e.pattern.Name] = list
	} else {
		delete(t.exact, e.pattern.Name)
	}
}

// count works out what the enabled listeners need.
func (t *table) count() {
	var needs event.Intents
	for name := range t.exact {
		needs |= event.Pattern{Name: name}.Needs()
	}
	for _, e := range t.prefixed {
		needs |= e.pattern.Needs()
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
