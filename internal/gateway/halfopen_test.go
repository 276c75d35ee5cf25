package gateway

import (
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// TestHalfOpen: wherever a connection stops carrying data without ending,
// nothing waits forever, and the session goes on.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault func(r *clockRig)
		limit time.Duration // of the time to the next connection, without the backoff
		sent  int           // messages after the fault, in all
	}{
		// The heartbeat can't be written, or is not acknowledged.
		{"both ways", func(r *clockRig) { r.net.freeze(0, false) }, usual + discord.WriteTimeout, 10},
		{"nothing comes", func(r *clockRig) { r.net.freeze(0, true) }, 2*usual + discord.CloseGrace, 10},
		{"nothing leaves", func(r *clockRig) { r.net.freeze(1<<40, false) }, usual + discord.WriteTimeout, 10},
		{"in the middle of a message", func(r *clockRig) {
			r.net.freeze(100, true)
			r.dispatch(0, 10, 10)
		}, 2*usual + discord.CloseGrace, 20},
		{"Discord is silent", func(r *clockRig) { r.do(0, discordtest.Silence()) }, 2*usual + discord.CloseGrace, 10},
		{"the close frame is not answered", func(r *clockRig) { r.do(0, discordtest.Reconnect(), discordtest.Silence()) }, discord.CloseGrace, 10},
		{"the close frame can't be written", func(r *clockRig) {
			r.do(0, discordtest.Reconnect())
			r.net.freeze(1<<40, false)
		}, discord.CloseGrace, 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			withClock(t, discordtest.Config{HeartbeatGrace: time.Hour, SessionLifetime: time.Hour}, func(r *clockRig) {
				t := r.t
				r.start()
				r.ready(0)
				r.dispatch(0, 0, 10)
				r.messages(10)
				at := time.Now()
				tt.fault(r)
				next := r.count(discordtest.Connected, discordtest.AnyShard, 2)
				if d := next.At.Sub(at); d > tt.limit+3*time.Second/2 {
					t.Errorf("connected again after %v, want at most %v", d, tt.limit)
				}
				// How many of the messages on their way still arrive depends on how
				// they were written.
				if e := r.count(discordtest.Resume, 0, 1); e.Seq < 11 || e.Seq > int64(tt.sent)+1 {
					t.Errorf("RESUME from %d, want 11 to %d", e.Seq, tt.sent+1)
				}
				r.ready(0)
				r.dispatch(0, tt.sent, 10)
				r.messages(tt.sent + 10)
				if n := r.Count(discordtest.Identify, 0); n != 1 {
					t.Errorf("%d IDENTIFYs, want 1", n)
				}
			})
		})
	}
}

// TestHandshakeUnanswered: a dial ends in time if the server accepts the socket
// but does not answer the handshake.
func TestHandshakeUnanswered(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.Arm(discordtest.AtConnect, discordtest.AnyShard, 1, discordtest.Silence())
		at := time.Now()
		r.start()
		e := r.count(discordtest.Connected, discordtest.AnyShard, 1)
		if d := e.At.Sub(at); d < discord.DialTimeout || d > discord.DialTimeout+3*time.Second {
			t.Errorf("connected after %v, want %v", d, discord.DialTimeout)
		}
		r.ready(0)
	})
}

// TestDrainHalfOpen: a drain is quick even if this machine can no longer send.
func TestDrainHalfOpen(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{HeartbeatGrace: time.Hour}, func(r *clockRig) {
		t := r.t
		stop := r.start()
		r.ready(0)
		r.net.freeze(0, false)
		at := time.Now()
		stop()
		if d := time.Since(at); d > discord.CloseGrace {
			t.Errorf("the drain took %v, want at most %v", d, discord.CloseGrace)
		}
	})
}
