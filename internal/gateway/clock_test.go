package gateway

import (
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// These tests check times. They use the waits of the real program, with a fake
// clock.

const usual = discord.UsualInterval // of heartbeats

// TestHeartbeats: the first heartbeat of every connection comes at a random
// time within the interval after HELLO, and the others exactly on time
// (Discord: Sending Heartbeats).
func TestHeartbeats(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		stop := r.start()
		for n := range 10 {
			r.ready(0)
			r.sleep(3 * usual)
			r.do(0, discordtest.Drop())
			r.count(discordtest.Resumed, 0, n+1)
		}
		stop()
		var firsts []time.Duration
		connected := r.entries(discordtest.Connected)
		for _, c := range connected[:10] {
			beats := slices.DeleteFunc(r.entries(discordtest.Heartbeat), func(e discordtest.Entry) bool { return e.Conn != c.Conn })
			if len(beats) != 3 {
				t.Fatalf("%d heartbeats within three intervals", len(beats))
			}
			firsts = append(firsts, beats[0].At.Sub(c.At))
			for _, gap := range gaps(beats) {
				if gap != usual {
					t.Errorf("a heartbeat %v after the last one, want %v", gap, usual)
				}
			}
		}
		low, high := slices.Min(firsts), slices.Max(firsts)
		if low < 0 || high >= usual || high-low < time.Second {
			t.Errorf("first heartbeats %v after HELLO, want them spread over %v", firsts, usual)
		}
		r.legal()
	})
}

// TestZombie: if a heartbeat is not acknowledged when the next one is due, the
// connection ends, but not the session (Discord: Heartbeat Interval).
func TestZombie(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.start()
		r.ready(0)
		r.dispatch(0, 0, 10)
		r.messages(10)
		r.count(discordtest.Heartbeat, 0, 2)
		r.Arm(discordtest.AtHeartbeat, 0, 1, discordtest.Skip())
		last := r.count(discordtest.Heartbeat, 0, 3)
		r.dispatch(0, 10, 10) // events do not count as an acknowledgement
		closed := r.count(discordtest.ClientClosed, 0, 1)
		if d := closed.At.Sub(last.At); d != usual || closed.Code != int(discord.CodeKeepSession) {
			t.Errorf("closed with %d %v after the heartbeat, want %d after %v", closed.Code, d, discord.CodeKeepSession, usual)
		}
		r.count(discordtest.Resumed, 0, 1)
		r.dispatch(0, 20, 10)
		r.messages(30)
		if st := r.gateway.Status()[0]; st.LastClose.Reason != errZombie.Error() {
			t.Errorf("last close %+v", st.LastClose)
		}
		r.legal()
	})
}

// TestRequestedHeartbeats: Discord gets a heartbeat at once when it asks
// (Discord: Heartbeat Requests). Acknowledged or not, it neither counts as a
// regular heartbeat nor delays one.
func TestRequestedHeartbeats(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.start()
		r.ready(0)
		first := r.count(discordtest.Heartbeat, 0, 1)
		r.Arm(discordtest.AtHeartbeat, 0, 5, discordtest.Skip())
		for n := range 5 {
			r.sleep(time.Second)
			asked := time.Now()
			r.do(0, discordtest.RequestHeartbeat())
			if e := r.count(discordtest.Heartbeat, 0, n+2); !e.At.Equal(asked) {
				t.Errorf("a heartbeat %v after it was asked for", e.At.Sub(asked))
			}
		}
		if e := r.count(discordtest.Heartbeat, 0, 7); e.At.Sub(first.At) != usual {
			t.Errorf("the next heartbeat came after %v, want %v", e.At.Sub(first.At), usual)
		}
		r.sleep(10 * usual)
		if n := r.Count(discordtest.ClientClosed, discordtest.AnyShard); n != 0 {
			t.Errorf("%d connections were closed, want 0", n)
		}
		r.legal()
	})
}

// TestNoHello: the shard gives up a connection on which the gateway sends
// nothing.
func TestNoHello(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.Arm(discordtest.AtHello, discordtest.AnyShard, 1, discordtest.Skip())
		r.start()
		r.ready(0)
		connected, closed := r.count(discordtest.Connected, discordtest.AnyShard, 1), r.count(discordtest.ClientClosed, discordtest.AnyShard, 1)
		if d := closed.At.Sub(connected.At); d != usualTiming.hello {
			t.Errorf("given up after %v, want %v", d, usualTiming.hello)
		}
		if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 2 {
			t.Errorf("%d connections, want 2", n)
		}
		r.legal()
	})
}

