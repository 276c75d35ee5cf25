package delivery

import (
	"context"

	"github.com/gatehook/gatehook/internal/event"
)

// Deliver takes a batch that was just committed. It waits only while both a
// lane and the recorder are full.
func (d *Delivery) Deliver(ctx context.Context, b *event.Batch) error {
	for i := range b.Events {
		d.cfg.Traces.received(ctx, &b.Events[i].Event, d.now())
	}
	return d.dispatch(ctx, b, nil, false)
}

// dispatch hands the deliveries of a batch to their lanes, except for those in skip.
// The batch then counts down until all its deliveries are settled. The ordered
// deliveries of an inherited batch go through the database.
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
		// A copy, because a waiting delivery must not keep all payloads of the batch in
		// memory.
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

// rawFirst returns the listeners with those of raw events first, because these need not
// wait until the event is parsed.
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

// batch counts the unsettled deliveries of a stored batch. Only the recorder counts
// down.
type batch struct {
	id    int64
	owner int64
	left  int
}

// job is one delivery on its way through a lane.
type job struct {
	stored *event.Stored
	// bodies are shared by all deliveries of the event.
	bodies   *bodies
	listener int64
	// owner is the number under which this instance owns the delivery.
	owner int64
	// attempt is the number of attempts made so far.
	attempt int
	// orderKey is the name of its ordering key; "" if it is not ordered.
	orderKey string
	// asked: somebody asked for this delivery, so it does not expire.
	asked bool
	// background: somebody asked for many deliveries at once, so this one lets others
	// go first.
	background bool
	// batch counts this delivery; nil if it was taken up from retries.
	batch *batch
}

func (j *job) id() ID { return ID{j.stored.Key, j.listener} }
