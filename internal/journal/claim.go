package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// ErrLost is what Append returns once another instance owns the shard.
var ErrLost = errors.New("another instance took over this shard")

// Shard is the lease on one shard, and its cursor.
type Shard struct {
	journal       *Journal
	applicationID event.Snowflake
	shard         event.Shard
	owner         int64 // this instance's number when it claimed
	epoch         int64
	claimed       event.Session
	stage         event.Stage
	lost          chan struct{}
	opened        bool // an event of it was committed; the writer's alone

	mu sync.Mutex
	// appended is the session that was appended to last, stored how far that
	// very session is committed.
	appended string
	stored   int64
	// begunID is the session that was committed to last.
	begunID string
	gone    bool
}

// Claim takes the leases on those of an application's shards that are free and
// that have not ended; the others are missing from what it returns. What a dead
// instance had is free once it is dealt with (see Recover). The caller releases
// each.
func (j *Journal) Claim(ctx context.Context, applicationID event.Snowflake, shards []event.Shard) ([]*Shard, error) {
	owner, err := j.beginClaim(ctx)
	if err != nil {
		return nil, fmt.Errorf("claim %d shards: %w", len(shards), err)
	}
	ids, counts := make([]int32, len(shards)), make([]int32, len(shards))
	for i, s := range shards {
		ids[i], counts[i] = int32(s.ID), int32(s.Count)
	}
	// Sorted, so that two instances that claim the same shards don't wait for
	// each other crosswise.
	rows, err := j.pool.Query(ctx, `INSERT INTO shards AS s (application_id, shard_count, shard_id, owner, epoch)
		SELECT $1, u.count, u.id, $4, 1 FROM unnest($2::int[], $3::int[]) AS u (count, id) ORDER BY u.count, u.id
		ON CONFLICT (application_id, shard_count, shard_id) DO UPDATE
		SET owner = $4, epoch = s.epoch + 1, updated_at = now()
		WHERE s.stage <> 'ended' AND (s.owner IS NULL OR s.owner = $4)
		RETURNING shard_id, shard_count, epoch, stage, session_id, resume_url, seq, intents`,
		int64(applicationID), counts, ids, owner)
	if err != nil {
		return nil, fmt.Errorf("claim %d shards: %w", len(shards), err)
	}
	claimed, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Shard, error) {
		s := &Shard{journal: j, owner: owner, applicationID: applicationID, lost: make(chan struct{})}
		err := row.Scan(&s.shard.ID, &s.shard.Count, &s.epoch, &s.stage,
			&s.claimed.ID, &s.claimed.ResumeURL, &s.claimed.Seq, &s.claimed.Intents)
		s.appended, s.begunID, s.stored = s.claimed.ID, s.claimed.ID, s.claimed.Seq
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("claim %d shards: %w", len(shards), err)
	}
	for _, s := range claimed {
		j.track(s)
	}
	return claimed, nil
}

// beginClaim returns the number to claim shards under, when what dead instances
// left is dealt with.
func (j *Journal) beginClaim(ctx context.Context) (int64, error) {
	if err := j.Recover(ctx); err != nil {
		// What is not dealt with stays claimed by the dead.
		j.log.LogAttrs(ctx, slog.LevelWarn, "taking over from dead instances failed", slog.Any("error", err))
	}
	return j.instance.Hold(ctx)
}

// Shard says which one it is.
func (s *Shard) Shard() event.Shard { return s.shard }

// Stage is how far the shard was, when it was claimed, on the way from one set
// to the next.
func (s *Shard) Stage() event.Stage { return s.stage }

// Session is where the session stood when the shard was claimed. The zero
// value means that there is nothing to resume.
func (s *Shard) Session() event.Session { return s.claimed }

// Append hands over an event, and where the session stands with it. Without an
// event it only moves the cursor; with a zero session it forgets it. It waits
// while the queue is full, that is while the database can't keep up.
func (s *Shard) Append(ctx context.Context, session event.Session, e *event.Event) error {
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return ErrLost
	}
	if s.appended != session.ID {
		s.appended, s.stored = session.ID, 0
	}
	s.mu.Unlock()
	return s.journal.queue.push(ctx, entry{shard: s, session: session, event: e})
}