// TestInvalidSessionWait: after op 9 the shard waits a random time of 1 to 5 s
// (according to Discord's staff; the documentation no longer mentions it).
func TestInvalidSessionWait(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.start()
		var waits []time.Duration
		for n := range 40 {
			r.ready(0)
			r.sleep(minServed)
			at := time.Now()
			r.do(0, discordtest.Invalidate(n%2 == 0))
			waits = append(waits, r.count(discordtest.Connected, discordtest.AnyShard, n+2).At.Sub(at))
		}
		low, high := slices.Min(waits), slices.Max(waits)
		if low < time.Second || high >= 5*time.Second || high-low < 2*time.Second {
			t.Errorf("waits from %v to %v, want 1 to 5 s: %v", low, high, waits)
		}
		r.legal()
	})
}

// within checks that waits double from the first one up to limit, each with a
// jitter of 50 %.
func within(t *testing.T, waits []time.Duration, first, limit time.Duration) {
	t.Helper()
	for n, wait := range waits {
		want := min(first<<min(n, 20), limit)
		if wait < want/2 || wait > want*3/2 {
			t.Errorf("wait number %d was %v, want %v with a jitter of 50 %%", n+1, wait, want)
		}
	}
}

// TestBackoff: waits grow with every connection that ends before its IDENTIFY,
// whether its socket opens or not, and more so with every IDENTIFY that fails.
// Only service makes them short again.
func TestBackoff(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{SessionLifetime: 24 * time.Hour}, func(r *clockRig) {
		t := r.t
		const dials, starts = 10, 9
		r.Arm(discordtest.AtHello, discordtest.AnyShard, dials, discordtest.Drop())
		r.Arm(discordtest.AtIdentify, 0, starts, discordtest.Drop())
		r.start()
		r.ready(0)
		waits := gaps(r.entries(discordtest.Connected))
		within(t, waits[:dials], usualTiming.reconnect, discord.MaxBackoff)
		within(t, waits[dials:], usualTiming.start, maxStartWait)
		for n := range 2 { // after READY and after RESUMED
			r.sleep(minServed)
			at := time.Now()
			r.do(0, discordtest.Drop())
			r.count(discordtest.Resumed, 0, n+1)
			within(t, []time.Duration{r.count(discordtest.Connected, discordtest.AnyShard, dials+starts+n+2).At.Sub(at)}, usualTiming.reconnect, discord.MaxBackoff)
		}
		r.legal()
	})
}

// TestFailedResumes: after three failed resumes in a row the session is given
// up, because for some sessions Discord never answers with op 9. An open socket
// does not count as a success, but RESUMED does.
func TestFailedResumes(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.start()
		r.ready(0)
		resumes := 0
		for range 4 {
			r.Arm(discordtest.AtResume, 0, maxFailedResumes-1, discordtest.Close(1005))
			r.do(0, discordtest.Drop())
			resumes += maxFailedResumes
			r.count(discordtest.Resume, 0, resumes)
			r.ready(0)
			r.sleep(minServed)
		}
		if n := r.Count(discordtest.Identify, 0); n != 1 {
			t.Fatalf("%d IDENTIFYs while every third RESUME was answered, want 1", n)
		}
		r.Arm(discordtest.AtResume, 0, discordtest.Always, discordtest.Close(1005))
		at := time.Now()
		r.do(0, discordtest.Drop())
		r.count(discordtest.Ready, 0, 2)
		r.named("GATEHOOK_SESSION_LOST", 1)
		if n := r.Count(discordtest.Resume, 0) - resumes; n != maxFailedResumes {
			t.Errorf("%d RESUMEs, want %d", n, maxFailedResumes)
		}
		connected := r.entries(discordtest.Connected)
		last := connected[len(connected)-maxFailedResumes-1:]
		within(t, append([]time.Duration{last[0].At.Sub(at)}, gaps(last[:maxFailedResumes])...), usualTiming.reconnect, maxResumeWait)
		if wait := last[maxFailedResumes].At.Sub(last[maxFailedResumes-1].At); wait > time.Second {
			t.Errorf("the next session waited %v", wait)
		}
		r.legal()
	})
}

