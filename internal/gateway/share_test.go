package gateway

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gatehook/gatehook/internal/event"
)

// fleetModel is a model of the database's rows for the shards of a set.
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

// TestShare: whichever peers join or leave, all shards are evenly shared within
// a few rounds, and then stay where they are.
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
				t.Fatalf("%d of %d shards still move between the peers %v", moves, n, m.peers)
			}
			least, most, total := n, 0, 0
			for _, self := range m.peers {
				owned := len(m.survey(self).Owned)
				least, most, total = min(least, owned), max(most, owned), total+owned
			}
			if total != n || most-least > 1 {
				t.Fatalf("%d of %d shards are owned, from %d to %d by each peer", total, n, least, most)
			}
		}
	}
}

// TestShareBounds: few shards move at a time, and an instance that is not
// among the peers takes none.
func TestShareBounds(t *testing.T) {
	t.Parallel()
	r := event.ShardRange{Last: 999, Count: 1000}
	owned := make([]int, 1000)
	for i := range owned {
		owned[i] = i
	}
	if claim, giveBack := share(event.Survey{Self: 1, Peers: []int64{1, 2}, Owned: owned}, r); claim != nil || giveBack != maxMoves {
		t.Errorf("claims %v and gives back %d, want none and %d", claim, giveBack, maxMoves)
	}
	if claim, giveBack := share(event.Survey{Self: 3, Peers: []int64{1, 2}, Free: owned}, r); claim != nil || giveBack != 0 {
		t.Errorf("an instance that does not share claims %d shards", len(claim))
	}
	// In a range, the places count from its first shard.
	ranged := event.ShardRange{First: 8, Last: 11, Count: 16}
	if claim, _ := share(event.Survey{Self: 2, Peers: []int64{1, 2}, Free: []int{8, 9, 10, 11}}, ranged); !slices.Equal(claim, []int{10, 11}) {
		t.Errorf("the second peer of a range claims %v, want 10 and 11", claim)
	}
}
