package identify

import "time"

// Budget is what is left of the session starts of a day (Discord: Session Start
// Limit Object), and how many shards need them. Its methods decide without a
// clock, a lock or a network.
type Budget struct {
	Total, Remaining int
	// ResetAfter is the time until Remaining is Total again. It is not positive
	// if that is due, or not known.
	ResetAfter time.Duration
	// Shards is how many shards deliver, on all instances.
	Shards int
}

// floor returns how many starts a start of this class must leave. Nobody uses
// the last twentieth: past the total Discord resets the token, and a person may
// want to start something else. A shard without a session misses events for
// certain, so it may use all others. More intents leave every shard one start
// for a lost session. A set that warms leaves every shard one start, and above
// that a reserve of 5 % or one more start for every shard, whichever is more.
func (b Budget) floor(c Class) int {
	kept := b.Total / 20
	switch c {
	case ClassLost, ClassFirst:
		return kept
	case ClassIntents:
		return kept + b.Shards
	default:
		return b.Shards + max(kept, b.Shards)
	}
}

// Covers reports whether a set of this many shards can be warmed up to its
// last shard. Half of a set is of no use to anybody.
func (b Budget) Covers(next int) bool { return b.Remaining-next >= b.floor(ClassWarming) }

// Share is how many starts one shard may use before it takes from the others:
// its part of half of the day's starts, and at least two.
func (b Budget) Share() int { return max(b.Total/2/max(b.Shards, 1), 2) }

// Spread returns the time from one start of a shard to its next one, for a shard
// whose starts fail repeatedly or that has used its share. It is 0 as long as half of the
// budget is left. Below that, the shard's part of the rest has to last until
// the reset.
func (b Budget) Spread() time.Duration {
	if 2*b.Remaining >= b.Total || b.ResetAfter <= 0 {
		return 0
	}
	tries := (b.Remaining - b.floor(ClassLost)) / max(b.Shards, 1)
	return b.ResetAfter / time.Duration(max(tries, 1))
}
