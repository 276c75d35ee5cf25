package journal

import (
	"context"
	"errors"
	"sync"

	"github.com/gatehook/gatehook/internal/event"
)

var errQueueClosed = errors.New("the journal has stopped")

// entry is one append of a shard: its session, and the event that moved the
// session's cursor, if any. An entry with done is a mark instead: done gets an
// error, or nil, once all entries before it are committed and dispatched.
type entry struct {
	claim   *Claim
	session event.Session
	event   *event.Event
	done    chan error // has room for one
}

// queue holds the entries that wait for the next commit. Their number and bytes
// are limited; an event larger than the limit is accepted by an empty queue.
type queue struct {
	maxEntries, maxBytes int

	wake chan struct{} // holds a token while there are entries to take

	mu      sync.Mutex // guards the fields below
	entries []entry
	bytes   int
	closed  bool
	waits   int           // how often a push had to wait for room
	space   chan struct{} // closed and replaced when entries were taken
}

func newQueue(maxEntries, maxBytes int) *queue {
	return &queue{
		maxEntries: maxEntries, maxBytes: maxBytes,
		space: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// push adds an entry. It waits until there is room, ctx ends or the queue is
// closed.
func (q *queue) push(ctx context.Context, e entry) error {
	size, waited := e.size(), false
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return errQueueClosed
		}
		if len(q.entries) == 0 || len(q.entries) < q.maxEntries && q.bytes+size <= q.maxBytes {
			q.entries = append(q.entries, e)
			q.bytes += size
			q.mu.Unlock()
			q.signal()
			return nil
		}
		space := q.space
		if !waited {
			waited = true
			q.waits++
		}
		q.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take empties the queue and returns its entries, in order.
func (q *queue) take() []entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 {
		return nil
	}
	taken := q.entries
	q.entries, q.bytes = nil, 0
	close(q.space)
	q.space = make(chan struct{})
	return taken
}

// close makes the queue accept no more entries. Its entries can still be taken.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.space)
		q.space = make(chan struct{})
		q.signal()
	}
}

func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// load returns the number and bytes of the entries, and how often a push had to
// wait for room.
func (q *queue) load() (entries, bytes, waits int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries), q.bytes, q.waits
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// entryOverhead is the approximate size of the structs around a payload, in bytes.
const entryOverhead = 256

func (e *entry) size() int {
	if e.event == nil {
		return entryOverhead
	}
	return entryOverhead + len(e.event.Data)
}
