package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

const (
	// takeAtOnce bounds what a lane takes up from retries in one step.
	takeAtOnce = 512
	// keyShare is the part of a lane's queue, one of so many, that one ordering
	// key may fill: a key whose delivery hangs must leave room for others.
	keyShare = 8
)

// lane is the queue of one listener: how many POSTs may be in flight, which
// ordering keys are busy, and when it may go on after the callback asked it to
// slow down. A lane with nothing to do has no goroutine.
type lane struct {
	d  *Delivery
	id int64
	// series is what counts the listener's deliveries.
	series atomic.Pointer[series]

	mu    sync.Mutex
	ready line
	// size and bytes are what the lane holds in memory, ready, behind a key or
	// in flight.
	size, bytes int
	inFlight    int
	pace        pace
	timer       *time.Timer // fires when the pace's pause is over
	keys        map[string]*key
	// rowed is the deliveries in hand that got a row in retries meanwhile.
	rowed map[event.Key]bool
	// spilled: retries may hold deliveries that are due and only lack room;
	// postponed: such of the background.
	spilled, postponed bool
	// expired is below which batch what waits was looked at for its age: the retry
	// loop's alone.
	expired int64
	// typical is how large a payload that was taken up is on average, in bytes.
	typical int

	listener *event.Listener
	target   *callback.Target
	bad      error
}

// key is the state of one ordering key that is not idle. A key is worked from
// memory or by way of the database: once one of its deliveries has a row in
// retries, every older one that is not done has one too, so that whoever takes
// up the oldest row, here or in another instance, takes the next in order.
type key struct {
	// active: current is ready or in flight.
	active  bool
	current job
	waiting []job
	// parked is the newest of its deliveries that has a row in retries. Until
	// it is done, everything newer goes there too. Zero for none.
	parked event.Key
}

// park notes that a delivery has a row, or will have one before any newer one.
func (k *key) park(p event.Key) {
	if older(k.parked, p) {
		k.parked = p
	}
}

// unpark notes that a delivery is done, and so are all that are older.
func (k *key) unpark(done event.Key) {
	if !older(done, k.parked) {
		k.parked = event.Key{}
	}
}

func (k *key) begin(j job) { k.active, k.current = true, j }

func older(a, b event.Key) bool {
	return a.Batch < b.Batch || a.Batch == b.Batch && a.Ordinal < b.Ordinal
}

func newLane(d *Delivery, id int64) *lane {
	l := &lane{d: d, id: id, pace: newPace(1, d.cfg.Schedule), rowed: make(map[event.Key]bool)}
	s := d.metrics.other
	if d.listeners.Listener(id) != nil {
		s = d.metrics.open(id)
	}
	l.series.Store(s)
	return l
}

// full: nothing more is held in memory. While the callback is down all waits in
// the database, so that batches settle and a dead callback costs no memory.
// Called with the lock held.
func (l *lane) full() bool {
	return l.pace.down || l.size >= l.d.cfg.LaneQueue || l.bytes >= l.d.cfg.LaneBytes
}

// keep and drop count what the lane holds. Called with the lock held.
func (l *lane) keep(j *job) {
	l.size++
	l.bytes += len(j.stored.Data)
}

func (l *lane) drop(j *job) {
	l.size--
	l.bytes -= len(j.stored.Data)
}

// push takes a new job. It goes to the database instead if the lane is full, if
// the job's key waits there or holds too much, or if it is ordered and
// inherited.
func (l *lane) push(ctx context.Context, j job, inherited bool) error {
	l.mu.Lock()
	l.refresh()
	if l.listener != nil {
		j.orderKey = event.OrderKey(l.listener.Ordering, &j.stored.Event)
	}
	k := l.key(j.orderKey)
	full := l.full()
	if k == nil && full {
		l.spilled = true
		l.mu.Unlock()
		l.series.Load().spilled.Inc()
		return l.d.recorder.put(ctx, spill(j))
	}
	defer l.mu.Unlock()
	if k != nil && (full || inherited || k.parked != event.Key{} || len(k.waiting) >= max(1, l.d.cfg.LaneQueue/keyShare)) {
		// With the lock held: the records of a key must not overtake each
		// other on their way to the recorder.
		l.spilled = true
		l.surrender(k)
		k.park(j.stored.Key)
		l.series.Load().spilled.Inc()
		return l.d.recorder.put(ctx, spill(j))
	}
	l.keep(&j)
	if k != nil && k.active {
		k.waiting = append(k.waiting, j)
		return nil
	}
	if k != nil {
		k.begin(j)
	}
	l.ready.push(j)
	l.start()
	return nil
}

