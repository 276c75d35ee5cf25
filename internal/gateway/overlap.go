package gateway

import (
	"crypto/md5"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// overlap remembers the dispatches that a connection delivers while another
// connection of the same shard receives them too.
type overlap struct {
	margin time.Duration // timing.margin

	mu        sync.Mutex // guards the fields below
	begun     bool       // both connections receive the same dispatches
	delivered []deliveredEvent
}

type deliveredEvent struct {
	event.Digest
	at time.Time
}

// add notes a delivered dispatch. Before begin, it forgets those older than the
// margin.
func (o *overlap) add(e *event.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.delivered = append(o.delivered, deliveredEvent{digestOf(e), e.ReceivedAt})
	if !o.begun {
		o.forgetLocked(e.ReceivedAt)
	}
}

func (o *overlap) forgetLocked(now time.Time) {
	i := 0
	for i < len(o.delivered) && now.Sub(o.delivered[i].at) > o.margin {
		i++
	}
	o.delivered = o.delivered[i:]
}

// begin is called when the other connection begins to receive dispatches.
func (o *overlap) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgetLocked(now)
	o.begun = true
}

// counts returns how often each dispatch was delivered.
func (o *overlap) counts() map[event.Digest]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	counts := make(map[event.Digest]int, len(o.delivered))
	for _, t := range o.delivered {
		counts[t.Digest]++
	}
	return counts
}

// digestOf returns what the two copies of a dispatch have in common. An MD5 is
// enough: see event.Digest.
func digestOf(e *event.Event) event.Digest {
	return event.Digest{Name: e.Name, Sum: md5.Sum(e.Data)}
}
