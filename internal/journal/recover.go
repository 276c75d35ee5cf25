package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
)

// recoverBatches bounds how many batches are taken over in one step, and so
// the memory that it takes.
const recoverBatches = 32

// Recover takes over every batch whose owner is dead and gives it to the
// deliverer. Run repeats it; the first call belongs before the first shard
// connects, so that older events come before newer ones.
func (j *Journal) Recover(ctx context.Context) error {
	for {
		batches, err := j.adopt(ctx)
		if err != nil {
			return fmt.Errorf("take over unsettled batches: %w", err)
		}
		if len(batches) == 0 {
			return nil
		}
		j.log.LogAttrs(ctx, slog.LevelInfo, "took over unsettled batches", slog.Int("batches", len(batches)))
		if err := j.deliverer.Recover(ctx, batches); err != nil {
			return fmt.Errorf("dispatch unsettled batches: %w", err)
		}
	}
}

func (j *Journal) adopt(ctx context.Context) ([]*event.Batch, error) {
	rows, err := j.pool.Query(ctx, `UPDATE batches SET owner = $1
		WHERE id IN (SELECT id FROM batches b WHERE owner <> $1
				AND NOT EXISTS (SELECT FROM instances i WHERE i.id = b.owner AND i.lease_until > now())
			ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)
		RETURNING id`, j.instance.id, recoverBatches)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	stored, err := read(ctx, j.pool, `batch_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	byID := make(map[int64]*event.Batch, len(ids))
	batches := make([]*event.Batch, 0, len(ids))
	for i := range stored {
		b := byID[stored[i].Key.Batch]
		if b == nil {
			b = &event.Batch{ID: stored[i].Key.Batch}
			byID[b.ID] = b
			batches = append(batches, b)
		}
		b.Events = append(b.Events, stored[i])
	}
	for _, id := range ids {
		if byID[id] == nil {
			// Its events are past their retention: nothing is left to deliver.
			batches = append(batches, &event.Batch{ID: id})
		}
	}
	return batches, nil
}

// Events returns stored events by their keys. Those that retention dropped are
// not among them.
func Events(ctx context.Context, pool *pgxpool.Pool, keys []event.Key) ([]event.Stored, error) {
	batches, ordinals := make([]int64, len(keys)), make([]int32, len(keys))
	for i, k := range keys {
		batches[i], ordinals[i] = k.Batch, k.Ordinal
	}
	stored, err := read(ctx, pool, `(batch_id, ordinal) IN (SELECT * FROM unnest($1::bigint[], $2::int[]))`, batches, ordinals)
	if err != nil {
		return nil, fmt.Errorf("read %d stored events: %w", len(keys), err)
	}
	return stored, nil
}

func read(ctx context.Context, pool *pgxpool.Pool, where string, args ...any) ([]event.Stored, error) {
	rows, err := pool.Query(ctx, `SELECT batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at,
			guild_id, channel_id, user_id, listeners, data
		FROM events WHERE `+where+` ORDER BY batch_id, ordinal`, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e event.Stored, err error) {
		err = row.Scan(&e.Key.Batch, &e.Key.Ordinal, &e.ID, &e.Name, &e.Shard.ID, &e.Shard.Count, &e.Seq, &e.ReceivedAt,
			&e.GuildID, &e.ChannelID, &e.UserID, &e.Listeners, &e.Data)
		return e, err
	})
}

// upkeep takes over the batches of instances that died while this one runs,
// and keeps the partitions.
func (j *Journal) upkeep(ctx context.Context) {
	recovery := time.NewTicker(j.cfg.LeaseTTL)
	defer recovery.Stop()
	parts := time.NewTicker(time.Hour)
	defer parts.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-recovery.C:
			err = j.Recover(ctx)
		case <-parts.C:
			err = j.parts.Maintain(ctx, time.Now())
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			j.log.LogAttrs(ctx, slog.LevelWarn, "journal upkeep failed", slog.Any("error", err))
		}
	}
}
