package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// One ordering key may fill 1/orderKeyShare of a lane's queue, because a key whose
	// delivery hangs must leave room for others.
	orderKeyShare = 8
	// unparkAtOnce bounds the ordering keys that are checked in one step.
	unparkAtOnce = 1000
)

// asked marks the ordering keys of deliveries that somebody asked for again. They are
// ordered among themselves, and never stand before what is received: one that fails again
// would hold up the newer events of its guild or channel for its whole schedule.
const asked = "asked:"

// askedKey returns the ordering key of a delivery that somebody asked for again.
func askedKey(l *event.Listener, e *event.Event) string {
	key := event.OrderKey(l.Ordering, e)
	if key == "" {
		return ""
	}
	return asked + key
}

// orderKey is the state of one ordering key that is not idle. Its deliveries are made
// from memory or through the database. Once one of them has a row in retries, every
// older unfinished one has a row too. So whichever instance takes up the oldest row
// makes the next delivery in order.
type orderKey struct {
	// active: current is ready or in flight.
	active  bool
	current job
	waiting []job // behind current, in order
	// parked is the newest delivery of the key that has a row in retries; zero for
	// none. Until it is done, all newer deliveries go to retries too.
	parked event.Key
}

// park notes that a delivery has a row, or gets one before any newer delivery does.
func (k *orderKey) park(p event.Key) {
	if older(k.parked, p) {
		k.parked = p
	}
}

// unpark notes that a delivery and all older ones are done.
func (k *orderKey) unpark(done event.Key) {
	if !older(done, k.parked) {
		k.parked = event.Key{}
	}
}

func (k *orderKey) begin(j job) { k.active, k.current = true, j }

// older reports whether the event at a was stored before the one at b.
func older(a, b event.Key) bool {
	return a.Batch < b.Batch || a.Batch == b.Batch && a.Ordinal < b.Ordinal
}

// orderKeyLocked returns the state of an ordering key, and creates it if there is none.
// It returns nil for the name "", which means that a delivery is not ordered.
func (l *lane) orderKeyLocked(name string) *orderKey {
	if name == "" {
		return nil
	}
	k := l.orderKeys[name]
	if k == nil {
		if l.orderKeys == nil {
			l.orderKeys = make(map[string]*orderKey)
		}
		k = &orderKey{}
		l.orderKeys[name] = k
	}
	return k
}

// surrenderLocked gives every delivery of a key a row in retries. The row of the
// current delivery has this instance as its owner. Any instance may take up the rows
// behind it when it is their turn.
func (l *lane) surrenderLocked(k *orderKey) {
	if k.active && k.current.batch != nil && !l.hasRow[k.current.stored.Key] {
		inHand := l.d.spill(k.current)
		inHand.inHand = true
		l.record(inHand)
		l.hasRow[k.current.stored.Key] = true
		k.park(k.current.stored.Key)
	}
	l.spillLocked(k, l.d.now())
}

// spillLocked moves the waiting deliveries of a key to retries, due at a time.
func (l *lane) spillLocked(k *orderKey, due time.Time) {
	for i := range k.waiting {
		j := k.waiting[i]
		l.series.Load().spilled.Inc()
		l.record(record{job: j, outcome: outcome{kind: retryAt, at: due}})
		k.park(j.stored.Key)
		l.dropLocked(&j)
	}
	k.waiting = nil
}

// yield surrenders the ordering keys that have deliveries of a shard in memory.
func (l *lane) yield(s event.Shard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.orderKeys {
		if k.active && k.current.stored.Shard == s ||
			slices.ContainsFunc(k.waiting, func(j job) bool { return j.stored.Shard == s }) {
			l.surrenderLocked(k)
		}
	}
}

// park notes that an ordering key has rows in retries, and which one is the newest.
func (l *lane) park(name string, newest event.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshLocked()
	if k := l.orderKeyLocked(name); k != nil {
		k.park(newest)
	}
}

