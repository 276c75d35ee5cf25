package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// retryPoll is how often retries are looked for when nothing announces
	// one: another instance may have left some.
	retryPoll = time.Second
	// putBack is when a delivery is looked at again that must wait for an
	// older one of its key.
	putBack = 200 * time.Millisecond
	// unparkAtOnce bounds how many ordering keys are looked at in one step.
	unparkAtOnce = 1000
	// claimAtOnce bounds what all lanes together take up in one step: it is in
	// memory twice meanwhile, and the lanes that have nothing left wait for it.
	claimAtOnce = 4096
)

// due tells the retry loop that a delivery will be due at a time.
func (d *Delivery) due(at time.Time) {
	d.mu.Lock()
	sooner := d.nextDue.IsZero() || at.Before(d.nextDue)
	if sooner {
		d.nextDue = at
	}
	d.mu.Unlock()
	if sooner {
		select {
		case d.replan <- struct{}{}:
		default:
		}
	}
}

// untilDue is how long the retry loop may sleep.
func (d *Delivery) untilDue(now time.Time) time.Duration {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.nextDue.IsZero() {
		return retryPoll
	}
	return max(0, min(retryPoll, d.nextDue.Sub(now)))
}

// takeRetries takes up what is due, until ctx ends.
func (d *Delivery) takeRetries(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	unpark := time.NewTicker(retryPoll)
	defer unpark.Stop()
	health := time.NewTicker(healthEvery)
	defer health.Stop()
	upkeep := time.NewTicker(time.Hour)
	defer upkeep.Stop()
	for {
		var err error
		// What has nothing to do with the timer must not set it back: it would
		// never fire.
		looked := true
		select {
		case <-ctx.Done():
			return
		case <-d.replan:
		case <-health.C:
			looked, err = false, d.readHealth(ctx)
		case <-upkeep.C:
			looked, err = false, d.upkeep(ctx)
		case <-d.kick:
			err = d.takeDue(ctx)
		case <-timer.C:
			err = d.takeDue(ctx)
		case <-unpark.C:
			d.forget()
			looked, err = false, d.unparkKeys(ctx)
		}
		if err != nil && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "taking up retries failed", slog.Any("error", err))
		}
		if looked {
			timer.Reset(d.untilDue(time.Now()))
		}
	}
}

// takeDue claims what is due and gives it to the lanes that have room. One
// listener's rows never stand in the way of another's.
func (d *Delivery) takeDue(ctx context.Context) error {
	d.mu.Lock()
	if !d.nextDue.After(time.Now()) { // or what is due in a moment would wait for the next look
		d.nextDue = time.Time{}
	}
	d.mu.Unlock()
	if err := d.freeUnsure(ctx); err != nil {
		return err
	}
	rooms, err := d.withRoom(ctx)
	if err != nil || len(rooms) == 0 {
		return err
	}
	// Each is the first now and then: the others may get all of a step.
	rand.Shuffle(len(rooms), func(i, j int) { rooms[i], rooms[j] = rooms[j], rooms[i] })
	jobs, keys, err := d.claim(ctx, rooms, claimAtOnce)
	if err == nil && len(jobs) > 0 {
		err = d.loadEvents(ctx, jobs, keys)
	}
	if err != nil {
		// They may be claimed all the same, if only the answer was lost.
		for i := range jobs {
			d.unsure.add(ID{keys[i], jobs[i].listener})
		}
		return fmt.Errorf("claim retries: %w", err)
	}
	for _, j := range jobs {
		switch {
		case j.stored.Name == "":
			// Retention dropped the event: nothing is left to send.
			err = d.recorder.put(ctx, record{job: j, outcome: outcome{kind: expired}})
		case d.lane(j.listener).pushTaken(j):
			at := slices.IndexFunc(rooms, func(r room) bool { return r.listener == j.listener })
			rooms[at].take(j.background)
		default:
			err = d.recorder.put(ctx, record{job: j, outcome: outcome{kind: retryAt, at: time.Now().Add(putBack)}})
		}
		if err != nil {
			return err
		}
	}
	for _, r := range rooms {
		d.lane(r.listener).hasMore(r.all <= 0, r.background <= 0)
	}
	if len(jobs) == claimAtOnce {
		d.wake()
	}
	return nil
}

