package delivery

import (
	"slices"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// How a lane goes about its callback is decided here, from nothing but the
// answers and the clock. Two things are found out apart from each other:
//
//   - How much the callback can take at once. The limit in flight begins at
//     max_in_flight. It is halved when the callback says that it has too much,
//     or does not answer in time, and grows again with what it takes: at first
//     quickly, then by one a round, and where it was refused before hardly at
//     all.
//   - Whether it works at all. While it does not, the lane is down: the waiting
//     deliveries are in the database, and one at a time is tried, at growing
//     intervals. A try is an attempt of that delivery; the others lose none.
//
// One event that a callback can't digest must not look like a callback that is
// down. So a lane goes down only when many different deliveries have failed,
// for a while, and not one was accepted; or at once when the callback says so
// (429, 502, 503, 504) three times running.

const (
	// maxPause is the longest that a lane waits between two tries of a callback
	// that does not work, unless the callback asks for more.
	maxPause = time.Minute
	// minPause is the shortest such wait. They double.
	minPause = time.Second
	// downAfter is how many different deliveries have to fail in a row, and
	// downFor for how long, before the callback counts as down.
	downAfter = 10
	downFor   = time.Minute
	// busyDown is how often in a row a callback has to say that it has too much.
	busyDown = 3
	// downSchedule is how long a schedule has to be for deliveries to be held
	// back from it. With a shorter one they are wanted soon or never.
	downSchedule = 10 * time.Minute
	// plateau is after how many rounds a level is tried again that was refused.
	plateau = 100
)

// signal is what an answer says of the callback, whatever it means for the
// delivery.
type signal int

const (
	// signalOK: it took the delivery.
	signalOK signal = iota
	// signalFailed: it did not, which may have to do with this event only.
	signalFailed
	// signalLate: it did not answer in time.
	signalLate
	// signalBusy: it said that it has too much, or that it is not there.
	signalBusy
)

// seen is one answer, as pace looks at it.
type seen struct {
	signal   signal
	delivery event.Key
	sent, at time.Time
	// notBefore is when the callback asked to be left alone until.
	notBefore time.Time
	// inFlight is how many were, with this one, when the answer came.
	inFlight int
}

// pace is how fast a lane may go. It is a value: after makes the next one.
type pace struct {
	// max bounds limit, and maxPause the waits of the callback's own schedule.
	max      int
	maxPause time.Duration
	// goesDown: a lane may go down without being told to.
	goesDown bool

	// limit is how many may be in flight.
	limit int
	// threshold is up to where limit grows with every success.
	threshold int
	// ceiling is the level at which the callback refused while it took others;
	// 0 for none.
	ceiling int
	// credit counts towards the next step of limit.
	credit int
	// cut is when limit was lowered last. What was sent before then does not
	// speak of the lower limit.
	cut time.Time
	// good: something succeeded since then.
	good bool

	// failed are different deliveries that failed since the last success, and
	// since is when the first of them did.
	failed  [downAfter]event.Key
	failing int
	since   time.Time
	// busy is how often in a row the lane had to pause.
	busy int

	// down: nothing but one try at a time.
	down bool
	// until is when the lane may go on, and pause how long it waited last.
	until time.Time
	pause time.Duration
}

func newPace(maxInFlight int, s Schedule) pace {
	return pace{
		max: maxInFlight, limit: maxInFlight, threshold: maxInFlight,
		maxPause: max(minPause, min(maxPause, s.total()/8)), goesDown: s.total() >= downSchedule,
	}
}

// after is the pace after an answer.
func (p pace) after(a seen) pace {
	if a.signal == signalOK {
		return p.recovered().grown(a)
	}
	if a.signal != signalFailed {
		p = p.lowered(a)
	}
	p = p.noted(a)
	switch {
	case a.signal == signalBusy, p.down:
		p = p.paused(a)
		p.down = p.down || p.busy >= busyDown
	case p.goesDown && p.failing == downAfter && a.at.Sub(p.since) >= downFor:
		p.down = true
		p = p.paused(a)
	}
	if p.down {
		p.limit, p.credit = 1, 0
	}
	return p
}

// recovered forgets the failures. A pause that the callback asked for goes on.
func (p pace) recovered() pace {
	p.failing, p.since, p.busy, p.pause, p.down = 0, time.Time{}, 0, 0, false
	return p
}

// grown raises the limit, if it was made use of.
func (p pace) grown(a seen) pace {
	p.good = true
	if p.limit >= p.max || a.inFlight < p.limit || a.sent.Before(p.cut) {
		return p
	}
	needed := p.limit // one more after a round
	switch {
	case p.ceiling > 0 && p.limit == p.ceiling-1:
		needed = plateau * p.limit
	case p.limit < p.threshold:
		needed = 1
	}
	if p.credit++; p.credit < needed {
		return p
	}
	if p.limit >= p.ceiling {
		p.ceiling = 0 // what was refused once is accepted now
	}
	p.limit, p.credit = p.limit+1, 0
	return p
}

// lowered halves the limit, once for all that was in flight together.
func (p pace) lowered(a seen) pace {
	if a.sent.Before(p.cut) {
		return p
	}
	minLimit := 1
	if a.signal == signalLate {
		// One that hangs whatever it gets is not helped by less than this, and
		// each delivery's schedule has to go on.
		minLimit = max(1, p.max/4)
	}
	level := min(p.limit, max(1, a.inFlight))
	// Without a success since the last cut the callback is just away: that says
	// nothing about how much it can take.
	p.ceiling = 0
	if p.good {
		p.threshold = max(1, p.limit/2)
		if a.signal == signalBusy && level > 1 {
			p.ceiling = level
			p.threshold = min(p.threshold, level-1)
		}
	}
	p.limit, p.credit = min(p.limit, max(minLimit, level/2)), 0
	p.cut, p.good = a.at, false
	return p
}

// noted counts the delivery among those that failed, unless it is already.
func (p pace) noted(a seen) pace {
	if p.failing == 0 {
		p.since = a.at
	}
	if p.failing < downAfter && !slices.Contains(p.failed[:p.failing], a.delivery) {
		p.failed[p.failing] = a.delivery
		p.failing++
	}
	return p
}

// paused lets the lane wait, each time in a row twice as long.
func (p pace) paused(a seen) pace {
	if !a.at.Before(p.until) { // or the others in flight say the same thing once more
		p.pause = min(max(minPause, 2*p.pause), p.maxPause)
		p.until = a.at.Add(p.pause)
		if a.signal == signalBusy {
			p.busy++
		}
	}
	if a.notBefore.After(p.until) {
		p.until = a.notBefore
	}
	return p
}