// spill lets a delivery wait in retries; it is due.
func spill(j job) record { return record{job: j, outcome: outcome{kind: retryAt, at: time.Now()}} }

// surrender gives every delivery of a key a row in retries: the one in hand a
// row that says so, those that wait one that anybody may take up when its turn
// comes. Called with the lock held.
func (l *lane) surrender(k *key) {
	if k.active && k.current.batch != nil && !l.rowed[k.current.stored.Key] {
		inHand := spill(k.current)
		inHand.inHand = true
		l.record(inHand)
		l.rowed[k.current.stored.Key] = true
		k.park(k.current.stored.Key)
	}
	l.spill(k, time.Now())
}

// spill gives what waits behind a key rows that are due at a time. Called with
// the lock held.
func (l *lane) spill(k *key, due time.Time) {
	for i := range k.waiting {
		j := k.waiting[i]
		l.series.Load().spilled.Inc()
		l.record(record{job: j, outcome: outcome{kind: retryAt, at: due}})
		k.park(j.stored.Key)
		l.drop(&j)
	}
	k.waiting = nil
}

// yield surrenders the keys that have deliveries of a shard in memory.
func (l *lane) yield(s event.Shard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.keys {
		if k.active && k.current.stored.Shard == s ||
			slices.ContainsFunc(k.waiting, func(j job) bool { return j.stored.Shard == s }) {
			l.surrender(k)
		}
	}
}

// park notes that a key waits in retries, up to a delivery.
func (l *lane) park(name string, newest event.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh()
	if k := l.key(name); k != nil {
		k.park(newest)
	}
}

// parked adds keys that wait in retries, and nothing of which is in hand here.
func (l *lane) parked(into []parkedKey, limit int) []parkedKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, k := range l.keys {
		if len(into) >= limit {
			break
		}
		if !k.active && k.parked != (event.Key{}) {
			into = append(into, parkedKey{l.id, name, k.parked})
		}
	}
	return into
}

// unpark notes that a key has nothing in retries any more, unless more went
// there since.
func (l *lane) unpark(name string, newest event.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.keys[name]; k != nil && !k.active && k.parked == newest {
		delete(l.keys, name)
	}
}

// load is what the lane holds, how much of it is in flight, and when the oldest
// event that waits here was received; zero for none.
func (l *lane) load() (held, inFlight int, oldest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest = l.ready.oldest()
	for _, k := range l.keys {
		if k.active {
			oldest = earlier(oldest, k.current.stored.ReceivedAt)
		}
	}
	return l.size, l.inFlight, oldest
}

// hasMore notes that retries may hold more than the lane took.
func (l *lane) hasMore(usual, background bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spilled, l.postponed = l.spilled || usual, l.postponed || background
	l.fetch() // what it took may be delivered already
}

// fetch makes the retry loop look, if the lane wants more. Called with the lock
// held.
func (l *lane) fetch() {
	if l.wants() {
		l.spilled, l.postponed = false, false
		l.d.wake()
	}
}

// wants tells whether the lane takes up what retries hold. It does so when half
// of what it may hold is delivered: the next page comes while the other half
// is, and a page is worth its queries. Called with the lock held.
func (l *lane) wants() bool {
	return l.spilled && (l.ready.len() < l.pace.limit || l.size <= l.d.cfg.LaneQueue/2 && l.bytes <= l.d.cfg.LaneBytes/2) ||
		l.postponed && l.ready.background.len() <= l.mostBackground()/2
}

// mostBackground is how much of the background a lane holds: the rest of the
// queue is for what is received meanwhile.
func (l *lane) mostBackground() int { return max(1, min(takeAtOnce, l.d.cfg.LaneQueue/4)) }

