package listeners

import (
	"slices"
	"sync"

	"github.com/gatehook/gatehook/internal/event"
)

// table holds the registrations in memory, because every event that Discord sends is
// matched against them. It is safe for concurrent use.
//
// It is changed in place: with thousands of listeners a copy for every change would
// cost more than the lock.
type table struct {
	changed chan struct{} // holds a token when needs changed

	mu      sync.RWMutex // guards the fields below
	version int64
	index   index
	needs   event.Intents
}

func newTable() *table { return &table{index: newIndex(), changed: make(chan struct{}, 1)} }

// match returns the ids of the enabled listeners that want an event: the raw ones
// first, because raw deliveries are dispatched first. The caller owns the slice.
// missed means that a disabled listener wants the event too.
func (t *table) match(e *event.Event) (_ []int64, missed bool) {
	var few [64]int64 // on the stack, so that a typical result is allocated once and an empty one never
	ids := few[:0]
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, raw := range [...]bool{true, false} {
		if b := t.index.exact[event.Pattern{Raw: raw, Name: e.Name}]; b != nil {
			ids = b.match(e, ids, &missed)
		}
		for _, b := range t.index.prefixed {
			if b.pattern.Raw == raw && b.pattern.Matches(e.Name) {
				ids = b.match(e, ids, &missed)
			}
		}
	}
	if len(ids) == 0 {
		return nil, missed
	}
	return slices.Clone(ids), missed // returning ids itself would move few to the heap
}

func (t *table) listener(id int64) *event.Listener {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.index.byID[id]; e != nil {
		return e.listener
	}
	return nil
}

func (t *table) intents() event.Intents {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.needs
}

func (t *table) currentVersion() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.version
}

// replace sets all registrations as of a version, unless the table has a newer
// version.
func (t *table) replace(version int64, all []*event.Listener) {
	// Built without the lock, so that no event waits while thousands of listeners are
	// indexed.
	fresh := newIndex()
	for _, l := range all {
		fresh.put(l)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if version < t.version {
		return
	}
	t.version, t.index = version, fresh
	t.updateNeedsLocked()
}

// apply makes the change that led to a version; l is nil for a removal. It returns
// false if the table has missed an earlier change and must be replaced.
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
	t.index.remove(id)
	if l != nil {
		t.index.put(l)
	}
	t.updateNeedsLocked()
	return true
}

func (t *table) updateNeedsLocked() {
	needs := t.index.needs()
	if needs == t.needs {
		return
	}
	t.needs = needs
	select {
	case t.changed <- struct{}{}:
	default:
	}
}
