package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// Since when every attempt for a listener failed is kept in the database, so
// that neither a restart nor another instance's failures begin it anew. It is
// written in the transaction that records the attempt, and only when it changes:
// at the first failure after a success, and at the first success after a
// failure. What other instances wrote is read every healthEvery; the decision to
// disable a listener looks at the row itself.

const (
	// failingFor is how long every attempt has to fail before a listener is
	// disabled: so far are the first and the last of the failures apart.
	failingFor = 5 * 24 * time.Hour
	// healthEvery is how often is read what other instances wrote.
	healthEvery = 10 * time.Second
)

// The reasons for which a listener is disabled.
const (
	reasonGone    = "gone"
	reasonFailing = "failing"
)

// health is since when listeners fail, as far as this instance knows. It is safe
// for concurrent use.
type health struct {
	mu      sync.Mutex
	failing map[int64]time.Time
}

// since is when the first failure after the last success was; zero for none.
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

// streak is what some attempts for a listener say: when the last one succeeded,
// and when the first one after that failed; zero for none.
type streak struct{ succeeded, failed time.Time }

// streaks sums up attempts by listener.
func streaks(recs []record) map[int64]streak {
	var all map[int64]streak
	for pass := range 2 {
		for i := range recs {
			r := &recs[i]
			if !r.attempted || r.outcome.kind == unparsable {
				continue // nothing was asked of the callback
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

// healthRows is what changes of the listeners' health, in columns.
type healthRows struct {
	ended     []int64
	succeeded []time.Time
	begun     []int64
	failed    []time.Time
}

// changes is what of some streaks is news.
func (h *health) changes(all map[int64]streak) (rows healthRows) {
	// In one order, or two transactions could wait for each other.
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

// apply notes what was stored.
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

// readHealth reads since when listeners fail.
func (d *Delivery) readHealth(ctx context.Context) error {
	rows, err := d.pool.Query(ctx, `SELECT listener_id, failing_since FROM listener_health WHERE failing_since IS NOT NULL`)
	if err != nil {
		return fmt.Errorf("read which listeners fail: %w", err)
	}
	failing := make(map[int64]time.Time)
	var (
		id    int64
		since time.Time
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &since}, func() error {
		failing[id] = since
		return nil
	}); err != nil {
		return fmt.Errorf("read which listeners fail: %w", err)
	}
	d.health.replace(failing)
	return nil
}

// Renew forgets how a listener's callback did so far, in the transaction that
// enables the listener or gives it another URL.
func Renew(ctx context.Context, tx pgx.Tx, listenerID int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM listener_health WHERE listener_id = $1`, listenerID); err != nil {
		return fmt.Errorf("forget the failures of a listener: %w", err)
	}
	return nil
}

// errRecovered says that another instance had a success, or that somebody
// enabled the listener anew.
var errRecovered = errors.New("the listener has not failed for long enough")

// condemn disables the listener if the attempt was one too many. It is called
// before the attempt is recorded: should the process die in between, the
// delivery is made again and the same happens. The listener, and the event that
// tells of it, are changed in one transaction, by whichever of several attempts
// comes first.
func (d *Delivery) condemn(rec *record, l *event.Listener) {
	if !rec.attempted || l == nil {
		return
	}
	reason, since := "", time.Time{}
	switch failing := d.health.since(l.ID); {
	case rec.outcome.kind == disable:
		reason = rec.outcome.reason
	case rec.outcome.kind != delivered && rec.outcome.kind != unparsable && !failing.IsZero() && rec.startedAt.Sub(failing) >= failingFor:
		reason, since = reasonFailing, failing
	default:
		return
	}
	e, err := listenerDisabled(rec, l, reason, since)
	if err == nil {
		err = d.disable(rec, l, reason, e)
	}
	if err != nil && !errors.Is(err, errRecovered) {
		d.log.LogAttrs(d.attempts, slog.LevelError, "could not disable a listener", slog.String("reason", reason), slog.Any("error", err))
	}
}

// disable tries until it is done, or the process ends.
func (d *Delivery) disable(rec *record, l *event.Listener, reason string, e *event.Event) error {
	return retry.Do(d.attempts, postgres.Backoff(), func(ctx context.Context) error {
		done := false
		told := d.tell(e, l.ID)
		err := d.store.Ensure(ctx)
		if err == nil {
			err = d.listeners.Disable(ctx, l.ID, reason, func(ctx context.Context, tx pgx.Tx) error {
				if reason == reasonFailing {
					if err := stillFailing(ctx, tx, l.ID, rec.startedAt); err != nil {
						return err
					}
				}
				done = true
				var b pgx.Batch
				told.queue(&b, d.store.Put)
				return tx.SendBatch(ctx, &b).Close()
			})
		}
		switch {
		case errors.Is(err, errRecovered):
			return err
		case err != nil:
			d.log.LogAttrs(ctx, slog.LevelWarn, "disabling a listener failed, trying again", slog.Any("error", err))
			return retry.RetryableError(err)
		case done:
			told.trace(ctx, d.cfg.Traces)
			d.metrics.disabled.WithLabelValues(reason).Inc()
			d.log.LogAttrs(ctx, slog.LevelWarn, "listener disabled", slog.String("listener", event.ListenerID(l.ID)),
				slog.String("reason", reason), slog.String("host", rec.host(l)))
			d.wake()
		}
		return nil
	})
}

// stillFailing returns errRecovered unless the database agrees.
func stillFailing(ctx context.Context, tx pgx.Tx, id int64, at time.Time) error {
	var since *time.Time
	err := tx.QueryRow(ctx, `SELECT failing_since FROM listener_health WHERE listener_id = $1 FOR UPDATE`, id).Scan(&since)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && (since == nil || at.Sub(*since) < failingFor):
		return errRecovered
	case err != nil:
		return fmt.Errorf("read since when a listener fails: %w", err)
	}
	return nil
}
