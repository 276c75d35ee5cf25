package gateway

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

// pulse decides when a connection is dead (Discord: Heartbeat Interval). It
// has no lock of its own.
type pulse struct {
	sentAt  time.Time
	ackedAt time.Time // zero before the first
	latency time.Duration
	waiting bool          // a heartbeat that the interval demanded is not acknowledged
	busy    time.Duration // as of the last beat
	// regular counts the acknowledged ones among those that the interval
	// demanded.
	regular int
}

// beat notes that a heartbeat is due, and tells whether the connection is dead
// instead: nothing acknowledged the one before. busy is for how long, since the
// connection began, the reader did something else than wait for the socket:
// for the most part, wait for a journal that takes nothing. While that took a
// part of the interval worth naming, the acknowledgement may lie unread, and
// its absence proves nothing.
func (p *pulse) beat(now time.Time, busy, interval time.Duration) (dead bool) {
	own := busy - p.busy
	p.busy = busy
	if p.waiting && own < interval/4 {
		return true
	}
	p.sentAt, p.waiting = now, true
	return false
}

// asked notes a heartbeat that Discord asked for (Discord: Heartbeat
// Requests). It does not count for beat.
func (p *pulse) asked(now time.Time) { p.sentAt = now }

// acked notes an acknowledgement.
func (p *pulse) acked(now time.Time) {
	if p.waiting {
		p.regular++
	}
	p.ackedAt, p.waiting = now, false
	if !p.sentAt.IsZero() {
		p.latency = now.Sub(p.sentAt)
	}
}

// beat sends heartbeats (Discord: Sending Heartbeats) until ctx ends.
func (l *link) beat(ctx context.Context, end context.CancelCauseFunc, interval time.Duration) {
	timer := time.NewTimer(time.Duration(rand.Float64() * float64(interval)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.beatAsked:
			l.mu.Lock()
			l.pulse.asked(time.Now())
			l.mu.Unlock()
		case <-timer.C:
			timer.Reset(interval)
			l.mu.Lock()
			dead := l.pulse.beat(time.Now(), l.busyFor(), interval)
			l.mu.Unlock()
			if dead {
				end(errZombie)
				return
			}
		}
		if err := l.conn.Send(ctx, discord.OpHeartbeat, l.heartbeatSeq()); err != nil {
			l.failSend(ctx, end, err)
			return
		}
		l.shard.metrics.heartbeats.Inc()
	}
}

// heartbeatSeq is the d of a heartbeat: what is stored, not what was received.
// Discord does not say whether it forgets what a heartbeat acknowledges, and
// so it may. Nor is it more than this connection was sent: what an earlier one
// received may be stored only after the RESUME, and is being replayed then.
func (l *link) heartbeatSeq() any {
	if seq := min(l.out.stored(*l.sessionID.Load()), l.seenSeq.Load()); seq > 0 {
		return seq
	}
	return nil
}

// busyFor is for how long, so far, the reader did not wait for the socket.
func (l *link) busyFor() time.Duration {
	d := time.Duration(l.busy.Load())
	if since := l.busySince.Load(); since != 0 {
		d += time.Since(time.Unix(0, since))
	}
	return d
}
