package delivery

import (
	"slices"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// The pace of a lane follows from its callback's answers and the clock alone. It answers
// two questions, independently of each other:
//
//   - How much can the callback take at once? The limit in flight begins at
//     max_in_flight. It is halved when the callback says that it has too much to do, or
//     does not answer in time, and grows again with every success: quickly at first, then
//     by one per round, and hardly at all where the callback refused before.
//   - Does the callback work at all? While it does not, the lane is down: its deliveries
//     wait in the database, and one at a time is tried, at growing intervals. A try is an
//     attempt of that delivery; the others lose none.
//
// One event that a callback can't handle must not look like a callback that is down. So a
// lane goes down only when many different deliveries have failed, for a while, and not
// one was accepted; or when the callback says so (429, 502, 503, 504) three times in a
// row.

const (
	// maxPause is the longest pause of a lane between two tries of a callback that
	// does not work, unless the callback asks for a longer one.
	maxPause = time.Minute
	// minPause is the shortest such pause. Each next one is twice as long.
	minPause = time.Second
	// downAfter is how many different deliveries have to fail in a row, and
	// downFor for how long, before the callback counts as down.
	downAfter = 10
	downFor   = time.Minute
	// busyDown is how often in a row a callback has to say that it has too much to do
	// before it counts as down.
	busyDown = 3
	// downSchedule is how long a schedule has to be for failures alone to take a lane
	// down. With a shorter one its deliveries are wanted soon or never.
	downSchedule = 10 * time.Minute
	// plateau is the number of rounds after which a level that was refused is tried
	// again.
	plateau = 100
)

// signal is what an answer shows of the callback, whatever it means for the delivery.
type signal int

const (
	// signalOK: it accepted the delivery.
	signalOK signal = iota
	// signalFailed: it did not, and the reason may be this event.
	signalFailed
	// signalLate: it did not answer in time.
	signalLate
	// signalBusy: it said that it has too much to do, or that it is not there.
	signalBusy
)

// seen is one answer, as pace sees it.
type seen struct {
	signal   signal
	delivery event.Key
	sent, at time.Time
	// notBefore is the time before which the callback asked for no request.
	notBefore time.Time
	// inFlight is how many were in flight, including this one, when the answer came.
	inFlight int
}

// pace is how fast a lane may go. It is a value: after returns the next one.
type pace struct {
	// maxLimit bounds limit, and maxPause pause: a short schedule shortens the pauses.
	maxLimit int
	maxPause time.Duration
	// goesDown: the lane may go down although the callback did not ask for it.
	goesDown bool

	// limit is how many deliveries may be in flight.
	limit int
	// threshold is the level up to which limit grows with every success.
	threshold int
	// ceiling is the level at which the callback refused some while it accepted
	// others; 0 for none.
	ceiling int
	// credit counts towards the next step of limit.
	credit int
	// cut is when limit was lowered last. Answers to earlier requests say nothing about
	// the lower limit.
	cut time.Time
	// good: a delivery succeeded since then.
	good bool

	// failed are the different deliveries, of number failing, that failed since the last
	// success, and since is when the first of them did.
	failed  [downAfter]event.Key
	failing int
	since   time.Time
	// busy is how often in a row the callback made the lane pause.
	busy int

	// down: only one try at a time.
	down bool
	// until is when the lane may go on, and pause is how long it paused last.
	until time.Time
	pause time.Duration
}

func newPace(maxInFlight int, s Schedule) pace {
	return pace{
		maxLimit: maxInFlight, limit: maxInFlight, threshold: maxInFlight,
		maxPause: max(minPause, min(maxPause, s.total()/8)), goesDown: s.total() >= downSchedule,
	}
}

// after returns the pace after an answer.
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

// grown raises the limit if it was reached.
func (p pace) grown(a seen) pace {
	p.good = true
	if p.limit >= p.maxLimit || a.inFlight < p.limit || a.sent.Before(p.cut) {
		return p
	}
	needed := p.limit // one more per round
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
		p.ceiling = 0 // the level that was refused is accepted now
	}
	p.limit, p.credit = p.limit+1, 0
	return p
}

// lowered halves the limit, once for all deliveries that were in flight together.
func (p pace) lowered(a seen) pace {
	if a.sent.Before(p.cut) {
		return p
	}
	minLimit := 1
	if a.signal == signalLate {
		// A lower limit does not help a callback that hangs whatever it gets, and
		// each delivery's schedule has to go on.
		minLimit = max(1, p.maxLimit/4)
	}
	level := min(p.limit, max(1, a.inFlight))
	// Without a success since the last cut the callback is simply away, which says
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

// noted counts the delivery among those that failed, unless it is among them already.
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

// paused lets the lane pause, each time in a row twice as long.
func (p pace) paused(a seen) pace {
	if !a.at.Before(p.until) { // or the rest in flight would count the same trouble again
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