// room is how many of a listener's deliveries its lane can take: all in all,
// and of the background.
type room struct {
	listener        int64
	all, background int
}

func (r *room) take(background bool) {
	r.all--
	if background {
		r.background--
	}
}

// withRoom returns the listeners that have pending retries, and how many their
// lanes can take. It hops from listener to listener in the index instead of
// reading every row.
func (d *Delivery) withRoom(ctx context.Context) (rooms []room, err error) {
	rows, err := d.pool.Query(ctx, `WITH RECURSIVE l AS (
			(SELECT listener_id FROM retries WHERE state = 'pending' ORDER BY listener_id LIMIT 1)
			UNION ALL
			SELECT (SELECT r.listener_id FROM retries r WHERE r.state = 'pending' AND r.listener_id > l.listener_id
				ORDER BY r.listener_id LIMIT 1)
			FROM l WHERE l.listener_id IS NOT NULL
		) SELECT listener_id FROM l WHERE listener_id IS NOT NULL`)
	if err != nil {
		return nil, fmt.Errorf("list listeners with retries: %w", err)
	}
	pending, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("list listeners with retries: %w", err)
	}
	now := time.Now()
	for _, id := range pending {
		l := d.listeners.Listener(id)
		if l == nil {
			continue // deleted; upkeep removes its rows
		}
		if l.MaxAge > 0 && d.lane(id).isHeld(now) {
			if err := d.expireHeld(ctx, l, now); err != nil {
				return nil, err
			}
		}
		if all, background := d.lane(id).room(now); all > 0 {
			rooms = append(rooms, room{id, all, background})
		}
	}
	return rooms, nil
}

// expireHeld ends what got too old while its lane stands still. Nobody is asked
// about it: whoever takes up the others would have to go through it first. Of
// what was looked at before only the last minute is looked at again: rows may
// come late, but those that stay, since somebody asked for them, may be a
// million. One that is missed is found too old when it is taken up.
func (d *Delivery) expireHeld(ctx context.Context, l *event.Listener, now time.Time) error {
	lane, until := d.lane(l.ID), now.Add(-l.MaxAge)
	// What is locked is left: a replay of this listener locks its rows until it
	// ends, and all listeners would wait for it.
	tag, err := d.pool.Exec(ctx, `UPDATE retries SET state = 'expired', updated_at = now() WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM retries
			WHERE listener_id = $1 AND state = 'pending' AND owner IS NULL AND NOT asked AND batch_id >= $2 AND batch_id < $3
			FOR UPDATE SKIP LOCKED))`,
		l.ID, lane.expired, d.store.At(until))
	if err != nil {
		return fmt.Errorf("expire what waits for listener %s: %w", event.ListenerID(l.ID), err)
	}
	lane.expired = d.store.At(until.Add(-time.Minute))
	lane.series.Load().deliveries[expired].Add(float64(tag.RowsAffected()))
	return nil
}

// freeUnsure gives back what was claimed, perhaps, and is in no lane.
func (d *Delivery) freeUnsure(ctx context.Context) error {
	if len(d.unsure.batches) == 0 {
		return nil
	}
	if _, err := d.pool.Exec(ctx, `UPDATE retries t SET owner = NULL, updated_at = now()
		FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS u (batch_id, ordinal, listener_id)
		WHERE t.batch_id = u.batch_id AND t.ordinal = u.ordinal AND t.listener_id = u.listener_id AND t.owner = $4`,
		d.unsure.batches, d.unsure.ordinals, d.unsure.listeners, d.instance.ID()); err != nil {
		return fmt.Errorf("give back retries: %w", err)
	}
	d.unsure = keyRows{}
	return nil
}

