package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/postgres"
)

// defaultLease is how long an instance counts as alive without a heartbeat. It lets
// another instance continue a dead one's events well within 15 s, and tolerates a
// pause of some seconds (a full disk, a slow failover of the database).
const defaultLease = 8 * time.Second

// maxRenewals is how many renewals may be under way at a time: an answer may take longer
// than the time from one renewal to the next.
const maxRenewals = 2

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
	clock    clock
	health   postgres.Health
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
	// now returns the time by the database's clock.
	now(ctx context.Context) (time.Time, error)
	// join adds an instance with a new lease. The error is a NamesakeError if another
	// process has the name and a lease. starting means that this process had no number
	// before, so an earlier process of the same directory is dead.
	join(ctx context.Context, starting bool) (member, error)
	// renew renews an instance's lease. The instance is not alive if it has an heir;
	// otherwise now is the time by the database's clock.
	renew(ctx context.Context, id int64) (alive bool, now time.Time, err error)
	// leave ends an instance's lease.
	leave(ctx context.Context, id int64) error
}

// Home is where an instance keeps its name.
type Home struct {
	// Name tells a restart from a second instance: whatever an earlier process of that
	// name owned is free at once. A name made for this process alone (uuid.New) is
	// always right.
	Name uuid.UUID
	// Directory has the name, under a lock that one process of a machine at a time can
	// have. Empty if the name was made for this process alone.
	Directory string
}

// NamesakeError means that another live server has the same name: one of the two
// directories is a copy of the other.
type NamesakeError struct {
	// Host and Directory are where the other server runs, and has its name.
	Host, Directory string

	id    int64
	until time.Time // its lease
}

func (e *NamesakeError) Error() string {
	return fmt.Sprintf("a live server on the host %s, with the data directory %s, has the name of this one", e.Host, e.Directory)
}

// Join registers this process. An earlier process of the same machine and directory is
// dead: this one has its lock. If another one with this name has a lease, Join waits until
// the lease runs out, or returns a NamesakeError when it is renewed.
// ttl is how long the lease lasts without a renewal; 0 means 8 s.
func Join(ctx context.Context, pool *pgxpool.Pool, home Home, ttl time.Duration, log *slog.Logger) (*Instance, error) {
	if ttl == 0 {
		ttl = defaultLease
	}
	r := &instances{pool: pool, home: home, ttl: ttl, hostname: "unknown"}
	if host, err := os.Hostname(); err == nil {
		r.hostname = host
	}
	// Linux has a new one after each boot, so it tells machines apart, and their copies.
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		r.bootID = strings.TrimSpace(string(id))
	}
	return joinRegister(ctx, r, ttl, time.Now, log)
}

// joinRegister is Join with this machine's clock, which tests set wrong.
func joinRegister(ctx context.Context, r register, ttl time.Duration, local func() time.Time, log *slog.Logger) (*Instance, error) {
	i := &Instance{register: r, ttl: ttl, log: log, clock: clock{local: local}}
	if err := i.readClock(ctx); err != nil {
		return nil, err
	}
	var namesake *NamesakeError
	for {
		sent, before := time.Now(), namesake
		m, err := r.join(ctx, true)
		switch {
		case err == nil:
			i.lease.Store(newLease(m, sent, ttl))
			return i, nil
		case !errors.As(err, &namesake):
			return nil, err
		case before == nil:
			log.LogAttrs(ctx, slog.LevelInfo, "waiting for the lease of an earlier process to run out",
				slog.String("host", namesake.Host), slog.Time("until", namesake.until))
		case namesake.id != before.id || namesake.until.After(before.until):
			return nil, err
		}
		again := time.NewTimer(ttl / 8)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// readClock reads the database's clock some times: the quickest answer counts, and the
// first one waits for the connection.
func (i *Instance) readClock(ctx context.Context) error {
	for range 3 {
		sent := i.clock.local()
		now, err := i.register.now(ctx)
		if err != nil {
			return err
		}
		i.clock.learn(reading{sent, i.clock.local(), now})
	}
	return nil
}

// Now returns the time by the database's clock, to within a round trip. It is what
// decides wherever servers compare times with each other, or with stored ones. It is
// cheap, and does not step back.
func (i *Instance) Now() time.Time { return i.clock.Now() }

// Err returns why the last heartbeat failed, or nil: whether the database answers.
func (i *Instance) Err() error { return i.health.Err() }

// ID returns the number by which rows name this instance as their owner. The
// number changes to a higher one after another instance has become the heir.
func (i *Instance) ID() int64 { return i.lease.Load().id }

// slot returns the instance's slot, which is the low bits of the numbers of its batches.
func (i *Instance) slot() int64 { return i.lease.Load().slot }

// Lease returns how long the lease is still valid, and for how long it is renewed. After
// its end, left is negative.
func (i *Instance) Lease() (left, length time.Duration) {
	l, now := i.lease.Load(), time.Now()
	return min(l.until.Sub(now), l.wall.Sub(now.Round(0))), i.ttl
}

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

// Run renews the lease until ctx ends. It does not wait for an answer before it renews
// again, on another connection: an answer that comes late is better than none.
func (i *Instance) Run(ctx context.Context) error {
	answers := make(chan answer, maxRenewals)
	waiting := 0
	defer func() {
		for range waiting {
			<-answers
		}
	}()
	last := time.Now()
	timer := time.NewTimer(i.ttl / 4)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			if waiting == maxRenewals {
				continue // the next answer starts the timer
			}
			waiting++
			last = time.Now()
			go func() { answers <- i.renew(ctx) }()
			timer.Reset(i.ttl / 4)
		case a := <-answers:
			waiting--
			err := i.take(ctx, a)
			i.health.Set(err)
			timer.Reset(max(0, i.ttl/4-time.Since(last)))
			if err != nil && ctx.Err() == nil {
				i.log.LogAttrs(ctx, slog.LevelWarn, "instance heartbeat failed", slog.Any("error", postgres.Explain(err)),
					slog.Bool("lease_held", i.lease.Load().valid(time.Now())))
				timer.Reset(renewAgain)
			}
		}
	}
}

