// Package journal keeps what was received and is not settled, and where every
// shard's session stands.
//
// It promises that an event is handed to delivery only after the transaction
// that stores it, and that a session's cursor moves only in the transaction
// that stores the events before it: whatever kills the process, Discord
// replays what was not stored, and what was stored is dispatched again until
// it is settled. It never waits for a callback, and never decides what a
// delivery's outcome means.
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

// Matcher tells which listeners want an event. It must not block.
type Matcher interface {
	// missed: somebody wants it who gets nothing at the moment, and may ask for
	// it later.
	Match(e *event.Event) (listeners []int64, missed bool)
}

// Deliverer takes over what was committed.
type Deliverer interface {
	// Deliver takes a batch that was just committed. It may block while the
	// deliverer can neither hold nor store more; an error means that the
	// deliverer has stopped, and the batch waits in the database.
	Deliver(ctx context.Context, b *event.Batch) error
	// Recover takes batches that a dead instance left unsettled, of which some
	// deliveries may already have been made. When it returns, those that are
	// ordered are where other instances see them.
	Recover(ctx context.Context, batches []*event.Batch) error
	// Free gives back what a dead instance had in hand.
	Free(ctx context.Context, dead int64) error
	// Yield puts the ordered deliveries of a shard where other instances see
	// them: the shard is about to have another owner.
	Yield(ctx context.Context, s event.Shard) error
	// Prepare looks at what others left that comes before anything newer. It
	// is called before the first event of a shard that was claimed.
	Prepare(ctx context.Context) error
}

// Config of a Journal. The zero value of a field means its default.
type Config struct {
	// QueueEvents and QueueBytes bound what waits for a commit; a shard that
	// meets the bound stops reading. Defaults 8192 and 64 MiB.
	QueueEvents int
	QueueBytes  int
	// BatchEvents bounds one transaction. Default 1024.
	BatchEvents int
	// CursorDelay is how long a cursor that moved over unwanted events only
	// may wait for its commit. Default 1 s.
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
	lastBatch int64 // the writer's alone

	mu      sync.Mutex
	claimed map[*Shard]struct{} // neither released nor lost

	recovering chan struct{} // holds a token while Recover is at work; guards what follows
	// adopting is what was adopted of each estate and not dispatched yet, under
	// the number adoptedBy.
	adopting  map[int64][]int64
	adoptedBy int64
}

// New makes the journal of the store's instance. It starts nothing.
func New(s *Store, m Matcher, d Deliverer, cfg Config, log *slog.Logger, reg prometheus.Registerer) *Journal {
	cfg = cfg.withDefaults()
	j := &Journal{
		cfg: cfg, store: s, pool: s.pool, instance: s.instance, matcher: m, deliverer: d, log: log,
		queue:   newQueue(cfg.QueueEvents, cfg.QueueBytes),
		claimed: make(map[*Shard]struct{}), recovering: make(chan struct{}, 1),
	}
	j.metrics = newMetrics(reg, j.queue)
	return j
}

// Run commits what is appended, and takes over what dead instances left
// unsettled, until Stop was called and all is committed. Canceling ctx ends it
// at once: Discord replays what was not committed. Before Run, call Recover.
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
		// Asked before taking: nothing comes in after the close, so that what
		// is taken then is all there is.
		last := j.queue.isClosed()
		for _, e := range j.queue.take() {
			j.add(c, e)
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

// Stop lets nothing more in; Run then commits what it holds and returns.
func (j *Journal) Stop() { j.queue.close() }

// Err says why the journal can't commit at the moment, or nil.
func (j *Journal) Err() error { return j.health.Err() }

// upkeep takes over from instances that died while this one runs, lets go of
// shards that an heir of this one has, and keeps the partitions.
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
