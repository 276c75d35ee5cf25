package delivery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// ErrStopped is the error that Deliver returns after Stop.
var ErrStopped = errors.New("delivery has stopped")

// Listeners gives access to the registrations.
type Listeners interface {
	// Listener returns the current registration, or nil if there is none.
	Listener(id int64) *event.Listener
	// Match returns the enabled listeners that want an event. missed reports whether
	// disabled listeners want it too: they may ask for it later.
	Match(e *event.Event) (ids []int64, missed bool)
	// Disable stops deliveries to a listener; its registration shows the reason. also
	// runs in the same transaction, and its error rolls the transaction back. also does
	// not run if the listener is already disabled, or has another URL by now.
	Disable(ctx context.Context, id int64, url, reason string, also func(context.Context, pgx.Tx) error) error
}

// Store gives access to the journal: stored events and unsettled batches.
type Store interface {
	// Events reads stored events by their keys. It leaves out events past their
	// retention.
	Events(ctx context.Context, keys []event.Key) ([]event.Stored, error)
	// Find reads every stored copy of the event with a public id.
	Find(ctx context.Context, id uuid.UUID) ([]event.Stored, error)
	// Span reads the events that were received in [since, until), in order and without
	// their payloads, and passes them to take in pages. Unless name is "", it reads
	// only events of that name.
	Span(ctx context.Context, since, until time.Time, name string, take func([]event.Stored) error) error
	// Within returns those keys whose events were received in [since, until) and are
	// still stored.
	Within(ctx context.Context, keys []event.Key, since, until time.Time) ([]event.Key, error)

	// Add stores an event that belongs to no batch.
	Add(ctx context.Context, e *event.Event, listeners []int64) (event.Key, error)
	// Key returns a key for a new event that belongs to no batch. Put queues the
	// statements that store such events, unless they are already stored.
	Key() event.Key
	Put(b *pgx.Batch, events []event.Stored)
	// Ensure makes sure that new events can be stored. It is called before the
	// transaction that stores them.
	Ensure(ctx context.Context) error

	// Settle queues the statement that deletes settled batches of an owner.
	Settle(b *pgx.Batch, owner int64, ids []int64)
	// Unsettled returns those batches that have unsettled deliveries.
	Unsettled(ctx context.Context, ids []int64) ([]int64, error)
	// LockOwned returns those batches that the owner has, and keeps other instances
	// from taking them over until the transaction ends.
	LockOwned(ctx context.Context, tx pgx.Tx, owner int64, ids []int64) ([]int64, error)
	// ProveAlive fails if the owner's number is dead, and keeps it alive until the
	// transaction ends. It is the last statement of a transaction that gives rows an
	// owner: nobody would free the rows of a number whose heir is done.
	ProveAlive(ctx context.Context, tx pgx.Tx, owner int64) error
	// Committed returns when a batch was committed, according to its number.
	Committed(batch int64) time.Time
	// At returns the lowest number of a batch committed at a time: events of batches
	// with lower numbers were received before that time.
	At(time.Time) int64
}

// Instance identifies this process among those that share the database. Its number owns
// the deliveries that the process has in hand. Once another instance has taken them
// over, this one continues under a new number.
type Instance interface {
	// ID returns the current number.
	ID() int64
	// Hold waits until the instance has its lease, and returns the number. It is called
	// before every POST, so it must be cheap.
	Hold(ctx context.Context) (int64, error)
	// Now returns the time of the database, by which every server goes that
	// compares a time with a stored one. It is cheap, and never steps back.
	Now() time.Time
}

// Config configures a Delivery. A zero field means its default, if it has one.
type Config struct {
	// Schedule lists the waits between the attempts of a delivery.
	Schedule Schedule
	// AttemptTimeout bounds one POST, from dial to the end of the response.
	// Default: 15 s.
	AttemptTimeout time.Duration
	// AllowTargets are the private address ranges that callbacks may use.
	AllowTargets []netip.Prefix
	// Proxy returns the proxy for a callback over TLS, or nil for none. A nil Proxy
	// means that there are no proxies.
	Proxy func(*url.URL) (*url.URL, error)
	// Keys seal the signing keys in the database.
	Keys secret.Keys
	// Version is part of the User-Agent.
	Version string
	// Application returns the id of the bot's application for bodies in the format
	// discord, or 0 while it is unknown. It must be safe for concurrent use. A nil
	// Application stands for 0.
	Application func() event.Snowflake
	// LaneQueue bounds the deliveries that one lane holds in memory, and LaneBytes the
	// bytes of their payloads. A lane below both bounds takes one more delivery of any
	// size. Defaults: 1024 and 4 MiB.
	LaneQueue int
	LaneBytes int
	// Retention is how long attempts are kept. Default: 168 h.
	Retention time.Duration
	// Bulk is how many replays and bulk retries may run at once. Each of them occupies
	// a connection for long, and the other calls need some. Default: 2.
	Bulk int
	// Traces configures the tracing of deliveries.
	Traces Traces
}

func (c Config) withDefaults() Config {
	c.AttemptTimeout = cmp.Or(c.AttemptTimeout, 15*time.Second)
	c.LaneQueue = cmp.Or(c.LaneQueue, 1024)
	c.LaneBytes = cmp.Or(c.LaneBytes, 4<<20)
	c.Bulk = cmp.Or(c.Bulk, 2)
	c.Retention = cmp.Or(c.Retention, 168*time.Hour)
	if c.Application == nil {
		c.Application = func() event.Snowflake { return 0 }
	}
	return c
}

