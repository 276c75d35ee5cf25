package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/gateway/identify/identifytest"
)

// These tests are about what a session start may cost: with the waits of the
// real program, on a fake clock.

// withPace is withClock with the waits between IDENTIFYs.
func withPace(t *testing.T, cfg discordtest.Config, test func(r *clockRig)) {
	t.Helper()
	cfg.IdentifyWindow = 5 * time.Second
	withClock(t, cfg, func(r *clockRig) {
		r.slots = &identifytest.Slots{Slot: identify.SlotLength}
		test(r)
	})
}

// failing are faults by which every session ends soon after READY.
var failing = []struct {
	name  string
	fault discordtest.Action
}{
	{"op 9", discordtest.Invalidate(false)},
	{"close 1011", discordtest.Close(1011)},
	{"close 4009", discordtest.Close(4009)},
	{"a stream that breaks", discordtest.Corrupt()},
	{"drop", discordtest.Drop()},
}

// TestFailingSessions: a shard whose sessions end soon after READY, again and
// again, begins few: READY alone does not make the waits short again.
func TestFailingSessions(t *testing.T) {
	t.Parallel()
	for _, tt := range failing {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			withPace(t, discordtest.Config{}, func(r *clockRig) {
				r.Arm(discordtest.AtIdentify, 0, discordtest.Always, discordtest.After(1, tt.fault))
				r.Arm(discordtest.AtResume, 0, discordtest.Always, tt.fault)
				r.start()
				for range 90 {
					r.sleep(time.Minute)
					st := r.gateway.Status()[0]
					if live := r.gateway.shards[event.Shard{Count: 1}].liveLink() != nil; !live && st.State == StateConnected {
						r.t.Errorf("the shard is called connected while it waits: %+v", st)
					}
				}
				n := r.Count(discordtest.Identify, 0)
				r.t.Logf("%d session starts in 90 minutes", n)
				if n < 15 || n > 40 {
					r.t.Errorf("%d session starts in 90 minutes, want 15 to 40", n)
				}
				r.legal()
			})
		})
	}
}

// TestFailingSessionsOfASmallBudget: a failing shard does not use up the last
// session starts either: its tries are spread over the rest of the day.
func TestFailingSessionsOfASmallBudget(t *testing.T) {
	t.Parallel()
	for _, tt := range failing {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := discordtest.Config{Shards: 2, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 62, ResetAfter: 20 * time.Hour}}
			withPace(t, cfg, func(r *clockRig) {
				r.Arm(discordtest.AtIdentify, 0, discordtest.Always, discordtest.After(1, tt.fault))
				r.Arm(discordtest.AtResume, 0, discordtest.Always, tt.fault)
				r.start()
				r.ready(1)
				r.sleep(18 * time.Hour)
				n := r.Count(discordtest.Identify, 0)
				r.t.Logf("%d session starts in 18 h", n)
				if n < 3 || n > 10 {
					r.t.Errorf("%d session starts in 18 h, want some, but not all", n)
				}
				at := time.Now()
				r.do(1, discordtest.Invalidate(false))
				if e := r.count(discordtest.Ready, 1, 2); e.At.Sub(at) > 10*time.Second {
					r.t.Errorf("another shard began its session after %v", e.At.Sub(at))
				}
				r.legal()
			})
		})
	}
}

// TestShortSessions: sessions that last just long enough to be forgiven do not
// use up the day's starts.
func TestShortSessions(t *testing.T) {
	t.Parallel()
	cfg := discordtest.Config{Shards: 2, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour}}
	withPace(t, cfg, func(r *clockRig) {
		r.start()
		r.ready(1)
		for end := time.Now().Add(23 * time.Hour); time.Now().Before(end); {
			r.ready(0)
			r.sleep(minServed + time.Second)
			r.do(0, discordtest.Invalidate(false))
		}
		n := r.Count(discordtest.Identify, 0)
		r.t.Logf("%d session starts in 23 h", n)
		if n < 500 || n > 900 {
			r.t.Errorf("%d session starts in 23 h, want 500 to 900", n)
		}
		r.legal()
	})
}

