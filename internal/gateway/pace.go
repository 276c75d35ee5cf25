package gateway

import (
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

const (
	// minServed is how long a shard has to serve until its failed tries are
	// forgotten. READY alone shows nothing: there are sessions that end right
	// after it, again and again.
	minServed = time.Minute
	// maxResumeWait is the longest wait before a resume, before jitter, as long
	// as Discord may still have the session. A resume costs nothing, and Discord
	// keeps a session for a minute or so.
	maxResumeWait = 2 * time.Second
	// sessionKept is how long Discord may keep a session after its connection
	// ended: "a few minutes" (Discord: Initiating a Disconnect).
	sessionKept = 5 * time.Minute
	// maxStartWait is the longest wait between two failed session starts, before
	// jitter.
	maxStartWait = 5 * time.Minute
	// day is after how long Discord gives out new session starts.
	day = 24 * time.Hour
)

// pace decides how long a shard waits before it connects again. A resume is
// urgent and costs nothing. A session start costs one of those that all shards
// share, so one shard must not use them up.
type pace struct {
	tries  int       // connections since the shard last served for minServed or began a session
	starts int       // IDENTIFYs since the shard last served for minServed
	left   time.Time // when the shard last left service; zero for never
	start  time.Time // the earliest time of the next IDENTIFY
	last   time.Time // the last IDENTIFY
	since  time.Time // used counts from here
	used   int       // the IDENTIFYs of about a day, the successful ones too
}

// wait returns how long to wait after a connection that ended at now, before the
// next one, which resumes the session or begins one. b is what is left of the
// session starts. r is uniform in [0, 1).
func (p *pace) wait(end ending, resume bool, b identify.Budget, now time.Time, t timing, r float64) time.Duration {
	started, lost := !end.identified.IsZero(), end.session && !resume
	if p.tries++; end.served > 0 {
		p.left = now
	}
	if started {
		p.count(end.identified)
	}
	if end.served >= minServed {
		p.tries, p.starts = 1, 0
	}
	if resume {
		limit := maxResumeWait
		if now.Sub(p.left) >= sessionKept {
			limit = discord.MaxBackoff
		}
		return jitter(doubled(t.reconnect, p.tries-1, limit), r)
	}
	if lost || started {
		// An IDENTIFY that was decided on does not wait for the failed dials
		// before it.
		p.tries = 0
		p.start = now
		if p.starts > 0 {
			p.start = now.Add(jitter(doubled(t.start, p.starts-1, maxStartWait), r))
		}
		if p.starts > 1 || p.used > b.Share() {
			p.start = later(p.start, p.last.Add(b.Spread()))
		}
		return p.start.Sub(now)
	}
	return max(p.start.Sub(now), jitter(doubled(t.reconnect, p.tries-1, discord.MaxBackoff), r))
}

// count counts an IDENTIFY that was sent at a time.
func (p *pace) count(at time.Time) {
	if at.Sub(p.since) >= day {
		p.since, p.used = at, 0
	}
	p.last = at
	p.used++
	p.starts++
}

// forgive lets the shard begin a session at once: a person asked for it.
func (p *pace) forgive() { p.tries, p.starts, p.start = 0, 0, time.Time{} }

// doubled returns base doubled n times, at most limit.
func doubled(base time.Duration, n int, limit time.Duration) time.Duration {
	if n > 20 { // base<<n may overflow
		return limit
	}
	return min(base<<max(n, 0), limit)
}

// jitter makes a wait up to a half shorter or longer, so that many shards don't
// come back at the same moment. r is uniform in [0, 1).
func jitter(d time.Duration, r float64) time.Duration {
	return d/2 + time.Duration(r*float64(d))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
