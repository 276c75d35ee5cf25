package journal

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// Matcher knows which listeners want an event. It must not block.
type Matcher interface {
	// Match returns the ids of the enabled listeners that want an event. missed
	// means that a disabled listener wants it too, and may ask for it later.
	Match(e *event.Event) (listeners []int64, missed bool)
}

// Deliverer delivers committed events.
type Deliverer interface {
	// Deliver takes a batch that was just committed. It may block while the
	// deliverer can neither hold nor store more deliveries. An error means that
	// the deliverer has stopped; the batch then waits in the database.
	Deliver(ctx context.Context, b *event.Batch) error
	// Recover takes batches that a dead instance left unsettled; some of their
	// deliveries may already have been made. When it returns, other instances can
	// see the ordered deliveries.
	Recover(ctx context.Context, batches []*event.Batch) error
	// Free releases the retries that a dead instance had taken up.
	Free(ctx context.Context, dead int64) error
	// Yield makes the ordered deliveries of a shard visible to other instances,
	// before the shard gets another owner.
	Yield(ctx context.Context, s event.Shard) error
	// Prepare reads which ordered deliveries other instances left, because newer
	// ones must wait for them. The journal calls it for new claims, before their first
	// events, while it commits those of others.
	Prepare(ctx context.Context) error
}

// Config of a Journal. The zero value of a field means its default.
type Config struct {
	// QueueEvents and QueueBytes limit the events that wait for a commit. While
	// the queue is full, shards stop reading. Defaults 8192 and 64 MiB.
	QueueEvents int
	QueueBytes  int
	// BatchEvents limits the events of one transaction. Default 1024.
	BatchEvents int
	// CursorDelay is how long a cursor may be behind the events: a commit stores the
	// events alone, and at most once in this time all cursors that moved. Default 1 s.
	CursorDelay time.Duration
	// Writer is the pool of the commits alone; nil means the store's.
	Writer *pgxpool.Pool
}

func (c Config) withDefaults() Config {
	c.QueueEvents = cmp.Or(c.QueueEvents, 8192)
	c.QueueBytes = cmp.Or(c.QueueBytes, 64<<20)
	c.BatchEvents = cmp.Or(c.BatchEvents, 1024)
	c.CursorDelay = cmp.Or(c.CursorDelay, time.Second)
	return c
}

// Journal is one instance's view of the journal. Make it with New, then Run
// it; it is safe for concurrent use.
type Journal struct {
	cfg       Config
	store     *Store
	pool      postgres.DB
	matcher   Matcher
	deliverer Deliverer
	log       *slog.Logger
	metrics   *metrics
	instance  *Instance
	queue     *queue
	health    postgres.Health
	// floor is the number of the newest batch that a claim found: those of its events
	// have higher ones.
	floor atomic.Int64

	// These are used by the writer only.
	lastBatch int64 // the number that was given last
	// stored is the batch that was stored last. If it is gone, the database has gone back.
	stored  int64
	cursors map[*Claim]event.Session // that moved since they were stored

	mu     sync.Mutex          // guards claims
	claims map[*Claim]struct{} // whose events may still be on their way (see track)

	recovering chan struct{} // holds a token while Recover works; guards the fields below
	// estates are those of dead instances that this one inherited under the number
	// adoptedBy.
	estates   map[int64]*estate
	adoptedBy int64
	cannotEnd bool // that connections can't be ended was logged
}

// New returns the journal of the store's instance. It starts nothing.
func New(s *Store, m Matcher, d Deliverer, cfg Config, log *slog.Logger, reg prometheus.Registerer) *Journal {
	cfg = cfg.withDefaults()
	j := &Journal{
		cfg: cfg, store: s, pool: s.pool, instance: s.instance, matcher: m, deliverer: d, log: log,
		queue:   newQueue(cfg.QueueEvents, cfg.QueueBytes),
		cursors: make(map[*Claim]event.Session), claims: make(map[*Claim]struct{}), recovering: make(chan struct{}, 1),
	}
	j.metrics = newMetrics(reg, j.queue)
	return j
}

// Run commits the appended events and takes over from dead instances. After Stop
// it commits the rest and returns. Canceling ctx ends it at once: Discord replays
// the events that were not committed. Call Recover before Run.
func (j *Journal) Run(ctx context.Context) error {
	upkeep, cancel := context.WithCancelCause(ctx)
	upkept := make(chan struct{})
	go func() {
		defer close(upkept)
		j.upkeep(upkeep)
	}()
	defer func() {
		cancel(errQueueClosed)
		<-upkept
	}()

	ctx = postgres.WithPool(ctx, j.cfg.Writer)
	c := newCommit()
	delay := time.NewTimer(j.cfg.CursorDelay)
	defer delay.Stop()
	for {
		due := false
		select {
		case <-j.queue.wake:
		case <-delay.C:
			due = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		// Checked before taking: a closed queue accepts nothing, so this take is
		// the last one.
		last := j.queue.isClosed()
		for _, e := range j.queue.take() {
			j.collect(c, e)
			if len(c.batch.Events) >= j.cfg.BatchEvents {
				if err := j.flush(ctx, c, false); err != nil {
					return err
				}
				c = newCommit()
			}
		}
		if c.urgent || due || last {
			if err := j.flush(ctx, c, due || last); err != nil {
				return err
			}
			c = newCommit()
		}
		if due {
			delay.Reset(j.cfg.CursorDelay)
		}
		if last {
			return nil
		}
	}
}

// Stop closes the queue. Run then commits the queue's entries and returns.
func (j *Journal) Stop() { j.queue.close() }

// Lease returns how long this instance's lease is still valid, and for how long it is
// renewed. After its end, left is negative.
func (j *Journal) Lease() (left, length time.Duration) { return j.instance.Lease() }

// Err returns why the journal can't commit at the moment, or nil.
func (j *Journal) Err() error { return j.health.Err() }

// upkeep takes over from instances that die while this one runs, gives up the
// claims that this instance lost to an heir, and maintains the partitions.
func (j *Journal) upkeep(ctx context.Context) {
	recovery := time.NewTicker(recoverEvery)
	defer recovery.Stop()
	parts := time.NewTicker(time.Hour)
	defer parts.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-recovery.C:
			j.loseStale(ctx)
			err = j.Recover(ctx)
		case <-parts.C:
			err = j.store.parts.Maintain(ctx, j.instance.Now())
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			j.log.LogAttrs(ctx, slog.LevelWarn, "journal upkeep failed", slog.Any("error", err))
		}
	}
}
