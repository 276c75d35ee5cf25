package journal

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/postgres"
)

// Store is the stored events and the batches that are not settled, as delivery
// uses them. Make it with OpenStore; it is safe for concurrent use.
type Store struct {
	pool     *pgxpool.Pool
	instance *Instance
	parts    postgres.Partitions
}

// OpenStore opens the store of an instance: the partitions that the next commits
// need exist when it returns. Events are kept for the retention; 0 means 168 h.
func OpenStore(ctx context.Context, pool *pgxpool.Pool, instance *Instance, retention time.Duration, log *slog.Logger) (*Store, error) {
	s := &Store{pool: pool, instance: instance}
	s.parts = postgres.Partitions{
		Pool: pool, Logger: log, Table: "events", Retention: cmp.Or(retention, 168*time.Hour),
		Bound: func(t time.Time) string { return strconv.FormatInt(s.At(t), 10) },
	}
	return s, s.parts.Maintain(ctx, time.Now())
}

// batchShift is by how many bits a batch's number is shifted for the instance.
// The number is the commit's clock in microseconds with the instance in its low
// bits: it grows with time, two instances don't meet, and a range of numbers is a
// range of time, by which events are partitioned.
const batchShift = 10

// At is the lowest number of a batch that was committed at a time. What is stored
// under lower ones was received before.
func (*Store) At(t time.Time) int64 {
	return min(max(0, t.UnixMicro()), math.MaxInt64>>batchShift) << batchShift // people ask for the year 1, and 9999
}

// Committed is when a batch was committed, by the clock of the instance that
// committed it and to the microsecond.
func (*Store) Committed(batch int64) time.Time { return time.UnixMicro(batch >> batchShift) }

// Settle queues the statement that forgets an owner's batches whose deliveries
// are all settled. Run it in the transaction that records the last of them.
// Batches that an heir has are the heir's to settle.
func (*Store) Settle(b *pgx.Batch, owner int64, ids []int64) {
	b.Queue(`DELETE FROM batches WHERE id = ANY($1) AND owner = $2`, ids, owner)
}

// Unsettled returns those of some batches that have deliveries which are not
// settled.
func (s *Store) Unsettled(ctx context.Context, ids []int64) ([]int64, error) {
	rows, err := s.pool.Query(ctx, `SELECT id FROM batches WHERE id = ANY($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("look for unsettled batches: %w", err)
	}
	unsettled, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for unsettled batches: %w", err)
	}
	return unsettled, nil
}

// LockOwned returns those of some batches that an owner has, and keeps heirs
// from taking them until the transaction ends.
func (*Store) LockOwned(ctx context.Context, tx pgx.Tx, owner int64, ids []int64) ([]int64, error) {
	// In one order, or two transactions could wait for each other.
	rows, err := tx.Query(ctx, `SELECT id FROM batches WHERE id = ANY($1) AND owner = $2 ORDER BY id FOR SHARE`, ids, owner)
	if err != nil {
		return nil, fmt.Errorf("lock batches: %w", err)
	}
	owned, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("lock batches: %w", err)
	}
	return owned, nil
}
