// Package identifytest provides an identify.Slots in memory, for tests of code
// that uses Turns.
package identifytest

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// Slots paces nothing, and counts down the session starts that it learned last.
// Like identify.Buckets, it keeps back a twentieth of a usual bot's 1000. The
// zero value has no session starts.
type Slots struct {
	// OnWait, if not nil, is called by Wait.
	OnWait    func(ctx context.Context, bucket int) error
	remaining atomic.Int64
}

// Learn implements identify.Slots.
func (s *Slots) Learn(_ context.Context, _ event.Snowflake, _, remaining int, _ time.Duration) error {
	s.remaining.Store(int64(remaining))
	return nil
}

// Spend implements identify.Slots.
func (s *Slots) Spend(context.Context, event.Snowflake) (time.Duration, error) {
	if s.remaining.Add(-1) < 50 {
		return 10 * time.Millisecond, nil
	}
	return 0, nil
}

// Wait implements identify.Slots.
func (s *Slots) Wait(ctx context.Context, _ event.Snowflake, bucket int) error {
	if s.OnWait == nil {
		return nil
	}
	return s.OnWait(ctx, bucket)
}
