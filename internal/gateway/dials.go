package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

// dialLogEvery is how often a shard that cannot connect says so in the log.
const dialLogEvery = time.Minute

// failedDials are the dials of a shard that failed since one succeeded.
type failedDials struct {
	count    int
	problem  string // of the last one, for people; "" for none
	loggedAt time.Time
	unlogged int
}

// dialFailures say in a few words why a dial failed, without an address of this
// machine: /readyz shows them to everybody.
var dialFailures = map[string]string{
	"dns":         "its name does not resolve",
	"refused":     "the connection was refused",
	"timeout":     "it did not answer in time",
	"tls":         "TLS failed",
	"http_status": "it did not accept a WebSocket",
	"other":       "see the log",
}

// add notes a failure. It reports whether to log it, and how many were not logged
// before.
func (f *failedDials) add(target, reason string, now time.Time) (log bool, unlogged int) {
	f.count++
	host := target
	if u, err := url.Parse(target); err == nil {
		host = u.Host
	}
	f.problem = fmt.Sprintf("cannot connect to %s: %s", host, dialFailures[reason])
	if f.count > 1 && now.Sub(f.loggedAt) < dialLogEvery {
		f.unlogged++
		return false, 0
	}
	unlogged = f.unlogged
	f.loggedAt, f.unlogged = now, 0
	return true, unlogged
}

// noteDial notes how a dial ended. A failure is counted, logged and shown until a
// dial succeeds.
func (s *shard) noteDial(ctx context.Context, target string, err error) {
	s.mu.Lock()
	if err == nil {
		s.failedDials = failedDials{}
		s.mu.Unlock()
		return
	}
	reason := "other"
	if failure, ok := errors.AsType[*discord.DialError](err); ok {
		reason = failure.Reason
	}
	log, unlogged := s.failedDials.add(target, reason, time.Now())
	count := s.failedDials.count
	s.mu.Unlock()
	s.metrics.dialsFailed.WithLabelValues(reason).Inc()
	if log {
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not connect, trying again", slog.String("reason", reason),
			slog.Int("failed", count), slog.Int("not_logged", unlogged), slog.Any("error", err))
	}
}
