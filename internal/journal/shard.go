package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// ErrHeld is what Claim returns while a live instance owns the shard.
var ErrHeld = errors.New("another live instance owns this shard")

// ErrLost is what Append returns once another instance owns the shard.
var ErrLost = errors.New("another instance took over this shard")

// Shard is the lease on one shard, and its cursor.
type Shard struct {
	journal       *Journal
	applicationID event.Snowflake
	shard         event.Shard
	epoch         int64
	claimed       event.Session
	lost          chan struct{}

	mu sync.Mutex
	// appended is the session that was appended to last, stored how far that
	// very session is committed.
	appended string
	stored   int64
	// begunID is the session that was committed to last.
	begunID string
	gone    bool
}

// Claim takes the lease on a shard of an application, if it is free or its
// owner is dead, and tells where its session stands. Otherwise the error is
// ErrHeld. The caller releases it.
func (j *Journal) Claim(ctx context.Context, applicationID event.Snowflake, shard event.Shard) (*Shard, error) {
	s := &Shard{journal: j, applicationID: applicationID, shard: shard, lost: make(chan struct{})}
	err := j.pool.QueryRow(ctx, `INSERT INTO shards AS s (application_id, shard_count, shard_id, owner, epoch)
		VALUES ($1, $2, $3, $4, 1)
		ON CONFLICT (application_id, shard_count, shard_id) DO UPDATE
		SET owner = $4, epoch = s.epoch + 1, updated_at = now()
		WHERE s.owner IS NULL OR s.owner = $4
		   OR NOT EXISTS (SELECT FROM instances i WHERE i.id = s.owner AND i.lease_until > now())
		RETURNING epoch, session_id, resume_url, seq, intents`,
		int64(applicationID), shard.Count, shard.ID, j.instance.id,
	).Scan(&s.epoch, &s.claimed.ID, &s.claimed.ResumeURL, &s.claimed.Seq, &s.claimed.Intents)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("claim shard %v: %w", shard, ErrHeld)
	}
	if err != nil {
		return nil, fmt.Errorf("claim shard %v: %w", shard, err)
	}
	s.appended, s.begunID, s.stored = s.claimed.ID, s.claimed.ID, s.claimed.Seq
	return s, nil
}

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

// Release gives the lease back once all that was appended is committed, so that
// another instance need not wait for the lease to run out. The caller must not
// append any more.
func (s *Shard) Release(ctx context.Context) error {
	done := make(chan struct{})
	if err := s.journal.queue.push(ctx, entry{done: done}); err != nil {
		return fmt.Errorf("release shard %v: %w", s.shard, err)
	}
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("release shard %v: %w", s.shard, context.Cause(ctx))
	}
	_, err := s.journal.pool.Exec(ctx, `UPDATE shards SET owner = NULL, updated_at = now()
		WHERE application_id = $1 AND shard_count = $2 AND shard_id = $3 AND epoch = $4`,
		int64(s.applicationID), s.shard.Count, s.shard.ID, s.epoch)
	if err != nil {
		return fmt.Errorf("release shard %v: %w", s.shard, err)
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
