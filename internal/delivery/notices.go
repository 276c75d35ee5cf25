package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// Notices are the events that delivery itself makes. The transaction that makes a
// reported change also stores the notice, and its deliveries as due rows of retries. So
// nothing is left to do after the commit, and a crash loses nothing.

// The names of the notices.
const (
	eventExhausted = "GATEHOOK_DELIVERY_EXHAUSTED"
	eventDisabled  = "GATEHOOK_LISTENER_DISABLED"
)

// notices are such events with their listeners.
type notices []event.Stored

// notice addresses an event to all listeners that want it, except for one. It returns
// none if nobody wants the event.
func (d *Delivery) notice(e *event.Event, except int64) notices {
	listeners, missed := d.listeners.Match(e)
	if listeners = slices.DeleteFunc(listeners, func(id int64) bool { return id == except }); len(listeners) == 0 && !missed {
		return nil
	}
	return notices{{Event: *e, Key: d.store.Key(), Listeners: listeners}}
}

// queue adds the statements that store the events and their deliveries.
func (n notices) queue(b *pgx.Batch, put func(*pgx.Batch, []event.Stored)) {
	if len(n) == 0 {
		return
	}
	put(b, n)
	var rows keyRows
	for i := range n {
		for _, l := range n[i].Listeners {
			rows.add(ID{n[i].Key, l})
		}
	}
	if len(rows.batches) == 0 {
		return
	}
	// An earlier try whose answer was lost may have stored the rows. Notices are not
	// ordered.
	b.Queue(`INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at)
		SELECT batch_id, ordinal, listener_id, 0, now() FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS u (batch_id, ordinal, listener_id)
		ON CONFLICT (batch_id, ordinal, listener_id) DO NOTHING`, rows.batches, rows.ordinals, rows.listeners)
}

// trace records the receipt of the events, once they are stored.
func (n notices) trace(ctx context.Context, t Traces, now time.Time) {
	for i := range n {
		t.received(ctx, &n[i].Event, now)
	}
}

// exhaustedData is the data of GATEHOOK_DELIVERY_EXHAUSTED.
type exhaustedData struct {
	DeliveryID string    `json:"delivery_id"`
	ListenerID string    `json:"listener_id"`
	EventID    uuid.UUID `json:"event_id"`
	Event      string    `json:"event"`
	Attempts   int       `json:"attempts"`
	Status     *int      `json:"status"`
	Error      *string   `json:"error"`
}

// deliveryExhausted makes the event that reports an exhausted delivery. The event's id
// is derived from the attempt. When an instance is declared dead, it and its heir may
// record the same attempt; receivers then recognize the event by its id.
func deliveryExhausted(rec *record, l *event.Listener, now time.Time) (*event.Event, error) {
	data := exhaustedData{
		DeliveryID: rec.job.id().String(), ListenerID: event.ListenerID(rec.job.listener), EventID: rec.job.stored.ID,
		Event: deliveredName(l, &rec.job.stored.Event), Attempts: rec.attempt(),
	}
	if rec.result.Status != 0 {
		data.Status = &rec.result.Status
	}
	if rec.result.Err != nil {
		text := rec.result.Err.Error()
		data.Error = &text
	}
	h := sha256.Sum256([]byte(data.DeliveryID + "." + strconv.Itoa(data.Attempts)))
	id := uuid.UUID(h[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, section 5.8: version 8
	return noticeEvent(id, eventExhausted, rec, now, data)
}

// disabledData is the data of GATEHOOK_LISTENER_DISABLED.
type disabledData struct {
	ListenerID   string     `json:"listener_id"`
	Event        string     `json:"event"`
	Reason       string     `json:"reason"`
	DeliveryID   string     `json:"delivery_id"`
	FailingSince *time.Time `json:"failing_since"`
}

// listenerDisabled makes the event that reports a disabled listener.
func listenerDisabled(rec *record, l *event.Listener, reason string, since, now time.Time) (*event.Event, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make an id: %w", err)
	}
	data := disabledData{ListenerID: event.ListenerID(l.ID), Event: l.Event, Reason: reason, DeliveryID: rec.job.id().String()}
	if !since.IsZero() {
		since = since.UTC()
		data.FailingSince = &since
	}
	return noticeEvent(id, eventDisabled, rec, now, data)
}

// noticeEvent makes an event without a sequence number, on the shard of the delivery
// that it reports.
func noticeEvent(id uuid.UUID, name string, rec *record, now time.Time, data any) (*event.Event, error) {
	b, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("make a %s: %w", name, err)
	}
	return &event.Event{ID: id, Name: name, Shard: rec.job.stored.Shard, ReceivedAt: now, Data: b}, nil
}
