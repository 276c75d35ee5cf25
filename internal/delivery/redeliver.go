package delivery

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// again queues a delivery once more, due now, unless an instance has it in hand.
func (d *Delivery) again(ctx context.Context, e *entry, l *event.Listener) error {
	attempts := 0
	if e.last != nil {
		attempts = e.last.number
	}
	if _, err := d.pool.Exec(ctx, `INSERT INTO retries AS r (batch_id, ordinal, listener_id, state, attempt, due_at, order_key, asked)
		VALUES ($1, $2, $3, 'pending', $4, now(), $5, true)
		ON CONFLICT (batch_id, ordinal, listener_id) DO UPDATE SET state = 'pending', due_at = now(), asked = true, background = false, updated_at = now(),
			order_key = CASE WHEN r.state = 'pending' THEN r.order_key ELSE excluded.order_key END
		WHERE r.owner IS NULL`,
		e.id.Key.Batch, e.id.Key.Ordinal, e.id.Listener, attempts, askedKey(l, &e.event.Event)); err != nil {
		return fmt.Errorf("queue a delivery again: %w", err)
	}
	d.wake()
	return nil
}

// replay queues, in one transaction, the stored events of a span of time that a
// listener wants, except for those under way to it. It returns their number.
func (d *Delivery) replay(ctx context.Context, l *event.Listener, since, until time.Time) (queued int64, err error) {
	pattern, err := event.ParsePattern(l.Event)
	if err != nil {
		return 0, fmt.Errorf("replay: %w", err)
	}
	name := pattern.Name
	if pattern.Prefix {
		name = ""
	}
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		ctx := postgres.WithTx(ctx, tx)
		return d.store.Span(ctx, since, until, name, func(page []event.Stored) error {
			underWay, err := d.underWay(ctx, l.ID, page)
			if err != nil {
				return err
			}
			var rows retryRows
			for i := range page {
				if l.Wants(&page[i].Event) && !isSample(&page[i].Event) && !underWay[page[i].Key] {
					rows.keyRows.add(ID{page[i].Key, l.ID})
					rows.orderKeys = append(rows.orderKeys, askedKey(l, &page[i].Event))
				}
			}
			tag, err := tx.Exec(ctx, `INSERT INTO retries AS r (batch_id, ordinal, listener_id, state, attempt, due_at, order_key, asked, background)
				SELECT batch_id, ordinal, listener_id, 'pending', 0, now(), order_key, true, true
				FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[]) AS u (batch_id, ordinal, listener_id, order_key)
				ON CONFLICT (batch_id, ordinal, listener_id) DO UPDATE
				SET state = 'pending', attempt = 0, due_at = now(), asked = true, background = true, updated_at = now(),
					order_key = CASE WHEN r.state = 'pending' THEN r.order_key ELSE excluded.order_key END
				WHERE r.owner IS NULL`, rows.batches, rows.ordinals, rows.listeners, rows.orderKeys)
			queued += tag.RowsAffected()
			return err
		})
	})
	if err != nil {
		return 0, fmt.Errorf("replay: %w", err)
	}
	d.wake()
	return queued, nil
}

// underWay returns the events of an ordered page that an instance has in hand for a
// listener, whether taken up from retries or in memory. That instance will record their
// outcomes. A replay must not write or lock their rows: the recorder, and all listeners
// with it, would wait until the replay ends.
func (d *Delivery) underWay(ctx context.Context, listener int64, page []event.Stored) (map[event.Key]bool, error) {
	if len(page) == 0 {
		return nil, nil
	}
	var batches []int64
	for i := range page {
		batches = append(batches, page[i].Key.Batch)
	}
	batches = slices.Compact(batches)
	// Read first: if a delivery is settled later, the next query finds its row or its
	// success.
	unsettled, err := d.store.Unsettled(ctx, batches)
	if err != nil {
		return nil, err
	}
	rows, _ := d.pool.Query(ctx, `SELECT batch_id, ordinal, owner IS NOT NULL FROM retries WHERE listener_id = $1 AND batch_id BETWEEN $2 AND $3
		UNION ALL SELECT batch_id, ordinal, false FROM attempts WHERE listener_id = $1 AND batch_id = ANY($4) AND delivered`,
		listener, batches[0], batches[len(batches)-1], unsettled)
	found := make(map[event.Key]bool)
	var k event.Key
	var owned bool
	if _, err := pgx.ForEachRow(rows, []any{&k.Batch, &k.Ordinal, &owned}, func() error {
		found[k] = found[k] || owned
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look for deliveries under way: %w", err)
	}
	for i := range page {
		e := &page[i]
		if _, known := found[e.Key]; !known && slices.Contains(e.Listeners, listener) && slices.Contains(unsettled, e.Key.Batch) {
			found[e.Key] = true
		}
	}
	return found, nil
}

// bulkPage is the number of deliveries read in one step.
const bulkPage = 5000

// retryAll queues, in one transaction, a listener's deliveries that are in one of the
// states and whose events were received in a span of time. It returns their number.
// Their schedules start over.
func (d *Delivery) retryAll(ctx context.Context, listener int64, states []string, since, until time.Time) (queued int64, err error) {
	after := event.Key{Batch: d.store.At(since) - 1, Ordinal: math.MaxInt32} // no event is stored before it is received
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		ctx := postgres.WithTx(ctx, tx)
		for {
			rows, _ := tx.Query(ctx, `SELECT batch_id, ordinal FROM retries
				WHERE listener_id = $1 AND (batch_id, ordinal) > ($2, $3) AND state = ANY($4) AND owner IS NULL
				ORDER BY batch_id, ordinal LIMIT $5`, listener, after.Batch, after.Ordinal, states, bulkPage)
			page, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event.Key])
			if err != nil || len(page) == 0 {
				return err
			}
			wanted, err := d.store.Within(ctx, page, since, until)
			if err != nil {
				return err
			}
			var keys keyRows
			for _, k := range wanted {
				keys.add(ID{k, listener})
			}
			tag, err := tx.Exec(ctx, `UPDATE retries t SET state = 'pending', attempt = 0, due_at = now(), asked = true, background = true, updated_at = now(),
					order_key = CASE WHEN t.order_key = '' OR starts_with(t.order_key, $5) THEN t.order_key ELSE $5 || t.order_key END
				FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS u (batch_id, ordinal, listener_id)
				WHERE t.batch_id = u.batch_id AND t.ordinal = u.ordinal AND t.listener_id = u.listener_id AND t.owner IS NULL AND t.state = ANY($4)`,
				keys.batches, keys.ordinals, keys.listeners, states, asked)
			if err != nil {
				return err
			}
			queued += tag.RowsAffected()
			after = page[len(page)-1]
		}
	})
	if err != nil {
		return 0, fmt.Errorf("retry deliveries: %w", err)
	}
	d.wake()
	return queued, nil
}

