package gateway

import (
	"context"
	"crypto/md5" //nolint:gosec // see event.Told
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// maxHeldEvents and maxHeldBytes bound what is held back. A connection
	// that meets them is not read on.
	maxHeldEvents = 8192
	maxHeldBytes  = 64 << 20
	// staleMargin is after how long nobody can send the other copy of a
	// dispatch any more: what looks like one is news.
	staleMargin = 30 * time.Second
)

// holding stands before a sink while another connection delivers the same
// events. Muted, it lets only the session move; then it keeps everything;
// opened, it hands on what it kept, and from then on everything, less what the
// other connection told.
type holding struct {
	out    sink
	margin time.Duration // timing.margin

	mu     sync.Mutex
	muted  bool
	held   []heldEvent
	bytes  int
	space  chan struct{} // closed and replaced when held was taken
	opened chan struct{} // closed when nothing is held back any more
	told   map[event.Told]int
	stale  time.Time // when told is worth nothing any more
	first  bool      // nothing was put since it was opened
}

type heldEvent struct {
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
		select {
		case <-h.opened:
			return h.out.put(ctx, session, h.news(e))
		default:
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
	if h.isOpen() || len(h.held) > 0 && (len(h.held) >= maxHeldEvents || h.bytes+len(e.Data) > maxHeldBytes) {
		return h.space, false
	}
	h.held = append(h.held, heldEvent{session, e})
	h.bytes += len(e.Data)
	return nil, true
}

// len is how many events are held back.
func (h *holding) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

func (h *holding) isOpen() bool {
	select {
	case <-h.opened:
		return true
	default:
		return false
	}
}

// hold ends being muted: all that is put from now on is kept.
func (h *holding) hold() {
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
	h.told, h.stale, h.first = told, time.Now().Add(staleMargin), true
	h.mu.Unlock()
	for {
		held := h.take()
		if held == nil {
			return nil
		}
		for _, e := range held {
			if err := h.out.put(ctx, e.session, h.unlessTold(e.event)); err != nil {
				return err
			}
		}
	}
}

// take returns what is held. When that is nothing, the holding is open.
func (h *holding) take() []heldEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := h.held
	h.held, h.bytes = nil, 0
	if held == nil {
		close(h.opened)
		return nil
	}
	close(h.space)
	h.space = make(chan struct{})
	return held
}

// news is unlessTold for an event that came after the opening: for some time
// it may still be a copy that was under way.
func (h *holding) news(e *event.Event) *event.Event {
	h.mu.Lock()
	if h.told != nil && e != nil {
		if h.first {
			h.first = false
			h.stale = earlier(h.stale, e.ReceivedAt.Add(h.margin))
		}
		if e.ReceivedAt.After(h.stale) {
			h.told = nil
		}
	}
	h.mu.Unlock()
	return h.unlessTold(e)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// unlessTold returns the event, or nil if the other connection told it: then
// only the session moves.
func (h *holding) unlessTold(e *event.Event) *event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.told) == 0 || e == nil || e.Seq == 0 {
		return e
	}
	k := toldOf(e)
	switch n := h.told[k]; n {
	case 0:
		return e
	case 1:
		delete(h.told, k)
	default:
		h.told[k] = n - 1
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

	mu    sync.Mutex
	begun bool // both get them
	told  []toldEvent
}

type toldEvent struct {
	event.Told
	at time.Time
}

// add notes what was told. Until begin, only the latest is kept.
func (o *overlap) add(e *event.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, toldEvent{toldOf(e), e.ReceivedAt})
	if !o.begun {
		o.forget(e.ReceivedAt)
	}
}

func (o *overlap) forget(now time.Time) {
	i := 0
	for i < len(o.told) && now.Sub(o.told[i].at) > o.margin {
		i++
	}
	o.told = o.told[i:]
}

// begin is called when the other connection begins to get dispatches.
func (o *overlap) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forget(now)
	o.begun = true
}

// counts tells how often each dispatch was told.
func (o *overlap) counts() map[event.Told]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	counts := make(map[event.Told]int, len(o.told))
	for _, t := range o.told {
		counts[t.Told]++
	}
	return counts
}
