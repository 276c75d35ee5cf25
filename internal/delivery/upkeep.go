package delivery

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// upkeep creates and drops partitions, and removes useless rows: those past their
// retention, and those that a POST in flight left behind for a deleted listener.
func (d *Delivery) upkeep(ctx context.Context) error {
	if err := d.parts.Maintain(ctx, d.now()); err != nil {
		return err
	}
	if err := d.expireOld(ctx); err != nil {
		return err
	}
	// A row that was last changed that long ago has lost its event.
	if _, err := d.pool.Exec(ctx, `DELETE FROM retries WHERE owner IS NULL AND updated_at < now() - $1::interval AND state <> 'pending'`,
		d.cfg.Retention); err != nil {
		return fmt.Errorf("remove old outcomes: %w", err)
	}
	rows, _ := d.pool.Query(ctx, `SELECT DISTINCT listener_id FROM retries WHERE updated_at < now() - interval '1 hour'`)
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

// expireAtOnce bounds the deliveries that one statement expires.
const expireAtOnce = 5000

// expireOld expires the deliveries that still wait although their events are past the
// retention: those of a disabled listener, or of a schedule that is longer.
func (d *Delivery) expireOld(ctx context.Context) error {
	before := d.store.At(d.now().Add(-d.cfg.Retention))
	rows, _ := d.pool.Query(ctx, withPending+`SELECT listener_id FROM l WHERE listener_id IS NOT NULL
		AND EXISTS (SELECT FROM retries r WHERE r.listener_id = l.listener_id AND r.state = 'pending' AND r.batch_id < $1)`, before)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("look for deliveries past the retention: %w", err)
	}
	for _, id := range ids {
		total := int64(0)
		for n := int64(expireAtOnce); n == expireAtOnce; total += n {
			tag, err := d.pool.Exec(ctx, `UPDATE retries SET state = 'expired', updated_at = now() WHERE ctid = ANY (ARRAY(
					SELECT ctid FROM retries WHERE listener_id = $1 AND state = 'pending' AND owner IS NULL AND batch_id < $2
					LIMIT $3 FOR UPDATE SKIP LOCKED))`, id, before, expireAtOnce)
			if err != nil {
				return fmt.Errorf("expire the deliveries past the retention of listener %s: %w", event.ListenerID(id), err)
			}
			n = tag.RowsAffected()
		}
		if l := d.listeners.Listener(id); l != nil && total > 0 {
			d.lane(id).series.Load().deliveries[expired].Add(float64(total))
			d.log.LogAttrs(ctx, slog.LevelWarn, "deliveries expired while they waited: their events are past GATEHOOK_RETENTION",
				slog.String("listener", event.ListenerID(id)), slog.String("host", hostOf(l)), slog.Int64("deliveries", total))
		}
	}
	return nil
}

// forget drops the idle lanes of deleted listeners, and their metrics.
func (d *Delivery) forget() {
	for _, l := range d.all() {
		if d.listeners.Listener(l.id) != nil {
			continue
		}
		if size, inFlight, _ := l.load(); size > 0 || inFlight > 0 {
			continue
		}
		d.mu.Lock()
		delete(d.lanes, l.id)
		d.mu.Unlock()
		d.metrics.close(l.series.Swap(d.metrics.other))
	}
}

// Forget drops the deliveries that wait for a listener, in the transaction that deletes
// it.
func Forget(ctx context.Context, tx pgx.Tx, listenerID int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM retries WHERE listener_id = $1`, listenerID); err != nil {
		return fmt.Errorf("drop the retries of a listener: %w", err)
	}
	return Renew(ctx, tx, listenerID)
}
