package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify/identifytest"
)

func TestPulse(t *testing.T) {
	t.Parallel()
	const interval = 40 * time.Second
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }

	t.Run("acknowledged", func(t *testing.T) {
		t.Parallel()
		var p pulse
		for s := range 5 {
			if p.beat(at(40*s), 0, interval) {
				t.Fatalf("dead at beat %d", s)
			}
			p.acked(at(40*s + 2))
			if p.latency != 2*time.Second || !p.ackedAt.Equal(at(40*s+2)) {
				t.Errorf("latency %v, acknowledged at %v", p.latency, p.ackedAt)
			}
		}
	})
	t.Run("no acknowledgement between two beats", func(t *testing.T) {
		t.Parallel()
		var p pulse
		if p.beat(at(0), 0, interval) || !p.beat(at(40), 0, interval) {
			t.Error("not dead at the second beat")
		}
	})
	t.Run("a heartbeat that Discord asked for does not count", func(t *testing.T) {
		t.Parallel()
		var p pulse
		p.asked(at(0))
		p.asked(at(1))
		if p.beat(at(2), 0, interval) {
			t.Error("dead before an interval has passed")
		}
		p.asked(at(3))
		p.acked(at(4))
		if p.beat(at(42), 0, interval) {
			t.Error("dead although acknowledged")
		}
	})
	t.Run("the reader was busy", func(t *testing.T) {
		t.Parallel()
		var p pulse
		p.beat(at(0), 0, interval)
		for s := 1; s < 5; s++ {
			if p.beat(at(40*s), time.Duration(s)*interval, interval) {
				t.Fatalf("dead at beat %d while the reader was busy", s)
			}
		}
		// The journal takes events again, but no acknowledgement comes.
		if !p.beat(at(200), 4*interval+time.Second, interval) {
			t.Error("not dead although the reader had a whole interval to read")
		}
	})
}

// TestHeartbeatSeq: a heartbeat acknowledges only stored events that Discord
// has sent on the same connection. Events of an earlier connection may be
// stored after the RESUME.
func TestHeartbeatSeq(t *testing.T) {
	t.Parallel()
	tests := []struct {
		stored, seen int64
		want         any
	}{
		{0, 0, nil},
		{0, 5, nil},
		{5, 0, nil}, // before the RESUME
		{79, 74, int64(74)},
		{74, 79, int64(74)},
	}
	for _, tt := range tests {
		l := newLink(&shard{}, storedSink(tt.stored), event.Session{ID: "s"})
		l.seenSeq.Store(tt.seen)
		if got := l.heartbeatSeq(); got != tt.want {
			t.Errorf("stored %d, seen %d: %v, want %v", tt.stored, tt.seen, got, tt.want)
		}
	}
}

// storedSink is a sink with this stored sequence number. It drops all events.
type storedSink int64

func (storedSink) put(context.Context, *event.Session, *event.Event) error { return nil }

func (storedSink) putSoon(context.Context, time.Duration, ...*event.Event) {}

func (s storedSink) stored(string) int64 { return int64(s) }

// TestFirstHeartbeat: heartbeats before READY carry no sequence number.
func TestFirstHeartbeat(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 20 * time.Millisecond})
	hold := make(chan struct{})
	r.slots = &identifytest.Slots{OnTake: func(ctx context.Context, _ int) error {
		select {
		case <-hold:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}}
	r.start()
	if e := r.count(discordtest.Heartbeat, discordtest.AnyShard, 3); e.Seq != -1 {
		t.Errorf("a heartbeat with sequence number %d before READY", e.Seq)
	}
	if st := r.gateway.Status()[0]; st.State != StateIdentifying || len(r.gateway.Unready()) != 1 {
		t.Errorf("status %+v", st)
	}
	close(hold)
	r.ready(0)
	r.legal()
}
