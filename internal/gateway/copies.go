package gateway

import (
	"crypto/md5"
	"slices"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// copies recognizes the events that a new connection receives although the old one,
// whose place it takes, has delivered them. Only their content shows that two events
// are copies of one, and Discord may send the same content again a moment later: a
// reaction that is taken back and added again. So times decide, too. Where they leave
// both possible, the event is taken for a new one: it comes twice rather than never.
//
// An event that the new connection received until end was delivered by the old one, so
// any delivery of its content will do. After end, only a delivery that has a copy
// counts, and only if that copy did not come before: so each event until end uses up
// such a delivery first.
//
// It is safe for concurrent use: all shards of a set share one.
type copies struct {
	// end is until when the old connection delivered whatever Discord sent to the new
	// one.
	end time.Time
	// margin is how much earlier a dispatch may arrive on the old connection.
	margin time.Duration
	last   time.Time // when the old connection received its last event

	mu        sync.Mutex // guards delivered
	delivered map[event.Digest]deliveries
}

// deliveries are those of one content by the old connection whose copies did not come
// yet.
type deliveries struct {
	// paired are when those were received that certainly have a copy, in order.
	paired []time.Time
	// single is how many there are that the old connection may have received alone.
	single int
}

// newCopies makes a copies of a list in the order of receipt. From begin on, the new
// connection received whatever the old one did.
func newCopies(list []event.Delivered, begin, end time.Time, margin time.Duration) *copies {
	c := &copies{end: end, margin: margin, delivered: make(map[event.Digest]deliveries, len(list))}
	for _, e := range list {
		d := c.delivered[e.Digest]
		if e.Late || e.ReceivedAt.Before(begin) {
			d.single++
		} else {
			d.paired = append(d.paired, e.ReceivedAt)
		}
		c.delivered[e.Digest] = d
		c.last = later(c.last, e.ReceivedAt)
	}
	return c
}

// take reports whether an event is a copy of a delivered one. Each delivered event has at
// most one copy.
//
// Behind belongs to the shard. Take sets it when it finds a copy of a paired event. A
// shard's events come in order, and single events are older than paired ones. So once
// behind is set, an event that comes late is no copy of a single one.
func (c *copies) take(e *event.Event, behind *bool) bool {
	digest := digestOf(e)
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.delivered[digest]
	if !ok {
		return false
	}
	var earliest time.Time
	delivered := !e.ReceivedAt.After(c.end)
	if !delivered && !e.Late {
		earliest = e.ReceivedAt.Add(-c.margin)
	}
	i := slices.IndexFunc(d.paired, func(t time.Time) bool { return !t.Before(earliest) })
	switch {
	case i >= 0:
		*behind = true
		d.paired = slices.Delete(d.paired, i, i+1)
	case d.single > 0 && (delivered || e.Late && !*behind):
		d.single--
	default:
		return false
	}
	c.delivered[digest] = d
	return true
}

// over reports whether no event that was received then, or later, can be a copy.
func (c *copies) over(at time.Time) bool { return at.After(later(c.end, c.last.Add(c.margin))) }

// overlap remembers what a connection delivers while another connection of the same
// shard receives it too.
type overlap struct {
	margin time.Duration // timing.margin

	mu        sync.Mutex // guards the fields below
	begun     time.Time  // when the other connection began to receive; zero before
	delivered []event.Delivered
	// heard is the sequence number of the last dispatch that came in time, later than the
	// margin after begun; 0 for none. Whatever follows it was sent after begun.
	heard int64
}

// add notes a delivered dispatch. Before begin, it forgets those older than the
// margin.
func (o *overlap) add(e *event.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !e.Late && !o.begun.IsZero() && e.ReceivedAt.Sub(o.begun) > o.margin {
		o.heard = e.Seq
	}
	// The last RESUME replays what was on its way when the old connection was closed. It
	// comes late, but the other connection has certainly received it, too.
	late := e.Late && (o.heard == 0 || e.Seq <= o.heard)
	o.delivered = append(o.delivered, event.Delivered{Digest: digestOf(e), ReceivedAt: e.ReceivedAt, Late: late})
	if o.begun.IsZero() {
		o.forgetLocked(e.ReceivedAt)
	}
}

func (o *overlap) forgetLocked(now time.Time) {
	i := 0
	for i < len(o.delivered) && now.Sub(o.delivered[i].ReceivedAt) > o.margin {
		i++
	}
	o.delivered = o.delivered[i:]
}

// begin is called when the other connection begins to receive dispatches.
func (o *overlap) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgetLocked(now)
	o.begun = now
}

// copies returns what recognizes the delivered events. Until end, the connection
// delivered everything.
func (o *overlap) copies(end time.Time) *copies {
	o.mu.Lock()
	defer o.mu.Unlock()
	return newCopies(o.delivered, o.begun, end, o.margin)
}

// digestOf returns what the two copies of a dispatch have in common. An MD5 is
// enough: see event.Digest.
func digestOf(e *event.Event) event.Digest {
	return event.Digest{Name: e.Name, Sum: md5.Sum(e.Data)}
}