// pushTaken takes a job that was taken up from retries. It returns false if
// the job has to wait there for an older one of its key.
func (l *lane) pushTaken(j job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh()
	if k := l.key(j.orderKey); k != nil {
		if k.active {
			return false
		}
		k.begin(j)
		k.park(j.stored.Key)
	}
	l.keep(&j)
	l.typical += (len(j.stored.Data) - l.typical) / 16
	l.ready.push(j)
	l.start()
	return true
}

// room is how many more jobs the lane may take up from retries, and how many of
// them from the background; 0 while the listener is unknown, disabled or slowed
// down. Of a callback that is down it is one, to try.
func (l *lane) room(now time.Time) (all, background int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh()
	switch {
	case l.listener == nil || !l.listener.Enabled || now.Before(l.pace.until):
		return 0, 0
	case l.pace.down:
		all = max(0, 1-l.size)
		return all, all
	case l.full():
		return 0, 0
	default:
		all = min(l.d.cfg.LaneQueue-l.size, takeAtOnce, max(1, (l.d.cfg.LaneBytes-l.bytes)/max(1, l.typical)))
		return all, min(all, max(0, l.mostBackground()-l.ready.background.len()))
	}
}

// isHeld tells whether the lane stands still.
func (l *lane) isHeld(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.down || now.Before(l.pace.until)
}

// refresh looks at the registration again. Called with the lock held.
func (l *lane) refresh() {
	now := l.d.listeners.Listener(l.id)
	if now == l.listener {
		return
	}
	before := l.listener
	l.listener, l.target, l.bad = now, nil, nil
	if now == nil || before != nil && before.Ordering != now.Ordering {
		// What waits behind a key has lost what it waits for.
		for _, k := range l.keys {
			for _, j := range k.waiting {
				l.ready.push(j)
			}
		}
		l.keys = nil
	}
	if now == nil {
		return
	}
	l.target, l.bad = callback.NewTarget(now)
	if before == nil || before.MaxInFlight != now.MaxInFlight || before.URL != now.URL || before.Enabled != now.Enabled {
		l.pace = newPace(now.MaxInFlight, l.d.cfg.Schedule) // what was known is void
	}
}

// key returns the state of an ordering key, made if need be; nil if nothing is
// ordered. Called with the lock held.
func (l *lane) key(name string) *key {
	if name == "" {
		return nil
	}
	k := l.keys[name]
	if k == nil {
		if l.keys == nil {
			l.keys = make(map[string]*key)
		}
		k = &key{}
		l.keys[name] = k
	}
	return k
}

// start puts one more worker on the lane, if there is work and room in flight.
// Called with the lock held.
func (l *lane) start() {
	if l.inFlight >= l.pace.limit || l.ready.len() == 0 || l.d.stopping.Load() || time.Now().Before(l.pace.until) {
		return
	}
	l.inFlight++
	l.d.workers.Add(1)
	go l.work()
}

// work makes attempts until the lane has none for it.
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
			l.d.condemn(&rec, listener)
			l.finish(j, rec)
		}
	}
}

// leave retires a worker whose job stays in the database.
func (l *lane) leave(j job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(&j)
	l.inFlight--
}

// forsake lets go of a job that another instance has taken over.
func (l *lane) forsake(j job) {
	l.d.metrics.forsaken.Inc()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(&j)
	delete(l.rowed, j.stored.Key)
	if k := l.key(j.orderKey); k != nil {
		l.advance(k, j.orderKey)
	}
}

// next returns the next job with the registration as it is now, or retires the
// worker.
func (l *lane) next() (j job, t *callback.Target, listener *event.Listener, bad error, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh()
	if l.ready.len() == 0 || l.inFlight > l.pace.limit || l.d.stopping.Load() || time.Now().Before(l.pace.until) {
		l.inFlight--
		return job{}, nil, nil, nil, false
	}
	j = l.ready.pop()
	l.fetch()
	return j, l.target, l.listener, l.bad, true
}

