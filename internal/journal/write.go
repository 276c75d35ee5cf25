package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// nextBatch numbers the next batch.
func (j *Journal) nextBatch(now time.Time) int64 {
	// The clock may have stood still or gone back.
	micros := max(now.UnixMicro(), j.lastBatch>>batchShift+1)
	id := micros<<batchShift | j.instance.ID()&(1<<batchShift-1)
	j.lastBatch = id
	return id
}

// commit is one transaction in the making.
type commit struct {
	batch   event.Batch
	cursors map[*Shard]event.Session
	// urgent: a cursor may wait, but neither a wanted event nor a session's
	// beginning or end may.
	urgent bool
	marks  []chan error
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

// queueEvents inserts the events of a batch, unless an earlier try whose
// answer was lost did so already.
func queueEvents(b *pgx.Batch, batch *event.Batch) {
	n := len(batch.Events)
	var (
		ordinals, shardIDs, shardCounts = make([]int32, n), make([]int32, n), make([]int32, n)
		ids                             = make([][16]byte, n)
		names, origins, listeners       = make([]string, n), make([]string, n), make([]string, n)
		seqs, guilds, channels, users   = make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
		received                        = make([]time.Time, n)
		data                            = make([][]byte, n)
	)
	for i := range batch.Events {
		e := &batch.Events[i]
		ordinals[i] = e.Key.Ordinal
		ids[i] = e.ID
		names[i] = text(e.Name)
		shardIDs[i], shardCounts[i] = int32(e.Shard.ID), int32(e.Shard.Count)
		seqs[i] = e.Seq
		received[i] = e.ReceivedAt
		guilds[i], channels[i], users[i] = int64(e.GuildID), int64(e.ChannelID), int64(e.UserID)
		origins[i] = string(e.Origin)
		listeners[i] = arrayLiteral(e.Listeners)
		data[i] = e.Data
	}
	b.Queue(`INSERT INTO events (batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at,
			guild_id, channel_id, user_id, origin, listeners, data)
		SELECT $1, ordinal, id, name, shard_id, shard_count, seq, received_at, guild_id, channel_id, user_id,
			origin, listeners::bigint[], data
		FROM unnest($2::int[], $3::uuid[], $4::text[], $5::int[], $6::int[], $7::bigint[], $8::timestamptz[],
			$9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::bytea[])
			AS u (ordinal, id, name, shard_id, shard_count, seq, received_at, guild_id, channel_id, user_id, origin, listeners, data)
		ON CONFLICT (batch_id, ordinal) DO NOTHING`,
		batch.ID, ordinals, ids, names, shardIDs, shardCounts, seqs, received, guilds, channels, users, origins, listeners, data)
}

// copyFrom is from how many events on COPY is cheaper than an INSERT that goes
// along with the other statements: it takes two more round trips, and a third
// less of PostgreSQL's time and half of ours an event.
const copyFrom = 32

// copyEvents is queueEvents by COPY. The caller makes sure that no earlier try
// has stored them: COPY has no ON CONFLICT.
func copyEvents(ctx context.Context, tx pgx.Tx, batch *event.Batch) error {
	columns := []string{
		"batch_id", "ordinal", "id", "name", "shard_id", "shard_count", "seq", "received_at",
		"guild_id", "channel_id", "user_id", "origin", "listeners", "data",
	}
	values := make([]any, len(columns)) // each row is encoded before the next is asked for
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"events"}, columns, pgx.CopyFromSlice(len(batch.Events), func(i int) ([]any, error) {
		e := &batch.Events[i]
		return append(values[:0], batch.ID, e.Key.Ordinal, [16]byte(e.ID), text(e.Name), int32(e.Shard.ID), int32(e.Shard.Count), e.Seq,
			e.ReceivedAt, int64(e.GuildID), int64(e.ChannelID), int64(e.UserID), string(e.Origin), e.Listeners, e.Data), nil
	}))
	return err
}

// arrayLiteral writes a bigint[]: unnest would flatten an array of arrays.
func arrayLiteral(ids []int64) string {
	b := make([]byte, 0, 2+8*len(ids))
	b = append(b, '{')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, id, 10)
	}
	return string(append(b, '}'))
}

// text makes a string that PostgreSQL takes: a byte that it refuses would stop
// the journal for good.
func text(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
}

func isNoPartition(err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && pgErr.Code == "23514"
}
