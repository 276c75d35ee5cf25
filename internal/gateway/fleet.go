package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// maxDials is how many connections are opened at a time: Discord counts no
// resumes, but thousands of handshakes at once would be rude.
const maxDials = 16

// fleet is this instance's part of the application's shards: it takes its
// share of them, gives back what is more than that, and leads them from one
// set to the next when their number changes. Nothing but the database
// coordinates the instances: each looks at it every second and decides for
// itself.
type fleet struct {
	*Gateway
	turns *identify.Turns
	dials *semaphore.Weighted
	// tenures is the context of all of them; it ends with the drain.
	tenures context.Context
	running sync.WaitGroup

	// These are the loop's alone.
	configured  int // the number of shards; 0 for what Discord recommends
	recommended int
	wish        int // what the plan should become; 0 for no wish
	began       bool
	lastProblem string // what was said to be missing
	failing     bool
	reconsider  chan struct{} // holds a token when Discord should be asked again
}

func (g *Gateway) newFleet(tenures context.Context, turns *identify.Turns, recommended int) *fleet {
	return &fleet{
		Gateway: g, turns: turns, dials: semaphore.NewWeighted(maxDials), tenures: tenures,
		configured: g.cfg.Shards.Count, recommended: recommended, reconsider: make(chan struct{}, 1),
	}
}

// run shares the shards until ctx ends.
func (f *fleet) run(ctx context.Context) {
	survey := time.NewTicker(f.timing.survey)
	defer survey.Stop()
	recommend := time.NewTicker(f.timing.recommend)
	defer recommend.Stop()
	grants := time.NewTicker(f.timing.grants)
	defer grants.Stop()
	f.refreshGrants(ctx)
	for {
		f.report(ctx, f.step(ctx))
		select {
		case <-ctx.Done():
			return
		case <-survey.C:
		case <-f.cfg.IntentsChanged:
			f.refreshGrants(ctx)
			f.reconsiderIntents()
		case <-grants.C:
			f.refreshGrants(ctx)
		case <-recommend.C:
			f.recommend(ctx)
		case <-f.reconsider:
			f.recommend(ctx)
		}
	}
}

// report says, once, that the shards can't be shared, and that they can again.
func (f *fleet) report(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !f.failing:
		f.failing = true
		f.log.LogAttrs(ctx, slog.LevelWarn, "could not look after the shards, trying again", slog.Any("error", err))
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.shards) == 0 {
			f.problem = "the shards are not known: " + err.Error()
		}
	case err == nil && f.failing:
		f.failing = false
		f.log.LogAttrs(ctx, slog.LevelInfo, "looking after the shards again")
	}
}

// step looks at the plan and the shards once, and does what there is to do.
func (f *fleet) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("the database took longer than 10 s"))
	defer cancel()
	for again := true; again; {
		plan, err := f.store.Plan(ctx, f.turns.ApplicationID(), wished(f.configured, f.recommended, 0))
		if err != nil {
			return err
		}
		f.adoptPlan(ctx, plan)
		current, err := f.shareSet(ctx, plan, plan.Current)
		if err != nil {
			return err
		}
		var next event.Survey
		if plan.Next != 0 {
			if next, err = f.shareSet(ctx, plan, plan.Next); err != nil {
				return err
			}
		}
		f.dismiss(plan)
		to, changed := advance(plan, current, next, f.wish, f.timing)
		if !changed {
			return nil
		}
		if again, err = f.store.Replan(ctx, f.turns.ApplicationID(), plan, to); err != nil {
			return err
		}
		if again {
			f.log.LogAttrs(ctx, slog.LevelInfo, "the plan of the shards changes", slog.String("phase", string(to.Phase)),
				slog.Int("shards", to.Current), slog.Int("next", to.Next))
		}
	}
	return nil
}

// adoptPlan makes the wish that an instance has when it starts, and forgets one
// that came true.
func (f *fleet) adoptPlan(ctx context.Context, plan event.Plan) {
	if !f.began {
		f.began = true
		f.wishFor(plan)
		f.log.LogAttrs(ctx, slog.LevelInfo, "sharing the shards", slog.String("application", f.turns.ApplicationID().String()),
			slog.Int("shards", plan.Current), slog.Int("wished", max(f.wish, plan.Current)), slog.Int("recommended", f.recommended))
	}
	f.mu.Lock()
	f.plan = plan
	f.mu.Unlock()
	if f.wish == plan.Next || f.wish == plan.Current && plan.Next == 0 {
		f.wish = 0
	}
}

// wishFor makes a wish if the plan is not what is configured or recommended.
func (f *fleet) wishFor(plan event.Plan) {
	base := plan.Current
	if plan.Next != 0 && f.configured == 0 {
		base = plan.Next
	}
	if want := wished(f.configured, f.recommended, base); want != base {
		f.wish = want
	}
}

// refreshGrants looks whether what is missing was switched on, and says once what is
// missing.
func (f *fleet) refreshGrants(ctx context.Context) {
	lacking := f.intentsProblem()
	if lacking != f.lastProblem && lacking != "" {
		f.log.LogAttrs(ctx, slog.LevelWarn, "intents are not switched on", slog.String("problem", lacking))
	}
	if f.lastProblem = lacking; lacking != "" && f.turns.Grants().Refresh(ctx, f.timing.grants/2) {
		f.reconsiderIntents()
	}
}

// recommend asks Discord how many shards there should be.
func (f *fleet) recommend(ctx context.Context) {
	info, err := f.rest.Gateway(ctx)
	if err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord for the number of shards", slog.Any("error", err))
		return
	}
	if f.recommended = info.Shards; f.configured == 0 {
		f.mu.Lock()
		plan := f.plan
		f.mu.Unlock()
		f.wishFor(plan)
	}
}

