package delivery

import (
	"slices"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// The pace of a lane depends only on its callback's answers and the clock. It answers
// two independent questions:
//
//   - How many POSTs can the callback take at once? The limit starts at max_in_flight.
//     It is halved when the callback reports overload or does not answer in time.
//     Successes raise it again: quickly at first, then by one per round, and very
//     slowly to a level that the callback refused before.
//   - Does the callback work at all? While it does not, the lane is down: its
//     deliveries wait in the database, and one at a time is tried, at growing
//     intervals. A try is an attempt of the tried delivery; the other deliveries lose
//     no attempt.
//
// A single event that a callback can't handle must not take its lane down. So a lane
// goes down only if many different deliveries failed for a while and none was accepted,
// or if the callback reports overload (429, 502, 503, 504) three times in a row.

const (
	// maxPause is the longest pause between two tries, unless the callback asks for a
	// longer one.
	maxPause = time.Minute
	// minPause is the shortest pause. Each pause in a row is twice as long as the one
	// before.
	minPause = time.Second
	// A callback counts as down after downAfter different deliveries failed in a row,
	// over at least downFor.
	downAfter = 10
	downFor   = time.Minute
	// A callback also counts as down after it reported overload busyDown times in a
	// row.
	busyDown = 3
	// downSchedule is the shortest schedule with which failures alone take a lane down.
	// With a shorter one, deliveries are wanted soon or never.
	downSchedule = 10 * time.Minute
	// plateau is the number of rounds after which a refused level is tried again.
	plateau = 100
)

// signal is the meaning of an answer for the lane, as opposed to the delivery.
type signal int

const (
	// signalOK: it accepted the delivery.
	signalOK signal = iota
	// signalFailed: it did not, perhaps because of this event.
	signalFailed
	// signalLate: it did not answer in time.
	signalLate
	// signalBusy: it reported that it is overloaded or unavailable.
	signalBusy
)

// observation is one answer, as input of pace.after.
type observation struct {
	signal   signal
	delivery event.Key
	sent, at time.Time
	// notBefore is the time until which the callback asked for no requests; zero for
	// none.
	notBefore time.Time
	// inFlight counts the POSTs in flight when the answer came, including this one.
	inFlight int
}

// pace says how fast a lane may go. It is immutable: after returns the next pace.
type pace struct {
	// maxLimit bounds limit, and maxPause bounds pause. A short schedule shortens the
	// pauses.
	maxLimit int
	maxPause time.Duration
	// goesDown: failures alone may take the lane down.
	goesDown bool

	// limit is how many deliveries may be in flight.
	limit int
	// threshold is the level up to which limit grows with every success.
	threshold int
	// ceiling is the level at which the callback refused some POSTs while it accepted
	// others; 0 for none.
	ceiling int
	// credit counts the successes towards the next raise of limit.
	credit int
	// cut is when limit was lowered last. Answers to earlier requests say nothing about
	// the lower limit.
	cut time.Time
	// good: a delivery succeeded since cut.
	good bool

	// failed[:failing] are the different deliveries that failed since the last success,
	// and since is when the first of them failed.
	failed  [downAfter]event.Key
	failing int
	since   time.Time
	// busy counts the pauses in a row that overload caused.
	busy int

	// down: only one try at a time.
	down bool
	// until is when the lane may continue. pause is the length of its last pause.
	until time.Time
	pause time.Duration
}

func newPace(maxInFlight int, s Schedule) pace {
	return pace{
		maxLimit: maxInFlight, limit: maxInFlight, threshold: maxInFlight,
		maxPause: max(minPause, min(maxPause, s.Total()/8)), goesDown: s.Total() >= downSchedule,
	}
}

// after returns the pace after an answer.
func (p pace) after(a observation) pace {
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

// recovered forgets the failures. A pause that the callback asked for continues.
func (p pace) recovered() pace {
	p.failing, p.since, p.busy, p.pause, p.down = 0, time.Time{}, 0, 0, false
	return p
}

// grown raises the limit if it was reached.
func (p pace) grown(a observation) pace {
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
		p.ceiling = 0 // the refused level is accepted now
	}
	p.limit, p.credit = p.limit+1, 0
	return p
}

// lowered halves the limit, once for all deliveries that were in flight together.
func (p pace) lowered(a observation) pace {
	if a.sent.Before(p.cut) {
		return p
	}
	minLimit := 1
	if a.signal == signalLate {
		// A lower limit does not help a callback that hangs regardless of its load, and
		// the schedule of every delivery must continue.
		minLimit = max(1, p.maxLimit/4)
	}
	level := min(p.limit, max(1, a.inFlight))
	// Without a success since the last cut, the callback is simply unavailable, which
	// says nothing about its capacity.
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
func (p pace) noted(a observation) pace {
	if p.failing == 0 {
		p.since = a.at
	}
	if p.failing < downAfter && !slices.Contains(p.failed[:p.failing], a.delivery) {
		p.failed[p.failing] = a.delivery
		p.failing++
	}
	return p
}

// paused starts a pause, twice as long as the one before.
func (p pace) paused(a observation) pace {
	if !a.at.Before(p.until) { // otherwise the other answers in flight would count the same trouble again
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
