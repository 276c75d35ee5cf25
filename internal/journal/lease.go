package journal

import "time"

// lease is an instance's view of its own lease. It is immutable: every renewal
// makes a new one.
type lease struct {
	member
	// until is when the lease runs out. It is counted from before the renewal was
	// sent, so a lease that is valid here is also valid in the database.
	until time.Time
	// wall is until on the wall clock: the monotonic clock stops while a machine
	// is suspended, the database's does not.
	wall time.Time
	// inTime is how many renewals in a row have succeeded before the lease ran out,
	// since it was obtained, or regained after a renewal that failed or was late.
	inTime int
	// Between judgesSince and judgesUntil, by the database's clock, this instance may
	// declare others dead because their leases ran out; zero times are never. An outage of
	// the database makes the leases of all run out, or most of them, and the first to be
	// back must not judge those that are about to be back. So an instance judges after two
	// renewals in a row without any trouble. A judgment that was on its way for longer
	// than half a lease comes too late: there may have been an outage meanwhile. One that
	// comes before the renewal comes after the database's clock was set back.
	judgesSince, judgesUntil time.Time
	// replaced is closed when a newer lease has replaced this one.
	replaced chan struct{}
}

func (l *lease) valid(now time.Time) bool {
	return now.Before(l.until) && now.Round(0).Before(l.wall)
}

// renewed returns the lease after a renewal that was sent and answered at these
// times, and made at another by the database's clock. set means that a clock was set
// since the one before: the leases of others are wrong until they have renewed them.
func (l *lease) renewed(sent, answered, at time.Time, set bool, ttl time.Duration) *lease {
	next := newLease(l.member, sent, ttl)
	switch {
	case set:
		next.inTime = -1
	case l.valid(answered):
		next.inTime = l.inTime + 1
	}
	if next.inTime >= 2 {
		next.judgesSince, next.judgesUntil = at, at.Add(ttl/2)
	}
	return next
}

// failed returns the lease after a renewal that failed.
func (l *lease) failed() *lease {
	next := *l
	next.inTime = -1 // the next renewal regains it
	next.judgesSince, next.judgesUntil = time.Time{}, time.Time{}
	return &next
}

func newLease(m member, sent time.Time, ttl time.Duration) *lease {
	until := sent.Add(ttl)
	return &lease{member: m, until: until, wall: until.Round(0), replaced: make(chan struct{})}
}