// outgrown asks for the number of shards again: there are too few.
func (f *fleet) outgrown() { wake(f.reconsider) }

// rangeOf is what this instance runs of a set.
func (f *fleet) rangeOf(count int) event.ShardRange {
	if f.cfg.Shards.Count == count {
		return event.ShardRange(f.cfg.Shards)
	}
	return event.ShardRange{Last: count - 1, Count: count}
}

// willing is the range as the other instances have to know it: the zero value
// if it is just the whole of a set.
func (f *fleet) willing() event.ShardRange {
	if s := f.cfg.Shards; s.First > 0 || s.Last < s.Count-1 {
		return event.ShardRange(s)
	}
	return event.ShardRange{}
}

// shareSet takes this instance's share of a set and gives it its duty.
func (f *fleet) shareSet(ctx context.Context, plan event.Plan, count int) (event.Survey, error) {
	r := f.rangeOf(count)
	shards := f.shardsOf(r)
	busy := make(map[int]bool) // what was run at the survey, even if it has just been given back
	for _, s := range shards {
		busy[s.id.ID] = s.tenure.Load() != nil
	}
	sv, err := f.store.Survey(ctx, f.turns.ApplicationID(), r, f.willing())
	if err != nil {
		return sv, err
	}
	d := dutyOf(plan, count)
	ending := 0
	for _, s := range slices.Backward(shards) {
		t := s.tenure.Load()
		if t == nil {
			continue
		}
		if t.isEnding() {
			ending++
			continue
		}
		if _, owned := slices.BinarySearch(sv.Owned, s.id.ID); !owned {
			t.end(errClaimLost)
			continue
		}
		t.steer(d)
	}
	claim, giveBack := share(sv, r)
	for _, s := range slices.Backward(shards) {
		// Between IDENTIFY and READY nobody else could resume the session.
		if t := s.tenure.Load(); t != nil && giveBack > ending && !t.isEnding() && s.snapshot().State != StateIdentifying {
			t.end(errShared)
			giveBack--
		}
	}
	// Also those that are this instance's and that nobody runs: it could not
	// give them back.
	for _, id := range sv.Owned {
		if !busy[id] {
			claim = append(claim, id)
		}
	}
	claim = slices.DeleteFunc(claim, func(id int) bool { return busy[id] })
	return sv, f.claim(ctx, shards, r, claim, d)
}

// claim takes shards and runs them.
func (f *fleet) claim(ctx context.Context, shards []*shard, r event.ShardRange, ids []int, d duty) error {
	if len(ids) == 0 || ctx.Err() != nil {
		return nil
	}
	list := make([]event.Shard, len(ids))
	for i, id := range ids {
		list[i] = event.Shard{ID: id, Count: r.Count}
	}
	claims, err := f.store.Claim(ctx, f.turns.ApplicationID(), list)
	if err != nil {
		return err
	}
	for _, c := range claims {
		f.runShard(shards[c.Shard().ID-r.First], c, d) //nolint:contextcheck // a shard outlives the step
	}
	return nil
}

// runShard runs a claimed shard.
func (f *fleet) runShard(s *shard, c Claim, d duty) {
	ctx, cancel := context.WithCancelCause(f.tenures)
	t := newTenure(c, d, f.timing.margin, cancel)
	s.adopt(t)
	f.running.Go(func() { s.run(ctx, t) })
}

// shardsOf returns the shards of a range, in order, making those that are new.
func (f *fleet) shardsOf(r event.ShardRange) []*shard {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*shard, 0, r.Last-r.First+1)
	for id := r.First; id <= r.Last; id++ {
		key := event.Shard{ID: id, Count: r.Count}
		s := f.shards[key]
		if s == nil {
			s = f.newShard(key)
			f.shards[key] = s
		}
		list = append(list, s)
	}
	f.problem = ""
	return list
}

func (f *fleet) newShard(id event.Shard) *shard {
	return &shard{
		id: id, token: f.cfg.Token, dialer: f.dialer,
		turns: f.turns, dials: f.dials, intents: f.intents, intentsChanged: make(chan struct{}, 1), retryAsked: make(chan struct{}, 1),
		relay: f.cfg.Relay, outgrown: f.outgrown, deliveredBefore: f.deliveredBefore,
		timing: f.timing, log: f.log.With(slog.String("shard", id.String())), metrics: f.metrics,
		status: ShardStatus{Shard: id, State: StateStandby},
	}
}

// deliveredBefore lists what the set before the current one delivered in their overlap.
func (f *fleet) deliveredBefore(ctx context.Context) ([]event.Told, error) {
	f.mu.Lock()
	plan := f.plan
	f.mu.Unlock()
	if plan.Previous == 0 || plan.OverlapAt.IsZero() {
		return nil, nil
	}
	return f.store.Told(ctx, plan.Previous, plan.OverlapAt.Add(-f.timing.margin))
}

// dismiss lets go of the shards that the plan does not have any more.
func (f *fleet) dismiss(plan event.Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, s := range f.shards {
		if dutyOf(plan, id.Count) != dutyNone {
			continue
		}
		if t := s.tenure.Load(); t != nil {
			t.end(errReplaced)
		} else {
			delete(f.shards, id)
		}
	}
}

// stop gives all shards back. It is told to the other instances first: they
// need not leave this one a share.
func (f *fleet) stop(ctx context.Context, end context.CancelCauseFunc) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), f.timing.notice, fmt.Errorf("the database took longer than %v", f.timing.notice))
	defer cancel()
	if err := f.store.Withdraw(ctx); err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "the other instances were not told of the drain", slog.Any("error", err))
	}
	end(errDrain)
	f.running.Wait()
}
