package journal

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// Matcher knows which listeners want an event. It must not block.
type Matcher interface {
	// Match returns the listeners that an event is for. missed: a disabled
	// listener wants it as well, and may ask for it later.
	Match(e *event.Event) (listeners []int64, missed bool)
}

// Deliverer delivers what was committed.
type Deliverer interface {
	// Deliver takes a batch that was just committed. It may block while the
	// deliverer can neither hold nor store more. An error means that the
	// deliverer has stopped; the batch then waits in the database.
	Deliver(ctx context.Context, b *event.Batch) error
	// Recover takes batches that a dead instance left unsettled; some of their
	// deliveries may already have been made. When it returns, the ordered
	// deliveries are where other instances see them.
	Recover(ctx context.Context, batches []*event.Batch) error
	// Free frees the deliveries that a dead instance had in hand.
	Free(ctx context.Context, dead int64) error
	// Yield puts the ordered deliveries of a shard where other instances see
	// them: the shard is about to have another owner.
	Yield(ctx context.Context, s event.Shard) error
	// Prepare reads which ordered deliveries other instances left: they come
	// before anything newer. It is called before the first event of a claim.
	Prepare(ctx context.Context) error
}

// Config of a Journal. The zero value of a field means its default.
type Config struct {
	// QueueEvents and QueueBytes bound what waits for a commit. A shard that
	// reaches the bound stops reading. Defaults 8192 and 64 MiB.
	QueueEvents int
	QueueBytes  int
	// BatchEvents bounds one transaction. Default 1024.
	BatchEvents int
	// CursorDelay is how long a cursor may wait for its commit if it moved over
	// unwanted events only. Default 1 s.
	CursorDelay time.Duration
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
	pool      *pgxpool.Pool
	matcher   Matcher
	deliverer Deliverer
	log       *slog.Logger
	metrics   *metrics
	instance  *Instance
	queue     *queue
	health    postgres.Health
	lastBatch int64 // used by the writer only

	mu     sync.Mutex          // guards claims
	claims map[*Claim]struct{} // neither released nor lost

	recovering chan struct{} // holds a token while Recover works; guards the fields below
	// adopting has, for each dead instance, the batches that were taken over from
	// it under the number adoptedBy and are not dispatched yet.
	adopting  map[int64][]int64
	adoptedBy int64
}

// New makes the journal of the store's instance. It starts nothing.
func New(s *Store, m Matcher, d Deliverer, cfg Config, log *slog.Logger, reg prometheus.Registerer) *Journal {
	cfg = cfg.withDefaults()
	j := &Journal{
		cfg: cfg, store: s, pool: s.pool, instance: s.instance, matcher: m, deliverer: d, log: log,
		queue:  newQueue(cfg.QueueEvents, cfg.QueueBytes),
		claims: make(map[*Claim]struct{}), recovering: make(chan struct{}, 1),
	}
	j.metrics = newMetrics(reg, j.queue)
	return j
}

// Run commits what is appended, and takes over from dead instances, until Stop
// was called and everything is committed. Canceling ctx ends it at once: Discord
// replays what was not committed. Call Recover before Run.
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
		// Asked before taking: nothing comes in after the close, so what is
		// taken then is everything.
		last := j.queue.isClosed()
		for _, e := range j.queue.take() {
			j.collect(c, e)
			if len(c.batch.Events) >= j.cfg.BatchEvents {
				if err := j.flush(ctx, c); err != nil {
					return err
				}
				c = newCommit()
			}
		}
		if c.urgent || due || last {
			if err := j.flush(ctx, c); err != nil {
				return err
			}
			c = newCommit()
			delay.Reset(j.cfg.CursorDelay)
		}
		if last {
			return nil
		}
	}
}

// Stop closes the queue. Run then commits what is in it and returns.
func (j *Journal) Stop() { j.queue.close() }

// Err returns why the journal can't commit at the moment, or nil.
func (j *Journal) Err() error { return j.health.Err() }

// upkeep takes over from instances that die while this one runs, gives up claims
// that an heir of this one has, and keeps the partitions.
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
			err = j.store.parts.Maintain(ctx, time.Now())
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			j.log.LogAttrs(ctx, slog.LevelWarn, "journal upkeep failed", slog.Any("error", err))
		}
	}
}
