package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// maxDials is how many connections are opened at a time. Discord does not limit
// resumes, but thousands of handshakes at once would be rude.
const maxDials = 16

// fleet runs this instance's share of the application's shards. It claims
// shards up to its share, gives back those beyond it, and moves to the next set
// when the plan does. Only the database coordinates the instances: each reads
// it every second and decides for itself.
type fleet struct {
	*Gateway
	turns *identify.Turns
	dials *semaphore.Weighted
	// silent are the resume URLs that do not answer.
	silent *silentURLs
	lapse  *lapse
	// tenures is the parent context of all tenures; it ends with the drain.
	tenures    context.Context
	running    sync.WaitGroup
	reconsider chan struct{} // holds a token when Discord should be asked again
	refused    atomic.Int64  // the number of shards that Discord refused last; 0 for none
	reading    singleflight.Group
	copies     *copies   // of a change of sets, while a shard may need it; guarded by mu
	copiesOf   setChange // guarded by mu

	// These belong to run.
	configured  int // the number of shards; 0 for the recommended one
	recommended int
	wish        int // the number of shards that the plan should get; 0 for no wish
	tooMany     int // the wish that the session starts left don't cover; 0 for none
	began       bool
	lastProblem string // the intents that were last logged as switched off
	failing     bool   // the last step failed
}

// setChange tells a change of sets from the others.
type setChange struct {
	previous  int
	overlapAt int64 // event.Plan.OverlapAt, in Unix nanoseconds
}

func (g *Gateway) newFleet(tenures context.Context, turns *identify.Turns, recommended int) *fleet {
	return &fleet{
		Gateway: g, turns: turns, dials: semaphore.NewWeighted(maxDials), silent: &silentURLs{at: make(map[string]time.Time)}, lapse: newLapse(g.store.Lease, g.timing), tenures: tenures,
		configured: g.cfg.Shards.Count, recommended: recommended, reconsider: make(chan struct{}, 1),
	}
}

// run takes a step every timing.survey, and after every check of the intents or
// of Discord's recommendation, until ctx ends.
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

// report logs when steps begin to fail, and when they work again.
func (f *fleet) report(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil && !f.failing:
		f.failing = true
		f.log.LogAttrs(ctx, slog.LevelWarn, "could not read or change the owners of the shards, trying again", slog.Any("error", err))
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.shards) == 0 {
			// Anybody may read this at /readyz, and errors of the database name its address.
			f.problem = "the shards are not known: they can't be read from the database at the moment; the log says why"
		}
	case err == nil && f.failing:
		f.failing = false
		f.log.LogAttrs(ctx, slog.LevelInfo, "the owners of the shards can be read and changed again")
	}
}

