package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/gatehook/gatehook/internal/event"
)

// ErrLost means that another instance owns the shard of a claim.
var ErrLost = errors.New("another instance took over this shard")

// Claim is this instance's ownership of one shard, and the shard's cursor.
type Claim struct {
	journal       *Journal
	applicationID event.Snowflake
	shard         event.Shard
	owner         int64 // this instance's number at the claim
	epoch         int64
	session       event.Session // at the claim
	stage         event.Stage   // at the claim
	begins        bool          // at the claim
	cursorAt      time.Time     // when the cursor in the shard's row was stored
	lost          chan struct{}

	// These are used by the writer only. last is the session as it is in the shard's row.
	// proven means that events were stored together with a look at that row: from then on,
	// a database that has lost the claim has also lost a batch (see Journal.stored).
	last   event.Session
	proven bool

	mu sync.Mutex // guards the fields below
	// appended is the ID of the session that was appended to last. stored is that
	// session's highest committed sequence number.
	appended string
	stored   int64
	gone     bool // lost is closed
}

// Claim claims those of an application's shards that are free and have not ended,
// and returns no claims for the others. A dead instance's shards become free once
// its heir has taken over (see Recover). The caller releases each claim.
func (j *Journal) Claim(ctx context.Context, applicationID event.Snowflake, shards []event.Shard) ([]*Claim, error) {
	owner, err := j.beginClaim(ctx)
	if err == nil {
		err = j.supersede(ctx, owner, applicationID, shards)
	}
	if err != nil {
		return nil, fmt.Errorf("claim %d shards: %w", len(shards), err)
	}
	ids, counts := make([]int32, len(shards)), make([]int32, len(shards))
	for i, s := range shards {
		ids[i], counts[i] = int32(s.ID), int32(s.Count)
	}
	var claims []*Claim
	err = j.whileAlive(ctx, owner, func(tx pgx.Tx) error {
		// Sorted, so that two instances that claim the same shards can't deadlock.
		rows, err := tx.Query(ctx, `INSERT INTO shards AS s (application_id, shard_count, shard_id, owner, epoch)
			SELECT $1, u.count, u.id, $4, 1 FROM unnest($2::int[], $3::int[]) AS u (count, id) ORDER BY u.count, u.id
			ON CONFLICT (application_id, shard_count, shard_id) DO UPDATE
			SET owner = $4, epoch = s.epoch + 1, updated_at = now()
			WHERE s.stage <> 'ended' AND (s.owner IS NULL OR s.owner = $4)
			RETURNING shard_id, shard_count, epoch, stage, session_begins, session_id, resume_url, seq, intents,
				least(coalesce(cursor_at, 'epoch'), now())`, // the clock may have been set back since
			int64(applicationID), counts, ids, owner)
		if err != nil {
			return err
		}
		claims, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Claim, error) {
			c := &Claim{journal: j, owner: owner, applicationID: applicationID, lost: make(chan struct{})}
			err := row.Scan(&c.shard.ID, &c.shard.Count, &c.epoch, &c.stage, &c.begins,
				&c.session.ID, &c.session.ResumeURL, &c.session.Seq, &c.session.Intents, &c.cursorAt)
			return c, err
		})
		if err != nil {
			return err
		}
		return j.findNewest(ctx, tx, claims)
	})
	if err == nil && len(claims) > 0 {
		// Undelivered events of the previous owners are delivered first.
		err = j.deliverer.Prepare(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("claim %d shards: %w", len(shards), err)
	}
	for _, c := range claims {
		j.track(c)
	}
	return claims, nil
}

// supersede ends the claims that this instance still has of these shards under its number,
// and waits until what was appended to them is committed or dropped. No other fence does
// that: the epoch is compared only when a cursor is stored. Until that has succeeded, the
// claims stay tracked: if ctx ends first, the next call waits too.
func (j *Journal) supersede(ctx context.Context, owner int64, applicationID event.Snowflake, shards []event.Shard) error {
	j.mu.Lock()
	var before []*Claim
	for c := range j.claims {
		if c.owner == owner && c.applicationID == applicationID && slices.Contains(shards, c.shard) {
			before = append(before, c)
		}
	}
	j.mu.Unlock()
	if len(before) == 0 {
		return nil
	}
	for _, c := range before {
		c.lose()
	}
	if err := j.sync(ctx); err != nil {
		return err
	}
	for _, c := range before {
		j.untrack(c)
	}
	return nil
}