// TestDeadResumeURL: when a session's own URL does not answer, the session is
// resumed at the gateway's URL while it lives.
func TestDeadResumeURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		moment discordtest.Moment
		action discordtest.Action
		most   time.Duration
	}{
		{"503", discordtest.AtResumeConnect, discordtest.Status(503), 3 * time.Second},
		{"broken handshake", discordtest.AtResumeConnect, discordtest.Drop(), 3 * time.Second},
		{"no answer", discordtest.AtResumeConnect, discordtest.Silence(), 6 * time.Second},
		{"no HELLO", discordtest.AtHello, discordtest.Skip(), 8 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			withPace(t, discordtest.Config{}, func(r *clockRig) {
				r.start()
				r.ready(0)
				r.dispatch(0, 0, 10)
				r.messages(10)
				r.sleep(time.Hour)
				times := discordtest.Always
				if tt.moment == discordtest.AtHello {
					times = 1 // it can't be armed for one URL only
				}
				r.Arm(tt.moment, discordtest.AnyShard, times, tt.action)
				at := time.Now()
				r.do(0, discordtest.Drop())
				r.dispatch(0, 10, 10)
				r.sleep(2 * time.Minute)
				if n := r.Count(discordtest.Identify, 0); n != 1 {
					lost, next := r.named("GATEHOOK_SESSION_LOST", 1), r.count(discordtest.Ready, 0, 2)
					r.t.Fatalf("the session was given up; the next one began after %v: %s", next.At.Sub(at), lost.Data)
				}
				e := r.count(discordtest.Resumed, 0, 1)
				r.t.Logf("resumed after %v", e.At.Sub(at))
				if e.At.Sub(at) > tt.most {
					r.t.Errorf("resumed after %v, want at most %v", e.At.Sub(at), tt.most)
				}
				r.messages(20)
				r.legal()
			})
		})
	}
}

// TestResumeURLFailsOnce: one failed dial is no reason to leave the session's own
// URL.
func TestResumeURLFailsOnce(t *testing.T) {
	t.Parallel()
	withPace(t, discordtest.Config{}, func(r *clockRig) {
		r.start()
		r.ready(0)
		r.sleep(time.Hour)
		r.Arm(discordtest.AtConnect, discordtest.AnyShard, discordtest.Always, discordtest.Status(503))
		for n := range 5 {
			r.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, 1, discordtest.Status(503))
			at := time.Now()
			r.do(0, discordtest.Drop())
			if e := r.count(discordtest.Resumed, 0, n+1); e.At.Sub(at) > 3*time.Second {
				r.t.Errorf("resumed after %v", e.At.Sub(at))
			}
			r.sleep(time.Hour)
		}
		r.legal()
	})
}

// TestNoURLAnswers: a session is kept while neither its own URL nor the gateway's
// answers, and resumed as soon as one does.
func TestNoURLAnswers(t *testing.T) {
	t.Parallel()
	withPace(t, discordtest.Config{}, func(r *clockRig) {
		r.start()
		r.ready(0)
		r.sleep(time.Hour)
		disarm := r.Arm(discordtest.AtConnect, discordtest.AnyShard, discordtest.Always, discordtest.Silence())
		r.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, discordtest.Always, discordtest.Silence())
		r.do(0, discordtest.Drop())
		r.sleep(70 * time.Second)
		if problem := r.gateway.Status()[0].Problem; !strings.Contains(problem, "did not answer in time") {
			r.t.Errorf("problem %q", problem)
		}
		disarm()
		up := time.Now()
		// A dial of each URL may be under way.
		if e := r.count(discordtest.Resumed, 0, 1); e.At.Sub(up) > 2*usualTiming.resume+maxResumeWait*3/2 {
			r.t.Errorf("resumed %v after the gateway answered", e.At.Sub(up))
		}
		if n := r.Count(discordtest.Identify, 0); n != 1 {
			r.t.Errorf("%d session starts, want 1", n)
		}
		r.legal()
	})
}

// TestDeadResumeURLOfMany: many shards whose sessions have the same silent URL
// are all resumed while their sessions live, although few may dial at a time.
func TestDeadResumeURLOfMany(t *testing.T) {
	t.Parallel()
	const shards = 320
	cfg := discordtest.Config{Shards: shards, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour, MaxConcurrency: 16}}
	withPace(t, cfg, func(r *clockRig) {
		r.start()
		r.sleep(10 * time.Minute)
		r.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, discordtest.Always, discordtest.Silence())
		at := time.Now()
		r.do(discordtest.AnyShard, discordtest.Drop())
		r.sleep(3 * time.Minute)
		resumed := r.entries(discordtest.Resumed)
		if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != shards || len(resumed) != shards {
			r.t.Fatalf("%d sessions were resumed, %d began; want %d each", len(resumed), n, shards)
		}
		late := resumed[shards-1].At.Sub(at)
		r.t.Logf("the last one was resumed after %v", late)
		if late > 30*time.Second {
			r.t.Errorf("the last one was resumed after %v, want at most 30 s", late)
		}
		r.legal()
	})
}