// Stored returns the highest committed sequence number of the session that
// was appended to last; 0 for none.
func (s *Shard) Stored() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored
}

// Lost is closed when another instance has taken the shard over.
func (s *Shard) Lost() <-chan struct{} { return s.lost }

// confirmPatience is how long Confirm waits for the lease: an instance that was
// paused renews it within a second if the database answers.
const confirmPatience = 2 * time.Second

// Confirm returns ErrLost if another instance has the shard. It asks nobody
// while the lease is held. An instance that was paused finds out with the next
// renewal, for which it waits; when none comes the database is away, for the
// others as well, so that nobody has taken the shard.
func (s *Shard) Confirm(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, confirmPatience, errors.New("the lease could not be renewed in time"))
	defer cancel()
	if owner, err := s.journal.instance.Hold(ctx); err == nil && owner != s.owner {
		s.lose()
		return ErrLost
	}
	return nil
}

// Mark stores how far the shard is on the way from one set to the next. The
// error is ErrLost if another instance has it.
func (s *Shard) Mark(ctx context.Context, stage event.Stage) error {
	return s.update(ctx, "mark", `stage = $5`, string(stage))
}

// Release gives the lease back once all that was appended is committed, so that
// another instance need not wait for the lease to run out. The caller must not
// append any more.
func (s *Shard) Release(ctx context.Context) error {
	if err := s.settled(ctx); err != nil {
		return fmt.Errorf("release shard %v: %w", s.shard, err)
	}
	return s.update(ctx, "release", `owner = NULL`)
}

// End is Release for a shard whose set was replaced: its session is forgotten
// and nobody takes it up again.
func (s *Shard) End(ctx context.Context) error {
	if err := s.settled(ctx); err != nil {
		return fmt.Errorf("end shard %v: %w", s.shard, err)
	}
	return s.update(ctx, "end", `owner = NULL, session_id = '', resume_url = '', seq = 0, stage = $5`, string(event.StageEnded))
}

// settled returns when all that was appended is committed, and its ordered
// deliveries are where the next owner sees them.
func (s *Shard) settled(ctx context.Context) error {
	s.journal.untrack(s)
	done := make(chan error, 1)
	if err := s.journal.queue.push(ctx, entry{done: done}); err != nil {
		return err
	}
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.journal.deliverer.Yield(ctx, s.shard)
}

// update changes the shard's row, as long as it is this instance's.
func (s *Shard) update(ctx context.Context, verb, set string, args ...any) error {
	tag, err := s.journal.pool.Exec(ctx, `UPDATE shards SET `+set+`, updated_at = now()
		WHERE application_id = $1 AND shard_count = $2 AND shard_id = $3 AND epoch = $4`,
		append([]any{int64(s.applicationID), s.shard.Count, s.shard.ID, s.epoch}, args...)...)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrLost
	}
	if err != nil {
		return fmt.Errorf("%s shard %v: %w", verb, s.shard, err)
	}
	return nil
}

func (s *Shard) committed(session event.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begunID = session.ID
	if s.appended == session.ID {
		s.stored = session.Seq
	}
}

// begun tells whether this very session has been committed before.
func (s *Shard) begun(sessionID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begunID == sessionID
}

func (s *Shard) lose() {
	s.journal.untrack(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone {
		s.gone = true
		close(s.lost)
	}
}

func (s *Shard) isLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// track remembers a shard until it is released or lost.
func (j *Journal) track(s *Shard) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.claimed[s] = struct{}{}
}

func (j *Journal) untrack(s *Shard) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.claimed, s)
}

// loseStale lets go of the shards that were claimed under a number of this
// instance that is dead: also those on which nothing happens, whose commit
// would tell.
func (j *Journal) loseStale(ctx context.Context) {
	me := j.instance.ID()
	j.mu.Lock()
	var stale []*Shard
	for s := range j.claimed {
		if s.owner != me {
			stale = append(stale, s)
		}
	}
	j.mu.Unlock()
	for _, s := range stale {
		s.lose()
		j.log.LogAttrs(ctx, slog.LevelWarn, "shard lost to another instance", slog.String("shard", s.shard.String()))
	}
}
