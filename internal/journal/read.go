package journal

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// Events returns stored events by their keys, without those that retention has
// dropped.
func (s *Store) Events(ctx context.Context, keys []event.Key) ([]event.Stored, error) {
	batches, ordinals := make([]int64, len(keys)), make([]int32, len(keys))
	for i, k := range keys {
		batches[i], ordinals[i] = k.Batch, k.Ordinal
	}
	stored, err := read(ctx, s.pool, `(batch_id, ordinal) IN (SELECT * FROM unnest($1::bigint[], $2::int[]))`, batches, ordinals)
	if err != nil {
		return nil, fmt.Errorf("read %d stored events: %w", len(keys), err)
	}
	return stored, nil
}

func read(ctx context.Context, pool postgres.DB, where string, args ...any) ([]event.Stored, error) {
	rows, err := pool.Query(ctx, `SELECT batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at,
			guild_id, channel_id, user_id, origin, listeners, data
		FROM events WHERE `+where+` ORDER BY batch_id, ordinal`, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

func scan(row pgx.CollectableRow) (e event.Stored, err error) {
	err = row.Scan(&e.Key.Batch, &e.Key.Ordinal, &e.ID, &e.Name, &e.Shard.ID, &e.Shard.Count, &e.Seq, &e.ReceivedAt,
		&e.GuildID, &e.ChannelID, &e.UserID, &e.Origin, &e.Listeners, &e.Data)
	return e, err
}

// Within returns the keys of those events that are still stored, and were received
// at or after since and before until.
func (s *Store) Within(ctx context.Context, keys []event.Key, since, until time.Time) ([]event.Key, error) {
	batches, ordinals := make([]int64, len(keys)), make([]int32, len(keys))
	for i, k := range keys {
		batches[i], ordinals[i] = k.Batch, k.Ordinal
	}
	rows, err := s.pool.Query(ctx, `SELECT batch_id, ordinal FROM events JOIN unnest($1::bigint[], $2::int[]) AS u (batch_id, ordinal)
		USING (batch_id, ordinal) WHERE received_at >= $3 AND received_at < $4`, batches, ordinals, since, until)
	if err != nil {
		return nil, fmt.Errorf("read when events were received: %w", err)
	}
	within, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event.Key])
	if err != nil {
		return nil, fmt.Errorf("read when events were received: %w", err)
	}
	return within, nil
}

// Find returns all stored copies of the event with a public id: an event that
// Discord replays can be stored again, for a listener that registered meanwhile.
func (s *Store) Find(ctx context.Context, id uuid.UUID) ([]event.Stored, error) {
	stored, err := read(ctx, s.pool, `id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("read the event %v: %w", id, err)
	}
	return stored, nil
}

// spanPage is how many events Span reads at once.
const spanPage = 5000

// Span calls take with the stored events that were received at or after since and
// before until, in order, page by page and without their payloads. If name is not
// "", it reads only events of that name. An error of take ends it.
func (s *Store) Span(ctx context.Context, since, until time.Time, name string, take func([]event.Stored) error) error {
	// A batch's number contains the time of its commit, which is later than the
	// receipt of its events: no event of this span is in an earlier batch.
	after := event.Key{Batch: s.At(since) - 1, Ordinal: 1<<31 - 1}
	for {
		rows, err := s.pool.Query(ctx, `SELECT batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at,
				guild_id, channel_id, user_id, origin, listeners, ''::bytea
			FROM events WHERE (batch_id, ordinal) > ($1, $2) AND received_at >= $3 AND received_at < $4 AND ($5 = '' OR name = $5)
			ORDER BY batch_id, ordinal LIMIT $6`, after.Batch, after.Ordinal, since, until, name, spanPage)
		if err != nil {
			return fmt.Errorf("read stored events: %w", err)
		}
		page, err := pgx.CollectRows(rows, scan)
		if err != nil {
			return fmt.Errorf("read stored events: %w", err)
		}
		if err := take(page); err != nil || len(page) < spanPage {
			return err
		}
		after = page[len(page)-1].Key
	}
}