// finishOrderedLocked records the job. If it has to be retried, all deliveries that
// wait behind it move to the database; otherwise the next one starts. The lock keeps
// the records of a key from overtaking each other.
func (l *lane) finishOrderedLocked(j job, rec record) {
	if l.hasRow[j.stored.Key] {
		delete(l.hasRow, j.stored.Key)
		rec.job.batch = nil // the batch has counted it already
	}
	l.record(rec)
	l.dropLocked(&j)
	k := l.orderKeyLocked(j.orderKey)
	if rec.outcome.kind == retryAt {
		k.active, k.current = false, job{}
		k.park(j.stored.Key)
		l.spillLocked(k, rec.outcome.at)
		return
	}
	if rec.outcome.kind == exhausted {
		l.d.metrics.keysSkipped.Inc()
		l.d.log.LogAttrs(l.d.attempts, slog.LevelWarn, "ordering key continues without an exhausted delivery",
			slog.String("listener", event.ListenerID(l.id)), slog.String("key", j.orderKey), slog.String("delivery", j.id().String()))
	}
	k.unpark(j.stored.Key)
	l.advanceLocked(k, j.orderKey)
}

// advanceLocked starts the next delivery of an ordering key whose current one is done,
// or forgets the key if it is idle.
func (l *lane) advanceLocked(k *orderKey, name string) {
	k.active, k.current = false, job{}
	switch {
	case len(k.waiting) > 0:
		k.begin(k.waiting[0])
		l.ready.push(k.waiting[0])
		k.waiting[0] = job{} // otherwise the payload stays in memory
		k.waiting = k.waiting[1:]
		l.startLocked()
	case k.parked == event.Key{}:
		delete(l.orderKeys, name)
	}
}

// parked appends the ordering keys that have rows in retries and no delivery in hand
// here.
func (l *lane) parked(into []parkedKey, limit int) []parkedKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, k := range l.orderKeys {
		if len(into) >= limit {
			break
		}
		if !k.active && k.parked != (event.Key{}) {
			into = append(into, parkedKey{l.id, name, k.parked})
		}
	}
	return into
}

// unpark forgets an ordering key that has no rows left in retries, unless more
// deliveries went there since.
func (l *lane) unpark(name string, newest event.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.orderKeys[name]; k != nil && !k.active && k.parked == newest {
		delete(l.orderKeys, name)
	}
}

// parkedKey is an ordering key with rows in retries, and the newest of them.
type parkedKey struct {
	listener int64
	name     string
	newest   event.Key
}

// unparkKeys forgets the ordering keys whose rows other instances have finished: newer
// deliveries no longer have to go through the database.
func (d *Delivery) unparkKeys(ctx context.Context) error {
	var keys []parkedKey
	for _, l := range d.all() {
		keys = l.parked(keys, unparkAtOnce)
	}
	if len(keys) == 0 {
		return nil
	}
	// Some of their rows may not be written yet.
	if err := d.recorder.flush(ctx); err != nil {
		return err
	}
	listeners, names := make([]int64, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		listeners[i], names[i] = k.listener, k.name
	}
	rows, _ := d.pool.Query(ctx, `SELECT i FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS k (listener_id, name, i)
		WHERE NOT EXISTS (SELECT FROM retries r WHERE r.listener_id = k.listener_id AND r.order_key = k.name
			AND r.order_key <> '' AND r.state = 'pending')`, listeners, names)
	idle, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("look for idle ordering keys: %w", err)
	}
	for _, i := range idle {
		k := keys[i-1]
		d.lane(k.listener).unpark(k.name, k.newest)
	}
	return nil
}

// parkedKeys counts the ordering keys that have rows in retries.
func (d *Delivery) parkedKeys() (n int) {
	for _, l := range d.all() {
		l.mu.Lock()
		for _, k := range l.orderKeys {
			if k.parked != (event.Key{}) {
				n++
			}
		}
		l.mu.Unlock()
	}
	return n
}
