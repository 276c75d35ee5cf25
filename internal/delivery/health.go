package delivery

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// The database keeps, per listener, the time since which every attempt has failed, so
// that neither a restart nor another instance resets it. The transaction that records
// an attempt writes this time, but only when it changes: at the first failure after a
// success, and at the first success after a failure. Every healthEvery, this instance
// reads the times that others wrote. The decision to disable a listener reads the row
// itself.

// healthEvery is how often the listeners' health is read from the database.
const healthEvery = 10 * time.Second

// health holds since when listeners have been failing, as far as this instance knows. It
// is safe for concurrent use.
type health struct {
	mu      sync.Mutex // guards failing
	failing map[int64]time.Time
}

// since returns the time of the first failure after the last success; zero for none.
func (h *health) since(listener int64) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failing[listener]
}

func (h *health) replace(failing map[int64]time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing = failing
}

// streak summarizes some attempts for a listener: the time of the last success, and of
// the first failure after it; zero for none.
type streak struct{ succeeded, failed time.Time }

// streaks summarizes attempts by listener.
func streaks(recs []record) map[int64]streak {
	var all map[int64]streak
	for pass := range 2 {
		for i := range recs {
			r := &recs[i]
			if !r.attempted || r.outcome.kind == unparsable || r.moved {
				continue // nothing was sent to the callback
			}
			s, ok := all[r.job.listener], r.outcome.kind == delivered
			switch {
			case pass == 0 && ok && r.startedAt.After(s.succeeded):
				s.succeeded = r.startedAt
			case pass == 1 && !ok && r.startedAt.After(s.succeeded) && (s.failed.IsZero() || r.startedAt.Before(s.failed)):
				s.failed = r.startedAt
			default:
				continue
			}
			if all == nil {
				all = make(map[int64]streak)
			}
			all[r.job.listener] = s
		}
	}
	return all
}

// healthRows are changes of the listeners' health, as columns.
type healthRows struct {
	ended     []int64
	succeeded []time.Time
	begun     []int64
	failed    []time.Time
}

// changes returns how some streaks change the listeners' health.
func (h *health) changes(all map[int64]streak) (rows healthRows) {
	// In the same order everywhere, because otherwise two transactions could deadlock.
	for _, id := range slices.Sorted(maps.Keys(all)) {
		s, since := all[id], h.since(id)
		if !since.IsZero() && !s.succeeded.Before(since) {
			rows.ended, rows.succeeded = append(rows.ended, id), append(rows.succeeded, s.succeeded)
			since = time.Time{}
		}
		if since.IsZero() && !s.failed.IsZero() {
			rows.begun, rows.failed = append(rows.begun, id), append(rows.failed, s.failed)
		}
	}
	return rows
}

// queue adds the statements that store the changes.
func (r *healthRows) queue(b *pgx.Batch) {
	if len(r.ended) > 0 {
		b.Queue(`UPDATE listener_health h SET failing_since = NULL FROM unnest($1::bigint[], $2::timestamptz[]) AS u (id, at)
			WHERE h.listener_id = u.id AND h.failing_since <= u.at`, r.ended, r.succeeded)
	}
	if len(r.begun) > 0 {
		b.Queue(`INSERT INTO listener_health AS h (listener_id, failing_since) SELECT * FROM unnest($1::bigint[], $2::timestamptz[])
			ON CONFLICT (listener_id) DO UPDATE SET failing_since = excluded.failing_since
			WHERE h.failing_since IS NULL OR h.failing_since > excluded.failing_since`, r.begun, r.failed)
	}
}

// apply notes changes that were stored.
func (h *health) apply(r healthRows) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range r.ended {
		delete(h.failing, id)
	}
	for i, id := range r.begun {
		h.failing[id] = r.failed[i]
	}
}

// readHealth reads since when listeners have been failing.
func (d *Delivery) readHealth(ctx context.Context) error {
	rows, _ := d.pool.Query(ctx, `SELECT listener_id, failing_since FROM listener_health WHERE failing_since IS NOT NULL`)
	failing := make(map[int64]time.Time)
	var (
		id    int64
		since time.Time
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &since}, func() error {
		failing[id] = since
		return nil
	}); err != nil {
		return fmt.Errorf("read which listeners are failing: %w", err)
	}
	d.health.replace(failing)
	return nil
}

// Renew forgets the failures of a listener, in the transaction that enables it or gives
// it another URL.
func Renew(ctx context.Context, tx pgx.Tx, listenerID int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM listener_health WHERE listener_id = $1`, listenerID); err != nil {
		return fmt.Errorf("forget the failures of a listener: %w", err)
	}
	return nil
}
