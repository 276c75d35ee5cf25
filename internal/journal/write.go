package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

// commit collects the contents of one transaction.
type commit struct {
	batch event.Batch
	// from has, for each event of the batch, the claim that it was appended to.
	from []*Claim
	// newest has the sessions up to their newest events in the batch.
	newest map[*Claim]event.Session
	// cursors are those to be stored.
	cursors map[*Claim]event.Session
	// urgent means that the commit must not wait: it has a wanted event, or moves.
	urgent bool
	// moves means that the cursors must be stored: of a mark, because a session began or
	// ended, or because a claim is not proven yet.
	moves bool
	marks []chan error
	// taken means that the batch's number was found to be taken.
	taken bool
	// dropped means that events or cursors were taken out of the commit.
	dropped bool
}

func newCommit() *commit { return &commit{newest: make(map[*Claim]event.Session)} }

// collect adds an entry to a commit.
func (j *Journal) collect(c *commit, e entry) {
	if e.done != nil {
		c.marks = append(c.marks, e.done)
		c.urgent, c.moves = true, true
		return
	}
	if e.claim.isLost() {
		return
	}
	if before, ok := j.cursors[e.claim]; (ok && before.ID != e.session.ID) || e.claim.last.ID != e.session.ID {
		c.urgent, c.moves = true, true
	}
	j.cursors[e.claim] = e.session
	if e.event == nil {
		return
	}
	listeners, missed := j.matcher.Match(e.event)
	if len(listeners) == 0 && !missed {
		j.metrics.unwanted.Inc()
		return
	}
	c.urgent = true
	c.moves = c.moves || !e.claim.proven
	stored := event.Stored{Event: *e.event, Listeners: listeners, Key: event.Key{Ordinal: int32(len(c.batch.Events))}}
	asStored(&stored.Event)
	c.batch.Events = append(c.batch.Events, stored)
	c.from = append(c.from, e.claim)
	if e.event.Seq > 0 { // not a notice
		c.newest[e.claim] = e.session
	}
}

// takeCursors makes a commit store the cursors that moved.
//
// Most commits don't: a row that is updated with every commit grows a chain of dead
// versions, and while a backup or another old snapshot keeps these, each update takes
// longer than the one before. The events hold the sequence numbers, so a claim continues
// after the newest one (see findNewest).
func (j *Journal) takeCursors(c *commit) {
	maps.DeleteFunc(j.cursors, func(claim *Claim, _ event.Session) bool { return claim.isLost() })
	c.cursors, j.cursors = j.cursors, make(map[*Claim]event.Session)
}

// flush runs a commit and dispatches its batch. It tries until it succeeds or ctx
// ends, and takes shards that were lost to another instance out of the commit. due means
// that the cursors are due.
func (j *Journal) flush(ctx context.Context, c *commit, due bool) error {
	if due || c.moves {
		j.takeCursors(c)
	}
	if len(c.cursors) > 0 || len(c.batch.Events) > 0 || len(c.marks) > 0 {
		if err := j.commit(ctx, c); err != nil {
			return err
		}
	}
	err := j.dispatch(ctx, c)
	for _, done := range c.marks {
		done <- err
	}
	return nil
}

// dispatch hands the committed batch over to delivery.
func (j *Journal) dispatch(ctx context.Context, c *commit) error {
	if len(c.batch.Events) == 0 {
		return nil
	}
	j.metrics.stored.Add(float64(len(c.batch.Events)))
	j.metrics.batchEvents.Observe(float64(len(c.batch.Events)))
	err := j.deliverer.Deliver(ctx, &c.batch)
	if err != nil {
		// The batch is stored: the next start dispatches it.
		j.log.LogAttrs(ctx, slog.LevelInfo, "batch left for the next start", slog.Int64("batch", c.batch.ID), slog.Any("reason", err))
	}
	return err
}

