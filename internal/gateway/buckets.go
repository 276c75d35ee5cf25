package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
)

// slotLength is how far apart the IDENTIFYs of a bucket are: Discord's 5 s,
// and some more, because what counts is when they arrive.
const slotLength = 5*time.Second + 250*time.Millisecond

// Buckets paces IDENTIFYs through the database, so that instances which share
// it never overrun a bucket together.
type Buckets struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	slot time.Duration
}

// NewBuckets uses pool, which the caller closes.
func NewBuckets(pool *pgxpool.Pool, log *slog.Logger) *Buckets {
	return &Buckets{pool: pool, log: log, slot: slotLength}
}

// Wait takes the bucket's next free slot and returns when it has come. Slots
// are given in the order in which they are asked for; one that is not used is
// lost. A database that does not answer is asked until ctx ends.
func (b *Buckets) Wait(ctx context.Context, applicationID event.Snowflake, bucket int) error {
	var wait time.Duration
	err := retry.Do(ctx, newBackoff(100*time.Millisecond), func(ctx context.Context) error {
		var err error
		if wait, err = b.reserve(ctx, applicationID, bucket); err != nil && ctx.Err() == nil {
			b.log.LogAttrs(ctx, slog.LevelWarn, "could not reserve an identify slot, trying again", slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		return err
	}
	return sleep(ctx, wait)
}

// reserve returns how long to wait for the slot. All times are the database's:
// the clocks of instances differ.
func (b *Buckets) reserve(ctx context.Context, applicationID event.Snowflake, bucket int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var wait time.Duration
	err := b.pool.QueryRow(ctx, `INSERT INTO identify_buckets AS b (application_id, bucket, next_at)
		VALUES ($1, $2, clock_timestamp() + $3)
		ON CONFLICT (application_id, bucket) DO UPDATE
		SET next_at = greatest(b.next_at, clock_timestamp()) + $3
		RETURNING greatest(next_at - $3 - clock_timestamp(), interval '0')`,
		int64(applicationID), bucket, b.slot).Scan(&wait)
	if err != nil {
		return 0, fmt.Errorf("reserve a slot of identify bucket %d: %w", bucket, err)
	}
	return wait, nil
}
