package gateway

import "time"

// window counts what was done within a sliding length of time, so that a limit
// holds for every such length, wherever it begins. It knows no clock and has
// no lock.
type window struct {
	length time.Duration
	limit  int
	times  []time.Time // the latest, no more than limit, the oldest first
}

// add notes that something was done, whether or not that was within the limit.
func (w *window) add(now time.Time) {
	if len(w.times) == w.limit {
		w.times = append(w.times[:0], w.times[1:]...)
	}
	w.times = append(w.times, now)
}

// wait tells for how long nothing more may be done if as many as room are kept
// free of the limit; 0 for not at all.
func (w *window) wait(now time.Time, room int) time.Duration {
	most := w.limit - room
	if len(w.times) < most {
		return 0
	}
	return max(w.times[len(w.times)-most].Add(w.length).Sub(now), 0)
}