// findNewest moves the sessions of new claims to their newest stored events, which the
// cursors in the rows can be behind. It also notes the newest batch: new ones get higher
// numbers, even if the clock of a shard's previous owner was ahead.
func (j *Journal) findNewest(ctx context.Context, tx pgx.Tx, claims []*Claim) error {
	var (
		b    pgx.Batch
		last int64
	)
	b.Queue(`SELECT coalesce(max(batch_id), 0) FROM events`).QueryRow(func(row pgx.Row) error { return row.Scan(&last) })
	for _, c := range claims {
		c.appended, c.stored, c.last = c.session.ID, c.session.Seq, c.session
		if c.session.ID == "" {
			continue
		}
		// The ids of a session's events count up with their sequence numbers.
		from := event.DispatchID(c.applicationID, c.session.ID, c.shard, c.session.Seq+1)
		to := event.DispatchID(c.applicationID, c.session.ID, c.shard, math.MaxInt64)
		b.Queue(`SELECT coalesce(max(seq), 0) FROM events WHERE id BETWEEN $1 AND $2 AND batch_id >= $3`,
			from, to, j.store.At(c.cursorAt.Add(-cursorSlack))).
			QueryRow(func(row pgx.Row) error {
				var newest int64
				err := row.Scan(&newest)
				c.session.Seq = max(c.session.Seq, newest)
				c.stored = c.session.Seq
				return err
			})
	}
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("look for the newest stored events: %w", err)
	}
	for {
		floor := j.floor.Load()
		if last <= floor || j.floor.CompareAndSwap(floor, last) {
			return nil
		}
	}
}

// cursorSlack is by how much the time in a batch's number may be before the time at which
// an earlier commit stored a cursor: instances know the database's time to within a round
// trip.
const cursorSlack = 10 * time.Minute

// beginClaim takes over from dead instances and returns the instance number to
// claim shards under.
func (j *Journal) beginClaim(ctx context.Context) (int64, error) {
	if err := j.Recover(ctx); err != nil {
		// Shards that were not freed still belong to dead instances, and can't be
		// claimed.
		j.log.LogAttrs(ctx, slog.LevelWarn, "taking over from dead instances failed", slog.Any("error", err))
	}
	return j.instance.Hold(ctx)
}

// Shard returns the claimed shard.
func (c *Claim) Shard() event.Shard { return c.shard }

// Stage returns the shard's stage at the time of the claim.
func (c *Claim) Stage() event.Stage { return c.stage }

// Session returns the shard's session at the time of the claim. The zero value
// means that there is nothing to resume.
func (c *Claim) Session() event.Session { return c.session }

// Begun reports whether, at the claim, an IDENTIFY had been about to be sent whose
// session was never stored: its owner ended in between.
func (c *Claim) Begun() bool { return c.begins }

// Begin stores that an IDENTIFY is about to be sent, until a session is stored or
// the claim is released. The error is ErrLost if another instance has the shard.
func (c *Claim) Begin(ctx context.Context) error {
	return c.update(ctx, "begin the session of", `session_begins = true`)
}

// Unbegin takes Begin back: the IDENTIFY began no session. What the claim itself
// found is still to be reported. The error is ErrLost if another instance has the
// shard.
func (c *Claim) Unbegin(ctx context.Context) error {
	return c.update(ctx, "end the beginning of the session of", `session_begins = session_begins AND $6`, c.begins)
}

// Append hands over an event, and the session with the event's sequence number.
// Without an event it only moves the cursor; with a zero session it forgets the
// session. It waits while the queue is full, that is, if the database can't keep up.
func (c *Claim) Append(ctx context.Context, session event.Session, e *event.Event) error {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return ErrLost
	}
	if c.appended != session.ID {
		c.appended, c.stored = session.ID, 0
	}
	c.mu.Unlock()
	return c.journal.queue.push(ctx, entry{claim: c, session: session, event: e})
}

// Stored returns the highest committed sequence number of the session that was
// appended to last; 0 if nothing of it is committed.
func (c *Claim) Stored() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stored
}

// Lost returns a channel that is closed when another instance has taken over the
// shard.
func (c *Claim) Lost() <-chan struct{} { return c.lost }

// confirmTimeout is how long Confirm waits for a valid lease: an instance that
// was paused renews its lease within a second if the database answers.
const confirmTimeout = 2 * time.Second

// Confirm returns ErrLost if another instance has the shard, and the cause of ctx if that
// ends. While the lease is valid it returns at once. An instance that was paused learns of
// its loss from the next renewal of its lease, so Confirm waits for that. If no renewal
// succeeds in time, it returns nil, and nobody knows: whether to go on without a lease is
// the caller's decision (see Journal.Lease).
func (c *Claim) Confirm(ctx context.Context) error {
	bounded, cancel := context.WithTimeoutCause(ctx, confirmTimeout, errors.New("the lease could not be renewed in time"))
	defer cancel()
	switch owner, err := c.journal.instance.Hold(bounded); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && owner != c.owner:
		c.lose()
		return ErrLost
	default:
		return nil
	}
}

