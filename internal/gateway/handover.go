package gateway

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// A session keeps the intents that it was identified with. When more are
// needed, a second connection begins a session with them, while the first one
// goes on delivering: Discord allows the same shard twice (Discord: Sharding).
// The second one holds its events back until it receives everything. Then the
// first session is read to its end by a last RESUME, and the second one takes
// its place. So no event is lost between the two, and an event that came on
// both is delivered once.
//
// A new set of shards takes over from the old one in the same way, but over
// several instances: guide brings each shard of the new set through the stages.

// errUpgradeFailed ends a second connection that could not take over.
var errUpgradeFailed = errors.New("the first connection ended before the second could take over")

// runLink runs a link to its end, and replaces it with another one whenever
// more intents are needed. It returns the last link.
func (s *shard) runLink(ctx context.Context, t *tenure, l *link) (*link, ending) {
	leave := t.leave
	if l.final {
		leave = nil
	}
	current := start(ctx, l)
	s.current.Store(current)
	defer func() { current.stop(errDrain) }()
	settled := current.loading.settled
	var again <-chan time.Time
	for leaving := false; ; {
		select {
		case <-current.done:
			return current.link, current.end
		case <-settled:
			settled = nil
			t.setComplete(true)
		case <-leave:
			leave, leaving = nil, true
			current.cancel(errLeaving)
		case <-s.intentsChanged:
		case <-again:
		}
		again = nil
		wanted := s.intents()
		if leaving || !current.isLive() {
			continue
		}
		if current.lacks(wanted) == 0 {
			s.upgrades.gathered = time.Time{}
			continue
		}
		if wait := s.upgrades.wait(wanted, time.Now(), s.timing.gather); wait > 0 {
			again = time.After(wait)
			s.setStatus(func(st *ShardStatus) { st.Problem = s.upgrades.problem })
			continue
		}
		s.upgrades.begin()
		var err error
		current, err = s.replace(ctx, t, current)
		s.current.Store(current)
		switch {
		case err == nil:
		case current.ended(), errors.Is(err, errLeaving):
			// The next round of the loop returns it, or lets it leave.
		default:
			s.upgrades.failed(wanted, time.Now(), err, current.lacks(wanted))
			again = time.After(s.upgrades.wait(wanted, time.Now(), s.timing.gather))
			s.setStatus(func(st *ShardStatus) { st.Problem = s.upgrades.problem })
			s.log.LogAttrs(ctx, slog.LevelWarn, "could not begin a session with more intents, the current one goes on", slog.Any("error", err))
		}
	}
}

// upgrades decides when to try to get more intents. Every attempt costs a
// session start. So intents that are needed within a few seconds are gathered
// for one attempt, and the waits after failed attempts grow from half a minute to
// an hour.
type upgrades struct {
	gathered time.Time     // when the gathering ends; zero before it begins
	tried    event.Intents // of the last failed attempt
	backoff  retry.Backoff
	at       time.Time // of the next attempt
	problem  string    // of the last failed attempt; "" for none
}

// wait returns how long to wait before the next attempt. The first call begins
// to gather intents, for the time gather. Other intents than those of the last
// attempt wait only for that.
func (u *upgrades) wait(wanted event.Intents, now time.Time, gather time.Duration) time.Duration {
	if u.gathered.IsZero() {
		u.gathered = now.Add(gather)
	}
	at := u.gathered
	if wanted == u.tried {
		at = later(at, u.at)
	}
	return max(at.Sub(now), 0)
}

// begin notes that an attempt begins, and ends the gathering.
func (u *upgrades) begin() { u.gathered, u.problem = time.Time{}, "" }

func (u *upgrades) failed(wanted event.Intents, now time.Time, err error, missing event.Intents) {
	if wanted != u.tried {
		u.backoff = retry.WithCappedDuration(time.Hour, retry.NewExponential(30*time.Second))
	}
	wait, _ := u.backoff.Next()
	u.tried, u.at = wanted, now.Add(wait)
	u.problem = "events are missing: a session with more intents could not begin"
	if code := (ending{cause: err}).code(); code.Course() == discord.CourseStop {
		u.problem = "events are missing: " + code.Remedy(missing)
	}
}