// step reads the plan and the owners of the shards once, and acts on them. It
// starts over whenever it has changed the plan.
func (f *fleet) step(ctx context.Context) error {
	// A claim makes some ten statements, and a slow database may take seconds for each.
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the database took longer than 30 s"))
	defer cancel()
	for again := true; again; {
		plan, err := f.store.Plan(ctx, f.turns.ApplicationID(), wished(f.configured, f.recommended, 0, false))
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
		f.forgetCopies()
		to, changed := advance(plan, current, next, f.affordable(ctx, plan), f.timing)
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

// adoptPlan notes the plan. The first call makes this instance's wish. A wish
// that has come true is dropped.
func (f *fleet) adoptPlan(ctx context.Context, plan event.Plan) {
	if !f.began {
		f.began = true
		f.wishFor(plan)
		f.log.LogAttrs(ctx, slog.LevelInfo, "running a share of the shards", slog.String("application", f.turns.ApplicationID().String()),
			slog.Int("shards", plan.Current), slog.Int("wished", max(f.wish, plan.Current)), slog.Int("recommended", f.recommended))
	}
	f.mu.Lock()
	f.plan = plan
	f.mu.Unlock()
	delivering := plan.Current
	if f.refused.Load() == int64(delivering) {
		delivering = 0 // nothing is kept back for a set that has to go
	}
	f.turns.SetDelivering(delivering)
	if f.wish == plan.Next || f.wish == plan.Current && plan.Next == 0 {
		f.wish = 0
	}
}

// wishFor makes a wish if the plan is not as configured or recommended, and
// drops an earlier one otherwise.
func (f *fleet) wishFor(plan event.Plan) {
	base := plan.Current
	if plan.Next != 0 && f.configured == 0 {
		base = plan.Next
	}
	if f.wish = wished(f.configured, f.recommended, base, int64(base) == f.refused.Load()); f.wish == base {
		f.wish = 0
	}
}

// affordable returns the wish, or 0 as long as the session starts left don't
// cover the new set.
func (f *fleet) affordable(ctx context.Context, plan event.Plan) int {
	if f.wish == 0 || f.wish == plan.Current || f.wish == plan.Next || f.turns.Budget().Covers(f.wish) {
		f.tooMany = 0
		return f.wish
	}
	if f.tooMany != f.wish {
		f.tooMany = f.wish
		f.log.LogAttrs(ctx, slog.LevelWarn, "the session starts left don't cover another set of shards: its start waits",
			slog.Int("shards", plan.Current), slog.Int("wished", f.wish), slog.Int("session_starts_left", f.turns.Budget().Remaining))
	}
	return 0
}

// refreshGrants checks whether a missing intent was switched on, and logs once
// which ones are missing.
func (f *fleet) refreshGrants(ctx context.Context) {
	problem := f.intentsProblem()
	if problem != f.lastProblem && problem != "" {
		f.log.LogAttrs(ctx, slog.LevelWarn, "intents are not switched on", slog.String("problem", problem))
	}
	if f.lastProblem = problem; problem != "" && f.turns.Grants().Refresh(ctx, f.timing.grants/2) {
		f.reconsiderIntents()
	}
}

// recommend asks Discord how many shards there should be.
func (f *fleet) recommend(ctx context.Context) {
	shards, err := f.turns.Ask(ctx)
	if err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord for the number of shards", slog.Any("error", err))
		return
	}
	if f.recommended = shards; f.configured == 0 {
		f.mu.Lock()
		plan := f.plan
		f.mu.Unlock()
		f.wishFor(plan)
	}
}

// outgrown reports that Discord does not accept this number of shards: run asks
// for another one.
func (f *fleet) outgrown(count int) {
	f.refused.Store(int64(count))
	wake(f.reconsider)
}

// rangeOf returns the range of a set that this instance may run.
func (f *fleet) rangeOf(count int) event.ShardRange {
	if f.cfg.Shards.Count == count {
		return event.ShardRange(f.cfg.Shards)
	}
	return event.ShardRange{Last: count - 1, Count: count}
}

// willing returns the range that the other instances see: the configured one,
// or the zero value for a whole set.
func (f *fleet) willing() event.ShardRange {
	if s := f.cfg.Shards; s.First > 0 || s.Last < s.Count-1 {
		return event.ShardRange(s)
	}
	return event.ShardRange{}
}

// shareSet claims this instance's share of a set, ends the tenures beyond it,
// and gives the shards their duty.
func (f *fleet) shareSet(ctx context.Context, plan event.Plan, count int) (event.Survey, error) {
	r := f.rangeOf(count)
	shards := f.shardsOf(r)
	busy := make(map[int]bool) // had a tenure before the survey, even if it has ended since
	for _, s := range shards {
		busy[s.id.ID] = s.tenure.Load() != nil
	}
	sv, err := f.store.Survey(ctx, f.turns.ApplicationID(), r, f.willing())
	if err != nil {
		return sv, err
	}
	f.lapse.surveyed(len(sv.Peers) > 1 || f.willing() != event.ShardRange{})
	d := dutyOf(plan, count)
	ending := 0    // of the owned ones, those whose tenure is ending, or has just ended
	var left []int // those that are owned and not run: their release failed
	for _, s := range slices.Backward(shards) {
		t := s.tenure.Load()
		_, owned := slices.BinarySearch(sv.Owned, s.id.ID)
		switch {
		case t == nil && owned && !busy[s.id.ID]:
			left = append(left, s.id.ID)
		case owned && (t == nil || t.isEnding()):
			ending++
		case t == nil || t.isEnding():
		case !owned:
			t.end(errClaimLost)
		default:
			t.steer(d)
		}
	}
	claim, giveBack := share(sv, r)
	// What is left counts among what is given back. Otherwise as many shards that run would
	// be given back instead, again and again, until none runs.
	surplus := left[:min(len(left), giveBack)]
	giveBack -= len(surplus) + ending
	for _, s := range slices.Backward(shards) {
		// Between IDENTIFY and READY no other instance could resume the session.
		if t := s.tenure.Load(); t != nil && giveBack > 0 && !t.isEnding() && s.snapshot().State != StateIdentifying {
			t.end(errShared)
			giveBack--
		}
	}
	claim = slices.DeleteFunc(claim, func(id int) bool { return busy[id] })
	claim = append(claim, left[len(surplus):]...)
	if err := f.claim(ctx, shards, r, claim, d); err != nil {
		return sv, err
	}
	return sv, f.releaseAgain(ctx, r, surplus)
}

// releaseAgain releases shards that this instance owns and does not run.
func (f *fleet) releaseAgain(ctx context.Context, r event.ShardRange, ids []int) error {
	claims, err := f.claimsOf(ctx, r, ids)
	if err != nil {
		return err
	}
	var (
		all      sync.WaitGroup
		problems = make([]error, len(claims))
	)
	for i, c := range claims {
		all.Go(func() { problems[i] = c.Release(ctx) })
	}
	all.Wait()
	return errors.Join(problems...)
}

// claimsOf claims shards of a range.
func (f *fleet) claimsOf(ctx context.Context, r event.ShardRange, ids []int) ([]Claim, error) {
	if len(ids) == 0 || ctx.Err() != nil {
		return nil, nil
	}
	list := make([]event.Shard, len(ids))
	for i, id := range ids {
		list[i] = event.Shard{ID: id, Count: r.Count}
	}
	return f.store.Claim(ctx, f.turns.ApplicationID(), list)
}

// claim claims shards and runs them.
func (f *fleet) claim(ctx context.Context, shards []*shard, r event.ShardRange, ids []int, d duty) error {
	claims, err := f.claimsOf(ctx, r, ids)
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
	t := newTenure(c, d, f.room, f.cfg.Now, cancel)
	s.adopt(t)
	f.running.Go(func() { s.run(ctx, t) })
}

// shardsOf returns the shards of a range, in order. It creates those that are
// new.
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
		turns: f.turns, dials: f.dials, silent: f.silent, lapse: f.lapse, unnamed: cmp.Or(f.cfg.UnnamedCompression, discord.ZstdStream), intents: f.intents, intentsChanged: make(chan struct{}, 1), retryAsked: make(chan struct{}, 1),
		relay: f.cfg.Relay, now: f.cfg.Now, outgrown: f.outgrown, deliveredBefore: f.deliveredBefore, room: f.room,
		timing: f.timing, log: f.log.With(slog.String("shard", id.String())), metrics: f.metrics,
		status: ShardStatus{Shard: id, State: StateStandby},
	}
}

