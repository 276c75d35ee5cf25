package journal

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// No shard received the events without a batch: they are the samples that test a
// listener, and delivery's notices.

// Key returns a key for an event that is stored without a batch. Its ordinal is
// higher than any in a batch, because a batch may have the same number.
func (s *Store) Key() event.Key {
	return event.Key{Batch: s.At(s.instance.Now()) | s.instance.slot(), Ordinal: 1<<30 + rand.Int32N(1<<30)}
}

// Put queues the statements that store events under keys from Key; they skip events
// that are already stored. Run them in the transaction that also stores the events'
// deliveries: without a batch row, nothing would dispatch the events again.
func (*Store) Put(b *pgx.Batch, events []event.Stored) {
	for i := range events {
		asStored(&events[i].Event)
		queueEvents(b, &event.Batch{ID: events[i].Key.Batch, Events: events[i : i+1]})
	}
}

// Add stores an event for these listeners, without a batch. The caller makes its
// deliveries. Add may change the event to what will be read again; so does Put.
func (s *Store) Add(ctx context.Context, e *event.Event, listeners []int64) (event.Key, error) {
	asStored(e)
	stored := event.Stored{Event: *e, Key: s.Key(), Listeners: listeners}
	var b pgx.Batch
	s.Put(&b, []event.Stored{stored})
	if err := s.Ensure(ctx); err != nil {
		return stored.Key, err
	}
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return stored.Key, fmt.Errorf("store an event: %w", err)
	}
	return stored.Key, nil
}

// Ensure creates the partition for the current time if it is missing.
func (s *Store) Ensure(ctx context.Context) error { return s.parts.Ensure(ctx, s.instance.Now()) }
