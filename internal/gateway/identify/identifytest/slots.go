// Package identifytest provides an identify.Slots in memory, for tests of code
// that uses Turns.
package identifytest

import (
	"context"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// Slots has the session starts that it learned last. The zero value has none,
// and paces nothing.
type Slots struct {
	// Slot is the time from one IDENTIFY of a bucket to the next; 0 for none.
	Slot time.Duration
	// OnTake, if not nil, is called by Take.
	OnTake func(ctx context.Context, bucket int) error

	mu        sync.Mutex // guards the fields below
	remaining int
	resetAt   time.Time
	next      map[int]time.Time // when each bucket's next slot begins
}

// Learn implements identify.Slots.
func (s *Slots) Learn(_ context.Context, _ event.Snowflake, _, remaining int, resetAfter time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remaining, s.resetAt = remaining, time.Now().Add(resetAfter)
	return nil
}

// Spend implements identify.Slots.
func (s *Slots) Spend(_ context.Context, _ event.Snowflake, floor int) (time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remaining > floor {
		s.remaining--
		return 0, nil
	}
	return max(time.Until(s.resetAt), 1), nil
}

// Take implements identify.Slots.
func (s *Slots) Take(ctx context.Context, _ event.Snowflake, bucket int, _ identify.Class) (time.Duration, error) {
	if s.OnTake != nil {
		return 0, s.OnTake(ctx, bucket)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if wait := time.Until(s.next[bucket]); wait > 0 {
		return wait, nil
	}
	if s.next == nil {
		s.next = make(map[int]time.Time)
	}
	s.next[bucket] = time.Now().Add(s.Slot)
	return 0, nil
}

// Extend implements identify.Slots.
func (s *Slots) Extend(_ context.Context, _ event.Snowflake, bucket int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(map[int]time.Time)
	}
	s.next[bucket] = time.Now().Add(s.Slot)
	return nil
}