// claim marks due rows as this instance's: those of the background only where
// there is room left, and no more than most in all. Of a key that is ordered
// only the oldest is due, whoever has it. On an error what it returns may be
// claimed: all answers are read before the commit.
func (d *Delivery) claim(ctx context.Context, rooms []room, most int) (jobs []job, keys []event.Key, err error) {
	owner, err := d.instance.Hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	left := make(map[int64]int, len(rooms))
	for _, r := range rooms {
		left[r.listener] = r.all
	}
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, byIndex); err != nil {
			return err
		}
		for _, due := range []string{dueOfKeys, dueOf("NOT q.background"), dueOf("q.background")} {
			var ids []int64
			var counts []int32
			for _, r := range rooms {
				n := left[r.listener]
				if due == dueOf("q.background") {
					n = min(n, r.background)
				}
				if n > 0 {
					ids, counts = append(ids, r.listener), append(counts, int32(n))
				}
			}
			if len(ids) == 0 || most == len(jobs) {
				continue
			}
			some, of, err := claimSome(ctx, tx, owner, ids, counts, most-len(jobs), due)
			if err != nil {
				return err
			}
			jobs, keys = append(jobs, some...), append(keys, of...)
			for i := range some {
				left[some[i].listener]--
			}
		}
		return nil
	})
	return jobs, keys, err
}

// byIndex leaves the planner no choice but the indexes that have the order in
// which rows are claimed. It makes a plan when the table is empty, and keeps it
// while the table fills within seconds: it took the rows of a listener for one,
// and sorted all of them for each of its ordering keys. Nor is anything to be
// compiled for a claim because of what it believes.
const byIndex = `SELECT set_config('enable_sort', 'off', true), set_config('enable_seqscan', 'off', true),
	set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)`

// What is due is selected by where its rows are (ctid), and claimed there: rows
// that are joined by their keys the planner finds by reading the whole table,
// since it can't know how few they are. Nobody moves a row that is locked.

// dueOf selects due rows without an order, of one kind. The kind is part of the
// text: by a parameter the planner could not tell which index is meant.
func dueOf(kind string) string {
	return `SELECT r.ctid FROM unnest($1::bigint[], $2::int[]) AS l (id, room)
		CROSS JOIN LATERAL (
			SELECT q.ctid FROM retries q
			WHERE q.listener_id = l.id AND q.state = 'pending' AND ` + kind + ` AND q.due_at <= now() AND q.owner IS NULL
				AND q.order_key = ''
			ORDER BY q.due_at LIMIT l.room FOR UPDATE SKIP LOCKED
		) r LIMIT $4`
}

// dueOfKeys selects, of each ordering key, the oldest row if it is due. It hops
// from key to key in the index: behind one that fails for hours there may be a
// hundred thousand rows. What it finds it looks at again when it is locked, in
// words by which no index can be meant.
const dueOfKeys = `WITH RECURSIVE head AS (
			SELECT l.id, l.room, h.* FROM unnest($1::bigint[], $2::int[]) AS l (id, room)
			CROSS JOIN LATERAL (
				SELECT q.order_key, q.ctid AS place, q.background, q.due_at, q.owner FROM retries q
				WHERE q.listener_id = l.id AND q.state = 'pending' AND q.order_key <> ''
				ORDER BY q.order_key, q.batch_id, q.ordinal LIMIT 1
			) h
			UNION ALL
			SELECT p.id, p.room, h.* FROM head p
			CROSS JOIN LATERAL (
				SELECT q.order_key, q.ctid AS place, q.background, q.due_at, q.owner FROM retries q
				WHERE q.listener_id = p.id AND q.state = 'pending' AND q.order_key <> '' AND q.order_key > p.order_key
				ORDER BY q.order_key, q.batch_id, q.ordinal LIMIT 1
			) h
		), ready AS (
			SELECT place, room, row_number() OVER (PARTITION BY id ORDER BY background, due_at) AS nth
			FROM head WHERE due_at <= now() AND owner IS NULL
		)
		SELECT ctid FROM retries WHERE ctid = ANY (ARRAY(SELECT place FROM ready WHERE nth <= room))
			AND state || '' = 'pending' AND due_at <= now() AND owner IS NULL
		LIMIT $4 FOR UPDATE SKIP LOCKED`