// replace begins a session with the intents that are needed and lets it take
// over from old, which has ended by then. With an error it returns the link
// that has the old session: old itself, still running, or one that has ended.
// The error is errLeaving if the shard is to leave first: its session start may
// have to wait for hours, and then another set of shards would wait for it.
func (s *shard) replace(ctx context.Context, t *tenure, old *running) (*running, error) {
	out := t.sink()
	h := newHolding(out, s.room, s.now)
	s.upgrade.Store(h)
	defer s.upgrade.Store(nil)
	defer h.discard() // nothing, once it is open
	l := newLink(s, h, event.Session{})
	l.class = max(identify.ClassIntents, s.class(t))
	s.turns.RefreshGrants(ctx)
	l.intents = s.intents()
	s.log.LogAttrs(ctx, slog.LevelInfo, "beginning a session with more intents", slog.String("intents", l.intents.String()))
	old.overlap.Store(&overlap{margin: s.timing.margin})
	defer old.overlap.Store(nil)
	next := start(ctx, l)
	if err := s.awaitComplete(next, old, t.leave); err != nil {
		next.stop(err)
		return old, err
	}
	end := s.now()
	old.stop(errLeaving)
	last := s.readToEnd(ctx, out, old)
	// Nothing of the new session was delivered yet. If anything went wrong, the
	// old session is resumed, and Discord replays everything that it missed.
	if next.ended() || !errors.Is(last.end.cause, errReplaced) && !s.isDead(ctx, last) {
		next.stop(errUpgradeFailed)
		return last, errUpgradeFailed
	}
	if err := h.open(ctx, old.overlap.Load().copies(end)); err != nil {
		next.stop(err)
		return last, err
	}
	now := time.Now()
	next.primary.Store(true)
	s.setStatus(next.connected(now))
	s.setStatus(func(st *ShardStatus) { st.SessionSince = now })
	return next, nil
}

// isDead reports whether Discord refused the last RESUME of a session. What the
// session missed since it was stopped, the new one has received: it takes over.
func (s *shard) isDead(ctx context.Context, last *running) bool {
	course, _ := decide(last.end, 0)
	if course != discord.CourseIdentify || ctx.Err() != nil || s.confirm(ctx) != nil {
		return false
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "Discord refused the last RESUME of the session, the one with more intents takes over")
	return true
}

// readToEnd resumes the session of a link that was stopped and reads the events
// that Discord still has for it.
func (s *shard) readToEnd(ctx context.Context, out sink, old *running) *running {
	for last := old; ; {
		l := newLink(s, out, last.session)
		l.inherit(last)
		l.final = true
		l.primary.Store(true)
		l.overlap.Store(old.overlap.Load())
		last = start(ctx, l)
		<-last.done
		if !errors.Is(last.end.cause, errLeaving) {
			return last
		}
	}
}

// awaitComplete returns once next receives everything that old receives, or
// with errLeaving once leave is closed.
func (s *shard) awaitComplete(next, old *running, leave <-chan struct{}) error {
	select {
	case <-next.live:
	case <-leave:
		return errLeaving
	case <-next.done:
		return next.end.cause
	case <-old.done:
		return errUpgradeFailed
	}
	// From now on commands go through next, which keeps the answers.
	s.current.Store(next)
	old.overlap.Load().begin(s.now())
	select {
	case <-next.loading.settled:
	case <-next.done:
		return next.end.cause
	case <-old.done:
		return errUpgradeFailed
	}
	return nil
}

// guide leads a shard of the new set from dropping its events to holding them
// back, and on to delivering them.
func (s *shard) guide(ctx context.Context, t *tenure) {
	backoff := discord.NewBackoff(s.timing.reconnect)
	for marked := t.claim.Stage(); ; {
		var err error
		stage, deliver := stageOf(t.state())
		switch {
		case deliver:
			if err = s.openGate(ctx, t); err == nil {
				return
			}
		case stage != marked:
			if stage == event.StageHolding {
				t.gate.unmute()
			}
			if err = t.claim.Mark(ctx, stage); err == nil {
				marked = stage
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "could not take over from the other set of shards, trying again", slog.Any("error", err))
			wait, _ := backoff.Next()
			if discord.Sleep(ctx, wait) != nil {
				return
			}
			continue
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return
		}
	}
}

// stageOf decides the stage of a shard of the new set by its duty and by
// whether its session receives everything. If deliver is true, the shard
// delivers and has no stage.
func stageOf(d duty, complete bool) (stage event.Stage, deliver bool) {
	switch {
	case d == dutyDeliver || d == dutyLeave:
		return event.StageNone, true
	case d == dutyHold:
		return event.StageHolding, false
	case complete:
		return event.StageReady, false
	default:
		return event.StageNone, false
	}
}

// openGate lets the shard deliver, except for the events that the previous set
// delivered.
func (s *shard) openGate(ctx context.Context, t *tenure) error {
	if !t.gate.isOpen() { // a try whose Mark failed has opened it
		c, err := s.deliveredBefore(ctx)
		if err != nil {
			return err
		}
		if err := t.gate.open(ctx, c); err != nil {
			return err
		}
		s.log.LogAttrs(ctx, slog.LevelInfo, "shard delivers")
	}
	return t.claim.Mark(ctx, event.StageNone)
}
