package identify

import (
	"cmp"
	"slices"
)

// queue is the shards of one bucket that want to IDENTIFY. One shard of each class
// may have its turn at a time. So a shard that dials, or waits for the budget,
// never holds back one of a more urgent class. It has no lock.
type queue struct {
	members []*member     // by class, then by shard id; those that have their turn too
	changed chan struct{} // closed and replaced when a member leaves
}

// member is one shard in a queue.
type member struct {
	class   Class
	shardID int
	turn    chan struct{} // closed when the shard has its turn
	has     bool          // the shard has its turn
}

func newQueue() *queue { return &queue{changed: make(chan struct{})} }

// join adds a shard.
func (q *queue) join(class Class, shardID int) *member {
	m := &member{class: class, shardID: shardID, turn: make(chan struct{})}
	i, _ := slices.BinarySearchFunc(q.members, m, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.shardID, b.shardID))
	})
	q.members = slices.Insert(q.members, i, m)
	q.advance()
	return m
}

// leave takes m out, whether it had its turn or not.
func (q *queue) leave(m *member) {
	q.members = slices.DeleteFunc(q.members, func(other *member) bool { return other == m })
	close(q.changed)
	q.changed = make(chan struct{})
	q.advance()
}

// advance gives the first shard its turn, unless another one of its class has
// it.
func (q *queue) advance() {
	if len(q.members) == 0 {
		return
	}
	next := q.members[0]
	if !slices.ContainsFunc(q.members, func(m *member) bool { return m.has && m.class == next.class }) {
		next.has = true
		close(next.turn)
	}
}

// first reports whether no shard of a more urgent class is in the queue.
func (q *queue) first(m *member) bool { return q.members[0].class >= m.class }