// attempt makes one POST and decides what follows from it.
func (l *lane) attempt(j job, t *callback.Target, listener *event.Listener, bad error) record {
	now := time.Now()
	rec := record{job: j}
	switch {
	case listener == nil:
		// Deleted: nobody waits for this any more.
		rec.outcome = outcome{kind: dropped}
		return rec
	case !listener.Enabled:
		// It waits in the database until the listener is enabled again.
		rec.outcome = outcome{kind: retryAt, at: now}
		return rec
	case listener.MaxAge > 0 && now.Sub(j.stored.ReceivedAt) > listener.MaxAge && !j.asked:
		rec.outcome = outcome{kind: expired}
		return rec
	}
	rec.attempted, rec.startedAt = true, now
	span, parent := l.d.cfg.Traces.attempt(l.d.attempts, &rec)
	defer func() { endSpan(span, &rec, t) }()
	body, err := j.body(listener, l.d.cfg.Application())
	switch {
	case err != nil:
		// It is recorded as an attempt, so that the reason is kept with it.
		rec.result = callback.Result{Err: fmt.Errorf("%s can't be parsed: %w", j.stored.Name, err)}
		rec.outcome = outcome{kind: unparsable}
		l.log(rec, listener)
		return rec
	case bad != nil:
		rec.result = callback.Result{Err: bad, Class: callback.ClassRefused}
	default:
		rec.result = l.d.send(l.d.attempts, t, listener, &rec, body, parent)
	}
	rec.outcome = decide(rec.result, decision{
		attempt: j.attempt + 1, now: time.Now(), random: rand.Float64(), schedule: l.d.cfg.Schedule,
		receivedAt: j.stored.ReceivedAt, maxAge: listener.MaxAge,
	})
	l.observe(rec, listener)
	return rec
}

// send makes the POST of a record's attempt.
func (d *Delivery) send(ctx context.Context, t *callback.Target, l *event.Listener, rec *record, body []byte, parent string) callback.Result {
	e := &rec.job.stored.Event
	return d.client.Send(ctx, t, &callback.Request{
		ID: rec.job.id().String(), Name: deliveredName(l, e), Event: e, Body: body, Attempt: rec.attempt(), Traceparent: parent,
		Timeout: timeoutOf(e, d.cfg.AttemptTimeout),
	})
}

// interaction is the event that is worth nothing after 3 s.
const interaction = "INTERACTION_CREATE"

// interactionTimeout bounds an attempt to deliver an interaction: Discord waits
// 3 s for the answer to it, from when it sent it.
const interactionTimeout = 2500 * time.Millisecond

// timeoutOf bounds one attempt to deliver an event.
func timeoutOf(e *event.Event, usual time.Duration) time.Duration {
	if e.Name == interaction {
		return min(usual, interactionTimeout)
	}
	return usual
}

// observe counts and logs an attempt.
func (l *lane) observe(rec record, listener *event.Listener) {
	l.d.metrics.attemptTime.Observe(rec.result.Duration.Seconds())
	l.series.Load().attempted(&rec)
	l.log(rec, listener)
}

// log writes one line an attempt, a failure at warn.
func (l *lane) log(rec record, listener *event.Listener) {
	level := slog.LevelDebug
	if rec.outcome.kind != delivered {
		level = slog.LevelWarn
	}
	if !l.d.log.Enabled(l.d.attempts, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("outcome", rec.outcome.kind.String()),
		slog.String("event", listener.Event),
		slog.String("name", rec.job.stored.Name),
		slog.String("delivery", rec.job.id().String()),
		slog.String("host", rec.host(listener)),
		slog.Int("attempt", rec.attempt()),
		slog.Int("status", rec.result.Status),
		slog.Duration("took", rec.result.Duration),
	}
	if rec.result.Err != nil {
		attrs = append(attrs, slog.String("error", rec.result.Err.Error()))
	}
	if rec.outcome.kind == retryAt {
		attrs = append(attrs, slog.Time("next_attempt", rec.outcome.at))
	}
	l.d.log.LogAttrs(l.d.attempts, level, "attempt", attrs...)
}

// finish hands the record to the recorder and moves the lane on. The worker
// waits while the recorder has no room: what is not recorded must not pile up
// in memory.
func (l *lane) finish(j job, rec record) {
	if j.orderKey == "" {
		l.record(rec)
		l.mu.Lock()
		l.drop(&j)
	} else {
		l.mu.Lock()
		l.finishOrdered(j, rec)
	}
	put := l.adapt(rec)
	l.mu.Unlock()
	for _, rec := range put {
		l.record(rec)
	}
}

