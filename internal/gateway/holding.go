package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// maxKeptEvents and maxKeptBytes bound what a holding keeps. While it is
	// full, its connection is not read.
	maxKeptEvents = 8192
	maxKeptBytes  = 64 << 20
	// copyLimit is how long after the opening the copy of a delivered dispatch
	// may still arrive. A later match is a new event.
	copyLimit = 30 * time.Second
)

// holding sits in front of a sink while another connection delivers the same
// events. While it is muted, it drops events and lets only the session advance.
// Unmuted, it keeps all events. When it is opened, it passes on the kept events
// and all later ones, except for those that the other connection delivered.
type holding struct {
	out    sink
	margin time.Duration    // timing.margin
	now    func() time.Time // Config.Now

	opened chan struct{} // closed once the kept events have been passed on

	mu          sync.Mutex // guards the fields below
	muted       bool
	kept        []keptEvent
	bytes       int                  // of the data of kept
	space       chan struct{}        // closed and replaced when kept is emptied
	delivered   map[event.Digest]int // how often the other connection delivered each
	copiesUntil time.Time            // no copy of a delivered event arrives later
	justOpened  bool                 // nothing was put since the opening
}

type keptEvent struct {
	session *event.Session
	event   *event.Event
}

func newHolding(out sink, margin time.Duration, now func() time.Time) *holding {
	return &holding{out: out, margin: margin, now: now, space: make(chan struct{}), opened: make(chan struct{})}
}

// put implements sink. It waits while the holding is full.
func (h *holding) put(ctx context.Context, session *event.Session, e *event.Event) error {
	for {
		space, kept := h.keep(session, e)
		if kept {
			return nil
		}
		if h.isOpen() {
			return h.out.put(ctx, session, h.afterOpen(e))
		}
		if space == nil { // muted
			if session == nil {
				return nil
			}
			return h.out.put(ctx, session, nil)
		}
		select {
		case <-h.opened:
		case <-space:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// keep keeps an event, unless the holding is muted, full or open. If it is full
// or open, space is closed when there is room; if it is muted, space is nil.
func (h *holding) keep(session *event.Session, e *event.Event) (space <-chan struct{}, kept bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.muted {
		return nil, false
	}
	size := 0
	if e != nil { // nil: only the session advances
		size = len(e.Data)
	}
	if h.isOpen() || len(h.kept) > 0 && (len(h.kept) >= maxKeptEvents || h.bytes+size > maxKeptBytes) {
		return h.space, false
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

// open passes on the kept events, and from then on keeps none. delivered says
// how often the other connection delivered each dispatch: that many copies are
// left out.
func (h *holding) open(ctx context.Context, delivered map[event.Digest]int) error {
	h.mu.Lock()
	h.delivered, h.copiesUntil, h.justOpened = delivered, h.now().Add(copyLimit), true
	h.mu.Unlock()
	for {
		kept := h.take()
		if kept == nil {
			return nil
		}
		for _, e := range kept {
			if err := h.out.put(ctx, e.session, h.unlessDelivered(e.event)); err != nil {
				return err
			}
		}
	}
}

// take empties the holding. If it was empty, it is open from now on, and take
// returns nil.
func (h *holding) take() []keptEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.kept
	h.kept, h.bytes = nil, 0
	if kept == nil {
		close(h.opened)
		return nil
	}
	close(h.space)
	h.space = make(chan struct{})
	return kept
}

// afterOpen is unlessDelivered for an event that came after the opening. Until
// copiesUntil, such an event may be a copy that was still on its way.
func (h *holding) afterOpen(e *event.Event) *event.Event {
	h.mu.Lock()
	if h.delivered != nil && e != nil {
		if h.justOpened {
			h.justOpened = false
			if t := e.ReceivedAt.Add(h.margin); t.Before(h.copiesUntil) {
				h.copiesUntil = t
			}
		}
		if e.ReceivedAt.After(h.copiesUntil) {
			h.delivered = nil
		}
	}
	h.mu.Unlock()
	return h.unlessDelivered(e)
}

// unlessDelivered returns the event, or nil if the other connection delivered
// it: then only the session advances.
func (h *holding) unlessDelivered(e *event.Event) *event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.delivered) == 0 || e == nil || e.Seq == 0 {
		return e
	}
	k := digestOf(e)
	switch n := h.delivered[k]; n {
	case 0:
		return e
	case 1:
		delete(h.delivered, k)
	default:
		h.delivered[k] = n - 1
	}
	return nil
}
