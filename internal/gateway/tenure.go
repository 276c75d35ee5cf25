package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// tenure is the time for which this instance runs a shard, from the claim of
// its lease to the release.
type tenure struct {
	claim Claim
	out   *outlet
	// gate stands before out while another set of shards delivers; nil if this
	// one delivered from the first.
	gate *holding
	// cancel ends the tenure, with the cause that the shard closes with.
	cancel context.CancelCauseFunc
	// leave is closed when the session is to be read to its end and let go.
	leave   chan struct{}
	changed chan struct{} // holds a token after duty or served changed

	mu       sync.Mutex // guards what follows
	duty     duty
	complete bool // the session gets everything
	ending   bool // cancel was called
}

func newTenure(claim Claim, d duty, margin time.Duration, cancel context.CancelCauseFunc) *tenure {
	t := &tenure{
		claim: claim, out: &outlet{claim: claim, cursor: claim.Session()}, cancel: cancel,
		leave: make(chan struct{}), changed: make(chan struct{}, 1), duty: d,
	}
	// A shard that held events back when its instance died has its cursor
	// before them: they come again and are held back again, even if by now
	// nothing has to be waited for.
	heldBack := claim.Stage() == event.StageReady || claim.Stage() == event.StageHolding
	if heldBack || d == dutyWarm || d == dutyHold {
		t.gate = newHolding(t.out, margin)
		t.gate.muted = claim.Stage() != event.StageHolding
	}
	if d == dutyLeave {
		close(t.leave)
	}
	return t
}

// sink is where the shard's links put their events.
func (t *tenure) sink() sink {
	if t.gate != nil {
		return t.gate
	}
	return t.out
}

// steer gives the shard another duty.
func (t *tenure) steer(d duty) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d == t.duty {
		return
	}
	if t.duty = d; d == dutyLeave {
		close(t.leave)
	}
	wake(t.changed)
}

func (t *tenure) leaving() bool { return isClosed(t.leave) }

// setComplete notes whether there is a session that receives everything.
func (t *tenure) setComplete(served bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.complete != served {
		t.complete = served
		wake(t.changed)
	}
}

func (t *tenure) state() (duty, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.duty, t.complete
}

// end ends the tenure.
func (t *tenure) end(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ending = true
	t.cancel(cause)
}

func (t *tenure) isEnding() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ending
}
