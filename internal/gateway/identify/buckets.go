package identify

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// SlotLength is the time between two IDENTIFYs of a bucket: Discord's 5 s
// (Discord: Max Concurrency), and a bit more, because Discord counts from their
// arrival.
const SlotLength = 5*time.Second + slotMargin

// slotMargin is by how much the time from a slot's begin to the arrival of its IDENTIFY
// may differ between two IDENTIFYs.
const slotMargin = 250 * time.Millisecond

// resetMargin makes up for the truncation of reset_after to whole milliseconds:
// a start before the reset would be one too many.
const resetMargin = 100 * time.Millisecond

// Buckets paces IDENTIFYs through the database, so that the instances that
// share it never exceed a bucket or the day's budget together. It is safe for
// concurrent use. If the database does not answer, its methods wait until ctx
// ends.
type Buckets struct {
	pool postgres.DB
	log  *slog.Logger
	// Slot is the time from one IDENTIFY of a bucket to the next, SlotLength
	// unless a test makes it shorter. Set it before the first use.
	Slot time.Duration
}

// NewBuckets returns Buckets that use pool, which the caller closes.
func NewBuckets(pool *pgxpool.Pool, log *slog.Logger) *Buckets {
	return &Buckets{pool: postgres.On(pool), log: log, Slot: SlotLength}
}

// Learn implements Slots. Until the reset, the number only falls, because
// Discord's answer may not yet include a start that another instance is making.
// If no instance made one for a minute, Discord's number is taken as it is. One that was
// made in the future was made before the database's clock was set back; while this waited
// for the row, others may have made some, so now() would be too early.
func (b *Buckets) Learn(ctx context.Context, applicationID event.Snowflake, total, remaining int, resetAfter time.Duration) error {
	resetAfter += resetMargin
	return b.insist(ctx, func(ctx context.Context) error {
		_, err := b.pool.Exec(ctx, `INSERT INTO session_starts AS s (application_id, total, remaining, reset_at)
			VALUES ($1, $2, $3, now() + $4)
			ON CONFLICT (application_id) DO UPDATE SET total = $2, reset_at = now() + $4,
				remaining = CASE WHEN s.reset_at <= now() OR s.spent_at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() THEN $3
					ELSE least(s.remaining, $3) END`,
			int64(applicationID), total, remaining, resetAfter)
		return err
	})
}

// Spend implements Slots.
func (b *Buckets) Spend(ctx context.Context, applicationID event.Snowflake, floor int) (wait time.Duration, err error) {
	err = b.insist(ctx, func(ctx context.Context) error {
		wait = 0
		tag, err := b.pool.Exec(ctx, `UPDATE session_starts SET remaining = remaining - 1, spent_at = now()
			WHERE application_id = $1 AND remaining > $2`, int64(applicationID), floor)
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		err = b.pool.QueryRow(ctx, `SELECT reset_at - now() FROM session_starts WHERE application_id = $1`, int64(applicationID)).Scan(&wait)
		wait = max(wait, 1)
		return err
	})
	return wait, err
}

// Take implements Slots. All times are the database's, since the clocks of
// instances differ. A slot is never taken in advance: a shard of a more urgent
// class that comes later, here or on another instance, can still get it.
func (b *Buckets) Take(ctx context.Context, applicationID event.Snowflake, bucket int, class Class) (wait time.Duration, err error) {
	err = b.insist(ctx, func(ctx context.Context) error {
		wait = 0
		tag, err := b.pool.Exec(ctx, `INSERT INTO identify_buckets AS b (application_id, bucket, next_at)
			VALUES ($1, $2, clock_timestamp() + $3)
			ON CONFLICT (application_id, bucket) DO UPDATE SET next_at = clock_timestamp() + $3
			WHERE b.next_at <= clock_timestamp()`, int64(applicationID), bucket, b.Slot)
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		// A slot that is further away than slots are long was taken before the
		// database's clock was set back. Nobody knows how long ago that was.
		if _, err := b.pool.Exec(ctx, `UPDATE identify_buckets SET next_at = clock_timestamp() + $3
			WHERE application_id = $1 AND bucket = $2 AND next_at > clock_timestamp() + 2 * $3::interval`, int64(applicationID), bucket, b.Slot); err != nil {
			return err
		}
		err = b.pool.QueryRow(ctx, `SELECT next_at - clock_timestamp() FROM identify_buckets
			WHERE application_id = $1 AND bucket = $2`, int64(applicationID), bucket).Scan(&wait)
		wait = max(wait, 0) + time.Millisecond + time.Duration(class)*b.Slot/50
		return err
	})
	return wait, err
}

// Extend implements Slots.
func (b *Buckets) Extend(ctx context.Context, applicationID event.Snowflake, bucket int) error {
	return b.insist(ctx, func(ctx context.Context) error {
		_, err := b.pool.Exec(ctx, `UPDATE identify_buckets SET next_at = clock_timestamp() + $3 WHERE application_id = $1 AND bucket = $2`,
			int64(applicationID), bucket, b.Slot)
		return err
	})
}

// insist calls f until the database answers or ctx ends.
func (b *Buckets) insist(ctx context.Context, f func(context.Context) error) error {
	return retry.Do(ctx, discord.NewBackoff(100*time.Millisecond), func(ctx context.Context) error {
		try, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("the database took longer than 10 s"))
		defer cancel()
		err := f(try)
		if err != nil && ctx.Err() == nil {
			b.log.LogAttrs(ctx, slog.LevelWarn, "could not reserve a session start, trying again", slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
}
