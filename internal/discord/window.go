package discord

import "time"

// Window counts the actions within a sliding window, so that a limit holds for
// every period of that length. It does not read the clock and has no lock. Set
// Length and Limit before the first use.
type Window struct {
	Length time.Duration
	Limit  int         // at least 1
	times  []time.Time // the latest, at most Limit, the oldest first
}

// Add notes an action at now, whether or not the limit allowed it.
func (w *Window) Add(now time.Time) {
	if len(w.times) == w.Limit {
		w.times = append(w.times[:0], w.times[1:]...)
	}
	w.times = append(w.times, now)
}

// Wait returns how long to wait until another action is allowed; 0 if it is
// allowed now. room is the part of Limit that stays unused, less than all of
// it.
func (w *Window) Wait(now time.Time, room int) time.Duration {
	usable := w.Limit - room
	if len(w.times) < usable {
		return 0
	}
	return max(w.times[len(w.times)-usable].Add(w.Length).Sub(now), 0)
}
