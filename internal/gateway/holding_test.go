package gateway

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

func TestHolding(t *testing.T) {
	t.Parallel()
	m := newMemory()
	o := newOutlet(t, m)
	h := newHolding(o, usualTiming.margin, time.Now)
	var delivered overlap
	delivered.begin(time.Now())
	put := func(e *event.Event) {
		t.Helper()
		if err := h.put(t.Context(), &event.Session{ID: "b", Seq: e.Seq}, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.put(t.Context(), nil, named("CONNECT", 0)); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"READY", "X", "Y", "X", "X"} {
		put(named(name, int64(i+1)))
	}
	h.putSoon(t.Context(), time.Second, named("DISCONNECT", 0))
	if len(m.all()) != 0 {
		t.Fatalf("delivered %v before the opening, want nothing", names(m.all()))
	}
	// The other connection delivered X twice; a third X is a new event.
	delivered.add(named("X", 50))
	delivered.add(named("X", 51))
	if err := h.open(t.Context(), delivered.counts()); err != nil {
		t.Fatal(err)
	}
	put(named("X", 6))
	h.putSoon(t.Context(), time.Second, named("DISCONNECT", 0))
	want := []string{"CONNECT", "READY", "Y", "X", "X", "DISCONNECT"}
	if got := names(m.all()); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := m.session(shard0); got.ID != "b" || got.Seq != 6 {
		t.Errorf("session %+v", got)
	}
}

// TestHoldingIsBounded: a full holding makes the reader wait until it is
// opened or the connection ends.
func TestHoldingIsBounded(t *testing.T) {
	t.Parallel()
	m := newMemory()
	h := newHolding(newOutlet(t, m), usualTiming.margin, time.Now)
	for i := range maxKeptEvents {
		if err := h.put(t.Context(), nil, named("X", int64(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	if h.len() != maxKeptEvents {
		t.Errorf("%d are held back, want %d", h.len(), maxKeptEvents)
	}
	var gate, both shard
	gate.tenure.Store(&tenure{gate: h})
	both.tenure.Store(&tenure{gate: h})
	both.upgrade.Store(h)
	g := &Gateway{shards: map[event.Shard]*shard{{ID: 0, Count: 3}: &gate, {ID: 1, Count: 3}: &both, {ID: 2, Count: 3}: {}}}
	if n := g.heldBack(); n != 3*maxKeptEvents {
		t.Errorf("the gauge shows %v, want %d", n, 3*maxKeptEvents)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDrain)
	if err := h.put(ctx, nil, named("X", 1)); !errors.Is(err, errDrain) {
		t.Fatalf("error %v, want %v", err, errDrain)
	}
	last := make(chan error)
	go func() { last <- h.put(t.Context(), nil, named("LAST", 1)) }()
	if err := h.open(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := <-last; err != nil {
		t.Fatal(err)
	}
	if got := m.all(); len(got) != maxKeptEvents+1 || got[maxKeptEvents].Name != "LAST" {
		t.Errorf("%d events", len(got))
	}
}

// TestHoldingOverHolding checks that a session with more intents can take over
// while the shard's set holds events back: what the old session delivered moves
// only the session, without an event.
func TestHoldingOverHolding(t *testing.T) {
	t.Parallel()
	gate := newHolding(&outlet{}, time.Second, time.Now)
	upgrade := newHolding(gate, time.Second, time.Now)
	e := &event.Event{Name: "MESSAGE_CREATE", Seq: 2, Data: []byte(`{"id":"1"}`), ReceivedAt: time.Now()}
	if err := upgrade.put(t.Context(), &event.Session{ID: "x", Seq: 2}, e); err != nil {
		t.Fatal(err)
	}
	if err := upgrade.open(t.Context(), map[event.Digest]int{digestOf(e): 1}); err != nil {
		t.Fatal(err)
	}
	if kept := gate.take(); len(kept) != 1 || kept[0].event != nil || kept[0].session.Seq != 2 {
		t.Errorf("the set's holding kept %+v", kept)
	}
}
