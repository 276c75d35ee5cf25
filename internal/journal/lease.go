package journal

import "time"

// lease is an instance's view of its own lease. It is immutable: every renewal
// makes a new one.
type lease struct {
	// id is the instance's number.
	id int64
	// until is when the lease runs out. It is counted from before the renewal was
	// sent, so a lease that is valid here is also valid in the database.
	until time.Time
	// wall is until on the wall clock: the monotonic clock stops while a machine
	// is suspended, the database's does not.
	wall time.Time
	// regained is when the lease was last renewed after it had run out; zero if it
	// never ran out.
	regained time.Time
	// replaced is closed when a newer lease has replaced this one.
	replaced chan struct{}
}

func (l *lease) valid(now time.Time) bool {
	return now.Before(l.until) && now.Round(0).Before(l.wall)
}

// renewed returns the lease after a renewal that was sent and answered at these
// times.
func (l *lease) renewed(id int64, sent, answered time.Time, ttl time.Duration) *lease {
	next := newLease(id, sent, ttl)
	if next.regained = l.regained; !l.valid(answered) {
		next.regained = answered
	}
	return next
}

// steady reports whether the lease has been valid for long enough to judge
// others: when the database comes back after an outage, every lease has run
// out, and the first instance to recover must not declare the others dead.
func (l *lease) steady(now time.Time, ttl time.Duration) bool {
	return l.valid(now) && (l.regained.IsZero() || now.Sub(l.regained) >= ttl)
}

func newLease(id int64, sent time.Time, ttl time.Duration) *lease {
	until := sent.Add(ttl)
	return &lease{id: id, until: until, wall: until.Round(0), replaced: make(chan struct{})}
}
