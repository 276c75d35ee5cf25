package postgres

import (
	"time"

	"github.com/sethvargo/go-retry"
)

// Backoff paces the retries of a database operation that must eventually succeed.
// The waits double from 20 ms up to 2 s, each varied by 20 % so that the instances
// do not return to a recovered database at the same moment. It never gives up; the
// caller's context ends it.
func Backoff() retry.Backoff {
	return retry.WithCappedDuration(2*time.Second, retry.WithJitterPercent(20, retry.NewExponential(20*time.Millisecond)))
}
