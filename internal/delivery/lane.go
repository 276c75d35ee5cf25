package delivery

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// takeAtOnce bounds how many deliveries a lane takes up from retries in one step.
const takeAtOnce = 512

// lane makes the deliveries of one listener. It knows which of them wait, how many
// POSTs may be in flight, which ordering keys are busy, and when its pause ends. A lane
// with nothing to do has no goroutine.
type lane struct {
	d  *Delivery
	id int64
	// series are the metrics of the listener.
	series atomic.Pointer[series]
	// expired is a batch number: waiting deliveries of lower batches have been checked
	// for their age. Only the retry loop uses it.
	expired int64

	mu    sync.Mutex // guards the fields below
	ready queue
	// size is the number of deliveries in memory (ready, behind an ordering key or in
	// flight), and bytes the total size of their payloads.
	size, bytes int
	inFlight    int
	pace        pace
	timer       *time.Timer // fires when the pace's pause is over
	orderKeys   map[string]*orderKey
	// hasRow marks the deliveries in hand that got a row in retries meanwhile.
	hasRow map[event.Key]bool
	// spilled: retries may hold due deliveries that only wait for room. postponed: the
	// same for background deliveries.
	spilled, postponed bool
	// moved: the listener has another URL since deliveries waited for the old one's hour.
	moved bool
	// typical is the average size, in bytes, of the payloads taken up from retries.
	typical int

	// listener is the registration as last read; nil if it was deleted. target is made
	// from it, and bad is the error if that failed.
	listener *event.Listener
	target   *callback.Target
	bad      error
}

func newLane(d *Delivery, id int64) *lane {
	l := &lane{d: d, id: id, pace: newPace(1, d.cfg.Schedule), hasRow: make(map[event.Key]bool)}
	s := d.metrics.other
	if d.listeners.Listener(id) != nil {
		s = d.metrics.open(id)
	}
	l.series.Store(s)
	return l
}

// fullLocked reports whether the lane takes no more deliveries into memory. While the
// callback is down, all deliveries wait in the database, so that batches settle and a
// dead callback costs no memory.
func (l *lane) fullLocked() bool {
	return l.pace.down || l.size >= l.d.cfg.LaneQueue || l.bytes >= l.d.cfg.LaneBytes
}

// keepLocked and dropLocked count what the lane holds in memory.
func (l *lane) keepLocked(j *job) {
	l.size++
	l.bytes += len(j.stored.Data)
}

func (l *lane) dropLocked(j *job) {
	l.size--
	l.bytes -= len(j.stored.Data)
}

// push takes a new job. The job goes to the database instead if the lane is full, if
// its ordering key has rows there or holds too much, or if it is ordered and inherited.
func (l *lane) push(ctx context.Context, j job, inherited bool) error {
	l.mu.Lock()
	l.refreshLocked()
	if l.listener != nil {
		j.orderKey = event.OrderKey(l.listener.Ordering, &j.stored.Event)
	}
	k := l.orderKeyLocked(j.orderKey)
	full := l.fullLocked()
	if k == nil && full {
		l.spilled = true
		l.mu.Unlock()
		l.series.Load().spilled.Inc()
		return l.d.recorder.put(ctx, l.d.spill(j))
	}
	defer l.mu.Unlock()
	if k != nil && (full || inherited || k.parked != event.Key{} || len(k.waiting) >= max(1, l.d.cfg.LaneQueue/orderKeyShare)) {
		// Under the lock, because the records of an ordering key must not overtake each
		// other on their way to the recorder.
		l.spilled = true
		l.surrenderLocked(k)
		k.park(j.stored.Key)
		l.series.Load().spilled.Inc()
		return l.d.recorder.put(ctx, l.d.spill(j))
	}
	l.keepLocked(&j)
	if k != nil && k.active {
		k.waiting = append(k.waiting, j)
		return nil
	}
	if k != nil {
		k.begin(j)
	}
	l.ready.push(j)
	l.startLocked()
	return nil
}

// load returns how many deliveries the lane holds, how many of them are in flight, and
// when the oldest waiting event was received (zero for none).
func (l *lane) load() (size, inFlight int, oldest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest = l.ready.oldest()
	for _, k := range l.orderKeys {
		if k.active {
			oldest = earlierIgnoringZero(oldest, k.current.stored.ReceivedAt)
		}
	}
	return l.size, l.inFlight, oldest
}

