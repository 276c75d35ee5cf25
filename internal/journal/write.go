package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// commit is one transaction in the making.
type commit struct {
	batch   event.Batch
	cursors map[*Shard]event.Session
	// urgent: a cursor may wait, but neither a wanted event nor a session's
	// beginning or end may.
	urgent bool
	marks  []chan error
}

func newCommit() *commit { return &commit{cursors: make(map[*Shard]event.Session)} }

func (j *Journal) add(c *commit, e entry) {
	if e.done != nil {
		c.marks = append(c.marks, e.done)
		c.urgent = true
		return
	}
	if e.shard.isLost() {
		return
	}
	if before, ok := c.cursors[e.shard]; (ok && before.ID != e.session.ID) || !e.shard.begun(e.session.ID) {
		c.urgent = true
	}
	c.cursors[e.shard] = e.session
	if e.event == nil {
		return
	}
	listeners, missed := j.matcher.Match(e.event)
	if len(listeners) == 0 && !missed {
		j.metrics.unwanted.Inc()
		return
	}
	c.urgent = true
	c.batch.Events = append(c.batch.Events, event.Stored{
		Event: *e.event, Listeners: listeners,
		Key: event.Key{Ordinal: int32(len(c.batch.Events))},
	})
}

// flush commits and hands over to delivery. It tries until it succeeds or ctx
// ends; a shard that was lost to another instance leaves the transaction.
func (j *Journal) flush(ctx context.Context, c *commit) error {
	if len(c.cursors) > 0 {
		if err := j.commit(ctx, c); err != nil {
			return err
		}
	}
	err := j.handOver(ctx, c)
	for _, done := range c.marks {
		done <- err
	}
	return nil
}

func (j *Journal) handOver(ctx context.Context, c *commit) error {
	if len(c.batch.Events) == 0 {
		return nil
	}
	j.metrics.stored.Add(float64(len(c.batch.Events)))
	j.metrics.batchEvents.Observe(float64(len(c.batch.Events)))
	err := j.deliverer.Deliver(ctx, &c.batch)
	if err != nil {
		// It is stored and will be dispatched by the next start.
		j.log.LogAttrs(ctx, slog.LevelInfo, "batch left for the next start", slog.Int64("batch", c.batch.ID), slog.Any("reason", err))
	}
	return err
}