// TestReplayThatBreaks: a replay that breaks off costs only another RESUME,
// however often, as long as it gets further each time. If it always breaks at
// the same place, the session is given up.
func TestReplayThatBreaks(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{SessionLifetime: time.Hour}, func(r *clockRig) {
		t := r.t
		r.start()
		r.ready(0)
		r.dispatch(0, 0, 10)
		r.messages(10)
		r.Arm(discordtest.AtResume, 0, 5, discordtest.After(20, discordtest.Drop()))
		r.do(0, discordtest.Drop())
		r.dispatch(0, 10, 200)
		r.messages(210)
		r.ready(0)
		if n := r.Count(discordtest.Identify, 0); n != 1 {
			t.Fatalf("%d IDENTIFYs, want 1", n)
		}
		// With a journal that commits nothing, every RESUME begins where the
		// first one did.
		r.store.setFrozen(true)
		r.dispatch(0, 210, 10)
		r.messages(220)
		r.Arm(discordtest.AtResume, 0, discordtest.Always, discordtest.After(5, discordtest.Drop()))
		r.do(0, discordtest.Drop())
		r.count(discordtest.Ready, 0, 2)
		r.legal()
	})
}

// TestNetworkDown: an outage, however long, costs no session that Discord still
// keeps. Dials come every few seconds while Discord may keep it. Then the
// longest wait is a minute, with a jitter of 50 %.
func TestNetworkDown(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{SessionLifetime: 24 * time.Hour}, func(r *clockRig) {
		t := r.t
		r.start()
		r.ready(0)
		r.dispatch(0, 0, 10)
		r.messages(10)
		r.sleep(time.Second)
		r.net.setDown(true)
		down := time.Now()
		r.count(discordtest.ClientClosed, 0, 1)
		r.dispatch(0, 10, 10)
		before := len(r.net.dialed())
		r.sleep(time.Hour)
		dials := r.net.dialed()[before:]
		// Each try dials two URLs, and Discord's API is asked as well.
		if len(dials) < 300 || len(dials) > 700 {
			t.Errorf("%d dials within an hour", len(dials))
		}
		for i := range dials[1:] {
			limit := discord.MaxBackoff
			if dials[i].Sub(down) < sessionKept {
				limit = maxResumeWait
			}
			if gap := dials[i+1].Sub(dials[i]); gap > limit*3/2 {
				t.Errorf("no dial for %v, %v after the outage began", gap, dials[i].Sub(down))
			}
		}
		r.net.setDown(false)
		up := time.Now()
		if e := r.count(discordtest.Resumed, 0, 1); e.At.Sub(up) > discord.MaxBackoff*3/2 || e.Seq != 11 {
			t.Errorf("%+v", e)
		}
		r.messages(20)
		if n := r.Count(discordtest.Identify, 0); n != 1 {
			t.Errorf("%d IDENTIFYs, want 1", n)
		}
		r.legal()
	})
}

// TestUnanswered: an IDENTIFY waits for its session as long as heartbeats are
// acknowledged (Discord: Sending Heartbeats). An unanswered RESUME is tried
// again: otherwise a shard without events would stay resuming forever.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{SessionLifetime: 24 * time.Hour}, func(r *clockRig) {
		t := r.t
		disarm := r.Arm(discordtest.AtIdentify, 0, discordtest.Always, discordtest.Skip())
		stop := r.start()
		r.sleep(time.Hour)
		if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 1 || r.gateway.Unready() == nil {
			t.Errorf("%d connections, unready: %v", n, r.gateway.Unready())
		}
		disarm()
		stop()
		r.start()
		r.ready(0)
		r.Arm(discordtest.AtResume, 0, 1, discordtest.Skip())
		at := time.Now()
		r.do(0, discordtest.Drop())
		e := r.count(discordtest.Resumed, 0, 1)
		if d := e.At.Sub(at); d < (maxSilentBeats-1)*usual || d > (maxSilentBeats+1)*usual {
			t.Errorf("resumed after %v, want about %d heartbeats", d, maxSilentBeats)
		}
		if st := r.gateway.Status()[0]; st.LastClose.Reason != errUnanswered.Error() {
			t.Errorf("last close %+v", st.LastClose)
		}
		r.legal()
	})
}
