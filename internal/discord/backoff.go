package discord

import (
	"context"
	"time"

	"github.com/sethvargo/go-retry"
)

// MaxBackoff is the longest wait of a backoff before jitter.
const MaxBackoff = time.Minute

// NewBackoff returns a backoff that doubles from base to MaxBackoff and never
// gives up. Each wait is up to 50 % shorter or longer, so that many shards do
// not come back at the same moment.
func NewBackoff(base time.Duration) retry.Backoff {
	return retry.WithJitterPercent(50, retry.WithCappedDuration(MaxBackoff, retry.NewExponential(base)))
}

// Sleep waits for d. If ctx ends first, it returns the cause.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
