package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

// lapse keeps the shards of a server that can't renew its lease away from their
// sessions. Once the lease has run out, another server may resume them, and Discord
// forbids two connections on one session. A server cannot know whether the database is
// away for all of them or for itself alone.
type lapse struct {
	// shared: other servers run shards of the application. Alone, there is nobody to
	// resume the sessions.
	shared atomic.Bool
	lease  func() (left, length time.Duration) // Store.Lease

	mu   sync.Mutex // guards the fields below
	away chan struct{}
	back chan struct{}
}

func newLapse(lease func() (left, length time.Duration)) *lapse {
	l := &lapse{lease: lease, away: make(chan struct{}), back: make(chan struct{})}
	close(l.back)
	return l
}

// isAway decides whether shards stay away from their sessions, given what is left of a
// lease (negative after it ran out) of a length. They leave shortly before its end.
// Discord keeps a session for a minute or so: before that is over, they resume them once,
// whoever has them. If somebody else has, that one takes them back, and this server stays
// away until it has a lease (regain).
func isAway(left, length time.Duration, shared bool, t timing) bool {
	return shared && left <= length/8 && left > -t.lapsed
}

// watch brings the shards away and back as the lease demands, until ctx ends.
func (l *lapse) watch(ctx context.Context, t timing) {
	tick := time.NewTicker(t.lease)
	defer tick.Stop()
	for {
		left, length := l.lease()
		l.set(isAway(left, length, l.shared.Load(), t))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *lapse) set(away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if away == isClosed(l.away) {
		return
	}
	if away {
		close(l.away)
		l.back = make(chan struct{})
	} else {
		close(l.back)
		l.away = make(chan struct{})
	}
}

// leaves returns a channel that is closed once sessions have to be left, and stays so
// until the server is back.
func (l *lapse) leaves() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.away
}

// wait waits while sessions have to be left, and calls waits if it has to. It returns
// false if ctx ends.
func (l *lapse) wait(ctx context.Context, waits func()) bool {
	l.mu.Lock()
	back := l.back
	l.mu.Unlock()
	if !isClosed(back) {
		waits()
	}
	select {
	case <-back:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// regain waits for a valid lease, unless no other server can have taken the shards, and
// calls waits if it has to. It returns false if ctx ends.
func (l *lapse) regain(ctx context.Context, t timing, waits func()) bool {
	for l.shared.Load() {
		if left, _ := l.lease(); left > 0 {
			break
		}
		waits()
		if discord.Sleep(ctx, t.lease) != nil {
			return false
		}
	}
	return ctx.Err() == nil
}