// hasMore notes that retries may hold more usual or background deliveries than the lane
// took.
func (l *lane) hasMore(usual, background bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spilled, l.postponed = l.spilled || usual, l.postponed || background
	l.fetchLocked() // the lane may already be done with those that it took
}

// fetchLocked wakes the retry loop if the lane wants more from retries.
func (l *lane) fetchLocked() {
	if l.wantsLocked() {
		l.spilled, l.postponed = false, false
		l.d.wake()
	}
}

// wantsLocked reports whether the lane should take up more from retries. That is the
// case once half of its capacity is free: the next page then comes while the lane
// delivers the other half, and is large enough to be worth its queries.
func (l *lane) wantsLocked() bool {
	return l.spilled && (l.ready.len() < l.pace.limit || l.size <= l.d.cfg.LaneQueue/2 && l.bytes <= l.d.cfg.LaneBytes/2) ||
		l.postponed && l.ready.background.len() <= l.maxBackground()/2
}

// maxBackground returns how many background deliveries the lane may hold. The rest of
// its queue is reserved for events that are received meanwhile.
func (l *lane) maxBackground() int { return max(1, min(takeAtOnce, l.d.cfg.LaneQueue/4)) }

// pushTaken accepts a job that was taken up from retries. It returns false if the job
// has to wait in retries for an older one of its ordering key.
func (l *lane) pushTaken(j job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	if k := l.orderKeyLocked(j.orderKey); k != nil {
		if k.active {
			return false
		}
		k.begin(j)
		k.park(j.stored.Key)
	}
	l.keepLocked(&j)
	l.typical += (len(j.stored.Data) - l.typical) / 16
	l.ready.push(j)
	l.startLocked()
	return true
}

// room returns how many more jobs the lane may take up from retries, and how many of
// them from the background. It returns 0 while the listener is unknown or disabled or
// the lane pauses. While the callback is down, the lane may hold one job, as a try.
func (l *lane) room(now time.Time) (all, background int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	switch {
	case l.listener == nil || !l.listener.Enabled || now.Before(l.pace.until):
		return 0, 0
	case l.pace.down:
		all = max(0, 1-l.size)
		return all, all
	case l.fullLocked():
		return 0, 0
	default:
		all = min(l.d.cfg.LaneQueue-l.size, takeAtOnce, max(1, (l.d.cfg.LaneBytes-l.bytes)/max(1, l.typical)))
		return all, min(all, max(0, l.maxBackground()-l.ready.background.len()))
	}
}

// isPaused reports whether the lane pauses or its callback is down.
func (l *lane) isPaused(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.down || now.Before(l.pace.until)
}

// refreshLocked reads the registration again, and adapts the lane if it changed.
func (l *lane) refreshLocked() {
	now := l.d.listeners.Listener(l.id)
	if now == l.listener {
		return
	}
	before := l.listener
	l.listener, l.target, l.bad = now, nil, nil
	if now == nil || before != nil && before.Ordering != now.Ordering {
		// The deliveries behind a key no longer wait for one another.
		for _, k := range l.orderKeys {
			for _, j := range k.waiting {
				l.ready.push(j)
			}
		}
		l.orderKeys = nil
	}
	if now == nil {
		return
	}
	l.target, l.bad = callback.NewTarget(now)
	if before == nil || before.MaxInFlight != now.MaxInFlight || before.URL != now.URL || before.Enabled != now.Enabled {
		l.pace = newPace(now.MaxInFlight, l.d.cfg.Schedule) // the old pace no longer applies
	}
	l.moved = l.moved || before != nil && before.URL != now.URL
}

// takeMoved reports, once, that the listener has another URL.
func (l *lane) takeMoved() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	moved := l.moved
	l.moved = false
	return moved
}

// notMoved takes back takeMoved.
func (l *lane) notMoved() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moved = true
}

// startLocked starts a worker if a job is ready and the pace allows one more in flight.
func (l *lane) startLocked() {
	if l.inFlight >= l.pace.limit || l.ready.len() == 0 || l.d.stopping.Load() || time.Now().Before(l.pace.until) {
		return
	}
	l.inFlight++
	l.d.workers.Add(1)
	go l.work()
}

// work makes attempts until the lane has no job for it.
func (l *lane) work() {
	defer l.d.workers.Done()
	for {
		j, target, listener, bad, ok := l.next()
		if !ok {
			return
		}
		owner, err := l.d.instance.Hold(l.d.working)
		switch {
		case err != nil:
			l.leave(j)
			return
		case j.owner != owner:
			l.forsake(j)
		default:
			rec := l.attempt(j, target, listener, bad)
			if now := l.d.listeners.Listener(l.id); now != nil && listener != nil && now.URL != listener.URL {
				rec.elsewhere(l.d.now())
			}
			l.d.condemn(&rec, listener)
			l.finish(j, rec)
		}
	}
}

