package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// Starts paces IDENTIFYs across all instances that share a token (Discord: Max
// Concurrency). Buckets implements it.
type Starts interface {
	// Wait returns when the caller may send one IDENTIFY of this bucket.
	Wait(ctx context.Context, applicationID event.Snowflake, bucket int) error
}

// infoFresh is how long an answer of GET /gateway/bot is believed.
const infoFresh = time.Minute

// starts decides when a shard may begin a session. Two things are counted:
// the buckets, one IDENTIFY per 5 s each, and the budget of the day, beyond
// which Discord resets the token (Discord: Identifying).
type starts struct {
	applicationID event.Snowflake
	rest          *restClient
	slots         Starts
	log           *slog.Logger

	mu        sync.Mutex
	info      gatewayInfo
	fetchedAt time.Time
	spent     int               // since fetchedAt
	lines     map[int]*turnLine // by bucket
}

func newStarts(id event.Snowflake, info gatewayInfo, rest *restClient, slots Starts, log *slog.Logger) *starts {
	return &starts{
		applicationID: id, info: info, fetchedAt: time.Now(), rest: rest, slots: slots, log: log,
		lines: make(map[int]*turnLine),
	}
}

// url is where a new session begins.
func (s *starts) url() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info.URL
}

// turn waits until no other shard of the bucket is about to IDENTIFY; of those
// that wait the one with the lowest id is next (Discord: Max Concurrency). It
// comes before the dial: a shard whose slot is minutes away should not hold an
// idle connection until then. release may be called more than once.
func (s *starts) turn(ctx context.Context, shardID int) (release func(), err error) {
	s.mu.Lock()
	bucket := shardID % s.info.Limit.MaxConcurrency
	line := s.lines[bucket]
	if line == nil {
		line = new(turnLine)
		s.lines[bucket] = line
	}
	w := line.join(shardID)
	s.mu.Unlock()
	release = sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		line.leave(w)
	})
	select {
	case <-w.turn:
		return release, nil
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
}

// turnLine is who wants to IDENTIFY in one bucket.
type turnLine struct {
	now  *turnWaiter   // whose turn it is
	next []*turnWaiter // by shard id
}

type turnWaiter struct {
	shardID int
	turn    chan struct{} // closed when it has its turn
}

func (l *turnLine) join(shardID int) *turnWaiter {
	w := &turnWaiter{shardID, make(chan struct{})}
	i, _ := slices.BinarySearchFunc(l.next, shardID, func(w *turnWaiter, id int) int { return w.shardID - id })
	l.next = slices.Insert(l.next, i, w)
	l.advance()
	return w
}

// leave takes w out, whether it had its turn or not.
func (l *turnLine) leave(w *turnWaiter) {
	if l.now == w {
		l.now = nil
	}
	l.next = slices.DeleteFunc(l.next, func(other *turnWaiter) bool { return other == w })
	l.advance()
}

func (l *turnLine) advance() {
	if l.now == nil && len(l.next) > 0 {
		l.now, l.next = l.next[0], l.next[1:]
		close(l.now.turn)
	}
}

// permit returns when an IDENTIFY may be sent.
func (s *starts) permit(ctx context.Context, shardID int) error {
	for {
		s.refresh(ctx, infoFresh)
		wait, bucket := s.reserve(shardID, time.Now())
		if wait == 0 {
			if err := s.slots.Wait(ctx, s.applicationID, bucket); err != nil {
				return fmt.Errorf("wait for identify bucket %d: %w", bucket, err)
			}
			return nil
		}
		s.log.LogAttrs(ctx, slog.LevelWarn, "the session starts that Discord allows are used up, waiting",
			slog.Int("shard", shardID), slog.Duration("wait", wait))
		if err := sleep(ctx, min(wait, 10*time.Minute)); err != nil {
			return err
		}
		// Ask again before believing a number from before the wait.
		s.refresh(ctx, 0)
	}
}

// reserve counts one start, or tells how long to wait for the budget.
func (s *starts) reserve(shardID int, now time.Time) (wait time.Duration, bucket int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = budgetWait(s.info.Limit, s.spent, now.Sub(s.fetchedAt))
	if wait == 0 {
		s.spent++
	}
	return wait, shardID % s.info.Limit.MaxConcurrency
}

// budgetWait tells how long to wait before one more session start, when spent
// starts were made in the time since the limit was learned. A twentieth of the
// total is kept back, so that a person can still start something else.
func budgetWait(l startLimit, spent int, since time.Duration) time.Duration {
	if l.Total <= 0 || l.Remaining-spent > l.Total/20 {
		return 0
	}
	reset := time.Duration(l.ResetAfter) * time.Millisecond
	return max(reset-since, 0)
}

// refresh asks for the limit anew unless it is fresh. When Discord does not
// answer, the old one stands.
func (s *starts) refresh(ctx context.Context, fresh time.Duration) {
	s.mu.Lock()
	old := time.Since(s.fetchedAt) >= fresh
	s.mu.Unlock()
	if !old {
		return
	}
	info, err := s.rest.gateway(ctx)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord for the session starts left", slog.Any("error", err))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info, s.fetchedAt, s.spent = info, time.Now(), 0
}

// reachable tells whether Discord's API answers.
func (s *starts) reachable(ctx context.Context) bool {
	_, err := s.rest.gateway(ctx)
	return err == nil
}

// sleep waits for d or for the end of ctx, whose cause it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