// commit repeats the transaction until it succeeds or ctx ends.
func (j *Journal) commit(ctx context.Context, c *commit) error {
	err := retry.Do(ctx, postgres.Backoff(), func(ctx context.Context) error {
		start := time.Now()
		err := j.tryCommit(ctx, c)
		var fenced *fencedError
		switch {
		case err == nil:
			j.metrics.commitTime.Observe(time.Since(start).Seconds())
			j.health.Set(nil)
			return nil
		case errors.As(err, &fenced):
			j.drop(ctx, c, fenced)
		case errors.Is(err, errTaken):
			c.taken = true
		case isNoPartition(err):
			err = errors.Join(err, j.store.parts.Ensure(ctx, j.store.Committed(c.batch.ID)))
		}
		if ctx.Err() == nil {
			j.metrics.retried.Inc()
			j.health.Set(err)
			j.log.LogAttrs(ctx, slog.LevelWarn, "commit failed, trying again", slog.Int("events", len(c.batch.Events)), slog.Any("error", postgres.Explain(err)))
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		return fmt.Errorf("commit %d events: %w", len(c.batch.Events), err)
	}
	now := j.instance.Now()
	for i := range c.batch.Events {
		j.metrics.lag.Observe(now.Sub(c.batch.Events[i].ReceivedAt).Seconds())
	}
	if len(c.batch.Events) > 0 {
		j.stored = c.batch.ID
	}
	for _, claim := range c.from {
		claim.proven = true
	}
	for claim, session := range c.newest {
		claim.committed(session)
	}
	for claim, session := range c.cursors {
		claim.last = session
		claim.committed(session)
	}
	return nil
}

// tryCommit waits until this instance's lease is valid, and then tries once: an
// instance that was cut off for long may have lost its shards.
func (j *Journal) tryCommit(ctx context.Context, c *commit) error {
	owner, err := j.instance.Hold(ctx)
	if err != nil {
		return err
	}
	stale := &fencedError{}
	for _, claim := range c.claims() {
		if claim.owner != owner {
			stale.claims = append(stale.claims, claim)
		}
	}
	if len(stale.claims) > 0 {
		return stale
	}
	if c.batch.ID != 0 {
		// An earlier try may have succeeded, and only its answer was lost. Then all of
		// it is stored, whatever has become of its shards since.
		stored, err := j.owns(ctx, owner, c.batch.ID)
		if err != nil || stored {
			return err
		}
		if c.taken {
			c.batch.ID, c.taken = 0, false // by another instance
		}
	}
	if c.dropped && len(c.batch.Events) == 0 && len(c.cursors) == 0 {
		return nil // nothing is left
	}
	c.batch.Owner = owner
	if c.batch.ID == 0 && len(c.batch.Events) > 0 {
		c.batch.ID = j.nextBatch(j.instance.Now())
		for i := range c.batch.Events {
			c.batch.Events[i].Key.Batch = c.batch.ID
		}
	}
	return j.transact(ctx, c)
}

// owns reports whether a batch is stored as this instance's.
func (j *Journal) owns(ctx context.Context, me, batch int64) (stored bool, err error) {
	err = j.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM batches WHERE id = $1 AND owner = $2)`, batch, me).Scan(&stored)
	if err != nil {
		return false, fmt.Errorf("look for the batch of an earlier try: %w", err)
	}
	return stored, nil
}

// claims returns the claims that a commit has events or cursors of.
func (c *commit) claims() []*Claim {
	claims := make(map[*Claim]struct{}, len(c.cursors))
	for _, claim := range c.from {
		claims[claim] = struct{}{}
	}
	for claim := range c.cursors {
		claims[claim] = struct{}{}
	}
	return slices.Collect(maps.Keys(claims))
}

// nextBatch returns the number of the next batch.
func (j *Journal) nextBatch(now time.Time) int64 {
	// The clock may have stood still or jumped back.
	micros := max(now.UnixMicro(), max(j.lastBatch, j.floor.Load())>>batchShift+1)
	id := micros<<batchShift | j.instance.slot()
	j.lastBatch = id
	return id
}

// fencedError names the claims whose cursors may not move.
type fencedError struct {
	claims []*Claim
	// reverted are those of them that this instance still has: the database went back
	// to an earlier state.
	reverted []*Claim
}

func (e *fencedError) Error() string {
	return fmt.Sprintf("%d shards were lost: %d to other instances, %d because the database went back",
		len(e.claims), len(e.claims)-len(e.reverted), len(e.reverted))
}

// drop takes lost shards out of the commit. Their next owner, which may be this instance,
// resumes from the cursor in the database, and receives their events again. The other
// events keep their keys, under which an earlier try may have stored them.
func (j *Journal) drop(ctx context.Context, c *commit, lost *fencedError) {
	for _, claim := range lost.claims {
		reason := "another instance has the shard"
		if slices.Contains(lost.reverted, claim) {
			j.metrics.reverted.Inc()
			reason = "the database went back to an earlier state: the shard resumes from there"
		}
		claim.lose()
		j.untrack(claim)
		delete(c.cursors, claim)
		delete(c.newest, claim)
		delete(j.cursors, claim)
		j.log.LogAttrs(ctx, slog.LevelWarn, "shard lost", slog.String("shard", claim.shard.String()),
			slog.String("reason", reason), slog.Int64("stored_seq", claim.Stored()))
	}
	events, from := c.batch.Events[:0], c.from[:0]
	for i, claim := range c.from {
		if !slices.Contains(lost.claims, claim) {
			events, from = append(events, c.batch.Events[i]), append(from, claim)
		}
	}
	c.batch.Events, c.from = events, from
	c.dropped = true
}

// transact runs the transaction.
func (j *Journal) transact(ctx context.Context, c *commit) error {
	// A connection that died silently must not hold up the journal until TCP
	// notices.
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the commit took longer than 30 s"))
	defer cancel()
	return pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		var b pgx.Batch
		// The batch first: if an earlier try is still under way, this waits for its
		// outcome before it does anything else.
		const addBatch = `INSERT INTO batches (id, owner) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`
		switch n := len(c.batch.Events); {
		case n >= minCopyEvents:
			tag, err := tx.Exec(ctx, addBatch, c.batch.ID, c.batch.Owner)
			if err == nil {
				err = inserted(1)(tag)
			}
			if err == nil {
				err = copyEvents(ctx, tx, &c.batch)
			}
			if isCode(err, "23505") { // unique_violation
				err = errors.Join(errTaken, err)
			}
			if err != nil {
				return err
			}
		case n > 0:
			b.Queue(addBatch, c.batch.ID, c.batch.Owner).Exec(inserted(1))
			queueEvents(&b, &c.batch).Exec(inserted(n))
		}
		gone := false
		// An old batch may have been dropped.
		if j.stored != 0 && j.instance.Now().Sub(j.store.Committed(j.stored)) < j.store.parts.Retention/2 {
			b.Queue(`SELECT NOT EXISTS (SELECT FROM events WHERE batch_id = $1)`, j.stored).
				QueryRow(func(row pgx.Row) error { return row.Scan(&gone) })
		}
		// The cursors, and this instance's row, come last. Only these rows are ones that
		// others wait for, and a process can be stopped anywhere: in the middle of a COPY,
		// PostgreSQL would wait for it without a limit.
		claims := slices.Collect(maps.Keys(c.cursors))
		args := cursorArgs(c, claims)
		var moved []int
		if len(claims) > 0 {
			b.Queue(moveCursors, args...).Query(func(rows pgx.Rows) (err error) {
				moved, err = pgx.CollectRows(rows, pgx.RowTo[int])
				return err
			})
		}
		b.Queue(proveAlive, c.batch.Owner).Exec(isAlive)
		err := tx.SendBatch(ctx, &b).Close()
		switch {
		case errors.Is(err, errDisinherited):
			return &fencedError{claims: j.allClaims(c)}
		case err != nil:
			return err
		case gone:
			// The database has lost commits, and any shard may have had events in them.
			j.stored = 0
			all := j.allClaims(c)
			return &fencedError{claims: all, reverted: all}
		}
		if len(moved) == len(claims) {
			return nil
		}
		fenced := &fencedError{}
		for n, claim := range claims {
			if !slices.Contains(moved, n+1) {
				fenced.claims = append(fenced.claims, claim)
			}
		}
		rows, err := tx.Query(ctx, ownCursors, args...)
		if err != nil {
			return err
		}
		own, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil {
			return err
		}
		for _, n := range own {
			if !slices.Contains(moved, n) {
				fenced.reverted = append(fenced.reverted, claims[n-1])
			}
		}
		return fenced
	})
}

// allClaims returns all claims of a commit's owner, and those of the commit itself, which
// can be lost already.
func (j *Journal) allClaims(c *commit) []*Claim {
	claims := c.claims()
	j.mu.Lock()
	defer j.mu.Unlock()
	for claim := range j.claims {
		if claim.owner == c.batch.Owner && !slices.Contains(claims, claim) {
			claims = append(claims, claim)
		}
	}
	return claims
}

// errTaken means that something is stored under a batch's number: by an earlier try
// of the same commit that has just succeeded, or by another instance.
var errTaken = errors.New("the number of the batch is taken")

// inserted returns a check that a statement inserted n rows.
func inserted(n int) func(pgconn.CommandTag) error {
	return func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() != int64(n) {
			return errTaken
		}
		return nil
	}
}

// cursorsOf joins the rows of shards, as s, with the cursors of a commit, as u, that this
// instance may move: nobody has claimed the shard since.
const cursorsOf = `unnest($2::bigint[], $3::int[], $4::int[], $5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::text[], $11::bigint[])
		WITH ORDINALITY AS u (application_id, shard_count, shard_id, epoch, session_id, resume_url, seq, intents, last_id, last_seq, n)
	WHERE s.application_id = u.application_id AND s.shard_count = u.shard_count AND s.shard_id = u.shard_id
		AND s.owner = $1 AND s.epoch = u.epoch`

const (
	// moveCursors moves cursors from where the claim left them. One that
	// an earlier try has moved may be there already. One that is elsewhere was lost with
	// other commits: a standby without them has become the primary.
	moveCursors = `UPDATE shards s
		SET session_id = u.session_id, resume_url = u.resume_url, seq = u.seq, intents = u.intents,
			session_begins = s.session_begins AND u.session_id = '', updated_at = now(), cursor_at = now()
		FROM ` + cursorsOf + `
			AND ((s.session_id, s.seq) = (u.last_id, u.last_seq) OR (s.session_id, s.seq) = (u.session_id, u.seq))
		RETURNING u.n`
	ownCursors = `SELECT u.n FROM shards s, ` + cursorsOf
)

// cursorArgs returns the arguments of moveCursors and of ownCursors.
func cursorArgs(c *commit, claims []*Claim) []any {
	var apps, epochs, seqs, intents, lastSeqs []int64
	var ids, counts []int32
	var sessions, urls, lastIDs []string
	for _, claim := range claims {
		session := c.cursors[claim]
		apps = append(apps, int64(claim.applicationID))
		counts = append(counts, int32(claim.shard.Count))
		ids = append(ids, int32(claim.shard.ID))
		epochs = append(epochs, claim.epoch)
		sessions = append(sessions, text(session.ID))
		urls = append(urls, text(session.ResumeURL))
		seqs = append(seqs, session.Seq)
		intents = append(intents, int64(session.Intents))
		lastIDs = append(lastIDs, text(claim.last.ID))
		lastSeqs = append(lastSeqs, claim.last.Seq)
	}
	return []any{c.batch.Owner, apps, counts, ids, epochs, sessions, urls, seqs, intents, lastIDs, lastSeqs}
}

// isNoPartition reports whether there is no partition for a row (check_violation).
func isNoPartition(err error) bool { return isCode(err, "23514") }

func isCode(err error, code string) bool {
	pgErr := (*pgconn.PgError)(nil)
	return errors.As(err, &pgErr) && pgErr.Code == code
}
