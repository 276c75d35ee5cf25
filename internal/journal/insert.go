package journal

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// queueEvents queues the statement that inserts those events of a batch whose keys are
// free.
func queueEvents(b *pgx.Batch, batch *event.Batch) *pgx.QueuedQuery {
	n := len(batch.Events)
	var (
		ordinals, shardIDs, shardCounts = make([]int32, n), make([]int32, n), make([]int32, n)
		ids                             = make([][16]byte, n)
		names, origins, listeners       = make([]string, n), make([]string, n), make([]string, n)
		seqs, guilds, channels, users   = make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
		received                        = make([]time.Time, n)
		data                            = make([][]byte, n)
	)
	for i := range batch.Events {
		e := &batch.Events[i]
		ordinals[i] = e.Key.Ordinal
		ids[i] = e.ID
		names[i] = text(e.Name)
		shardIDs[i], shardCounts[i] = int32(e.Shard.ID), int32(e.Shard.Count)
		seqs[i] = e.Seq
		received[i] = e.ReceivedAt
		guilds[i], channels[i], users[i] = int64(e.GuildID), int64(e.ChannelID), int64(e.UserID)
		origins[i] = string(e.Origin)
		listeners[i] = arrayLiteral(e.Listeners)
		data[i] = e.Data
	}
	return b.Queue(`INSERT INTO events (batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at,
			guild_id, channel_id, user_id, origin, listeners, data)
		SELECT $1, ordinal, id, name, shard_id, shard_count, seq, received_at, guild_id, channel_id, user_id,
			origin, listeners::bigint[], data
		FROM unnest($2::int[], $3::uuid[], $4::text[], $5::int[], $6::int[], $7::bigint[], $8::timestamptz[],
			$9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::bytea[])
			AS u (ordinal, id, name, shard_id, shard_count, seq, received_at, guild_id, channel_id, user_id, origin, listeners, data)
		ON CONFLICT (batch_id, ordinal) DO NOTHING`,
		batch.ID, ordinals, ids, names, shardIDs, shardCounts, seqs, received, guilds, channels, users, origins, listeners, data)
}

// minCopyEvents is the number of events from which COPY is cheaper than an INSERT
// that is sent with the other statements. COPY takes two more round trips, but for
// each event PostgreSQL needs a third less time, and we need half.
const minCopyEvents = 32

// copyEvents inserts the events of a batch by COPY. It fails if a key is not free.
func copyEvents(ctx context.Context, tx pgx.Tx, batch *event.Batch) error {
	columns := []string{
		"batch_id", "ordinal", "id", "name", "shard_id", "shard_count", "seq", "received_at",
		"guild_id", "channel_id", "user_id", "origin", "listeners", "data",
	}
	values := make([]any, len(columns)) // reused: each row is encoded before the next one
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"events"}, columns, pgx.CopyFromSlice(len(batch.Events), func(i int) ([]any, error) {
		e := &batch.Events[i]
		return append(values[:0], batch.ID, e.Key.Ordinal, [16]byte(e.ID), text(e.Name), int32(e.Shard.ID), int32(e.Shard.Count), e.Seq,
			e.ReceivedAt, int64(e.GuildID), int64(e.ChannelID), int64(e.UserID), string(e.Origin), e.Listeners, e.Data), nil
	}))
	return err
}

// arrayLiteral returns a bigint[] as text, because unnest would flatten an array of
// arrays.
func arrayLiteral(ids []int64) string {
	b := make([]byte, 0, 2+8*len(ids))
	b = append(b, '{')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, id, 10)
	}
	return string(append(b, '}'))
}

// asStored makes an event what it will be when it is read again: PostgreSQL keeps
// microseconds. The body of a delivery must not depend on whether it is made before or
// after that.
func asStored(e *event.Event) {
	e.ReceivedAt = e.ReceivedAt.Truncate(time.Microsecond)
	e.Name = text(e.Name)
}

// text removes or replaces the bytes that PostgreSQL refuses in a string: a single
// one would block the journal forever.
func text(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
}
