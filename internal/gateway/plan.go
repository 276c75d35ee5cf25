package gateway

import "github.com/gatehook/gatehook/internal/event"

// duty is what a shard does with the events that it receives.
type duty int

const (
	// dutyNone: the plan has no such set.
	dutyNone duty = iota
	// dutyDeliver: pass them on.
	dutyDeliver
	// dutyWarm: drop them, another set delivers them.
	dutyWarm
	// dutyHold: keep them, to deliver later those that the other set did not.
	dutyHold
	// dutyLeave: read the session to its end and let it go.
	dutyLeave
)

// dutyOf decides what the shards of the set with this count do under a plan.
func dutyOf(p event.Plan, count int) duty {
	switch {
	case count == p.Current && p.Phase == event.Switching:
		return dutyLeave
	case count == p.Current:
		return dutyDeliver
	case count != p.Next:
		return dutyNone
	case p.Phase == event.Warming:
		return dutyWarm
	default:
		return dutyHold
	}
}

// advance decides what the plan should be next, given surveys of its current
// and its next set and the number of shards that this instance wishes for (0
// for no wish). It returns false if the plan stays.
func advance(p event.Plan, current, next event.Survey, wish int, t timing) (event.Plan, bool) {
	switch p.Phase {
	case event.Steady:
		// Until all shards deliver, the last change is not over: its times are needed to
		// recognize what the set before delivered.
		if wish == 0 || wish == p.Current || current.Ready > 0 {
			return p, false
		}
		p.Next, p.Phase = wish, event.Warming
	case event.Warming:
		switch {
		case wish == p.Current:
			p.Next, p.Phase = 0, event.Steady
		case wish != 0 && wish != p.Next:
			p.Next = wish
		case !all(next.Ready, next):
			return p, false
		default:
			p.Phase = event.Holding
		}
	case event.Holding:
		if !all(next.Holding, next) {
			return p, false
		}
		p.Phase = event.Overlapping
	case event.Overlapping:
		// The current set may lag behind the next one: wait until the next set has
		// received every event that the current set has not.
		if p.Age < t.overlap {
			return p, false
		}
		p.Phase = event.Switching
	case event.Switching:
		if !all(current.Ended, current) {
			return p, false
		}
		p.Previous, p.Current, p.Next, p.Phase = p.Current, p.Next, 0, event.Steady
	}
	return p, true
}

// all reports whether a number of shards are all shards of a survey. A survey without
// shards says nothing about them.
func all(n int, s event.Survey) bool { return s.Shards > 0 && n >= s.Shards }

// wished decides the number of shards that an instance wishes for: the
// configured one, or the one that Discord recommends. A new set costs one
// session start per shard. So a recommendation counts only if it is a tenth
// larger than the current number, or at most half of it. Discord recommends one
// shard for about 1000 guilds and allows 2500, so a tenth is far from the limit
// (Discord: Sharding), while more shards than needed cost nothing. If the number
// was refused, each recommendation counts.
func wished(configured, recommended, current int, refused bool) int {
	switch more := recommended - current; {
	case configured > 0:
		return configured
	case refused, more > 0 && 10*more >= current, 2*recommended <= current:
		return recommended
	default:
		return current
	}
}