// TestShortOutage: after an outage that a session outlives every shard resumes
// within seconds.
func TestShortOutage(t *testing.T) {
	t.Parallel()
	const shards = 16
	cfg := discordtest.Config{Shards: shards, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour, MaxConcurrency: shards}}
	for _, outage := range []time.Duration{20 * time.Second, 62 * time.Second, 85 * time.Second} {
		t.Run(outage.String(), func(t *testing.T) {
			t.Parallel()
			withPace(t, cfg, func(r *clockRig) {
				r.start()
				for shard := range shards {
					r.ready(shard)
				}
				r.sleep(time.Hour)
				r.net.setDown(true)
				r.sleep(outage)
				r.net.setDown(false)
				up := time.Now()
				r.sleep(2 * time.Minute)
				if n := r.Count(discordtest.Resumed, discordtest.AnyShard); n != shards {
					r.t.Errorf("%d of %d sessions were resumed", n, shards)
				}
				var late time.Duration
				for _, e := range r.entries(discordtest.Resume) {
					late = max(late, e.At.Sub(up))
				}
				r.t.Logf("the last RESUME came %v after the outage", late)
				if late > 5*time.Second {
					r.t.Errorf("the last RESUME came %v after the outage, want at most 5 s", late)
				}
				r.legal()
			})
		})
	}
}

// TestLongOutage: a session that is lost after an outage is followed by the next
// one at once: the dials that failed before are no reason to wait.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	withPace(t, discordtest.Config{}, func(r *clockRig) {
		r.start()
		r.ready(0)
		for n := range 5 {
			r.sleep(time.Hour)
			r.net.setDown(true)
			r.sleep(3 * time.Minute)
			r.net.setDown(false)
			up := time.Now()
			r.count(discordtest.Refused, 0, n+1)
			ready := r.count(discordtest.Ready, 0, n+2)
			r.t.Logf("the next session began %v after the outage", ready.At.Sub(up))
			if ready.At.Sub(up) > 10*time.Second {
				r.t.Errorf("the next session began %v after the outage, want at most 10 s", ready.At.Sub(up))
			}
		}
		r.legal()
	})
}

// askedSlots count the answers about the session starts left.
type askedSlots struct {
	identify.Slots
	asked atomic.Int64
}

func (s *askedSlots) Learn(ctx context.Context, id event.Snowflake, total, remaining int, resetAfter time.Duration) error {
	s.asked.Add(1)
	return s.Slots.Learn(ctx, id, total, remaining, resetAfter)
}

// TestNoStartsAndNoReset: an answer without a time of the reset does not make the
// gateway ask Discord's API all the time.
func TestNoStartsAndNoReset(t *testing.T) {
	t.Parallel()
	cfg := discordtest.Config{SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 0, ResetAfter: -1}}
	withPace(t, cfg, func(r *clockRig) {
		slots := &askedSlots{Slots: r.slots}
		r.slots = slots
		r.start()
		r.sleep(time.Hour)
		n := slots.asked.Load()
		r.t.Logf("asked %d times in an hour", n)
		if n < 6 || n > 20 {
			r.t.Errorf("asked %d times in an hour, want 6 to 20", n)
		}
		r.SetSessionStart(discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour})
		r.sleep(11 * time.Minute)
		r.ready(0)
		r.legal()
	})
}

// withShards configures all shards of a set.
func withShards(n int) func(*Config) {
	return func(c *Config) { c.Shards = Shards{Last: n - 1, Count: n} }
}

// TestDeliveringBeforeWarming: a shard that delivers and lost its session does
// not wait for the shards of a set that warms.
func TestDeliveringBeforeWarming(t *testing.T) {
	t.Parallel()
	cfg := discordtest.Config{SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour}}
	withPace(t, cfg, func(r *clockRig) {
		const shards = 95
		a := r.join(withShards(shards))
		r.sleep(10 * time.Minute)
		a.stop()
		r.join(withShards(100))
		r.sleep(31 * time.Second)
		at := time.Now()
		r.do(shards-1, discordtest.Invalidate(false))
		e := r.count(discordtest.Ready, shards-1, 2)
		r.t.Logf("the next session began after %v", e.At.Sub(at))
		if e.At.Sub(at) > 5*time.Second+identify.SlotLength {
			r.t.Errorf("the next session began after %v", e.At.Sub(at))
		}
		r.sleep(20 * time.Minute)
		if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != shards+1+100 {
			r.t.Errorf("%d session starts, want %d, 1 and 100", n, shards)
		}
		r.legal()
	})
}