// claimOf claims what a query selects.
func claimOf(due string) string {
	return `UPDATE retries SET owner = $3, updated_at = now() WHERE ctid = ANY (ARRAY(` + due + `))
		RETURNING batch_id, ordinal, listener_id, attempt, order_key, asked, background`
}

// claimSome claims the rows that a query calls due.
func claimSome(ctx context.Context, tx pgx.Tx, owner int64, ids []int64, counts []int32, most int, due string) (jobs []job, keys []event.Key, err error) {
	rows, err := tx.Query(ctx, claimOf(due), ids, counts, owner, most)
	if err != nil {
		return nil, nil, err
	}
	jobs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (job, error) {
		var k event.Key
		j := job{owner: owner}
		err := row.Scan(&k.Batch, &k.Ordinal, &j.listener, &j.attempt, &j.orderKey, &j.asked, &j.background)
		keys = append(keys, k)
		return j, err
	})
	return jobs, keys, err
}

// loadEvents gives every job its event; one that is gone has no name.
func (d *Delivery) loadEvents(ctx context.Context, jobs []job, keys []event.Key) error {
	stored, err := d.store.Events(ctx, keys)
	if err != nil {
		return err
	}
	byKey := make(map[event.Key]*event.Stored, len(stored))
	for i := range stored {
		byKey[stored[i].Key] = &stored[i]
	}
	for i := range jobs {
		if jobs[i].stored = byKey[keys[i]]; jobs[i].stored == nil {
			jobs[i].stored = &event.Stored{Key: keys[i]}
		}
		jobs[i].shared = &shared{}
	}
	return nil
}

// Recover takes batches that a dead instance left unsettled. What the records
// show as delivered, or as waiting in retries, is not dispatched again. What is
// ordered waits in retries when it returns: newer events may then be received,
// here or elsewhere.
func (d *Delivery) Recover(ctx context.Context, batches []*event.Batch) error {
	wanted, of := wantedBy(batches)
	rows, err := d.pool.Query(ctx, `WITH u AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS u (listener_id, batch_id))
		SELECT batch_id, ordinal, listener_id FROM u JOIN attempts USING (listener_id, batch_id) WHERE delivered
		UNION ALL SELECT batch_id, ordinal, listener_id FROM u JOIN retries USING (listener_id, batch_id)`, wanted, of)
	if err != nil {
		return fmt.Errorf("read what was settled: %w", err)
	}
	settled := make(map[ID]bool)
	var id ID
	if _, err := pgx.ForEachRow(rows, []any{&id.Key.Batch, &id.Key.Ordinal, &id.Listener}, func() error {
		settled[id] = true
		return nil
	}); err != nil {
		return fmt.Errorf("read what was settled: %w", err)
	}
	for _, b := range batches {
		if err := d.dispatch(ctx, b, settled, true); err != nil {
			return err
		}
	}
	return d.recorder.flush(ctx)
}

// wantedBy lists the listeners of batches, and beside each one its batch.
func wantedBy(batches []*event.Batch) (listeners, of []int64) {
	for _, b := range batches {
		seen := make(map[int64]bool)
		for i := range b.Events {
			for _, l := range b.Events[i].Listeners {
				if !seen[l] {
					seen[l] = true
					listeners, of = append(listeners, l), append(of, b.ID)
				}
			}
		}
	}
	return listeners, of
}

// Free gives back the retries that a dead instance had taken up.
func (d *Delivery) Free(ctx context.Context, dead int64) error {
	if _, err := d.pool.Exec(ctx, `UPDATE retries SET owner = NULL, updated_at = now() WHERE owner = $1`, dead); err != nil {
		return fmt.Errorf("free the retries of instance %d: %w", dead, err)
	}
	d.wake()
	return nil
}

// Yield puts all ordered deliveries of a shard that this instance has in memory
// into retries, and returns when they are there. Those in flight are not waited
// for: their rows hold back what is newer.
func (d *Delivery) Yield(ctx context.Context, s event.Shard) error {
	for _, l := range d.all() {
		l.yield(s)
	}
	if err := d.recorder.flush(ctx); err != nil {
		return fmt.Errorf("yield the deliveries of shard %v: %w", s, err)
	}
	return nil
}