// Delivery makes the deliveries of one instance. Create it with Open, then call Run. It
// is safe for concurrent use.
type Delivery struct {
	cfg       Config
	pool      postgres.DB
	listeners Listeners
	store     Store
	instance  Instance
	log       *slog.Logger
	metrics   *metrics
	client    *callback.Client
	recorder  *recorder
	keyring   *keyring
	health    health
	parts     postgres.Partitions
	bulk      chan struct{} // has a token of each replay and bulk retry
	// bulkWaiting counts those, and the calls that wait for their turn.
	bulkWaiting atomic.Int32

	mu    sync.RWMutex    // guards the fields below, up to the blank line
	lanes map[int64]*lane // by listener
	// nextDue is the due time of the next retry that this instance knows of; zero for
	// none.
	nextDue time.Time

	// unsure are rows that this instance may have claimed although no lane has them.
	// Only the retry loop uses them.
	unsure   keyRows
	stopping atomic.Bool
	kick     chan struct{} // makes the retry loop take up retries now
	replan   chan struct{} // makes the retry loop read nextDue again
	workers  sync.WaitGroup
	// attempts is the context of every POST. It ends when Run's does.
	attempts context.Context
	abort    context.CancelCauseFunc
	// working is the context for taking up more work. It ends with Stop.
	working context.Context
	halt    context.CancelCauseFunc
}

// Open prepares delivery: when it returns, the partitions for attempts exist and the
// lanes know which ordering keys wait for a retry. It starts no goroutine.
func Open(ctx context.Context, pool *pgxpool.Pool, l Listeners, store Store, instance Instance, cfg Config,
	log *slog.Logger, reg prometheus.Registerer,
) (*Delivery, error) {
	cfg = cfg.withDefaults()
	keys, err := openKeyring(ctx, pool, cfg.Keys)
	if err != nil {
		return nil, err
	}
	d := &Delivery{
		cfg: cfg, pool: postgres.On(pool), listeners: l, store: store, instance: instance, log: log, keyring: keys,
		client: callback.New(callback.Config{
			Allow: cfg.AllowTargets, Proxy: cfg.Proxy, Timeout: cfg.AttemptTimeout, Version: cfg.Version,
			Key: func() callback.Key { return keys.current(instance.Now()).Key },
		}),
		parts: postgres.Partitions{
			Pool: pool, Logger: log, Table: "attempts", Retention: cfg.Retention,
			Bound: func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		},
		lanes: make(map[int64]*lane), bulk: make(chan struct{}, cfg.Bulk),
		kick: make(chan struct{}, 1), replan: make(chan struct{}, 1),
	}
	d.attempts, d.abort = context.WithCancelCause(context.WithoutCancel(ctx))
	d.working, d.halt = context.WithCancelCause(d.attempts)
	d.metrics = newMetrics(reg, d)
	d.recorder = newRecorder(d)
	if err := d.parts.Maintain(ctx, d.now()); err != nil {
		return nil, err
	}
	if err := d.readHealth(ctx); err != nil {
		return nil, err
	}
	if err := d.Prepare(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// Run records attempts and takes up retries until Stop. It returns once every POST in
// flight has finished and is recorded. Canceling ctx ends the POSTs as well: an outcome
// that is not recorded by then is lost, and its delivery is made again later.
func (d *Delivery) Run(ctx context.Context) error {
	stopAbort := context.AfterFunc(ctx, func() { d.abort(context.Cause(ctx)) })
	defer stopAbort()
	recorded := make(chan error, 1)
	go func() { recorded <- d.recorder.run(ctx) }()

	background, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	tasks.Go(func() { d.takeRetries(background) })
	tasks.Go(func() { d.keyring.follow(background, d.log) })

	select {
	case <-d.working.Done():
	case <-ctx.Done():
		d.Stop()
	}
	cancel(ErrStopped)
	tasks.Wait()
	d.workers.Wait()
	d.recorder.close()
	err := <-recorded
	d.client.Close()
	d.abort(ErrStopped)
	return err
}

// Stop keeps the lanes from starting more POSTs. The deliveries that wait in them
// stay in the database.
func (d *Delivery) Stop() {
	if d.stopping.CompareAndSwap(false, true) {
		d.halt(ErrStopped)
	}
}

// Err returns why attempts can't be recorded now, or nil if they can.
func (d *Delivery) Err() error { return d.recorder.health.Err() }

// Ping checks that a callback in the format discord verifies signatures
// ([callback.Client.Ping]). The error is meant for people.
func (d *Delivery) Ping(ctx context.Context, l *event.Listener) error {
	return d.client.Ping(ctx, l, d.cfg.Application())
}

// lane returns the listener's lane, and creates it if there is none.
func (d *Delivery) lane(id int64) *lane {
	d.mu.RLock()
	l := d.lanes[id]
	d.mu.RUnlock()
	if l != nil {
		return l
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if l = d.lanes[id]; l == nil {
		l = newLane(d, id)
		d.lanes[id] = l
	}
	return l
}

// all returns the existing lanes.
func (d *Delivery) all() []*lane {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Collect(maps.Values(d.lanes))
}

// now returns the time by the database's clock. All times in this package are by it,
// except for those that only bound a wait, such as the pace's.
func (d *Delivery) now() time.Time { return d.instance.Now() }

// wake makes the retry loop take up retries now.
func (d *Delivery) wake() { poke(d.kick) }

// poke leaves a token in a channel with room for one, unless one is there already.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
