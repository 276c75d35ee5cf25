package delivery

import (
	"context"

	"github.com/gatehook/gatehook/internal/event"
)

// Deliver takes a batch that was just committed. It waits only while neither
// the lanes nor the recorder have room.
func (d *Delivery) Deliver(ctx context.Context, b *event.Batch) error {
	for i := range b.Events {
		d.cfg.Traces.received(ctx, &b.Events[i].Event)
	}
	return d.dispatch(ctx, b, nil, false)
}

// dispatch hands the deliveries of a batch to their lanes, less those that
// skip names. From here on the batch counts down until all are settled. Of one
// that was inherited, what is ordered goes by way of the database.
func (d *Delivery) dispatch(ctx context.Context, b *event.Batch, skip map[ID]bool, inherited bool) error {
	if d.stopping.Load() {
		return ErrStopped
	}
	left := 0
	for i := range b.Events {
		for _, l := range b.Events[i].Listeners {
			if !skip[ID{b.Events[i].Key, l}] {
				left++
			}
		}
	}
	t := &batch{id: b.ID, owner: b.Owner, left: left}
	if left == 0 {
		return d.recorder.put(ctx, record{settle: t})
	}
	for i := range b.Events {
		// A copy: one delivery that waits must not keep all the batch's payloads.
		e := new(event.Stored)
		*e = b.Events[i]
		common := &bodies{}
		for _, l := range d.rawFirst(e.Listeners) {
			if skip[ID{e.Key, l}] {
				continue
			}
			if err := d.lane(l).push(ctx, job{stored: e, bodies: common, listener: l, owner: b.Owner, batch: t}, inherited); err != nil {
				return err
			}
		}
	}
	return nil
}

// rawFirst puts the listeners of raw events before those for which the event
// is parsed.
func (d *Delivery) rawFirst(ids []int64) []int64 {
	if len(ids) < 2 {
		return ids
	}
	ordered := make([]int64, 0, len(ids))
	var others []int64
	for _, id := range ids {
		if l := d.listeners.Listener(id); l != nil && isRaw(l) {
			ordered = append(ordered, id)
		} else {
			others = append(others, id)
		}
	}
	return append(ordered, others...)
}

// batch counts what is not settled of a stored batch. Only the recorder counts
// down, in the transaction that settles.
type batch struct {
	id    int64
	owner int64
	left  int
}

// job is one delivery on its way through a lane.
type job struct {
	stored *event.Stored
	// bodies are what all deliveries of the event have in common.
	bodies   *bodies
	listener int64
	// owner is the number of this instance under which it has the delivery.
	owner int64
	// attempt is how many were made.
	attempt int
	// orderKey is what it is ordered by; "" for nothing.
	orderKey string
	// asked: a person asked for it, however old it is.
	asked bool
	// background: it is one of very many that a person asked for, and goes when
	// nothing else does.
	background bool
	// batch is what counts it; nil for a delivery taken up from retries.
	batch *batch
}

func (j *job) id() ID { return ID{j.stored.Key, j.listener} }