// answer is what the register answered to a renewal.
type answer struct {
	id              int64     // whose lease it is
	sent            time.Time // by the monotonic clock
	local, answered time.Time // when it was sent and answered, by the machine's clock
	alive           bool
	now             time.Time // by the database's clock
	err             error
}

// renew renews the lease in the database. It is given up only when its answer would
// come too late for the lease: a slow database answers each one late.
func (i *Instance) renew(ctx context.Context) (a answer) {
	ctx, cancel := context.WithTimeoutCause(ctx, i.ttl*3/4, errors.New("the heartbeat took too long"))
	defer cancel()
	a = answer{id: i.ID(), sent: time.Now(), local: i.clock.local()}
	a.alive, a.now, a.err = i.register.renew(ctx, a.id)
	a.answered = i.clock.local()
	return a
}

// beat renews the lease once, and takes the answer.
func (i *Instance) beat(ctx context.Context) error { return i.take(ctx, i.renew(ctx)) }

// take takes an answer into account, and joins again if an heir has taken over.
func (i *Instance) take(ctx context.Context, a answer) error {
	before := i.lease.Load()
	var after *lease
	switch {
	case a.id != before.id:
		return nil // of a number that is dead
	case a.err != nil:
		i.lease.Store(before.failed())
		return a.err
	case a.alive:
		set := i.clock.learn(reading{a.local, a.answered, a.now})
		after = before.renewed(a.sent, time.Now(), a.now, set, i.ttl)
		if after.until.Before(before.until) {
			return nil // a later renewal was answered before
		}
	default:
		ctx, cancel := context.WithTimeoutCause(ctx, i.ttl, errors.New("joining again took too long"))
		defer cancel()
		// The renewal has told no time, and the machine may have been suspended.
		if err := i.readClock(ctx); err != nil {
			return err
		}
		sent := time.Now()
		m, err := i.register.join(ctx, false)
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
	home     Home
	hostname string
	bootID   string
	ttl      time.Duration
}

func (r *instances) now(ctx context.Context) (now time.Time, err error) {
	if err := r.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return now, fmt.Errorf("read the database's clock: %w", err)
	}
	return now, nil
}

// slots is how many rows the table can have.
const slots = 1 << batchShift

func (r *instances) join(ctx context.Context, starting bool) (member, error) {
	for {
		m, err := r.tryJoin(ctx, starting)
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

func (r *instances) tryJoin(ctx context.Context, starting bool) (m member, err error) {
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		var e NamesakeError
		err := tx.QueryRow(ctx, `SELECT id, hostname, directory, lease_until FROM instances
			WHERE name = $1 AND heir IS NULL AND lease_until > now() AND lease_until < now() + 2 * $6::interval
				AND NOT ($2 AND (hostname, boot_id, directory) = ($3, $4, $5))`,
			r.home.Name, starting, r.hostname, r.bootID, r.home.Directory, r.ttl).Scan(&e.id, &e.Host, &e.Directory, &e.until)
		if err == nil {
			return &e
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		// The earlier process of this name is dead. Its row stays until an heir
		// has dealt with everything that names it.
		if _, err := tx.Exec(ctx, `UPDATE instances SET name = gen_random_uuid(), lease_until = 'epoch' WHERE name = $1`, r.home.Name); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `INSERT INTO instances (name, hostname, boot_id, directory, lease_until, application_name, slot)
			SELECT $1, $2, $3, $4, now() + $5, current_setting('application_name'), min(slot)
			FROM generate_series(0, $6::int - 1) AS slot WHERE NOT EXISTS (SELECT FROM instances i WHERE i.slot = slot.slot)
			HAVING min(slot) IS NOT NULL
			RETURNING id, slot`,
			r.home.Name, r.hostname, r.bootID, r.home.Directory, r.ttl, slots).Scan(&m.id, &m.slot)
	})
	return m, err
}

func (r *instances) renew(ctx context.Context, id int64) (alive bool, now time.Time, err error) {
	// Not prepared: on a new connection, that would take another round trip.
	err = r.pool.QueryRow(ctx, `UPDATE instances SET lease_until = now() + $2 WHERE id = $1 AND name = $3::text::uuid AND heir IS NULL
		RETURNING clock_timestamp()`, pgx.QueryExecModeExec, id, r.ttl, r.home.Name.String()).Scan(&now)
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
