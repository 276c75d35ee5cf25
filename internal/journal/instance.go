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
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// defaultLease is how long an instance counts as alive without a heartbeat. It lets
// another instance continue a dead one's events well within 15 s, and tolerates a
// pause of some seconds (a full disk, a slow failover of the database).
const defaultLease = 8 * time.Second

// renewAgain is the wait after a failed renewal. It is short, so that the instance
// soon notices when the database is back.
const renewAgain = 500 * time.Millisecond

// Instance is this process, as one of those that share the database. The rows of its
// shards, batches and retries name its number as their owner. Its lease shows the
// other instances that it is alive.
//
// When the lease runs out, nothing changes by itself: another instance may now
// become the heir (see Recover), by updating one row. Until one does, this
// instance can renew its lease and continue as if nothing had happened. Afterwards
// its number is dead for good: it continues under a new number and owns nothing.
type Instance struct {
	register register
	ttl      time.Duration
	log      *slog.Logger
	lease    atomic.Pointer[lease]
}

// member is an instance's row in the register.
type member struct {
	// id is the instance's number.
	id int64
	// slot tells the numbers of its batches from those of other instances: no other
	// row has it.
	slot int64
}

// register accesses the table of instances.
type register interface {
	// join adds an instance with a new lease.
	join(ctx context.Context) (member, error)
	// renew renews an instance's lease. The instance is not alive if it has an heir;
	// otherwise now is the time by the database's clock.
	renew(ctx context.Context, id int64) (alive bool, now time.Time, err error)
	// leave ends an instance's lease.
	leave(ctx context.Context, id int64) error
}

// Join registers this process. The caller guarantees that no other live process
// has this name. So everything that an earlier process of this name owned is free
// at once, and nobody waits for that process's lease to run out. A new name
// (uuid.New) is always safe. ttl is how long the lease lasts without a renewal; 0
// means 8 s.
func Join(ctx context.Context, pool *pgxpool.Pool, name uuid.UUID, ttl time.Duration, log *slog.Logger) (*Instance, error) {
	if ttl == 0 {
		ttl = defaultLease
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return joinRegister(ctx, &instances{pool: pool, name: name, hostname: host, ttl: ttl}, ttl, log)
}

func joinRegister(ctx context.Context, r register, ttl time.Duration, log *slog.Logger) (*Instance, error) {
	i := &Instance{register: r, ttl: ttl, log: log}
	sent := time.Now()
	m, err := r.join(ctx)
	if err != nil {
		return nil, err
	}
	i.lease.Store(newLease(m, sent, ttl))
	return i, nil
}

// ID returns the number by which rows name this instance as their owner. The
// number changes to a higher one after another instance has become the heir.
func (i *Instance) ID() int64 { return i.lease.Load().id }

// slot returns the instance's slot, which is the low bits of the numbers of its batches.
func (i *Instance) slot() int64 { return i.lease.Load().slot }

// Hold waits until the lease is valid, and returns the instance's number. Work
// under this number need not check the lease again: once there is an heir, the
// rows no longer name the number. The error is the context's cause.
func (i *Instance) Hold(ctx context.Context) (int64, error) {
	for {
		l := i.lease.Load()
		if l.valid(time.Now()) {
			return l.id, nil
		}
		select {
		case <-l.replaced:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// Run renews the lease until ctx ends.
func (i *Instance) Run(ctx context.Context) error {
	timer := time.NewTimer(i.ttl / 4)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		wait := i.ttl / 4
		if err := i.beat(ctx); err != nil && ctx.Err() == nil {
			i.log.LogAttrs(ctx, slog.LevelWarn, "instance heartbeat failed", slog.Any("error", err),
				slog.Bool("lease_held", i.lease.Load().valid(time.Now())))
			wait = renewAgain
		}
		timer.Reset(wait)
	}
}

// beat renews the lease, or joins again if an heir has taken over.
func (i *Instance) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, i.ttl/4, errors.New("the heartbeat took too long"))
	defer cancel()
	before, sent := i.lease.Load(), time.Now()
	alive, now, err := i.register.renew(ctx, before.id)
	var after *lease
	switch {
	case err != nil:
		i.lease.Store(before.failed())
		return err
	case alive:
		after = before.renewed(sent, time.Now(), now, i.ttl)
	default:
		sent = time.Now()
		m, err := i.register.join(ctx)
		if err != nil {
			return err
		}
		i.log.LogAttrs(ctx, slog.LevelWarn, "the lease of this instance ran out and another instance took over; continuing under a new number",
			slog.Int64("was", before.id), slog.Int64("is", m.id))
		after = newLease(m, sent, i.ttl)
	}
	i.lease.Store(after)
	close(before.replaced)
	return nil
}

// Leave ends the lease, so that others need not wait for it to run out.
func (i *Instance) Leave(ctx context.Context) error { return i.register.leave(ctx, i.ID()) }

// instances is the register in the database, for an instance of this name.
type instances struct {
	pool     *pgxpool.Pool
	name     uuid.UUID
	hostname string
	ttl      time.Duration
}

// slots is how many rows the table can have.
const slots = 1 << batchShift

func (r *instances) join(ctx context.Context) (member, error) {
	for {
		m, err := r.tryJoin(ctx)
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.ConstraintName == "instances_slot_key" {
			continue // another instance was faster; now the slot is seen to be taken
		}
		if errors.Is(err, pgx.ErrNoRows) {
			err = fmt.Errorf("%d instances are registered, and there can't be more: stop some, or wait until those that died are taken over", slots)
		}
		if err != nil {
			return member{}, fmt.Errorf("register this instance: %w", err)
		}
		return m, nil
	}
}

func (r *instances) tryJoin(ctx context.Context) (m member, err error) {
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		// The earlier process of this name is dead. Its row stays until an heir
		// has dealt with everything that names it.
		if _, err := tx.Exec(ctx, `UPDATE instances SET name = gen_random_uuid(), lease_until = 'epoch' WHERE name = $1`, r.name); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `INSERT INTO instances (name, hostname, lease_until, application_name, slot)
			SELECT $1, $2, now() + $3, current_setting('application_name'), min(slot)
			FROM generate_series(0, $4::int - 1) AS slot WHERE NOT EXISTS (SELECT FROM instances i WHERE i.slot = slot.slot)
			HAVING min(slot) IS NOT NULL
			RETURNING id, slot`,
			r.name, r.hostname, r.ttl, slots).Scan(&m.id, &m.slot)
	})
	return m, err
}

func (r *instances) renew(ctx context.Context, id int64) (alive bool, now time.Time, err error) {
	err = r.pool.QueryRow(ctx, `UPDATE instances SET lease_until = now() + $2 WHERE id = $1 AND heir IS NULL
		RETURNING clock_timestamp()`, id, r.ttl).Scan(&now)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, now, nil
	case err != nil:
		return false, now, fmt.Errorf("renew the lease of this instance: %w", err)
	}
	return true, now, nil
}

func (r *instances) leave(ctx context.Context, id int64) error {
	if _, err := r.pool.Exec(ctx, `UPDATE instances SET lease_until = 'epoch' WHERE id = $1`, id); err != nil {
		return fmt.Errorf("give up the lease of this instance: %w", err)
	}
	return nil
}