// Mark stores the shard's stage. The error is ErrLost if another instance has the
// shard.
func (c *Claim) Mark(ctx context.Context, stage event.Stage) error {
	return c.update(ctx, "mark", `stage = $6`, string(stage))
}

// Release waits until everything appended is committed and then frees the shard,
// so that another instance need not wait for the lease to run out. The caller must
// not append after calling it. The error is ErrLost if the claim was lost before, and
// with it, perhaps, what was appended last.
func (c *Claim) Release(ctx context.Context) error {
	// A loss that an earlier owner left, and that is not reported yet, is the next
	// owner's to report.
	return c.leave(ctx, "release", `owner = NULL, session_begins = session_begins AND $6`, c.begins)
}

// End is like Release, for a shard whose set was replaced: it also forgets the
// session, and the shard is never claimed again.
func (c *Claim) End(ctx context.Context) error {
	return c.leave(ctx, "end", `owner = NULL, session_begins = false, session_id = '', resume_url = '', seq = 0, stage = $6`, string(event.StageEnded))
}

// leave waits until everything appended is committed, and the shard's ordered deliveries
// are visible to its next owner. Then it changes the shard's row. Until that has succeeded
// the claim stays tracked: a loss may still be noticed, and another claim of this instance
// has to wait for what is in the queue.
func (c *Claim) leave(ctx context.Context, verb, set string, args ...any) error {
	err := c.journal.sync(ctx)
	if err == nil && c.isLost() {
		err = ErrLost
	}
	if err == nil {
		err = c.journal.deliverer.Yield(ctx, c.shard)
	}
	if err != nil {
		return fmt.Errorf("%s shard %v: %w", verb, c.shard, err)
	}
	if err := c.update(ctx, verb, set, args...); err != nil {
		return err
	}
	c.journal.untrack(c)
	return nil
}

// sync waits until everything that was appended so far, and its cursors, are committed,
// and what was committed before is found to be there still.
func (j *Journal) sync(ctx context.Context) error {
	done := make(chan error, 1)
	if err := j.queue.push(ctx, entry{done: done}); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// update changes the shard's row, if it is this claim's and this instance is alive. If
// not, the claim is lost, and the error is ErrLost. The additional arguments are $6 and up.
func (c *Claim) update(ctx context.Context, verb, set string, args ...any) error {
	// One round trip, because a shard waits for it between its slot and its IDENTIFY. The
	// proof locks this instance's row before the shard's: of the others, that holds up an
	// heir only, for a second at most.
	var b pgx.Batch
	b.Queue(waitBriefly)
	b.Queue(`UPDATE shards SET `+set+`, updated_at = now()
		WHERE application_id = $1 AND shard_count = $2 AND shard_id = $3 AND owner = $4 AND epoch = $5
			AND EXISTS (SELECT FROM instances WHERE id = $4 AND heir IS NULL FOR KEY SHARE)`,
		append([]any{int64(c.applicationID), c.shard.Count, c.shard.ID, c.owner, c.epoch}, args...)...).
		Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() == 0 {
				c.lose()
				return ErrLost
			}
			return nil
		})
	if err := c.journal.pool.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("%s shard %v: %w", verb, c.shard, err)
	}
	return nil
}

// committed records that the events of a session are stored up to its sequence number:
// a claim would find that.
func (c *Claim) committed(session event.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.appended == session.ID {
		c.stored = max(c.stored, session.Seq)
	}
}

// lose ends the claim, and reports whether it had not been lost before.
func (c *Claim) lose() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return false
	}
	c.gone = true
	close(c.lost)
	return true
}

func (c *Claim) isLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// track remembers a claim until it is released, or lost and nothing more of it is going to
// be committed.
func (j *Journal) track(c *Claim) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.claims[c] = struct{}{}
}

func (j *Journal) untrack(c *Claim) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.claims, c)
}

// loseStale gives up the claims that were made under an earlier number of this
// instance, which is dead. The next commit of such a claim would also notice that,
// but an idle shard has no next commit.
func (j *Journal) loseStale(ctx context.Context) {
	me := j.instance.ID()
	j.mu.Lock()
	var stale []*Claim
	for c := range j.claims {
		if c.owner != me {
			stale = append(stale, c)
		}
	}
	j.mu.Unlock()
	for _, c := range stale {
		j.untrack(c) // the writer stores nothing under a dead number
		if c.lose() {
			j.log.LogAttrs(ctx, slog.LevelWarn, "shard lost to another instance", slog.String("shard", c.shard.String()))
		}
	}
}
