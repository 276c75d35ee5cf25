package identify

import "slices"

// queue is the shards of one bucket that want to IDENTIFY. It has no lock.
type queue struct {
	now  *waiter   // the shard whose turn it is; nil for none
	next []*waiter // by shard id
}

// waiter is one shard in a queue.
type waiter struct {
	shardID int
	turn    chan struct{} // closed when the shard has its turn
}

// join adds a shard.
func (q *queue) join(shardID int) *waiter {
	w := &waiter{shardID, make(chan struct{})}
	i, _ := slices.BinarySearchFunc(q.next, shardID, func(w *waiter, id int) int { return w.shardID - id })
	q.next = slices.Insert(q.next, i, w)
	q.advance()
	return w
}

// leave takes w out, whether it had its turn or not.
func (q *queue) leave(w *waiter) {
	if q.now == w {
		q.now = nil
	}
	q.next = slices.DeleteFunc(q.next, func(other *waiter) bool { return other == w })
	q.advance()
}

// advance gives the next shard its turn unless another one has it.
func (q *queue) advance() {
	if q.now == nil && len(q.next) > 0 {
		q.now, q.next = q.next[0], q.next[1:]
		close(q.now.turn)
	}
}
