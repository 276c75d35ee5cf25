package gateway

import "time"

// pulse decides when a connection is dead (Discord: Heartbeat Interval). It
// has no lock of its own.
type pulse struct {
	sentAt  time.Time
	ackedAt time.Time // zero before the first
	latency time.Duration
	waiting bool          // a heartbeat that the interval demanded is not acknowledged
	busy    time.Duration // as of the last beat
	// regular counts the acknowledged ones among those that the interval
	// demanded.
	regular int
}

// beat notes that a heartbeat is due, and tells whether the connection is dead
// instead: nothing acknowledged the one before. busy is for how long, since the
// connection began, the reader did something else than wait for the socket:
// for the most part, wait for a journal that takes nothing. While that took a
// part of the interval worth naming, the acknowledgement may lie unread, and
// its absence proves nothing.
func (p *pulse) beat(now time.Time, busy, interval time.Duration) (dead bool) {
	own := busy - p.busy
	p.busy = busy
	if p.waiting && own < interval/4 {
		return true
	}
	p.sentAt, p.waiting = now, true
	return false
}

// asked notes a heartbeat that Discord asked for (Discord: Heartbeat
// Requests). It does not count for beat.
func (p *pulse) asked(now time.Time) { p.sentAt = now }

// acked notes an acknowledgement.
func (p *pulse) acked(now time.Time) {
	if p.waiting {
		p.regular++
	}
	p.ackedAt, p.waiting = now, false
	if !p.sentAt.IsZero() {
		p.latency = now.Sub(p.sentAt)
	}
}
