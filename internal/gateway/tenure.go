package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// tenure is the time during which this instance runs a shard, from the claim to
// its release.
type tenure struct {
	claim Claim
	out   *outlet
	// gate sits in front of out while another set of shards delivers; nil if the
	// shard's own set delivers from the start.
	gate *holding
	// cancel ends the tenure. Its cause is why the shard closes its connection.
	cancel context.CancelCauseFunc
	// leave is closed when the duty is dutyLeave: the shard reads its session to
	// the end and lets it go.
	leave   chan struct{}
	changed chan struct{} // holds a token after duty or complete changed

	mu       sync.Mutex // guards the fields below
	duty     duty
	complete bool // there is a session that receives everything
	ending   bool // cancel was called
}

func newTenure(claim Claim, d duty, r *room, now func() time.Time, cancel context.CancelCauseFunc) *tenure {
	t := &tenure{
		claim: claim, out: &outlet{claim: claim, cursor: claim.Session()}, cancel: cancel,
		leave: make(chan struct{}), changed: make(chan struct{}, 1), duty: d,
	}
	// If a shard held events back when its instance died, its cursor is before
	// them. Discord sends them again and the shard holds them back again, even if
	// by now it has nothing to wait for.
	heldBack := claim.Stage() == event.StageReady || claim.Stage() == event.StageHolding
	if heldBack || d == dutyWarm || d == dutyHold {
		t.gate = newHolding(t.out, r, now)
		t.gate.muted = claim.Stage() != event.StageHolding
	}
	if d == dutyLeave {
		close(t.leave)
	}
	return t
}

// sink returns where the shard's links put their events.
func (t *tenure) sink() sink {
	if t.gate != nil {
		return t.gate
	}
	return t.out
}

// steer changes the shard's duty.
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
func (t *tenure) setComplete(complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.complete != complete {
		t.complete = complete
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
