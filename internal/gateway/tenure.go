package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
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
	leave chan struct{}
	news  chan struct{} // holds a token after duty or served changed

	mu     sync.Mutex // guards what follows
	duty   duty
	served bool // the session gets everything
	ending bool // cancel was called
}

func newTenure(claim Claim, d duty, margin time.Duration, cancel context.CancelCauseFunc) *tenure {
	t := &tenure{
		claim: claim, out: &outlet{claim: claim, cursor: claim.Session()}, cancel: cancel,
		leave: make(chan struct{}), news: make(chan struct{}, 1), duty: d,
	}
	// A shard that held events back when its instance died has its cursor
	// before them: they come again and are held back again, even if by now
	// nothing has to be waited for.
	held := claim.Stage() == event.StageReady || claim.Stage() == event.StageHolding
	if held || d == dutyWarm || d == dutyHold {
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
	t.wake()
}

func (t *tenure) leaving() bool {
	select {
	case <-t.leave:
		return true
	default:
		return false
	}
}

// serve notes that the session gets everything, lose that it is gone.
func (t *tenure) serve() { t.setServed(true) }

func (t *tenure) lose() { t.setServed(false) }

func (t *tenure) setServed(served bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.served != served {
		t.served = served
		t.wake()
	}
}

func (t *tenure) wake() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

func (t *tenure) at() (duty, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.duty, t.served
}

// end ends the tenure, and tells whether it was about to end already.
func (t *tenure) end(cause error) (before bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, t.ending = t.ending, true
	t.cancel(cause)
	return before
}

func (t *tenure) isEnding() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ending
}

// run keeps a claimed shard connected until ctx ends, the lease is lost or
// the session was read to its end, and gives it back.
func (s *shard) run(ctx context.Context, t *tenure) {
	var tasks sync.WaitGroup
	tasks.Go(func() {
		select {
		case <-t.claim.Lost():
			t.end(errLeaseLost)
		case <-ctx.Done():
		}
	})
	if t.gate != nil {
		tasks.Go(func() { s.guide(ctx, t) })
	}
	ended := s.keep(ctx, t)
	t.end(errDrain)
	tasks.Wait()
	s.letGo(ctx, t, ended)
	s.set(func(st *ShardStatus) { st.State, st.Problem, s.tenure = StateStandby, "", nil })
}

// confirm returns errLeaseLost if another instance has the shard. It is asked
// before what would end the other's connection: a process that was paused
// wakes up in the middle of anything.
func (s *shard) confirm(ctx context.Context) error {
	if t := s.held(); t != nil && t.claim.Confirm(ctx) != nil {
		return errLeaseLost
	}
	return nil
}

func (s *shard) adopt(t *tenure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tenure = t
	s.status = ShardStatus{
		Shard: s.id, State: StateConnecting, Intents: t.out.at().Intents,
		Identifies: s.status.Identifies, Resumes: s.status.Resumes, LastClose: s.status.LastClose,
	}
}

// letGo gives the shard back, so that another instance need not wait for the
// lease to run out.
func (s *shard) letGo(ctx context.Context, t *tenure, ended bool) {
	if errors.Is(context.Cause(ctx), errLeaseLost) {
		s.log.LogAttrs(ctx, slog.LevelWarn, "shard let go: another instance took it over")
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timing.release, errors.New("the journal is busy"))
	defer cancel()
	release := t.claim.Release
	if ended {
		s.log.LogAttrs(ctx, slog.LevelInfo, "shard ended: another set of shards takes over")
		release = t.claim.End
	}
	if err := release(ctx); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "shard not given back: its lease has to run out", slog.Any("error", err))
	}
}

// guide brings a shard of the next set from dropping what it receives over
// holding it back to delivering it.
func (s *shard) guide(ctx context.Context, t *tenure) {
	backoff := discord.NewBackoff(s.timing.reconnect)
	for marked := t.claim.Stage(); ; {
		var err error
		stage, deliver := stageOf(t.at())
		switch {
		case deliver:
			if err = s.open(ctx, t); err == nil {
				return
			}
		case stage != marked:
			if stage == event.StageHolding {
				t.gate.hold()
			}
			if err = t.claim.Mark(ctx, stage); err == nil {
				marked = stage
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "could not change over, trying again", slog.Any("error", err))
			wait, _ := backoff.Next()
			if discord.Sleep(ctx, wait) != nil {
				return
			}
			continue
		}
		select {
		case <-t.news:
		case <-ctx.Done():
			return
		}
	}
}

// stageOf is how far a shard of the next set is, or whether it is to deliver.
func stageOf(d duty, served bool) (stage event.Stage, deliver bool) {
	switch {
	case d == dutyDeliver || d == dutyLeave:
		return event.StageNone, true
	case d == dutyHold:
		return event.StageHolding, false
	case served:
		return event.StageReady, false
	default:
		return event.StageNone, false
	}
}

// open lets the shard deliver, less what the set before it told.
func (s *shard) open(ctx context.Context, t *tenure) error {
	list, err := s.told(ctx)
	if err != nil {
		return err
	}
	told := make(map[event.Told]int, len(list))
	for _, e := range list {
		told[e]++
	}
	if err := t.gate.open(ctx, told); err != nil {
		return err
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "shard delivers")
	return t.claim.Mark(ctx, event.StageNone)
}