// leave drops the job of a worker that ends. The job stays in the database.
func (l *lane) leave(j job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked(&j)
	l.inFlight--
}

// forsake drops a job that another instance has taken over.
func (l *lane) forsake(j job) {
	l.d.metrics.forsaken.Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked(&j)
	delete(l.hasRow, j.stored.Key)
	if k := l.orderKeyLocked(j.orderKey); k != nil {
		l.advanceLocked(k, j.orderKey)
	}
}

// next returns the next job and the current registration. If ok is false, the worker
// must end.
func (l *lane) next() (j job, t *callback.Target, listener *event.Listener, bad error, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	if l.ready.len() == 0 || l.inFlight > l.pace.limit || l.d.stopping.Load() || time.Now().Before(l.pace.until) {
		l.inFlight--
		return job{}, nil, nil, nil, false
	}
	j = l.ready.pop()
	l.fetchLocked()
	return j, l.target, l.listener, l.bad, true
}

// finish hands the record to the recorder and adapts the lane. The worker waits while
// the recorder is full, because outcomes must not pile up in memory.
func (l *lane) finish(j job, rec record) {
	if j.orderKey == "" {
		l.record(rec)
		l.mu.Lock()
		l.dropLocked(&j)
	} else {
		l.mu.Lock()
		l.finishOrderedLocked(j, rec)
	}
	drained := l.adaptLocked(rec)
	l.mu.Unlock()
	for _, rec := range drained {
		l.record(rec)
	}
}

// record hands an outcome to the recorder, and waits while the recorder is full.
func (l *lane) record(rec record) {
	if err := l.d.recorder.put(l.d.attempts, rec); err != nil {
		l.d.log.LogAttrs(l.d.attempts, slog.LevelWarn, "attempt not recorded, its delivery may be made again",
			slog.String("delivery", rec.job.id().String()), slog.Any("error", err))
	}
}

// adaptLocked adapts the pace to an attempt. If the attempt shows that the callback is
// down, the deliveries that wait in memory move to the database: adaptLocked returns
// their records, and the caller hands them to the recorder.
func (l *lane) adaptLocked(rec record) (drained []record) {
	if !rec.attempted || rec.outcome.kind == unparsable || l.listener == nil || rec.moved {
		return nil // this says nothing about the callback
	}
	seen := observation{
		signal: rec.signal(), delivery: rec.job.stored.Key, sent: rec.began, at: time.Now(), inFlight: l.inFlight,
	}
	if at := rec.outcome.notBefore; !at.IsZero() {
		seen.notBefore = seen.at.Add(at.Sub(l.d.now()))
	}
	before := l.pace
	l.pace = before.after(seen)
	switch {
	case l.pace.down && !before.down:
		drained = l.drainLocked()
		l.d.metrics.down.Inc()
		l.d.log.LogAttrs(l.d.attempts, slog.LevelWarn, "callback is down: its deliveries wait while one at a time is tried",
			slog.String("listener", event.ListenerID(l.id)), slog.String("host", hostOf(l.listener)), slog.Time("next_try", l.pace.until))
	case before.down && !l.pace.down:
		l.d.log.LogAttrs(l.d.attempts, slog.LevelInfo, "callback is back",
			slog.String("listener", event.ListenerID(l.id)), slog.String("host", hostOf(l.listener)))
		l.d.wake()
	}
	if l.pace.until.After(before.until) {
		if l.timer != nil {
			l.timer.Stop()
		}
		l.timer = time.AfterFunc(time.Until(l.pace.until), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.startLocked()
			l.d.wake()
		})
	}
	l.startLocked()
	return drained
}

// drainLocked empties the queue and returns the records that move its deliveries to the
// database. It records ordered deliveries itself, under the lock, because the records
// of an ordering key must not overtake each other.
func (l *lane) drainLocked() (drained []record) {
	for l.ready.len() > 0 {
		j := l.ready.pop()
		rec := l.d.spill(j)
		l.series.Load().spilled.Inc()
		if j.orderKey != "" {
			l.finishOrderedLocked(j, rec)
			continue
		}
		l.dropLocked(&j)
		drained = append(drained, rec)
	}
	l.spilled = true
	return drained
}
