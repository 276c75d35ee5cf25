package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// received is a delivery whose signature was verified.
type received struct {
	id      string // webhook-id
	event   string // gatehook-event
	eventID string // gatehook-event-id
	attempt string // gatehook-attempt
	shard   string // gatehook-shard
	seq     int64
	data    json.RawMessage
}

// receiver is a user's callback: it verifies every delivery with the library
// that a user would use, and answers 204, or 401 if it can't verify the delivery.
type receiver struct {
	// on is called for every verified delivery, one at a time.
	on func(received)

	mu       sync.Mutex // guards the fields below and calls of on
	verify   *standardwebhooks.Webhook
	rejected []error
}

// trust sets the secret of the listener that delivers here.
func (r *receiver) trust(secret string) error {
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return fmt.Errorf("use the listener's secret: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verify = w
	return nil
}

// problems returns an error for every delivery that could not be verified.
func (r *receiver) problems() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.rejected...)
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 64<<20))
	if err != nil {
		return // the sender was interrupted and will send it again
	}
	got, err := r.read(req, body)
	if err != nil {
		r.mu.Lock()
		r.rejected = append(r.rejected, err)
		r.mu.Unlock()
		http.Error(w, "the signature is not valid", http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	r.on(got)
	r.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (r *receiver) read(req *http.Request, body []byte) (received, error) {
	r.mu.Lock()
	verify := r.verify
	r.mu.Unlock()
	if verify == nil {
		return received{}, fmt.Errorf("a delivery arrived before its listener's secret was known")
	}
	if err := verify.Verify(body, req.Header); err != nil {
		return received{}, fmt.Errorf("delivery %s: %w", req.Header.Get("webhook-id"), err)
	}
	var envelope struct {
		Type  string          `json:"type"`
		ID    string          `json:"id"`
		Shard [2]int          `json:"shard"`
		Seq   int64           `json:"seq"`
		Data  json.RawMessage `json:"data"`
	}
	err := json.Unmarshal(body, &envelope)
	if err != nil {
		return received{}, fmt.Errorf("delivery %s: %w", req.Header.Get("webhook-id"), err)
	}
	got := received{
		id: req.Header.Get("webhook-id"), event: req.Header.Get("gatehook-event"), eventID: req.Header.Get("gatehook-event-id"),
		attempt: req.Header.Get("gatehook-attempt"), shard: req.Header.Get("gatehook-shard"), seq: envelope.Seq, data: envelope.Data,
	}
	switch {
	case envelope.Type != got.event:
		err = fmt.Errorf("delivery %s: type %q in the body, gatehook-event %q in the header", got.id, envelope.Type, got.event)
	case envelope.ID != got.eventID:
		err = fmt.Errorf("delivery %s: id %q in the body, gatehook-event-id %q in the header", got.id, envelope.ID, got.eventID)
	case fmt.Sprintf("%d/%d", envelope.Shard[0], envelope.Shard[1]) != got.shard:
		err = fmt.Errorf("delivery %s: shard %v in the body, gatehook-shard %q in the header", got.id, envelope.Shard, got.shard)
	}
	return got, err
}
