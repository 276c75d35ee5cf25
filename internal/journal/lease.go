package journal

import "time"

// lease is what an instance knows of its own lease. It is never changed once
// made: every renewal makes a new one.
type lease struct {
	// id is the instance's number.
	id int64
	// until is when it runs out: counted from before the renewal was sent, and
	// so never later than in the database. What is held here is held there.
	until time.Time
	// wall is until on the wall clock: a machine that is suspended stops the
	// other clock, but not the database's.
	wall time.Time
	// regained is when it was last renewed after it had run out; zero if it
	// never ran out.
	regained time.Time
	// replaced is closed when there is a newer one.
	replaced chan struct{}
}

func (l *lease) held(now time.Time) bool {
	return now.Before(l.until) && now.Round(0).Before(l.wall)
}

// renewed is the lease after a renewal that was sent and answered then.
func (l *lease) renewed(id int64, sent, answered time.Time, ttl time.Duration) *lease {
	next := newLease(id, sent, ttl)
	if next.regained = l.regained; !l.held(answered) {
		next.regained = answered
	}
	return next
}

// steady tells whether the lease has been held for long enough to judge
// others: when the database comes back after an outage, every lease has run
// out, and the first instance to notice must not bury all the others.
func (l *lease) steady(now time.Time, ttl time.Duration) bool {
	return l.held(now) && (l.regained.IsZero() || now.Sub(l.regained) >= ttl)
}

func newLease(id int64, sent time.Time, ttl time.Duration) *lease {
	until := sent.Add(ttl)
	return &lease{id: id, until: until, wall: until.Round(0), replaced: make(chan struct{})}
}
