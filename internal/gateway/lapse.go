package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

// lapse keeps the shards of a server that can't renew its lease away from their
// sessions. Once the lease has run out, another server may resume them, and Discord
// forbids two connections on one session. A server cannot know whether the database is
// away for all of them or for itself alone.
type lapse struct {
	lease  func() (left, length time.Duration) // Store.Lease
	timing timing

	mu   sync.Mutex // guards the fields below
	seen lapseView
	away chan struct{}
	back chan struct{}
}

// lapseView is what a server knows about its lease, and about others.
type lapseView struct {
	// at is when the server last looked. Then left was left of the lease; negative after it
	// ran out.
	at   time.Time
	left time.Duration
	// others is when another server was last known; zero for never.
	others time.Time
	// unsure: another server may have started since the last survey.
	unsure bool
	// missed: this server was stopped for as long as Discord keeps a session. Those that
	// live, another server has.
	missed bool
}

// look returns what a server knows at a time, when left is left of its lease.
//
// A server that was stopped for a while (SIGSTOP, a suspended machine) does not know what
// others did meanwhile: another one may have started since the last survey.
func (v lapseView) look(at time.Time, left time.Duration, t timing) lapseView {
	// The monotonic clock stops while a machine is suspended, the other one does not.
	since := max(at.Sub(v.at), at.Round(0).Sub(v.at.Round(0)))
	if since > t.stopped {
		v.unsure = true
		v.missed = left <= -t.lapsed
	}
	v.at, v.left = at, left
	v.missed = v.missed && left <= 0
	return v
}

// isShared decides whether other servers may run shards of the application. Alone, there is
// nobody to resume the sessions. A server that was there a while ago may come back.
func (v lapseView) isShared(t timing) bool {
	return v.unsure || !v.others.IsZero() && v.at.Sub(v.others) < t.alone
}

// isAway decides whether shards stay away from their sessions. They leave shortly before
// the end of the lease. Discord keeps a session for a minute or so: before that is over,
// they resume them once, whoever has them. If somebody else has, that one takes them back,
// and this server stays away until it has a lease (regain).
func (v lapseView) isAway(length time.Duration, t timing) bool {
	return v.isShared(t) && v.left <= length/8 && (v.left > -t.lapsed || v.missed)
}

func newLapse(lease func() (left, length time.Duration), t timing) *lapse {
	l := &lapse{lease: lease, timing: t, away: make(chan struct{}), back: make(chan struct{})}
	l.seen.at = time.Now()
	l.seen.left, _ = lease()
	close(l.back)
	return l
}

// watch brings the shards away and back as the lease demands, until ctx ends.
func (l *lapse) watch(ctx context.Context) {
	tick := time.NewTicker(l.timing.lease)
	defer tick.Stop()
	for {
		l.look()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look looks at the lease, and reports whether sessions have to be left. Whoever is about
// to resume a session calls it: when a stopped process wakes up, watch may be the last to
// notice.
func (l *lapse) look() (away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lookLocked()
}

func (l *lapse) lookLocked() (away bool) {
	left, length := l.lease()
	l.seen = l.seen.look(time.Now(), left, l.timing)
	away = l.seen.isAway(length, l.timing)
	switch {
	case away == isClosed(l.away):
	case away:
		close(l.away)
		l.back = make(chan struct{})
	default:
		close(l.back)
		l.away = make(chan struct{})
	}
	return away
}

// surveyed notes whether a survey has shown other servers. Without a lease, an answer that
// shows none may be from before this process was stopped.
func (l *lapse) surveyed(others bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookLocked()
	if others {
		l.seen.others = l.seen.at
	}
	if l.seen.left > 0 {
		l.seen.unsure = false
	}
}

// taken notes that Discord gave a session to another connection: without a lease, that
// proves that there is another server.
func (l *lapse) taken() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lookLocked(); l.seen.left <= 0 {
		l.seen.others = l.seen.at
		l.lookLocked()
	}
}

// isShared reports whether other servers may run shards of the application.
func (l *lapse) isShared() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen.isShared(l.timing)
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
	away, back := l.lookLocked(), l.back
	l.mu.Unlock()
	if away {
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
func (l *lapse) regain(ctx context.Context, waits func()) bool {
	for l.isShared() {
		if left, _ := l.lease(); left > 0 {
			break
		}
		waits()
		if discord.Sleep(ctx, l.timing.lease) != nil {
			return false
		}
	}
	return ctx.Err() == nil
}
