package gateway

import (
	"slices"

	"github.com/gatehook/gatehook/internal/event"
)

// maxMoves is how many shards an instance gives back at a time. Otherwise a new
// instance would take half of a large bot's shards off the air at once.
const maxMoves = 16

// share decides which shards of a range this instance should claim, and how
// many of its shards it should give back, so that the peers' numbers of shards
// differ by at most one. Every peer decides for itself, from the same rows.
func share(s event.Survey, r event.ShardRange) (claim []int, giveBack int) {
	rank := slices.Index(s.Peers, s.Self)
	if rank < 0 {
		return nil, 0
	}
	n, peers := r.Last-r.First+1, len(s.Peers)
	quota := n / peers
	if rank < n%peers {
		quota++
	}
	if len(s.Owned) >= quota {
		return nil, min(len(s.Owned)-quota, maxMoves)
	}
	// Each peer begins at a different place, so that peers that start together
	// don't compete for the same shards.
	begin, _ := slices.BinarySearch(s.Free, r.First+rank*n/peers)
	free := slices.Concat(s.Free[begin:], s.Free[:begin])
	return free[:min(len(free), quota-len(s.Owned))], 0
}
