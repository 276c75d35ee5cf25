package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// copyLimit is how long after the opening the copy of a delivered dispatch may still
// arrive, in a replay. A later match is a new event.
const copyLimit = 5 * time.Minute

// holding sits in front of a sink while another connection delivers the same
// events. While it is muted, it drops events and lets only the session advance.
// Unmuted, it keeps all events. When it is opened, it passes on the kept events
// and all later ones, except for those that the other connection delivered.
type holding struct {
	out  sink
	room *room            // for what is kept; shared
	now  func() time.Time // Config.Now

	opened chan struct{} // closed once the kept events have been passed on

	mu          sync.Mutex // guards the fields below
	muted       bool
	kept        []keptEvent
	bytes       int       // of room, for kept
	copies      *copies   // of what the other connection delivered; nil before the opening, and when none can come any more
	copiesUntil time.Time // no copy of a delivered event arrives later
	behind      bool      // see copies.take; used by whoever puts or opens, one at a time
}

type keptEvent struct {
	session *event.Session
	event   *event.Event
}

func newHolding(out sink, r *room, now func() time.Time) *holding {
	return &holding{out: out, room: r, now: now, opened: make(chan struct{})}
}

// put implements sink. It waits while there is no room.
func (h *holding) put(ctx context.Context, session *event.Session, e *event.Event) error {
	for {
		freed, kept := h.keep(session, e)
		if kept {
			return nil
		}
		if h.isOpen() {
			return h.out.put(ctx, session, h.afterOpen(e))
		}
		if freed == nil { // muted
			if session == nil {
				return nil
			}
			return h.out.put(ctx, session, nil)
		}
		select {
		case <-h.opened:
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// keep keeps an event, unless the holding is muted or open, or there is no room. In the
// last case, freed is closed when there is more; otherwise it is nil.
func (h *holding) keep(session *event.Session, e *event.Event) (freed <-chan struct{}, kept bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.muted || h.isOpen() {
		return nil, false
	}
	size, freed, ok := h.room.take(e, len(h.kept) == 0)
	if !ok {
		return freed, false
	}
	h.kept = append(h.kept, keptEvent{session, e})
	h.bytes += size
	return nil, true
}

// len returns the number of kept events.
func (h *holding) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.kept)
}

func (h *holding) isOpen() bool { return isClosed(h.opened) }

// unmute makes the holding keep everything that is put from now on.
func (h *holding) unmute() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.muted = false
}

// putSoon implements sink. It drops the notices of a link that never took over.
func (h *holding) putSoon(ctx context.Context, limit time.Duration, notices ...*event.Event) {
	if h.isOpen() {
		h.out.putSoon(ctx, limit, notices...)
	}
}

// stored implements sink.
func (h *holding) stored(sessionID string) int64 { return h.out.stored(sessionID) }

// open passes on the kept events, and from then on keeps none. It leaves out the
// copies of what the other connection delivered.
func (h *holding) open(ctx context.Context, c *copies) error {
	h.mu.Lock()
	h.copies, h.copiesUntil = c, h.now().Add(copyLimit)
	h.mu.Unlock()
	for {
		kept, bytes := h.takeKept(true)
		if kept == nil {
			return nil
		}
		err := h.passOn(ctx, kept)
		h.room.give(bytes)
		if err != nil {
			return err
		}
	}
}

func (h *holding) passOn(ctx context.Context, kept []keptEvent) error {
	for _, k := range kept {
		if err := h.out.put(ctx, k.session, h.unlessDelivered(k.event)); err != nil {
			return err
		}
	}
	return nil
}

// discard gives up what is kept: the connection that put it does not take over.
func (h *holding) discard() {
	_, bytes := h.takeKept(false)
	h.room.give(bytes)
}

// takeKept empties the holding, whose events take so many bytes of room. If it was
// empty, and opens, it is open from now on.
func (h *holding) takeKept(opens bool) (kept []keptEvent, bytes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept, bytes = h.kept, h.bytes
	h.kept, h.bytes = nil, 0
	if kept == nil && opens {
		close(h.opened)
	}
	return kept, bytes
}

// afterOpen is unlessDelivered for an event that came after the opening: it may be a
// copy that was still on its way.
func (h *holding) afterOpen(e *event.Event) *event.Event {
	h.mu.Lock()
	if h.copies != nil && e != nil && (!e.Late && h.copies.over(e.ReceivedAt) || h.now().After(h.copiesUntil)) {
		h.copies = nil
	}
	h.mu.Unlock()
	return h.unlessDelivered(e)
}

// unlessDelivered returns the event, or nil if the other connection delivered
// it: then only the session advances.
func (h *holding) unlessDelivered(e *event.Event) *event.Event {
	h.mu.Lock()
	c := h.copies
	h.mu.Unlock()
	if c != nil && e != nil && e.Seq != 0 && c.take(e, &h.behind) {
		return nil
	}
	return e
}
