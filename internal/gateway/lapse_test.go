package gateway

import (
	"testing"
	"testing/synctest"
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
		{lapseView{left: length, unsure: true}, false},
		{lapseView{left: 2 * time.Second, unsure: true}, false},
		{lapseView{left: time.Second, unsure: true}, true},
		{lapseView{left: -time.Second, unsure: true}, true},
		{lapseView{left: -49 * time.Second, unsure: true}, true},
		{lapseView{left: -50 * time.Second, unsure: true}, false},
		{lapseView{left: -time.Hour, unsure: true}, false},
		{lapseView{left: -time.Hour, unsure: true, missed: true}, true},
		{lapseView{left: time.Second}, false},
		{lapseView{left: -time.Second}, false},
		{lapseView{left: -time.Hour}, false},
	} {
		if got := tt.view.isAway(length, usualTiming); got != tt.want {
			t.Errorf("%+v: away is %v", tt.view, got)
		}
	}
}

// TestStopped: a process that was stopped can't know that it is still alone.
func TestStopped(t *testing.T) {
	t.Parallel()
	const s = time.Second
	type look struct{ after, left time.Duration }
	for _, tt := range []struct {
		name  string
		looks []look
		want  lapseView
	}{
		{"renewed all the time", []look{{s / 4, 6 * s}, {s / 4, 8 * s}, {s / 4, 6 * s}}, lapseView{}},
		{"the database is away", []look{{s, s}, {s, 0}, {s, -s}, {2 * s, -3 * s}}, lapseView{}},
		{"stopped for less than the lease", []look{{s, 7 * s}, {3 * s, 4 * s}}, lapseView{unsure: true}},
		{"stopped for longer", []look{{s, 6 * s}, {12 * s, -6 * s}}, lapseView{unsure: true}},
		{"and the lease is renewed", []look{{s, 6 * s}, {12 * s, -6 * s}, {s, 8 * s}}, lapseView{unsure: true}},
		{"suspended for an hour", []look{{s, 6 * s}, {time.Hour, -time.Hour}, {s, -time.Hour - s}}, lapseView{unsure: true, missed: true}},
		{"and the lease is renewed after that", []look{{s, 6 * s}, {time.Hour, -time.Hour}, {s, 8 * s}}, lapseView{unsure: true}},
	} {
		at := time.Now()
		v := lapseView{at: at, left: 8 * s}
		for _, l := range tt.looks {
			at = at.Add(l.after)
			v = v.look(at, l.left, usualTiming)
		}
		tt.want.at, tt.want.left = v.at, v.left
		if v != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, v, tt.want)
		}
	}
}

// TestTakenWithoutALease: another connection has a session, so there is another server.
func TestTakenWithoutALease(t *testing.T) {
	t.Parallel()
	left := 8 * time.Second
	l := newLapse(func() (time.Duration, time.Duration) { return left, 8 * time.Second }, usualTiming)
	l.taken()
	if l.isShared() {
		t.Error("with a lease, nobody else can have the session for long")
	}
	left = -time.Second
	l.taken()
	if !l.isShared() || !isClosed(l.leaves()) {
		t.Error("without a lease, that says nothing")
	}
}

// TestSurveyFromBeforeTheStop: an answer that waited in the socket while the process was
// stopped does not show who is there now.
func TestSurveyFromBeforeTheStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		left := 8 * time.Second
		l := newLapse(func() (time.Duration, time.Duration) { return left, 8 * time.Second }, usualTiming)
		shares := func(want bool, why string) {
			t.Helper()
			if l.isShared() != want {
				t.Error(why)
			}
		}
		l.surveyed(false)
		shares(false, "a survey that shows no other server does not count")
		l.surveyed(true)
		for range usualTiming.alone / time.Second {
			l.surveyed(false)
			shares(true, "a server that was there a while ago may come back")
			time.Sleep(time.Second)
		}
		l.look()
		shares(false, "a server that was there long ago still counts")
		time.Sleep(14 * time.Second) // nobody looks
		left = -6 * time.Second
		l.surveyed(false)
		shares(true, "the last survey of a stopped process counts")
		left = 8 * time.Second
		l.surveyed(false)
		shares(false, "the first survey with a lease does not count")
	})
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
	// left sets what is left of the lease, and waits until that is seen.
	lapse := a.lapse()
	left := func(d time.Duration) {
		r.store.do(func() { r.store.left = d })
		r.wait("the lease is seen", func() bool {
			lapse.mu.Lock()
			defer lapse.mu.Unlock()
			return lapse.seen.left == d
		})
	}
	left(-time.Second)
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
	left(-2 * time.Hour) // longer than timing.lapsed
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
	lapse.mu.Lock()
	r.store.do(func() { r.store.left = -2 * time.Hour })
	lapse.seen.at = lapse.seen.at.Add(-2 * time.Hour)
	lapse.mu.Unlock()
	r.wait("the connection is gone", func() bool { return a.Status()[0].State != StateConnected })
	never(n)
	left(time.Hour)
	r.connected(a)
}
