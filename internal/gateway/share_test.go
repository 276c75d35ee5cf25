package gateway

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/event"
)

// fleetModel is what the database would say about the shards of a set.
type fleetModel struct {
	n      int
	owner  map[int]int64
	peers  []int64
	ranges event.ShardRange
}

func (m *fleetModel) survey(self int64) event.Survey {
	s := event.Survey{Self: self, Peers: m.peers, Shards: m.n}
	for id := range m.n {
		switch o := m.owner[id]; {
		case o == self:
			s.Owned = append(s.Owned, id)
		case !slices.Contains(m.peers, o):
			s.Free = append(s.Free, id)
		}
	}
	return s
}

// round lets every peer decide once, in random order, and returns how many
// shards changed hands.
func (m *fleetModel) round(r *rand.Rand) (moves int) {
	peers := slices.Clone(m.peers)
	r.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	for _, self := range peers {
		s := m.survey(self)
		claim, giveBack := share(s, m.ranges)
		for _, id := range claim {
			m.owner[id] = self
		}
		for _, id := range s.Owned[len(s.Owned)-giveBack:] {
			delete(m.owner, id)
		}
		moves += len(claim) + giveBack
	}
	return moves
}

// TestShare: whoever joins or leaves, the shards end up evenly shared within a
// few rounds, all of them, and then nothing moves any more.
func TestShare(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		n := 1 + r.IntN(60)
		m := &fleetModel{n: n, owner: map[int]int64{}, ranges: event.ShardRange{Last: n - 1, Count: n}}
		next := int64(1)
		for range 1 + r.IntN(6) {
			m.peers = append(m.peers, next)
			next++
		}
		for range 4 {
			switch r.IntN(3) {
			case 0:
				m.peers = append(m.peers, next)
				next++
			case 1:
				if len(m.peers) > 1 {
					i := r.IntN(len(m.peers))
					m.peers = slices.Delete(slices.Clone(m.peers), i, i+1)
				}
			}
			for range 12 {
				m.round(r)
			}
			if moves := m.round(r); moves != 0 {
				t.Fatalf("%d shards of %d still move between %v", moves, n, m.peers)
			}
			least, most, total := n, 0, 0
			for _, self := range m.peers {
				owned := len(m.survey(self).Owned)
				least, most, total = min(least, owned), max(most, owned), total+owned
			}
			if total != n || most-least > 1 {
				t.Fatalf("%d of %d shards are owned, from %d to %d each", total, n, least, most)
			}
		}
	}
}

// TestShareBounds: few shards move at a time, and one that is not among the
// peers takes none.
func TestShareBounds(t *testing.T) {
	t.Parallel()
	r := event.ShardRange{Last: 999, Count: 1000}
	owned := make([]int, 1000)
	for i := range owned {
		owned[i] = i
	}
	if claim, giveBack := share(event.Survey{Self: 1, Peers: []int64{1, 2}, Owned: owned}, r); claim != nil || giveBack != maxMoves {
		t.Errorf("claims %v, gives back %d", claim, giveBack)
	}
	if claim, giveBack := share(event.Survey{Self: 3, Peers: []int64{1, 2}, Free: owned}, r); claim != nil || giveBack != 0 {
		t.Errorf("one that does not share claims %d", len(claim))
	}
	// In a range of a set the places count from the range's first.
	ranged := event.ShardRange{First: 8, Last: 11, Count: 16}
	if claim, _ := share(event.Survey{Self: 2, Peers: []int64{1, 2}, Free: []int{8, 9, 10, 11}}, ranged); !slices.Equal(claim, []int{10, 11}) {
		t.Errorf("the second of a range begins with %v", claim)
	}
}

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
		want          event.Plan // the zero value: it stays
	}{
		{name: "nothing to do", plan: plan(4, 0, 0, event.Steady, 0)},
		{name: "the wish is what there is", plan: plan(4, 0, 0, event.Steady, 0), wish: 4},
		{name: "another number", plan: plan(4, 0, 2, event.Steady, 0), wish: 8, want: plan(4, 8, 2, event.Warming, 0)},
		{name: "another wish on the way", plan: plan(4, 8, 0, event.Warming, 0), wish: 16, want: plan(4, 16, 0, event.Warming, 0)},
		{name: "back on the way", plan: plan(4, 8, 0, event.Warming, 0), next: set(8, 8, 0, 0), wish: 4, want: plan(4, 0, 0, event.Steady, 0)},
		{name: "nobody runs the next set", plan: plan(4, 8, 0, event.Warming, 0)},
		{name: "not all are ready", plan: plan(4, 8, 0, event.Warming, 0), next: set(8, 7, 0, 0), wish: 8},
		{name: "all are ready", plan: plan(4, 8, 0, event.Warming, 0), next: set(8, 8, 0, 0), want: plan(4, 8, 0, event.Holding, 0)},
		{name: "not all hold", plan: plan(4, 8, 0, event.Holding, long), next: set(8, 8, 7, 0)},
		{name: "all hold", plan: plan(4, 8, 0, event.Holding, 0), next: set(8, 8, 8, 0), want: plan(4, 8, 0, event.Overlapping, 0)},
		{name: "too early", plan: plan(4, 8, 0, event.Overlapping, long-1), next: set(8, 8, 8, 0)},
		{name: "too late to change", plan: plan(4, 8, 0, event.Overlapping, long-1), next: set(8, 8, 8, 0), wish: 4},
		{name: "overlapped", plan: plan(4, 8, 0, event.Overlapping, long), next: set(8, 8, 8, 0), want: plan(4, 8, 0, event.Switching, long)},
		{name: "not all have ended", plan: plan(4, 8, 2, event.Switching, 0), current: set(4, 0, 0, 3), next: set(8, 8, 8, 0)},
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
	for _, tt := range []struct{ configured, recommended, current, want int }{
		{8, 4, 4, 8}, {1, 4, 4, 1}, {0, 5, 4, 5}, {0, 4, 4, 4}, {0, 3, 4, 4}, {0, 2, 4, 2}, {0, 1, 16, 1}, {0, 1, 1, 1},
	} {
		if got := wished(tt.configured, tt.recommended, tt.current); got != tt.want {
			t.Errorf("configured %d, recommended %d, %d now: %d, want %d", tt.configured, tt.recommended, tt.current, got, tt.want)
		}
	}
}
