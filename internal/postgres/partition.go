package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// partitionWidth is the time that one partition covers, and thus the step in which
// retention frees space.
const partitionWidth = 6 * time.Hour

// partitionsAhead is how far ahead partitions are created: a server that can't reach
// the database for that long could not insert anyway.
const partitionsAhead = 24 * time.Hour

// Partitions creates the partitions of a table that is partitioned by time, and drops
// the old ones. Several instances may do so at once.
type Partitions struct {
	Pool   *pgxpool.Pool
	Logger *slog.Logger
	// Table is the partitioned table.
	Table string
	// Bound returns the partition key for a time, as text.
	Bound func(time.Time) string
	// Retention is the least time for which rows are kept. A partition is dropped
	// when its whole range is older.
	Retention time.Duration
}

// Maintain creates the partitions around now, and drops those that are older than the
// retention. One that can't be dropped now, because a backup reads it, say, is dropped
// another time: the error is about those that are needed.
func (p Partitions) Maintain(ctx context.Context, now time.Time) error {
	first := now.Add(-partitionWidth).Truncate(partitionWidth)
	for at := first; at.Before(now.Add(partitionsAhead)); at = at.Add(partitionWidth) {
		if err := p.create(ctx, at); err != nil {
			return fmt.Errorf("make a partition of %s: %w", p.Table, err)
		}
	}
	p.dropBefore(ctx, now.Add(-p.Retention))
	return nil
}

const partitionStamp = "20060102t15"

// Ensure creates the partition for a time. It is for a row that has no partition,
// because the clock jumped, say.
func (p Partitions) Ensure(ctx context.Context, at time.Time) error {
	if err := p.create(ctx, at.Truncate(partitionWidth)); err != nil {
		return fmt.Errorf("make a partition of %s: %w", p.Table, err)
	}
	return nil
}

// create creates one partition if it is missing. Functions of the schema create and drop
// partitions (migrations/00031_partition_functions.sql), because the server's role need not
// own the tables.
func (p Partitions) create(ctx context.Context, from time.Time) error {
	from = from.UTC()
	name := p.Table + "_" + from.Format(partitionStamp)
	var exists bool
	if err := On(p.Pool).QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&exists); err != nil || exists {
		return err
	}
	_, err := On(p.Pool).Exec(ctx, `SELECT make_partition($1, $2, $3, $4)`, p.Table, name, p.Bound(from), p.Bound(from.Add(partitionWidth)))
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && (pgErr.Code == "42P07" || pgErr.Code == "23505") {
		return nil // another instance made it meanwhile
	}
	return err
}

// dropBefore drops the partitions that end before a time, each on its own.
func (p Partitions) dropBefore(ctx context.Context, cutoff time.Time) {
	names, err := p.list(ctx)
	if err != nil {
		p.Logger.LogAttrs(ctx, slog.LevelWarn, "could not look for partitions past their retention, trying again later",
			slog.String("table", p.Table), slog.Any("error", err))
		return
	}
	for _, name := range names {
		if len(name) <= len(p.Table)+1 {
			continue
		}
		from, err := time.Parse(partitionStamp, name[len(p.Table)+1:])
		if err != nil || from.Add(partitionWidth).After(cutoff) {
			continue
		}
		// While this statement waits for its locks, every insert queues behind it.
		var b pgx.Batch
		b.Queue(`SELECT set_config('lock_timeout', '200ms', true)`)
		b.Queue(`SELECT drop_partition($1, $2)`, p.Table, name)
		if err := On(p.Pool).SendBatch(ctx, &b).Close(); err != nil {
			p.Logger.LogAttrs(ctx, slog.LevelWarn, "could not drop a partition past its retention, trying again later",
				slog.String("partition", name), slog.Any("error", err))
			continue
		}
		p.Logger.LogAttrs(ctx, slog.LevelInfo, "dropped a partition past its retention", slog.String("partition", name))
	}
}

func (p Partitions) list(ctx context.Context) ([]string, error) {
	rows, err := On(p.Pool).Query(ctx, `SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = to_regclass($1)`, p.Table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
