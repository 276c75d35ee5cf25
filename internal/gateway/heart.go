package gateway

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

// maxSilentBeats is the number of acknowledged heartbeats after which a RESUME
// without any answer has failed. An IDENTIFY may wait longer: in an outage,
// READY comes late (Discord: Sending Heartbeats).
const maxSilentBeats = 3

// pulse decides when a connection is dead (Discord: Heartbeat Interval). It
// has no lock: link.mu guards it.
type pulse struct {
	sentAt  time.Time
	ackedAt time.Time // zero before the first acknowledgement
	latency time.Duration
	waiting bool          // the last regular heartbeat is not acknowledged
	busy    time.Duration // as of the last beat
	// regular counts the acknowledged heartbeats that were due by the interval,
	// without those that Discord asked for.
	regular int
}

// beat notes that a heartbeat is due. It reports whether the connection is dead
// because the last heartbeat was not acknowledged.
//
// busy is how long the reader has spent not waiting for the socket since the
// connection began, mostly because the journal took nothing. If the reader was
// busy for a quarter of the interval or more, the acknowledgement may be
// waiting to be read, so the connection does not count as dead.
func (p *pulse) beat(now time.Time, busy, interval time.Duration) (dead bool) {
	sinceLast := busy - p.busy
	p.busy = busy
	if p.waiting && sinceLast < interval/4 {
		return true
	}
	p.sentAt, p.waiting = now, true
	return false
}

// asked notes a heartbeat that Discord asked for (Discord: Heartbeat
// Requests). beat does not count it.
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

// sendHeartbeats is the heart: it sends heartbeats (Discord: Sending
// Heartbeats) until ctx ends.
func (l *link) sendHeartbeats(ctx context.Context, end context.CancelCauseFunc, interval time.Duration) {
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

// heartbeatSeq returns the d of a heartbeat: the stored sequence number, not
// the received one, since Discord may forget the events that a heartbeat
// acknowledges. It never exceeds the numbers that Discord has sent on this
// connection: events of an earlier connection may be stored only after the
// RESUME, while Discord replays them.
func (l *link) heartbeatSeq() any {
	if seq := min(l.out.stored(*l.sessionID.Load()), l.seenSeq.Load()); seq > 0 {
		return seq
	}
	return nil
}

// busyFor returns how long the reader has spent not waiting for the socket.
func (l *link) busyFor() time.Duration {
	d := time.Duration(l.busy.Load())
	if since := l.busySince.Load(); since != 0 {
		d += time.Since(time.Unix(0, since))
	}
	return d
}
