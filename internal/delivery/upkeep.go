package delivery

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// upkeep creates and drops partitions, and removes useless rows: those past their
// retention, and those that a POST in flight left behind for a deleted listener.
func (d *Delivery) upkeep(ctx context.Context) error {
	if err := d.parts.Maintain(ctx, d.now()); err != nil {
		return err
	}
	// A row that was last changed that long ago has lost its event, even if it still
	// waits for a disabled listener.
	if _, err := d.pool.Exec(ctx, `DELETE FROM retries WHERE owner IS NULL AND updated_at < now() - $1::interval
		AND (state <> 'pending' OR due_at < now() - $1::interval)`, d.cfg.Retention); err != nil {
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