// Prepare tells the lanes which ordering keys have deliveries waiting in
// retries: newer ones must not overtake them.
func (d *Delivery) Prepare(ctx context.Context) error {
	rows, err := d.pool.Query(ctx, `SELECT DISTINCT ON (listener_id, order_key) listener_id, order_key, batch_id, ordinal FROM retries
		WHERE state = 'pending' AND order_key <> ''
		ORDER BY listener_id DESC, order_key DESC, batch_id DESC, ordinal DESC`)
	if err != nil {
		return fmt.Errorf("read what waits for a retry: %w", err)
	}
	var k parkedKey
	if _, err = pgx.ForEachRow(rows, []any{&k.listener, &k.name, &k.newest.Batch, &k.newest.Ordinal}, func() error {
		d.lane(k.listener).park(k.name, k.newest)
		return nil
	}); err != nil {
		return fmt.Errorf("read what waits for a retry: %w", err)
	}
	return nil
}

// parkedKey is an ordering key that waits in retries, up to a delivery.
type parkedKey struct {
	listener int64
	name     string
	newest   event.Key
}

// unparkKeys finds the keys that other instances have worked off: what is
// newer need not take the way by the database any more.
func (d *Delivery) unparkKeys(ctx context.Context) error {
	var keys []parkedKey
	for _, l := range d.all() {
		keys = l.parked(keys, unparkAtOnce)
	}
	if len(keys) == 0 {
		return nil
	}
	// Some of their rows may be on their way only.
	if err := d.recorder.flush(ctx); err != nil {
		return err
	}
	listeners, names := make([]int64, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		listeners[i], names[i] = k.listener, k.name
	}
	rows, err := d.pool.Query(ctx, `SELECT i FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS k (listener_id, name, i)
		WHERE NOT EXISTS (SELECT FROM retries r WHERE r.listener_id = k.listener_id AND r.order_key = k.name
			AND r.order_key <> '' AND r.state = 'pending')`, listeners, names)
	if err != nil {
		return fmt.Errorf("look for keys that wait for nothing: %w", err)
	}
	idle, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("look for keys that wait for nothing: %w", err)
	}
	for _, i := range idle {
		k := keys[i-1]
		d.lane(k.listener).unpark(k.name, k.newest)
	}
	return nil
}

// Forget drops what waits for a listener, in the transaction that deletes it.
func Forget(ctx context.Context, tx pgx.Tx, listenerID int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM retries WHERE listener_id = $1`, listenerID); err != nil {
		return fmt.Errorf("drop the retries of a listener: %w", err)
	}
	return Renew(ctx, tx, listenerID)
}

// upkeep makes and drops partitions, and removes rows that nothing will ask
// for any more: those past their retention, and those of deleted listeners
// that a POST in flight left behind.
func (d *Delivery) upkeep(ctx context.Context) error {
	if err := d.parts.Maintain(ctx, time.Now()); err != nil {
		return err
	}
	// What was last touched so long ago has no event any more, also if it still
	// waits for a listener that is disabled.
	if _, err := d.pool.Exec(ctx, `DELETE FROM retries WHERE owner IS NULL AND updated_at < now() - $1::interval
		AND (state <> 'pending' OR due_at < now() - $1::interval)`, d.cfg.Retention); err != nil {
		return fmt.Errorf("remove old outcomes: %w", err)
	}
	rows, err := d.pool.Query(ctx, `SELECT DISTINCT listener_id FROM retries WHERE updated_at < now() - interval '1 hour'`)
	if err != nil {
		return fmt.Errorf("list listeners with old retries: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("list listeners with old retries: %w", err)
	}
	for _, id := range ids {
		if d.listeners.Listener(id) != nil {
			continue
		}
		if _, err := d.pool.Exec(ctx, `DELETE FROM retries WHERE listener_id = $1 AND updated_at < now() - interval '1 hour'`, id); err != nil {
			return fmt.Errorf("remove the retries of a deleted listener: %w", err)
		}
	}
	return nil
}