// finishOrdered records and moves the job's key on: to its next delivery, or,
// if this one failed, into the database with all that waits behind it. Called
// with the lock held: the records of a key must not overtake each other.
func (l *lane) finishOrdered(j job, rec record) {
	if l.rowed[j.stored.Key] {
		delete(l.rowed, j.stored.Key)
		rec.job.batch = nil // its row counts now
	}
	l.record(rec)
	l.drop(&j)
	k := l.key(j.orderKey)
	if rec.outcome.kind == retryAt {
		k.active, k.current = false, job{}
		k.park(j.stored.Key)
		l.spill(k, rec.outcome.at)
		return
	}
	if rec.outcome.kind == exhausted {
		l.d.metrics.keysSkipped.Inc()
		l.d.log.LogAttrs(l.d.attempts, slog.LevelWarn, "ordering key goes on without a delivery that is exhausted",
			slog.String("listener", event.ListenerID(l.id)), slog.String("key", j.orderKey), slog.String("delivery", j.id().String()))
	}
	k.unpark(j.stored.Key)
	l.advance(k, j.orderKey)
}

// advance moves a key on whose current delivery is done. Called with the lock
// held.
func (l *lane) advance(k *key, name string) {
	k.active, k.current = false, job{}
	switch {
	case len(k.waiting) > 0:
		k.begin(k.waiting[0])
		l.ready.push(k.waiting[0])
		k.waiting[0] = job{} // or the payload would live on
		k.waiting = k.waiting[1:]
		l.start()
	case k.parked == event.Key{}:
		delete(l.keys, name)
	}
}

func (l *lane) record(rec record) {
	if err := l.d.recorder.put(l.d.attempts, rec); err != nil {
		l.d.log.LogAttrs(l.d.attempts, slog.LevelWarn, "attempt not recorded, its delivery may be made again",
			slog.String("delivery", rec.job.id().String()), slog.Any("error", err))
	}
}

// adapt looks at what the answer says of the callback. If it is down, the
// caller records what adapt returns: the deliveries that wait in memory, which
// from here on wait in the database. Called with the lock held.
func (l *lane) adapt(rec record) (put []record) {
	if !rec.attempted || rec.outcome.kind == unparsable || l.listener == nil {
		return nil // nothing was asked of it
	}
	before := l.pace
	l.pace = before.after(seen{
		signal: rec.signal(), delivery: rec.job.stored.Key, sent: rec.startedAt, at: time.Now(),
		notBefore: rec.outcome.notBefore, inFlight: l.inFlight,
	})
	switch {
	case l.pace.down && !before.down:
		put = l.drain()
		l.d.metrics.down.Inc()
		l.d.log.LogAttrs(l.d.attempts, slog.LevelWarn, "callback is down: its deliveries wait while one at a time is tried",
			slog.String("listener", event.ListenerID(l.id)), slog.String("host", rec.host(l.listener)), slog.Time("next_try", l.pace.until))
	case before.down && !l.pace.down:
		l.d.log.LogAttrs(l.d.attempts, slog.LevelInfo, "callback is back",
			slog.String("listener", event.ListenerID(l.id)), slog.String("host", rec.host(l.listener)))
		l.d.wake()
	}
	if l.pace.until.After(before.until) {
		if l.timer != nil {
			l.timer.Stop()
		}
		l.timer = time.AfterFunc(time.Until(l.pace.until), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.start()
			l.d.wake()
		})
	}
	l.start()
	return put
}

// drain empties the queue. What is ordered is recorded here, with the lock
// held: the records of a key must not overtake each other.
func (l *lane) drain() (put []record) {
	for l.ready.len() > 0 {
		j := l.ready.pop()
		rec := spill(j)
		l.series.Load().spilled.Inc()
		if j.orderKey != "" {
			l.finishOrdered(j, rec)
			continue
		}
		l.drop(&j)
		put = append(put, rec)
	}
	l.spilled = true
	return put
}
