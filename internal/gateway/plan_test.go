package gateway

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/event"
)

func TestAdvance(t *testing.T) {
	t.Parallel()
	plan := func(current, next, previous int, phase event.Phase, age time.Duration) event.Plan {
		return event.Plan{Version: 9, Current: current, Next: next, Previous: previous, Phase: phase, Age: age}
	}
	set := func(shards, ready, holding, ended int) event.Survey {
		return event.Survey{Shards: shards, Ready: ready, Holding: holding, Ended: ended}
	}
	long := usualTiming.overlap
	tests := []struct {
		name          string
		plan          event.Plan
		current, next event.Survey
		wish          int
		want          event.Plan // the zero value: the plan stays
	}{
		{name: "nothing to do", plan: plan(4, 0, 0, event.Steady, 0)},
		{name: "the wish is the current number", plan: plan(4, 0, 0, event.Steady, 0), wish: 4},
		{name: "another number", plan: plan(4, 0, 2, event.Steady, 0), wish: 8, want: plan(4, 8, 2, event.Warming, 0)},
		{name: "another number, but a shard still holds events of the last change", plan: plan(4, 0, 2, event.Steady, 0), current: set(4, 1, 1, 0), wish: 8},
		{name: "another wish while warming", plan: plan(4, 8, 0, event.Warming, 0), wish: 16, want: plan(4, 16, 0, event.Warming, 0)},
		{name: "back while warming", plan: plan(4, 8, 0, event.Warming, 0), next: set(8, 8, 0, 0), wish: 4, want: plan(4, 0, 0, event.Steady, 0)},
		{name: "nobody runs the next set", plan: plan(4, 8, 0, event.Warming, 0)},
		{name: "not all are ready", plan: plan(4, 8, 0, event.Warming, 0), next: set(8, 7, 0, 0), wish: 8},
		{name: "all are ready", plan: plan(4, 8, 0, event.Warming, 0), next: set(8, 8, 0, 0), want: plan(4, 8, 0, event.Holding, 0)},
		{name: "not all hold", plan: plan(4, 8, 0, event.Holding, long), next: set(8, 8, 7, 0)},
		{name: "all hold", plan: plan(4, 8, 0, event.Holding, 0), next: set(8, 8, 8, 0), want: plan(4, 8, 0, event.Overlapping, 0)},
		{name: "too early", plan: plan(4, 8, 0, event.Overlapping, long-1), next: set(8, 8, 8, 0)},
		{name: "too late to change", plan: plan(4, 8, 0, event.Overlapping, long-1), next: set(8, 8, 8, 0), wish: 4},
		{name: "overlapped", plan: plan(4, 8, 0, event.Overlapping, long), next: set(8, 8, 8, 0), want: plan(4, 8, 0, event.Switching, long)},
		{name: "not all have ended", plan: plan(4, 8, 2, event.Switching, 0), current: set(4, 0, 0, 3), next: set(8, 8, 8, 0)},
		{name: "nobody runs the next set any more", plan: plan(4, 8, 0, event.Holding, long)},
		{name: "nobody runs the current set any more", plan: plan(4, 8, 2, event.Switching, 0), next: set(8, 8, 8, 0)},
		{name: "all have ended", plan: plan(4, 8, 2, event.Switching, 0), current: set(4, 0, 0, 4), want: plan(8, 0, 4, event.Steady, 0)},
	}
	for _, tt := range tests {
		got, changed := advance(tt.plan, tt.current, tt.next, tt.wish, usualTiming)
		want := tt.want
		if want == (event.Plan{}) {
			want = tt.plan
		}
		if diff := cmp.Diff(want, got); diff != "" || changed != (want != tt.plan) {
			t.Errorf("%s: changed: %v\n%s", tt.name, changed, diff)
		}
	}
}

func TestDutyOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		phase                event.Phase
		current, next, other duty
	}{
		{event.Steady, dutyDeliver, dutyNone, dutyNone},
		{event.Warming, dutyDeliver, dutyWarm, dutyNone},
		{event.Holding, dutyDeliver, dutyHold, dutyNone},
		{event.Overlapping, dutyDeliver, dutyHold, dutyNone},
		{event.Switching, dutyLeave, dutyHold, dutyNone},
	}
	for _, tt := range tests {
		p := event.Plan{Current: 4, Next: 8, Previous: 2, Phase: tt.phase}
		if tt.phase == event.Steady {
			p.Next = 0
		}
		if a, b, c := dutyOf(p, 4), dutyOf(p, 8), dutyOf(p, 2); a != tt.current || b != tt.next || c != tt.other {
			t.Errorf("%s: %d, %d, %d", tt.phase, a, b, c)
		}
	}
}

func TestWished(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		configured, recommended, current int
		refused                          bool
		want                             int
	}{
		{8, 4, 4, false, 8},
		{1, 4, 4, false, 1},
		{8, 4, 8, true, 8},
		{0, 5, 4, false, 5},
		{0, 4, 4, false, 4},
		{0, 3, 4, false, 4},
		{0, 2, 4, false, 2},
		{0, 1, 16, false, 1},
		{0, 1, 1, false, 1},
		// Less than a tenth more is not worth a start of every shard.
		{0, 501, 500, false, 500},
		{0, 549, 500, false, 500},
		{0, 550, 500, false, 550},
		{0, 11, 10, false, 11},
		{0, 12, 11, false, 11},
		// Discord does not accept the current number.
		{0, 501, 500, true, 501},
		{0, 496, 500, true, 496},
		{0, 500, 500, true, 500},
	} {
		if got := wished(tt.configured, tt.recommended, tt.current, tt.refused); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}
