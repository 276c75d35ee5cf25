package gateway

import (
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

func TestIsAway(t *testing.T) {
	t.Parallel()
	const length = 8 * time.Second
	for _, tt := range []struct {
		left   time.Duration
		shared bool
		want   bool
	}{
		{length, true, false},
		{2 * time.Second, true, false},
		{time.Second, true, true},
		{-time.Second, true, true},
		{-49 * time.Second, true, true},
		{-50 * time.Second, true, false},
		{-time.Hour, true, false},
		{time.Second, false, false},
		{-time.Second, false, false},
		{-time.Hour, false, false},
	} {
		if got := isAway(tt.left, length, tt.shared, usualTiming); got != tt.want {
			t.Errorf("%v left, shared %v: away is %v", tt.left, tt.shared, got)
		}
	}
}

// gatewayShares reports whether the instance's last survey has shown others.
func (i *instance) gatewayShares() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range i.shards {
		return s.lapse.shared.Load()
	}
	return false
}

// TestLapse: a server that can't renew its lease leaves its sessions before another one
// may resume them, and resumes them when it has a lease again, or before Discord would
// forget them. Alone, it stays.
func TestLapse(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: discord.MaxInterval})
	a := r.join(nil)
	r.owners(1, map[*instance]int{a: 1})
	r.connected(a)
	old := r.ready(0)
	r.store.do(func() { r.store.left = -time.Second })
	r.dispatch(0, 0, 10)
	r.messages(10)
	if n := r.Count(discordtest.ClientClosed, 0); n != 0 {
		t.Error("a server that is alone left its session")
	}
	r.store.do(func() { r.store.left = time.Hour })
	r.join(nil) // another server; the shard stays where it is
	r.wait("another server", func() (joined bool) {
		r.store.do(func() { joined = len(r.store.members) == 2 })
		return joined
	})
	r.wait("it is known", a.gatewayShares)
	r.dispatch(0, 10, 10)
	r.messages(20)

	r.store.do(func() { r.store.left = time.Second })
	if e := r.count(discordtest.ClientClosed, 0, 1); e.Code != int(discord.CodeKeepSession) || e.Session != old.ID {
		t.Errorf("%+v", e)
	}
	r.dispatch(0, 20, 10)
	r.store.do(func() { r.store.left = time.Hour })
	r.count(discordtest.Resumed, 0, 1)
	r.messages(30)

	r.store.do(func() { r.store.left = -time.Second })
	r.count(discordtest.ClientClosed, 0, 2)
	r.dispatch(0, 30, 10)
	r.store.do(func() { r.store.left = -2 * time.Hour }) // longer than timing.lapsed
	r.count(discordtest.Resumed, 0, 2)
	r.messages(40)
	// Discord says that another connection has the session. Without a lease, nobody knows
	// whether that is the shard's new owner.
	r.do(0, discordtest.Close(4006))
	r.wait("the connection is gone", func() bool { return a.Status()[0].State != StateConnected })
	for range 20 {
		if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 3 {
			t.Fatalf("%d connections, want 3", n)
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.store.do(func() { r.store.left = time.Hour })
	r.connected(a)
}
