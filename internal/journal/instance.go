package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Instance is this process among those that share the database. Its lease
// stands behind everything that names it as owner.
type Instance struct {
	id   int64
	name uuid.UUID
	pool *pgxpool.Pool
	ttl  time.Duration
	log  *slog.Logger
	live atomic.Pointer[[]int64]
}

// Join registers this process. The name is what tells a restart from a second
// instance: the caller guarantees that no other live process has it, so that
// what an earlier bearer owned is free at once, without waiting for its lease
// to run out. A name made for this process alone (uuid.New) is always right.
func Join(ctx context.Context, pool *pgxpool.Pool, name uuid.UUID, ttl time.Duration, log *slog.Logger) (*Instance, error) {
	if ttl == 0 {
		ttl = Config{}.withDefaults().LeaseTTL
	}
	i := &Instance{name: name, pool: pool, ttl: ttl, log: log}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM instances WHERE name = $1 OR lease_until < now() - interval '1 day'`, name); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `INSERT INTO instances (name, hostname, lease_until) VALUES ($1, $2, now() + $3) RETURNING id`,
			name, host, ttl).Scan(&i.id)
	})
	if err != nil {
		return nil, fmt.Errorf("register this instance: %w", err)
	}
	if err := i.heartbeat(ctx); err != nil {
		return nil, err
	}
	return i, nil
}

// ID is the number that rows name as their owner.
func (i *Instance) ID() int64 { return i.id }

// Live returns the ids of the instances whose lease had not run out at the
// last heartbeat, this one among them.
func (i *Instance) Live() []int64 { return *i.live.Load() }

// Run renews the lease until ctx ends. A database that does not answer is
// tried again: a lease that ran out meanwhile costs only what another
// instance took over, and the epochs tell.
func (i *Instance) Run(ctx context.Context) error {
	tick := time.NewTicker(i.ttl / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		beat, cancel := context.WithTimeoutCause(ctx, i.ttl/2, errors.New("the heartbeat took too long"))
		err := i.heartbeat(beat)
		cancel()
		if err != nil && ctx.Err() == nil {
			i.log.LogAttrs(ctx, slog.LevelWarn, "instance heartbeat failed", slog.Any("error", err))
		}
	}
}

func (i *Instance) heartbeat(ctx context.Context) error {
	// The upsert brings back a row that another instance cleaned away while
	// this one was paused for longer than a day.
	if _, err := i.pool.Exec(ctx, `INSERT INTO instances (id, name, hostname, lease_until) OVERRIDING SYSTEM VALUE
		VALUES ($1, $2, '', now() + $3) ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until`,
		i.id, i.name, i.ttl); err != nil {
		return fmt.Errorf("renew the lease of this instance: %w", err)
	}
	rows, err := i.pool.Query(ctx, `SELECT id FROM instances WHERE lease_until > now()`)
	if err != nil {
		return fmt.Errorf("list the live instances: %w", err)
	}
	live, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("list the live instances: %w", err)
	}
	i.live.Store(&live)
	return nil
}

// Leave gives up the lease, so that others need not wait for it to run out.
func (i *Instance) Leave(ctx context.Context) error {
	if _, err := i.pool.Exec(ctx, `DELETE FROM instances WHERE id = $1`, i.id); err != nil {
		return fmt.Errorf("give up the lease of this instance: %w", err)
	}
	return nil
}
