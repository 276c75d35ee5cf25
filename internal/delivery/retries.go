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
	// retryPoll is how often the retry loop looks for retries when nothing announces
	// one, because another instance may have left some.
	retryPoll = time.Second
	// putBack is the wait of a delivery that goes back into retries because of an older
	// one of its ordering key.
	putBack = 200 * time.Millisecond
	// claimAtOnce bounds the deliveries that all lanes together take up in one step.
	// They are in memory twice during the step, and idle lanes wait for its end.
	claimAtOnce = 4096
)

// due tells the retry loop when a delivery will be due.
func (d *Delivery) due(at time.Time) {
	d.mu.Lock()
	sooner := d.nextDue.IsZero() || at.Before(d.nextDue)
	if sooner {
		d.nextDue = at
	}
	d.mu.Unlock()
	if sooner {
		poke(d.replan)
	}
}

// untilDue returns how long the retry loop may sleep.
func (d *Delivery) untilDue(now time.Time) time.Duration {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.nextDue.IsZero() {
		return retryPoll
	}
	return max(0, min(retryPoll, d.nextDue.Sub(now)))
}

// takeRetries is the retry loop: it takes up the retries that are due, until ctx ends.
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
		// The periodic steps must not reset the timer, because it might then never
		// fire.
		resetTimer := true
		select {
		case <-ctx.Done():
			return
		case <-d.replan:
		case <-health.C:
			resetTimer, err = false, d.readHealth(ctx)
		case <-upkeep.C:
			resetTimer, err = false, d.upkeep(ctx)
		case <-d.kick:
			err = d.takeDue(ctx)
		case <-timer.C:
			err = d.takeDue(ctx)
		case <-unpark.C:
			d.forget()
			resetTimer, err = false, d.unparkKeys(ctx)
		}
		if err != nil && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "a step of the retry loop failed", slog.Any("error", err))
		}
		if resetTimer {
			timer.Reset(d.untilDue(d.now()))
		}
	}
}

// takeDue claims due retries and gives them to the lanes that have room. The rows of
// one listener never block those of another.
func (d *Delivery) takeDue(ctx context.Context) error {
	d.mu.Lock()
	if !d.nextDue.After(d.now()) { // otherwise due would ignore all later times
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
	// In random order, because the first lanes may use up the whole step.
	rand.Shuffle(len(rooms), func(i, j int) { rooms[i], rooms[j] = rooms[j], rooms[i] })
	jobs, keys, err := d.claim(ctx, rooms, claimAtOnce)
	if err == nil && len(jobs) > 0 {
		err = d.loadEvents(ctx, jobs, keys)
	}
	if err != nil {
		// The rows may be claimed nevertheless, if only the answer was lost.
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
			err = d.recorder.put(ctx, record{job: j, outcome: outcome{kind: retryAt, at: d.now().Add(putBack)}})
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

// room is how many deliveries a listener's lane can take, in all and from the
// background.
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

// withPending begins a query. Its table l has the listeners with pending retries, and
// NULL at the end. The query hops from listener to listener in the index instead of
// reading every row.
const withPending = `WITH RECURSIVE l AS (
		(SELECT listener_id FROM retries WHERE state = 'pending' ORDER BY listener_id LIMIT 1)
		UNION ALL
		SELECT (SELECT r.listener_id FROM retries r WHERE r.state = 'pending' AND r.listener_id > l.listener_id
			ORDER BY r.listener_id LIMIT 1)
		FROM l WHERE l.listener_id IS NOT NULL
	) `

// withRoom returns the room of each lane that has room and pending retries.
func (d *Delivery) withRoom(ctx context.Context) (rooms []room, err error) {
	rows, _ := d.pool.Query(ctx, withPending+`SELECT listener_id FROM l WHERE listener_id IS NOT NULL`)
	pending, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("list listeners with retries: %w", err)
	}
	now := d.now()
	for _, id := range pending {
		l := d.listeners.Listener(id)
		if l == nil {
			continue // deleted; upkeep removes its rows
		}
		if d.lane(id).takeMoved() {
			if err := d.hasten(ctx, id); err != nil {
				d.lane(id).notMoved()
				return nil, err
			}
		}
		if l.MaxAge > 0 && d.lane(id).isPaused(time.Now()) {
			if err := d.expirePaused(ctx, l, now); err != nil {
				return nil, err
			}
		}
		if all, background := d.lane(id).room(time.Now()); all > 0 {
			rooms = append(rooms, room{id, all, background})
		}
	}
	return rooms, nil
}

// hastenAtOnce bounds the deliveries that become due in one step.
const hastenAtOnce = 5000

// hasten makes deliveries due that wait for the hour of a listener's old URL.
func (d *Delivery) hasten(ctx context.Context, listener int64) error {
	tag, err := d.pool.Exec(ctx, `UPDATE retries SET due_at = now(), updated_at = now() WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM retries WHERE listener_id = $1 AND state = 'pending' AND owner IS NULL AND due_at > now()
			LIMIT $2 FOR UPDATE SKIP LOCKED))`, listener, hastenAtOnce)
	if err != nil {
		return fmt.Errorf("hasten the deliveries of listener %s, which has another URL: %w", event.ListenerID(listener), err)
	}
	if tag.RowsAffected() == hastenAtOnce {
		d.lane(listener).notMoved() // there are more
		d.wake()
	}
	return nil
}

// expirePaused expires, without an attempt, the deliveries that became too old while
// their lane pauses. Otherwise the lane would have to go through them first when it
// continues. Rows that were checked are not checked again, except for those of the last
// minute: rows may come late, and a million old ones may stay because somebody asked
// for them. A row that is missed expires when it is taken up.
func (d *Delivery) expirePaused(ctx context.Context, l *event.Listener, now time.Time) error {
	lane, until := d.lane(l.ID), now.Add(-l.MaxAge)
	// Locked rows are skipped. A replay of this listener locks its rows until it ends,
	// and all listeners would wait for it.
	tag, err := d.pool.Exec(ctx, `UPDATE retries SET state = 'expired', updated_at = now() WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM retries
			WHERE listener_id = $1 AND state = 'pending' AND owner IS NULL AND NOT asked AND batch_id >= $2 AND batch_id < $3
			FOR UPDATE SKIP LOCKED))`,
		l.ID, lane.expired, d.store.At(until))
	if err != nil {
		return fmt.Errorf("expire the deliveries that wait for listener %s: %w", event.ListenerID(l.ID), err)
	}
	lane.expired = d.store.At(until.Add(-time.Minute))
	lane.series.Load().deliveries[expired].Add(float64(tag.RowsAffected()))
	return nil
}

// freeUnsure gives back the rows that this instance may have claimed although no lane
// has them.
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

// loadEvents gives every job its event. An event that is no longer stored gets no name.
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
		jobs[i].bodies = &bodies{}
	}
	return nil
}