// deliveredBefore recognizes what the previous set delivered while the current set
// received it too. It is read once for all shards of this instance: a large bot
// delivers many events during a change.
func (f *fleet) deliveredBefore(ctx context.Context) (*copies, error) {
	f.mu.Lock()
	plan, known, knownOf := f.plan, f.copies, f.copiesOf
	f.mu.Unlock()
	this := setChange{plan.Previous, plan.OverlapAt.UnixNano()}
	if plan.Previous == 0 || plan.OverlapAt.IsZero() {
		return newCopies(nil, time.Time{}, time.Time{}, 0), nil
	}
	if known != nil && knownOf == this {
		return known, nil
	}
	read := f.reading.DoChan(fmt.Sprint(this), func() (any, error) {
		list, err := f.store.Delivered(ctx, plan.Previous, plan.OverlapAt.Add(-f.timing.margin))
		if err != nil {
			return nil, err
		}
		begin := later(plan.OverlapAt, plan.HeldAt)
		c := newCopies(list, begin, begin.Add(f.timing.overlap), f.timing.margin)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.copies, f.copiesOf = c, this
		return c, nil
	})
	select {
	case r := <-read:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*copies), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// forgetCopies lets go of what the previous set delivered once no shard has to open its
// gate.
func (f *fleet) forgetCopies() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.copies == nil {
		return
	}
	for _, s := range f.shards {
		if t := s.tenure.Load(); t != nil && t.gate != nil && !t.gate.isOpen() {
			return
		}
	}
	f.copies = nil
}

// dismiss ends the tenures of shards that are no longer in a set of the plan,
// and then forgets the shards.
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

// stop releases all shards. It withdraws first, so that the other instances
// need not leave this one a share.
func (f *fleet) stop(ctx context.Context, end context.CancelCauseFunc) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), f.timing.notice, fmt.Errorf("the database took longer than %v", f.timing.notice))
	defer cancel()
	if err := f.store.Withdraw(ctx); err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "could not tell the other servers that this one is draining", slog.Any("error", err))
	}
	end(errDrain)
	f.running.Wait()
}
