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
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
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
	// Retention is how long events are kept. Default 168 h.
	Retention time.Duration
}

func (c Config) withDefaults() Config {
	c.QueueEvents = cmp.Or(c.QueueEvents, 8192)
	c.QueueBytes = cmp.Or(c.QueueBytes, 64<<20)
	c.BatchEvents = cmp.Or(c.BatchEvents, 1024)
	c.CursorDelay = cmp.Or(c.CursorDelay, time.Second)
	c.Retention = cmp.Or(c.Retention, 168*time.Hour)
	return c
}

// Journal is one instance's view of the journal. Make it with Open, then Run
// it; it is safe for concurrent use.
type Journal struct {
	cfg       Config
	pool      *pgxpool.Pool
	matcher   Matcher
	deliverer Deliverer
	log       *slog.Logger
	metrics   *metrics
	instance  *Instance
	queue     *queue
	parts     postgres.Partitions
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

// Open prepares the journal of an instance: the partitions that the next
// commits need exist when it returns. It starts nothing.
func Open(ctx context.Context, pool *pgxpool.Pool, instance *Instance, m Matcher, d Deliverer, cfg Config,
	log *slog.Logger, reg prometheus.Registerer,
) (*Journal, error) {
	cfg = cfg.withDefaults()
	j := &Journal{
		cfg: cfg, pool: pool, matcher: m, deliverer: d, log: log, instance: instance,
		queue:   newQueue(cfg.QueueEvents, cfg.QueueBytes),
		claimed: make(map[*Shard]struct{}), recovering: make(chan struct{}, 1),
		parts: postgres.Partitions{
			Pool: pool, Logger: log, Table: "events", Retention: cfg.Retention,
			Bound: func(t time.Time) string { return batchLiteral(t) },
		},
	}
	j.metrics = newMetrics(reg, j.queue)
	if err := j.parts.Maintain(ctx, time.Now()); err != nil {
		return nil, err
	}
	return j, nil
}

// Err says why the journal can't commit at the moment, or nil.
func (j *Journal) Err() error { return j.health.Err() }

// Settle queues the statement that forgets batches of an owner whose deliveries
// all are settled. It belongs into the transaction that records the last of
// them. Batches that an heir has are the heir's to settle.
func Settle(b *pgx.Batch, owner int64, ids []int64) {
	b.Queue(`DELETE FROM batches WHERE id = ANY($1) AND owner = $2`, ids, owner)
}

// Unsettled returns which of some batches have deliveries that are not settled.
func Unsettled(ctx context.Context, pool *pgxpool.Pool, ids []int64) ([]int64, error) {
	rows, err := pool.Query(ctx, `SELECT id FROM batches WHERE id = ANY($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("look for unsettled batches: %w", err)
	}
	unsettled, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for unsettled batches: %w", err)
	}
	return unsettled, nil
}

// Own returns which batches are an owner's, and lets no heir have them until
// the transaction ends.
func Own(ctx context.Context, tx pgx.Tx, owner int64, ids []int64) ([]int64, error) {
	// In one order, or two transactions could wait for each other.
	rows, err := tx.Query(ctx, `SELECT id FROM batches WHERE id = ANY($1) AND owner = $2 ORDER BY id FOR SHARE`, ids, owner)
	if err != nil {
		return nil, fmt.Errorf("lock batches: %w", err)
	}
	own, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("lock batches: %w", err)
	}
	return own, nil
}
