package delivery

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// Recover dispatches batches that a dead instance left unsettled, except for deliveries
// that were delivered or have a row in retries. When it returns, the ordered deliveries
// have rows in retries, so newer events may be received, here or elsewhere.
func (d *Delivery) Recover(ctx context.Context, batches []*event.Batch) error {
	listeners, batchIDs := wantedBy(batches)
	rows, _ := d.pool.Query(ctx, `WITH u AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS u (listener_id, batch_id))
		SELECT batch_id, ordinal, listener_id FROM u JOIN attempts USING (listener_id, batch_id) WHERE delivered
		UNION ALL SELECT batch_id, ordinal, listener_id FROM u JOIN retries USING (listener_id, batch_id)`, listeners, batchIDs)
	settled := make(map[ID]bool)
	var id ID
	if _, err := pgx.ForEachRow(rows, []any{&id.Key.Batch, &id.Key.Ordinal, &id.Listener}, func() error {
		settled[id] = true
		return nil
	}); err != nil {
		return fmt.Errorf("read the settled deliveries: %w", err)
	}
	for _, b := range batches {
		if err := d.dispatch(ctx, b, settled, true); err != nil {
			return err
		}
	}
	return d.recorder.flush(ctx)
}

// wantedBy returns the listeners of each batch; batchIDs[i] is the batch of
// listeners[i].
func wantedBy(batches []*event.Batch) (listeners, batchIDs []int64) {
	for _, b := range batches {
		seen := make(map[int64]bool)
		for i := range b.Events {
			for _, l := range b.Events[i].Listeners {
				if !seen[l] {
					seen[l] = true
					listeners, batchIDs = append(listeners, l), append(batchIDs, b.ID)
				}
			}
		}
	}
	return listeners, batchIDs
}

// Free gives back the retries that a dead instance had taken up.
func (d *Delivery) Free(ctx context.Context, dead int64) error {
	if _, err := d.pool.Exec(ctx, `UPDATE retries SET owner = NULL, updated_at = now() WHERE owner = $1`, dead); err != nil {
		return fmt.Errorf("free the retries of instance %d: %w", dead, err)
	}
	d.wake()
	return nil
}

// Yield stores a row in retries for each ordered delivery of a shard that this instance
// has in memory. It returns when all rows are stored. It does not wait for the
// deliveries in flight, because their rows hold back newer ones.
func (d *Delivery) Yield(ctx context.Context, s event.Shard) error {
	for _, l := range d.all() {
		l.yield(s)
	}
	if err := d.recorder.flush(ctx); err != nil {
		return fmt.Errorf("yield the deliveries of shard %v: %w", s, err)
	}
	return nil
}

// Prepare tells the lanes which ordering keys have deliveries in retries, because newer
// ones must not overtake them.
func (d *Delivery) Prepare(ctx context.Context) error {
	rows, _ := d.pool.Query(ctx, `SELECT DISTINCT ON (listener_id, order_key) listener_id, order_key, batch_id, ordinal FROM retries
		WHERE state = 'pending' AND order_key <> ''
		ORDER BY listener_id DESC, order_key DESC, batch_id DESC, ordinal DESC`)
	var k parkedKey
	if _, err := pgx.ForEachRow(rows, []any{&k.listener, &k.name, &k.newest.Batch, &k.newest.Ordinal}, func() error {
		d.lane(k.listener).park(k.name, k.newest)
		return nil
	}); err != nil {
		return fmt.Errorf("read the ordering keys that wait for a retry: %w", err)
	}
	return nil
}
