package journal

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock tells the time of the database by this machine's monotonic clock. Machines
// disagree about the time, by days if one of them is set wrong. Whatever is compared with
// a stored time, or with another server's, is by this clock.
//
// It is never ahead of the database's, and behind it by less than a round trip. It
// never steps back, unless the database's clock was set back by more than maxHalt.
type clock struct {
	local func() time.Time // with a monotonic reading; tests set it wrong
	told  atomic.Int64     // the time that was told last, in Unix nanoseconds

	mu  sync.RWMutex // guards est
	est estimate
}

// maxHalt is how long the clock stands still after the database's was set back. If
// that was by more, it follows: nothing else would come when it is due.
const maxHalt = time.Minute

// Now returns the time. Before the first reading it is the machine's.
func (c *clock) Now() time.Time {
	c.mu.RLock()
	est := c.est
	c.mu.RUnlock()
	local := c.local()
	now := local.UnixNano()
	if !est.at.IsZero() {
		now = est.low.Add(local.Sub(est.at)).UnixNano()
	}
	for {
		told := c.told.Load()
		if now <= told && told-now <= int64(maxHalt) {
			return time.Unix(0, told)
		}
		if c.told.CompareAndSwap(told, now) {
			return time.Unix(0, now)
		}
	}
}

// learn takes a reading of the database's clock into account. It reports whether that
// clock, or this machine's, was set since the last one.
func (c *clock) learn(r reading) (set bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.est, set = c.est.after(r)
	return set
}

// reading is what the database's clock showed at some moment between a request and its
// answer, which are by the machine's clock.
type reading struct{ sent, answered, shown time.Time }

// estimate is what readings tell of the database's clock: when the machine's shows at,
// it shows no less than low and no more than high. The zero value is ignorance.
type estimate struct{ at, low, high time.Time }

// drift bounds by how much one clock may be faster than the other, in parts of
// a million: time servers slow clocks down and speed them up by so much.
const drift = 500

// after returns the estimate after one more reading. A quick answer tells more than a
// slow one, so what the earlier ones told counts on, less and less as time passes.
// set reports whether a clock was set since then, or the machine slept.
func (e estimate) after(r reading) (next estimate, set bool) {
	fresh := estimate{at: r.answered, low: r.shown, high: r.shown.Add(r.answered.Sub(r.sent))}
	if e.at.IsZero() {
		return fresh, false
	}
	passed := r.answered.Sub(e.at)
	slack := passed / 1e6 * drift
	low, high := e.low.Add(passed-slack), e.high.Add(passed+slack)
	switch {
	case low.After(fresh.high) || high.Before(fresh.low):
		return fresh, true
	case fresh.low.After(low):
		low = fresh.low
	}
	if fresh.high.Before(high) {
		high = fresh.high
	}
	return estimate{at: r.answered, low: low, high: high}, false
}