// TestWarmingIsCovered: a set is warmed only if the session starts left cover
// the whole of it, and what the shards that deliver may need.
func TestWarmingIsCovered(t *testing.T) {
	t.Parallel()
	// 100 of the 153 would leave 53: the shards that deliver need 2, and the
	// reserve is 50.
	for remaining, covered := range map[int]bool{2 + 153: true, 2 + 151: false} {
		t.Run(fmt.Sprint(remaining), func(t *testing.T) {
			t.Parallel()
			cfg := discordtest.Config{SessionStart: discordtest.SessionStart{Total: 1000, Remaining: remaining, ResetAfter: 24 * time.Hour}}
			withPace(t, cfg, func(r *clockRig) {
				a := r.join(withShards(2))
				r.sleep(time.Minute)
				a.stop()
				b := r.join(withShards(100))
				r.sleep(30 * time.Minute)
				plan, err := b.peer.Plan(r.ctx, 0, 0)
				if err != nil || (plan.Current == 100) != covered || covered && plan.Phase != event.Steady {
					r.t.Fatalf("%+v, %v", plan, err)
				}
				if n := r.Count(discordtest.Identify, discordtest.AnyShard); !covered && n != 2 {
					r.t.Errorf("%d session starts, want 2", n)
				}
				r.SetSessionStart(discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour})
				r.sleep(30 * time.Minute)
				if plan, err := b.peer.Plan(r.ctx, 0, 0); err != nil || plan.Current != 100 {
					r.t.Errorf("after the reset: %+v, %v", plan, err)
				}
				r.legal()
			})
		})
	}
}

// TestIntentsAreGathered: listeners that are registered within some seconds cost
// one session start of every shard.
func TestIntentsAreGathered(t *testing.T) {
	t.Parallel()
	const shards = 3
	cfg := discordtest.Config{Shards: shards, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, ResetAfter: 24 * time.Hour, MaxConcurrency: shards}}
	withPace(t, cfg, func(r *clockRig) {
		r.start()
		for shard := range shards {
			r.ready(shard)
		}
		r.sleep(time.Minute)
		for _, more := range []event.Intents{event.IntentGuildMembers, event.IntentMessageContent, event.IntentGuildPresences} {
			r.intents.Store(r.intents.Load() | int64(more))
			r.changed <- struct{}{}
			r.sleep(1500 * time.Millisecond)
		}
		r.sleep(10 * time.Minute)
		if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 2*shards {
			r.t.Errorf("%d session starts, want %d", n, 2*shards)
		}
		for _, st := range r.gateway.Status() {
			if st.Intents != event.Intents(r.intents.Load()) {
				r.t.Errorf("status %+v", st)
			}
		}
		r.legal()
	})
}

// noIntents are Slots that have no slot for more intents.
type noIntents struct{ identify.Slots }

func (s noIntents) Take(ctx context.Context, id event.Snowflake, bucket int, class identify.Class) (time.Duration, error) {
	if class == identify.ClassIntents {
		return time.Hour, nil
	}
	return s.Slots.Take(ctx, id, bucket, class)
}

// TestLeavingWhileMoreIntentsWait: a shard that waits for a session with more
// intents still leaves when another set takes over.
func TestLeavingWhileMoreIntentsWait(t *testing.T) {
	t.Parallel()
	withPace(t, discordtest.Config{}, func(r *clockRig) {
		r.slots = noIntents{r.slots}
		r.timing.gather = 0
		a := r.join(withShards(2))
		r.sleep(time.Minute)
		a.stop()
		r.cfg.Shards = Shards{Last: 9, Count: 10}
		r.start()
		watch := r.store.join()
		for {
			plan, err := watch.Plan(r.ctx, 0, 0)
			if err != nil {
				r.t.Fatal(err)
			}
			if plan.Phase == event.Overlapping {
				break
			}
			r.sleep(time.Second)
		}
		r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
		r.changed <- struct{}{}
		r.sleep(time.Minute)
		if st := r.gateway.Status(); len(st) != 10 || r.gateway.Unready() != nil {
			r.t.Errorf("%d shards: %v; %+v", len(st), r.gateway.Unready(), st)
		}
		r.legal()
	})
}

// TestInvalidShardConcernsAll: Discord refuses a number of shards, and not one
// of them.
func TestInvalidShardConcernsAll(t *testing.T) {
	t.Parallel()
	const shards = 4
	// There are just enough starts: nothing is kept back for the refused set.
	cfg := discordtest.Config{Shards: shards, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 50 + 1 + shards - 1, ResetAfter: 24 * time.Hour}}
	withPace(t, cfg, func(r *clockRig) {
		disarm := r.Arm(discordtest.AtIdentify, discordtest.AnyShard, discordtest.Always, discordtest.Close(int(discord.CodeInvalidShard)))
		a := r.join(nil)
		r.sleep(30 * time.Minute)
		if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 1 {
			r.t.Errorf("%d session starts, want 1", n)
		}
		// Another number is not refused, however little it differs.
		disarm()
		r.SetShards(shards - 1)
		r.sleep(30 * time.Minute)
		if plan, err := a.peer.Plan(r.ctx, 0, 0); err != nil || plan.Current != shards-1 || plan.Phase != event.Steady {
			r.t.Errorf("%+v, %v", plan, err)
		}
		r.connected(a)
		r.legal()
	})
}