// test makes one attempt to deliver an event to a listener, and records it. If the
// attempt fails, the delivery is exhausted, and can be retried like any other.
func (d *Delivery) test(ctx context.Context, l *event.Listener, e *event.Event) (storedAttempt, error) {
	key, err := d.store.Add(ctx, e, []int64{l.ID})
	if err != nil {
		return storedAttempt{}, err
	}
	d.cfg.Traces.received(ctx, e, d.now())
	stored := &event.Stored{Event: *e, Key: key, Listeners: []int64{l.ID}}
	rec := record{job: job{stored: stored, listener: l.ID, bodies: new(bodies)}, attempted: true, startedAt: d.now(), began: time.Now()}
	span, parent := d.cfg.Traces.attempt(ctx, &rec)
	t, err := callback.NewTarget(l)
	var body []byte
	if err == nil {
		body, err = rec.job.body(l, d.cfg.Application())
	}
	if err != nil {
		rec.result = callback.Result{Err: err, Class: callback.ClassRefused}
	} else {
		rec.result = d.send(ctx, t, l, &rec, body, parent)
	}
	if rec.outcome = decide(rec.result, decision{attempt: 1, now: d.now()}); rec.outcome.kind != delivered {
		rec.outcome = outcome{kind: exhausted}
	}
	endSpan(span, &rec, t)
	var made attemptRows
	made.add(&rec)
	err = pgx.BeginFunc(context.WithoutCancel(ctx), d.pool, func(tx pgx.Tx) error {
		var b pgx.Batch
		queueAttempts(&b, &made)
		if rec.outcome.kind != delivered {
			b.Queue(`INSERT INTO retries (batch_id, ordinal, listener_id, state, attempt, due_at, order_key) VALUES ($1, $2, $3, 'exhausted', 1, now(), '')`,
				key.Batch, key.Ordinal, l.ID)
		}
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return storedAttempt{}, fmt.Errorf("record a test: %w", err)
	}
	return storedAttempt{
		id: rec.job.id(), number: 1, startedAt: rec.startedAt, took: rec.result.Duration, status: rec.result.Status,
		delivered: rec.outcome.kind == delivered, problem: made.errors[0], response: made.responses[0],
	}, nil
}

// sampleFor makes an event that the listener would receive.
func sampleFor(l *event.Listener, now time.Time) (*event.Event, error) {
	pattern, err := event.ParsePattern(l.Event)
	if err != nil {
		return nil, fmt.Errorf("make a sample: %w", err)
	}
	name := pattern.Name
	if pattern.Prefix {
		name = "MESSAGE_CREATE"
		for _, t := range event.Types() {
			if !pattern.Matches(name) && pattern.Matches(t.Name) {
				name = t.Name
			}
		}
	}
	id, err := uuid.NewRandom() // isSample recognizes a sample by its random id
	if err != nil {
		return nil, fmt.Errorf("make a sample: %w", err)
	}
	data, ok := event.Sample(name)
	if !ok {
		data = []byte(`{"shard_id":0}`) // a stand-in for an event without a sample
	}
	e := &event.Event{ID: id, Name: name, Shard: event.Shard{ID: 0, Count: 1}, ReceivedAt: now, Data: data}
	event.FindIDs(e)
	return e, nil
}

// isSample reports whether sampleFor made an event. Only samples have a random id (RFC
// 9562, section 5.4). All other ids are derived: those of Discord's events from their
// place in the session, the rest from the time or an attempt. A sample is for the
// listener under test, and must not reach another listener as if it had happened.
func isSample(e *event.Event) bool { return e.ID.Version() == 4 }
