package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/oapi-codegen/nullable"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
)

const (
	// callTimeout bounds a call's work in the database.
	callTimeout = 10 * time.Second
	// replayTimeout bounds a replay or a bulk retry. It is shorter than the server's
	// timeout for a response.
	replayTimeout = 50 * time.Second
	defaultLimit  = 50
	// activateAfter is when a new signing key begins to sign if the call does not say, and
	// maxActivateAfter the latest time that it may say.
	activateAfter    = 24 * time.Hour
	maxActivateAfter = 720 * time.Hour
)

// answer replaces the error of an unavailable database with the one that the call
// returns.
func answer(err error) error {
	if postgres.Unavailable(err) {
		return openapi.Unavailable()
	}
	return err
}

// limited bounds a call's work in the database.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, callTimeout, errors.New("the database took longer than 10 s"))
}

// ListSigningKeys implements GET /signing-keys.
func (d *Delivery) ListSigningKeys(context.Context, openapi.ListSigningKeysRequestObject) (openapi.ListSigningKeysResponseObject, error) {
	return openapi.ListSigningKeys200JSONResponse(d.showKeys()), nil
}

// RotateSigningKey implements POST /signing-keys/rotate.
func (d *Delivery) RotateSigningKey(ctx context.Context, req openapi.RotateSigningKeyRequestObject) (openapi.RotateSigningKeyResponseObject, error) {
	after := activateAfter
	if req.Body != nil && req.Body.ActivateAfter != nil {
		var err error
		if after, err = time.ParseDuration(*req.Body.ActivateAfter); err != nil || after < 0 || after > maxActivateAfter {
			return nil, openapi.FieldError("activate_after", fmt.Sprintf("%q is not a duration from 0s to 720h such as 24h", *req.Body.ActivateAfter))
		}
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	if err := d.keyring.rotate(ctx, after); err != nil {
		return nil, answer(err)
	}
	return openapi.RotateSigningKey200JSONResponse(d.showKeys()), nil
}

func (d *Delivery) showKeys() openapi.SigningKeys {
	keys, current := d.keyring.all(), d.keyring.current(d.now()).id
	out := openapi.SigningKeys{Data: make([]openapi.SigningKey, len(keys))}
	for i, k := range keys {
		out.Data[i] = openapi.SigningKey{PublicKey: k.Public(), CreatedAt: k.createdAt.UTC(), SignsFrom: k.signsFrom.UTC(), Signs: k.id == current}
	}
	return out
}

// registered returns the listener that a call names, enabled or not.
func (d *Delivery) registered(public string) (*event.Listener, error) {
	if id, ok := event.ParseListenerID(public); ok {
		if l := d.listeners.Listener(id); l != nil {
			return l, nil
		}
	}
	return nil, openapi.NotFound(fmt.Sprintf("there is no listener %q: GET /listeners lists them", public))
}

// ListDeliveries implements GET /listeners/{id}/deliveries.
func (d *Delivery) ListDeliveries(ctx context.Context, req openapi.ListDeliveriesRequestObject) (openapi.ListDeliveriesResponseObject, error) {
	l, err := d.registered(req.Id)
	if err != nil {
		return nil, err
	}
	limit, before, status := defaultLimit, newest, ""
	if req.Params.Limit != nil {
		limit = *req.Params.Limit
	}
	if req.Params.Status != nil {
		status = string(*req.Params.Status)
	}
	if c := req.Params.Cursor; c != nil {
		id, err := ParseID(*c)
		if err != nil || id.Listener != l.ID {
			return nil, openapi.FieldError("cursor", fmt.Sprintf("%q is not the next_cursor of a page", *c))
		}
		before = id.Key
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	// One more than requested shows whether there is another page.
	list, err := d.page(ctx, l.ID, status, before, limit+1)
	if err != nil {
		return nil, answer(err)
	}
	page := openapi.DeliveryPage{Data: []openapi.DeliveryRecord{}, NextCursor: nullable.NewNullNullable[string]()}
	for i := range list[:min(limit, len(list))] {
		if list[i].event.Name != "" {
			page.Data = append(page.Data, show(&list[i], l))
		}
	}
	if len(list) > limit {
		page.NextCursor = nullable.NewNullableWithValue(list[limit-1].id.String())
	}
	return openapi.ListDeliveries200JSONResponse(page), nil
}

// delivery returns the delivery that a call names, with its attempts and its listener.
func (d *Delivery) delivery(ctx context.Context, public string) (entry, []storedAttempt, *event.Listener, error) {
	none := openapi.NotFound(fmt.Sprintf("there is no delivery %q: it is not the webhook-id of a delivery, or the delivery is older than the retention", public))
	id, err := ParseID(public)
	if err != nil {
		return entry{}, nil, nil, none
	}
	l := d.listeners.Listener(id.Listener)
	if l == nil {
		return entry{}, nil, nil, none
	}
	e, made, ok, err := d.find(ctx, id)
	switch {
	case err != nil:
		return entry{}, nil, nil, answer(err)
	case !ok:
		return entry{}, nil, nil, none
	}
	return e, made, l, nil
}

// GetDelivery implements GET /deliveries/{id}.
func (d *Delivery) GetDelivery(ctx context.Context, req openapi.GetDeliveryRequestObject) (openapi.GetDeliveryResponseObject, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	e, made, l, err := d.delivery(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	r := show(&e, l)
	out := openapi.GetDelivery200JSONResponse{
		Id: r.Id, ListenerId: r.ListenerId, EventId: r.EventId, Event: r.Event, Status: r.Status, AttemptCount: r.AttemptCount,
		ReceivedAt: r.ReceivedAt, NextAttemptAt: r.NextAttemptAt, LastAttempt: r.LastAttempt, Attempts: []openapi.Attempt{},
	}
	for i := range made {
		out.Attempts = append(out.Attempts, showAttempt(&made[i]))
	}
	return out, nil
}

// RetryDelivery implements POST /deliveries/{id}/retry.
func (d *Delivery) RetryDelivery(ctx context.Context, req openapi.RetryDeliveryRequestObject) (openapi.RetryDeliveryResponseObject, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	e, _, l, err := d.delivery(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	if err := d.again(ctx, &e, l); err != nil {
		return nil, answer(err)
	}
	if e, _, l, err = d.delivery(ctx, req.Id); err != nil {
		return nil, err
	}
	return openapi.RetryDelivery202JSONResponse(show(&e, l)), nil
}

const (
	// bulkWait is how long a replay or a bulk retry waits for its turn. It holds no
	// connection meanwhile.
	bulkWait = 10 * time.Second
	// bulkWaiting bounds those that wait.
	bulkWaiting = 16
	// bulkAgain is when one that did not get its turn should come back.
	bulkAgain = 10 * time.Second
)

// beginBulk waits for the turn of a replay or a bulk retry, which calls the function when
// it has ended, or refuses it.
func (d *Delivery) beginBulk(ctx context.Context) (end func(), err error) {
	refused := &openapi.Error{
		Status: http.StatusServiceUnavailable, RetryAfter: bulkAgain,
		Detail: fmt.Sprintf("%d replays or retries of listeners are under way here, which is as many as may be, and others wait: try again later", cap(d.bulk)),
	}
	if d.bulkWaiting.Add(1) > int32(bulkWaiting+cap(d.bulk)) {
		d.bulkWaiting.Add(-1)
		return nil, refused
	}
	turn := time.NewTimer(bulkWait)
	defer turn.Stop()
	select {
	case d.bulk <- struct{}{}:
		return func() {
			<-d.bulk
			d.bulkWaiting.Add(-1)
		}, nil
	case <-turn.C:
		err = refused
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	d.bulkWaiting.Add(-1)
	return nil, err
}

// span returns the span of time that a call names. Without since it starts with the
// oldest event, and without until it ends now.
func span(since, until *time.Time, now time.Time) (from, to time.Time, err error) {
	to = now
	if since != nil {
		from = *since
	}
	if until != nil {
		to = *until
	}
	if !from.Before(to) {
		err = openapi.FieldError("since", fmt.Sprintf("%s is not before until (%s)", from.Format(time.RFC3339), to.Format(time.RFC3339)))
	}
	return from, to, err
}

// ReplayListener implements POST /listeners/{id}/replay.
func (d *Delivery) ReplayListener(ctx context.Context, req openapi.ReplayListenerRequestObject) (openapi.ReplayListenerResponseObject, error) {
	l, err := d.registered(req.Id)
	if err != nil {
		return nil, err
	}
	since, until, err := span(&req.Body.Since, req.Body.Until, d.now())
	if err != nil {
		return nil, err
	}
	end, err := d.beginBulk(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeoutCause(ctx, replayTimeout, errors.New("the replay took too long: replay a shorter span of time"))
	defer cancel()
	queued, err := d.replay(ctx, l, since, until)
	if err != nil {
		return nil, answer(err)
	}
	return openapi.ReplayListener202JSONResponse{Queued: queued}, nil
}

// RetryListener implements POST /listeners/{id}/retry.
func (d *Delivery) RetryListener(ctx context.Context, req openapi.RetryListenerRequestObject) (openapi.RetryListenerResponseObject, error) {
	l, err := d.registered(req.Id)
	if err != nil {
		return nil, err
	}
	since, until, err := span(req.Body.Since, req.Body.Until, d.now())
	if err != nil {
		return nil, err
	}
	states := make([]string, len(req.Body.Status))
	for i, s := range req.Body.Status {
		states[i] = string(s)
	}
	end, err := d.beginBulk(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeoutCause(ctx, replayTimeout, errors.New("the retry took too long: retry a shorter span of time"))
	defer cancel()
	queued, err := d.retryAll(ctx, l.ID, states, since, until)
	if err != nil {
		return nil, answer(err)
	}
	return openapi.RetryListener202JSONResponse{Queued: queued}, nil
}

// TestListener implements POST /listeners/{id}/test.
func (d *Delivery) TestListener(ctx context.Context, req openapi.TestListenerRequestObject) (openapi.TestListenerResponseObject, error) {
	l, err := d.registered(req.Id)
	if err != nil {
		return nil, err
	}
	e, err := sampleFor(l, d.now())
	if err != nil {
		return nil, err
	}
	made, err := d.test(ctx, l, e)
	if err != nil {
		return nil, answer(err)
	}
	a := showAttempt(&made)
	return openapi.TestListener200JSONResponse{
		Attempt: a.Attempt, StartedAt: a.StartedAt, DurationMs: a.DurationMs, Status: a.Status, Delivered: a.Delivered, Error: a.Error,
		Response: a.Response, DeliveryId: made.id.String(), EventId: e.ID, Event: deliveredName(l, e),
	}, nil
}

// GetEvent implements GET /events/{id}.
func (d *Delivery) GetEvent(ctx context.Context, req openapi.GetEventRequestObject) (openapi.GetEventResponseObject, error) {
	none := openapi.NotFound(fmt.Sprintf("there is no event %q: no listener wanted it, or it is older than the retention", req.Id))
	id, err := uuid.Parse(req.Id)
	if err != nil || id.String() != req.Id {
		return nil, none
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	found, err := d.store.Find(ctx, id)
	switch {
	case err != nil:
		return nil, answer(err)
	case len(found) == 0:
		return nil, none
	}
	return storedEvent{&found[0]}, nil
}

// storedEvent writes an event with its payload byte for byte.
type storedEvent struct{ *event.Stored }

// VisitGetEventResponse implements openapi.GetEventResponseObject.
func (e storedEvent) VisitGetEventResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	listeners := make([]string, len(e.Listeners))
	for i, id := range e.Listeners {
		listeners[i] = event.ListenerID(id)
	}
	head, err := json.Marshal(map[string]any{
		"id": e.ID, "name": e.Name, "shard": [2]int{e.Shard.ID, e.Shard.Count}, "seq": e.Seq, "received_at": e.ReceivedAt.UTC(),
		"listener_ids": listeners,
	})
	if err != nil {
		return err
	}
	b := append(head[:len(head)-1], `,"data":`...)
	_, err = w.Write(append(appendData(b, e.Data), '}'))
	return err
}

func show(e *entry, l *event.Listener) openapi.DeliveryRecord {
	out := openapi.DeliveryRecord{
		Id: e.id.String(), ListenerId: event.ListenerID(e.id.Listener), EventId: e.event.ID, Event: deliveredName(l, &e.event.Event),
		Status: openapi.DeliveryStatus(e.status()), ReceivedAt: e.event.ReceivedAt.UTC(),
		NextAttemptAt: nullable.NewNullNullable[time.Time](), LastAttempt: nullable.NewNullNullable[openapi.Attempt](),
	}
	if e.last != nil {
		out.AttemptCount = e.last.number
		out.LastAttempt = nullable.NewNullableWithValue(showAttempt(e.last))
	}
	if e.waiting != nil && e.waiting.state == statusPending {
		out.NextAttemptAt = nullable.NewNullableWithValue(e.waiting.due.UTC())
	}
	return out
}

func showAttempt(a *storedAttempt) openapi.Attempt {
	out := openapi.Attempt{
		Attempt: a.number, StartedAt: a.startedAt.UTC(), DurationMs: float32(a.took.Seconds() * 1000), Delivered: a.delivered,
		Status: nullable.NewNullNullable[int](), Error: nullable.NewNullNullable[string](), Response: nullable.NewNullNullable[string](),
	}
	if a.status != 0 {
		out.Status = nullable.NewNullableWithValue(a.status)
	}
	if a.problem != "" {
		out.Error = nullable.NewNullableWithValue(a.problem)
	}
	if len(a.response) > 0 {
		out.Response = nullable.NewNullableWithValue(strings.ToValidUTF8(string(a.response), "\uFFFD"))
	}
	return out
}
