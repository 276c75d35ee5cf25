package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// failingFor is how long every attempt for a listener must have failed, from the first
// failure to the last, before the listener is disabled.
const failingFor = 5 * 24 * time.Hour

// The reasons for which delivery disables a listener.
const (
	reasonGone    = "gone"
	reasonFailing = "failing"
)

// errRecovered means that another instance had a success, or that somebody enabled the
// listener again.
var errRecovered = errors.New("the listener has not failed for long enough")

// condemn disables the listener after a 410, or if the attempt completes failingFor of
// failures. It runs before the attempt is recorded, so that a crash in between loses
// nothing: the delivery is taken up again, and the listener is then disabled unless it
// already is. One transaction disables the listener and stores the event that reports
// it. If several attempts call for that, only the first one does it.
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
	e, err := listenerDisabled(rec, l, reason, since, d.now())
	if err == nil {
		err = d.disable(rec, l, reason, e)
	}
	if err != nil && !errors.Is(err, errRecovered) {
		d.log.LogAttrs(d.attempts, slog.LevelError, "could not disable a listener", slog.String("reason", reason), slog.Any("error", err))
	}
}

// disable disables the listener and stores the event. It tries until it succeeds or the
// process ends.
func (d *Delivery) disable(rec *record, l *event.Listener, reason string, e *event.Event) error {
	return retry.Do(d.attempts, postgres.Backoff(), func(ctx context.Context) error {
		done := false
		notices := d.notice(e, l.ID)
		err := d.store.Ensure(ctx)
		if err == nil {
			err = d.listeners.Disable(ctx, l.ID, l.URL, reason, func(ctx context.Context, tx pgx.Tx) error {
				if reason == reasonFailing {
					if err := stillFailing(ctx, tx, l.ID, rec.startedAt); err != nil {
						return err
					}
				}
				done = true
				var b pgx.Batch
				notices.queue(&b, d.store.Put)
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
			notices.trace(ctx, d.cfg.Traces, d.now())
			d.metrics.disabled.WithLabelValues(reason).Inc()
			d.log.LogAttrs(ctx, slog.LevelWarn, "listener disabled", slog.String("listener", event.ListenerID(l.ID)),
				slog.String("reason", reason), slog.String("host", hostOf(l)))
			d.wake()
		}
		return nil
	})
}

// stillFailing returns errRecovered unless the database confirms that the listener has
// been failing for failingFor.
func stillFailing(ctx context.Context, tx pgx.Tx, id int64, at time.Time) error {
	var since *time.Time
	err := tx.QueryRow(ctx, `SELECT failing_since FROM listener_health WHERE listener_id = $1 FOR UPDATE`, id).Scan(&since)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && (since == nil || at.Sub(*since) < failingFor):
		return errRecovered
	case err != nil:
		return fmt.Errorf("read how long a listener has been failing: %w", err)
	}
	return nil
}
