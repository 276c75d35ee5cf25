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
		view lapseView
		want bool
	}{
		{lapseView{left: length, shared: true}, false},
		{lapseView{left: 2 * time.Second, shared: true}, false},
		{lapseView{left: time.Second, shared: true}, true},
		{lapseView{left: -time.Second, shared: true}, true},
		{lapseView{left: -49 * time.Second, shared: true}, true},
		{lapseView{left: -50 * time.Second, shared: true}, false},
		{lapseView{left: -time.Hour, shared: true}, false},
		{lapseView{left: -time.Hour, shared: true, missed: true}, true},
		{lapseView{left: time.Second}, false},
		{lapseView{left: -time.Second}, false},
		{lapseView{left: -time.Hour}, false},
	} {
		if got := tt.view.isAway(length, usualTiming); got != tt.want {
			t.Errorf("%+v: away is %v", tt.view, got)
		}
	}
}

// TestStopped: a process that was stopped while its lease ran out can't know that it is
// still alone.
func TestStopped(t *testing.T) {
	t.Parallel()
	const length = 8 * time.Second
	for _, tt := range []struct {
		name  string
		looks []time.Duration // what is left of the lease
		want  lapseView
	}{
		{"renewed all the time", []time.Duration{6 * time.Second, length, 6 * time.Second}, lapseView{}},
		{"the database is away", []time.Duration{2 * time.Second, time.Second, -time.Second, -3 * time.Second, -6 * time.Second}, lapseView{}},
		{"a tick came late", []time.Duration{time.Second, -2 * time.Second}, lapseView{}},
		{"stopped for less than the lease", []time.Duration{length, time.Second}, lapseView{}},
		{"stopped for longer", []time.Duration{6 * time.Second, -6 * time.Second}, lapseView{shared: true}},
		{"and the lease is renewed", []time.Duration{6 * time.Second, -6 * time.Second, length}, lapseView{shared: true}},
		{"stopped after the lease had run out", []time.Duration{time.Second, -time.Second, -6 * time.Second}, lapseView{shared: true}},
		{"suspended for an hour", []time.Duration{6 * time.Second, -time.Hour, -time.Hour - time.Second}, lapseView{shared: true, missed: true}},
		{"and the lease is renewed", []time.Duration{6 * time.Second, -time.Hour, length}, lapseView{shared: true}},
	} {
		v := lapseView{left: length}
		for _, left := range tt.looks {
			v = v.look(left, length, usualTiming)
		}
		tt.want.left = v.left
		if v != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, v, tt.want)
		}
	}
}

// TestSurveyFromBeforeTheStop: an answer that waited in the socket while the process was
// stopped does not show who is there now.
func TestSurveyFromBeforeTheStop(t *testing.T) {
	t.Parallel()
	left := 8 * time.Second
	l := newLapse(func() (time.Duration, time.Duration) { return left, 8 * time.Second }, usualTiming)
	l.surveyed(true)
	l.surveyed(false)
	if l.isShared() {
		t.Error("a survey that shows no other server does not count")
	}
	left = -6 * time.Second
	l.surveyed(false)
	if !l.isShared() || !l.look() {
		t.Error("the last survey of a stopped process counts")
	}
	left = 8 * time.Second
	l.surveyed(false)
	if l.isShared() || l.look() {
		t.Error("the first survey with a lease does not count")
	}
}

// lapse returns what keeps the instance's shards away from their sessions.
func (i *instance) lapse() *lapse {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range i.shards {
		return s.lapse
	}
	return nil
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
	// left sets what is left of the lease, step by step: a jump is a process that was
	// stopped.
	lapse := a.lapse()
	left := func(steps ...time.Duration) {
		for _, d := range steps {
			r.store.do(func() { r.store.left = d })
			r.wait("the lease is seen", func() bool {
				lapse.mu.Lock()
				defer lapse.mu.Unlock()
				return lapse.seen.left == d
			})
		}
	}
	left(3*time.Second, -time.Second)
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
	r.wait("it is known", lapse.isShared)
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
	left(-time.Hour+time.Second, -time.Hour-time.Second) // timing.lapsed is an hour
	r.count(discordtest.Resumed, 0, 2)
	r.messages(40)
	// Discord says that another connection has the session. Without a lease, nobody knows
	// whether that is the shard's new owner.
	r.do(0, discordtest.Close(4006))
	r.wait("the connection is gone", func() bool { return a.Status()[0].State != StateConnected })
	never := func(connections int) {
		t.Helper()
		for range 20 {
			if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != connections {
				t.Fatalf("%d connections, want %d", n, connections)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	never(3)
	r.store.do(func() { r.store.left = time.Hour })
	r.connected(a)
	// Suspended for two hours, it resumes nothing before it has a lease.
	n := r.Count(discordtest.Connected, discordtest.AnyShard)
	left(-2 * time.Hour)
	r.wait("the connection is gone", func() bool { return a.Status()[0].State != StateConnected })
	never(n)
	left(time.Hour)
	r.connected(a)
}