func (j *Journal) commit(ctx context.Context, c *commit) error {
	err := retry.Do(ctx, postgres.Backoff(), func(ctx context.Context) error {
		start := time.Now()
		err := j.commitOwned(ctx, c)
		var fenced *fencedError
		switch {
		case err == nil:
			j.metrics.commitTime.Observe(time.Since(start).Seconds())
			j.health.Set(nil)
			return nil
		case errors.As(err, &fenced):
			j.drop(ctx, c, fenced.shards)
		case isNoPartition(err):
			err = errors.Join(err, j.store.parts.Ensure(ctx, j.store.Committed(c.batch.ID)))
		}
		if ctx.Err() == nil {
			j.metrics.retried.Inc()
			j.health.Set(err)
			j.log.LogAttrs(ctx, slog.LevelWarn, "commit failed, trying again", slog.Int("events", len(c.batch.Events)), slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		return fmt.Errorf("commit %d events: %w", len(c.batch.Events), err)
	}
	now := time.Now()
	for i := range c.batch.Events {
		j.metrics.lag.Observe(now.Sub(c.batch.Events[i].ReceivedAt).Seconds())
	}
	for s, session := range c.cursors {
		s.committed(session)
	}
	return nil
}

// commitOwned tries to commit once this instance's lease is held: one that was
// cut off for long owns nothing until it knows better.
func (j *Journal) commitOwned(ctx context.Context, c *commit) error {
	owner, err := j.instance.Hold(ctx)
	if err != nil {
		return err
	}
	stale := &fencedError{}
	for s := range c.cursors {
		if s.owner != owner {
			stale.shards = append(stale.shards, s)
		}
	}
	if len(stale.shards) > 0 {
		return stale
	}
	if err := j.begin(ctx, c); err != nil {
		return err
	}
	c.batch.Owner = owner
	if c.batch.ID == 0 {
		// One number for all tries: should a commit that seemed to fail have
		// gone through, the next try finds it.
		c.batch.ID = j.nextBatch(time.Now())
		for i := range c.batch.Events {
			c.batch.Events[i].Key.Batch = c.batch.ID
		}
	}
	return j.try(ctx, c)
}

// begin prepares for the first events of shards that were claimed. Their
// earlier owner may have a clock that is ahead of this one's, but what it
// stored is older all the same; and what it left undelivered comes first.
func (j *Journal) begin(ctx context.Context, c *commit) error {
	fresh := make(map[event.Shard]*Shard)
	for s := range c.cursors {
		if !s.opened {
			fresh[s.shard] = s
		}
	}
	var begun []*Shard
	for i := range c.batch.Events {
		if len(fresh) == 0 {
			break
		}
		if s := fresh[c.batch.Events[i].Shard]; s != nil {
			begun = append(begun, s)
			delete(fresh, s.shard)
		}
	}
	if len(begun) == 0 {
		return nil
	}
	last := int64(0)
	if err := j.pool.QueryRow(ctx, `SELECT coalesce(max(batch_id), 0) FROM events`).Scan(&last); err != nil {
		return fmt.Errorf("read the number of the last batch: %w", err)
	}
	j.lastBatch = max(j.lastBatch, last)
	if err := j.deliverer.Prepare(ctx); err != nil {
		return err
	}
	for _, s := range begun {
		s.opened = true
	}
	return nil
}

// nextBatch numbers the next batch.
func (j *Journal) nextBatch(now time.Time) int64 {
	// The clock may have stood still or gone back.
	micros := max(now.UnixMicro(), j.lastBatch>>batchShift+1)
	id := micros<<batchShift | j.instance.ID()&(1<<batchShift-1)
	j.lastBatch = id
	return id
}

// fencedError names the shards whose epoch was raised by another instance.
type fencedError struct{ shards []*Shard }

func (e *fencedError) Error() string {
	return fmt.Sprintf("%d shards were taken over by another instance", len(e.shards))
}

// drop takes shards that were lost out of the transaction. Their new owner
// resumes from the cursor in the database and receives those events again.
func (j *Journal) drop(ctx context.Context, c *commit, lost []*Shard) {
	gone := make(map[event.Shard]bool, len(lost))
	for _, s := range lost {
		s.lose()
		delete(c.cursors, s)
		gone[s.shard] = true
		j.log.LogAttrs(ctx, slog.LevelWarn, "shard lost to another instance", slog.String("shard", s.shard.String()))
	}
	kept := c.batch.Events[:0]
	for i := range c.batch.Events {
		if e := &c.batch.Events[i]; !gone[e.Shard] {
			e.Key.Ordinal = int32(len(kept))
			kept = append(kept, *e)
		}
	}
	c.batch.Events = kept
}

func (j *Journal) try(ctx context.Context, c *commit) error {
	// A connection that died without a word must not hold up the journal for
	// as long as TCP takes to notice.
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the commit took longer than 30 s"))
	defer cancel()
	return pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		var b pgx.Batch
		order := queueCursors(&b, c.cursors)
		n := len(c.batch.Events)
		if n > 0 {
			b.Queue(`INSERT INTO batches (id, owner) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, c.batch.ID, c.batch.Owner)
		}
		if n > 0 && n < copyFrom {
			queueEvents(&b, &c.batch)
		}
		results := tx.SendBatch(ctx, &b)
		moved, err := readCursors(results)
		fresh := false
		if err == nil && n > 0 {
			var tag pgconn.CommandTag
			tag, err = results.Exec()
			fresh = tag.RowsAffected() > 0
		}
		if closeErr := results.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
		if fenced := unmoved(order, moved); fenced != nil {
			return fenced
		}
		if n >= copyFrom && fresh { // else an earlier try has stored them
			return copyEvents(ctx, tx, &c.batch)
		}
		return nil
	})
}

// unmoved is the error of a transaction in which not every cursor moved, or
// nil.
func unmoved(order []*Shard, moved map[event.Shard]bool) error {
	if len(moved) == len(order) {
		return nil
	}
	fenced := &fencedError{}
	for _, s := range order {
		if !moved[s.shard] {
			fenced.shards = append(fenced.shards, s)
		}
	}
	return fenced
}

func queueCursors(b *pgx.Batch, cursors map[*Shard]event.Session) []*Shard {
	order := make([]*Shard, 0, len(cursors))
	var apps, epochs, seqs, intents []int64
	var ids, counts []int32
	var sessions, urls []string
	for s, session := range cursors {
		order = append(order, s)
		apps = append(apps, int64(s.applicationID))
		counts = append(counts, int32(s.shard.Count))
		ids = append(ids, int32(s.shard.ID))
		epochs = append(epochs, s.epoch)
		sessions = append(sessions, text(session.ID))
		urls = append(urls, text(session.ResumeURL))
		seqs = append(seqs, session.Seq)
		intents = append(intents, int64(session.Intents))
	}
	b.Queue(`UPDATE shards s
		SET session_id = u.session_id, resume_url = u.resume_url, seq = u.seq, intents = u.intents, updated_at = now()
		FROM unnest($1::bigint[], $2::int[], $3::int[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::bigint[])
			AS u (application_id, shard_count, shard_id, epoch, session_id, resume_url, seq, intents)
		WHERE s.application_id = u.application_id AND s.shard_count = u.shard_count AND s.shard_id = u.shard_id
			AND s.epoch = u.epoch
		RETURNING s.shard_id, s.shard_count`,
		apps, counts, ids, epochs, sessions, urls, seqs, intents)
	return order
}

func readCursors(results pgx.BatchResults) (map[event.Shard]bool, error) {
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	moved := make(map[event.Shard]bool)
	var s event.Shard
	_, err = pgx.ForEachRow(rows, []any{&s.ID, &s.Count}, func() error {
		moved[s] = true
		return nil
	})
	return moved, err
}

func isNoPartition(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && pgErr.Code == "23514"
}
