package gateway

import (
	"context"
	"crypto/md5" //nolint:gosec // see event.Told
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// maxKeptEvents and maxHeldBytes bound what is held back. A connection
	// that meets them is not read on.
	maxKeptEvents = 8192
	maxKeptBytes  = 64 << 20
	// copyLimit is after how long nobody can send the other copy of a
	// dispatch any more: what looks like one is news.
	copyLimit = 30 * time.Second
)

// holding stands before a sink while another connection delivers the same
// events. Muted, it lets only the session move; then it keeps everything;
// opened, it hands on what it kept, and from then on everything, less what the
// other connection told.
type holding struct {
	out    sink
	margin time.Duration // timing.margin

	mu          sync.Mutex
	muted       bool
	kept        []keptEvent
	bytes       int
	space       chan struct{} // closed and replaced when held was taken
	opened      chan struct{} // closed when nothing is held back any more
	delivered   map[event.Told]int
	copiesUntil time.Time // when told is worth nothing any more
	justOpened  bool      // nothing was put since it was opened
}

type keptEvent struct {
	session *event.Session
	event   *event.Event
}

func newHolding(out sink, margin time.Duration) *holding {
	return &holding{out: out, margin: margin, space: make(chan struct{}), opened: make(chan struct{})}
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

// keep holds an event back if that is still to be done and there is room. It
// returns no channel to wait for room if it is muted.
func (h *holding) keep(session *event.Session, e *event.Event) (space <-chan struct{}, kept bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.muted {
		return nil, false
	}
	if h.isOpen() || len(h.kept) > 0 && (len(h.kept) >= maxKeptEvents || h.bytes+len(e.Data) > maxKeptBytes) {
		return h.space, false
	}
	h.kept = append(h.kept, keptEvent{session, e})
	h.bytes += len(e.Data)
	return nil, true
}

// len is how many events are held back.
func (h *holding) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.kept)
}

func (h *holding) isOpen() bool { return isClosed(h.opened) }

// unmute ends being muted: all that is put from now on is kept.
func (h *holding) unmute() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.muted = false
}

// putSoon implements sink. Of a link that never took over nothing is told.
func (h *holding) putSoon(ctx context.Context, limit time.Duration, events ...*event.Event) {
	if h.isOpen() {
		h.out.putSoon(ctx, limit, events...)
	}
}

// stored implements sink.
func (h *holding) stored(sessionID string) int64 { return h.out.stored(sessionID) }

// open hands on what was held back, less what was told already (how often each
// dispatch was), and holds nothing back from then on.
func (h *holding) open(ctx context.Context, told map[event.Told]int) error {
	h.mu.Lock()
	h.delivered, h.copiesUntil, h.justOpened = told, time.Now().Add(copyLimit), true
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

// take returns what is held. When that is nothing, the holding is open.
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

// afterOpen is unlessTold for an event that came after the opening: for some time
// it may still be a copy that was under way.
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

// unlessDelivered returns the event, or nil if the other connection told it: then
// only the session moves.
func (h *holding) unlessDelivered(e *event.Event) *event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.delivered) == 0 || e == nil || e.Seq == 0 {
		return e
	}
	k := toldOf(e)
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

func toldOf(e *event.Event) event.Told {
	return event.Told{Name: e.Name, Digest: md5.Sum(e.Data)} //nolint:gosec // as above
}

// overlap remembers the dispatches that a connection told since another one of
// the same shard gets them as well.
type overlap struct {
	margin time.Duration // timing.margin

	mu        sync.Mutex
	begun     bool // both get them
	delivered []deliveredEvent
}

type deliveredEvent struct {
	event.Told
	at time.Time
}

// add notes what was told. Until begin, only the latest is kept.
func (o *overlap) add(e *event.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.delivered = append(o.delivered, deliveredEvent{toldOf(e), e.ReceivedAt})
	if !o.begun {
		o.forgetLocked(e.ReceivedAt)
	}
}

func (o *overlap) forgetLocked(now time.Time) {
	i := 0
	for i < len(o.delivered) && now.Sub(o.delivered[i].at) > o.margin {
		i++
	}
	o.delivered = o.delivered[i:]
}

// begin is called when the other connection begins to get dispatches.
func (o *overlap) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgetLocked(now)
	o.begun = true
}

// counts tells how often each dispatch was told.
func (o *overlap) counts() map[event.Told]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	counts := make(map[event.Told]int, len(o.delivered))
	for _, t := range o.delivered {
		counts[t.Told]++
	}
	return counts
}
