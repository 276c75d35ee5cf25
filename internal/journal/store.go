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
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/postgres"
)

// Store gives delivery access to the stored events and the unsettled batches. Make
// it with OpenStore; it is safe for concurrent use.
type Store struct {
	pool     postgres.DB
	instance *Instance
	parts    postgres.Partitions
}

// OpenStore opens the store of an instance, and creates the partitions that the
// next commits need. Events are kept for the retention; 0 means 168 h.
func OpenStore(ctx context.Context, pool *pgxpool.Pool, instance *Instance, retention time.Duration, log *slog.Logger) (*Store, error) {
	s := &Store{pool: postgres.On(pool), instance: instance}
	s.parts = postgres.Partitions{
		Pool: pool, Logger: log, Table: "events", Retention: cmp.Or(retention, 168*time.Hour),
		Bound: func(t time.Time) string { return strconv.FormatInt(s.At(t), 10) },
	}
	return s, s.parts.Maintain(ctx, instance.Now())
}

// batchShift is the number of low bits of a batch's number that hold the
// instance's slot. The bits above them hold the time of the commit in
// microseconds (see the package comment).
const batchShift = 10

// At returns the lowest number that a batch committed at t can have. Events under
// lower numbers were received before t.
func (*Store) At(t time.Time) int64 {
	return min(max(0, t.UnixMicro()), math.MaxInt64>>batchShift) << batchShift // callers of the API ask for the years 1 and 9999
}

// Committed returns the time at which a batch was committed, to the microsecond,
// by the database's clock (Instance.Now).
func (*Store) Committed(batch int64) time.Time { return time.UnixMicro(batch >> batchShift) }

// Settle queues the statement that deletes an owner's batches whose deliveries are
// all settled. Run it in the transaction that records the last of these
// deliveries. It leaves batches that an heir has taken over to the heir.
func (*Store) Settle(b *pgx.Batch, owner int64, ids []int64) {
	b.Queue(`DELETE FROM batches WHERE id = ANY($1) AND owner = $2`, ids, owner)
}

// Unsettled returns those of the batches that still have unsettled deliveries.
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

// ProveAlive fails if another instance is the heir of this number, and keeps others from
// becoming it until the transaction ends. It is the last statement of a transaction that
// gives rows an owner: whoever inherits from that owner later sees these rows.
func (*Store) ProveAlive(ctx context.Context, tx pgx.Tx, owner int64) error {
	tag, err := tx.Exec(ctx, proveAlive, owner)
	if err != nil {
		return err
	}
	return isAlive(tag)
}

const proveAlive = `SELECT FROM instances WHERE id = $1 AND heir IS NULL FOR KEY SHARE`

// isAlive checks the result of proveAlive.
func isAlive(tag pgconn.CommandTag) error {
	if tag.RowsAffected() == 0 {
		return errDisinherited
	}
	return nil
}

// LockOwned returns those of the batches that belong to an owner, and keeps heirs
// from taking them over until the transaction ends.
func (*Store) LockOwned(ctx context.Context, tx pgx.Tx, owner int64, ids []int64) ([]int64, error) {
	// Sorted, so that two transactions can't deadlock.
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
