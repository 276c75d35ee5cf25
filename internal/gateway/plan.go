package gateway

import "github.com/gatehook/gatehook/internal/event"

// duty is what a shard does with what it receives.
type duty int

const (
	// dutyNone: the plan has no such set.
	dutyNone duty = iota
	// dutyDeliver: hand it on.
	dutyDeliver
	// dutyWarm: drop it, another set delivers it.
	dutyWarm
	// dutyHold: keep it, to hand on later what the other set did not deliver.
	dutyHold
	// dutyLeave: read the session to its end and let it go.
	dutyLeave
)

// dutyOf tells what the shards of a set of so many do under a plan.
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

// advance decides what the plan should be next, given how the shards of its
// sets stand, and the number of shards that this instance wishes for (0: it
// has no wish). It returns false if the plan stays.
func advance(p event.Plan, current, next event.Survey, wish int, t timing) (event.Plan, bool) {
	switch p.Phase {
	case event.Steady:
		if wish == 0 || wish == p.Current {
			return p, false
		}
		p.Next, p.Phase = wish, event.Warming
	case event.Warming:
		switch {
		case wish == p.Current:
			p.Next, p.Phase = 0, event.Steady
		case wish != 0 && wish != p.Next:
			p.Next = wish
		case next.Shards == 0 || next.Ready < next.Shards:
			return p, false
		default:
			p.Phase = event.Holding
		}
	case event.Holding:
		if next.Shards == 0 || next.Holding < next.Shards {
			return p, false
		}
		p.Phase = event.Overlapping
	case event.Overlapping:
		// What the current set is behind by, the next one must have.
		if p.Age < t.overlap {
			return p, false
		}
		p.Phase = event.Switching
	case event.Switching:
		if current.Ended < current.Shards {
			return p, false
		}
		p.Previous, p.Current, p.Next, p.Phase = p.Current, p.Next, 0, event.Steady
	}
	return p, true
}

// wished is the number of shards that an instance wishes for: the configured
// one, or what Discord recommends. A recommendation that is somewhat smaller
// than what there is is none: a new set costs a session start a shard, and
// more shards than needed cost nothing.
func wished(configured, recommended, current int) int {
	switch {
	case configured > 0:
		return configured
	case recommended > current, 2*recommended <= current:
		return recommended
	default:
		return current
	}
}
