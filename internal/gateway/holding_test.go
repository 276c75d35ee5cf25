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
	h := newHolding(o, newRoom(maxHeldBack), time.Now)
	delivered := overlap{margin: usualTiming.margin}
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
	if err := h.open(t.Context(), delivered.copies(time.Now())); err != nil {
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

// TestHoldingsAreBounded: all shards of a server share one room. When it is used up, a
// reader waits until there is more, or the connection ends.
func TestHoldingsAreBounded(t *testing.T) {
	t.Parallel()
	const n = 10
	size := keptOverhead + len(named("X", 1).Data)
	room := newRoom(2 * n * size)
	m := newMemory()
	one, two := newHolding(newOutlet(t, m), room, time.Now), newHolding(newOutlet(t, newMemory()), room, time.Now)
	for i := range n {
		for _, h := range []*holding{one, two} {
			if err := h.put(t.Context(), nil, named("X", int64(i+1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	var gate, both shard
	gate.tenure.Store(&tenure{gate: one})
	both.tenure.Store(&tenure{gate: two})
	both.upgrade.Store(two)
	g := &Gateway{shards: map[event.Shard]*shard{{ID: 0, Count: 3}: &gate, {ID: 1, Count: 3}: &both, {ID: 2, Count: 3}: {}}}
	if got := g.heldBack(); got != 3*n {
		t.Errorf("the gauge shows %v, want %d", got, 3*n)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDrain)
	if err := one.put(ctx, nil, named("X", 1)); !errors.Is(err, errDrain) {
		t.Fatalf("error %v, want %v", err, errDrain)
	}
	if used, waits := room.load(2 * n * size); used != 2*n*size || waits != 1 {
		t.Errorf("%d bytes are in use after %d waits, want %d after 1", used, waits, 2*n*size)
	}
	// A holding without events gets what it needs.
	three := newHolding(newOutlet(t, newMemory()), room, time.Now)
	if err := three.put(t.Context(), nil, named("X", 1)); err != nil {
		t.Fatal(err)
	}
	last := make(chan error)
	go func() { last <- one.put(t.Context(), nil, named("LAST", 1)) }()
	two.discard() // its connection does not take over
	if err := <-last; err != nil {
		t.Fatal(err)
	}
	three.discard()
	if err := one.open(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := m.all(); len(got) != n+1 || got[n].Name != "LAST" {
		t.Errorf("%d events", len(got))
	}
	if used, _ := room.load(2 * n * size); used != 0 {
		t.Errorf("%d bytes are in use at the end", used)
	}
}

// TestHoldingOverHolding checks that a session with more intents can take over
// while the shard's set holds events back: what the old session delivered moves
// only the session, without an event.
func TestHoldingOverHolding(t *testing.T) {
	t.Parallel()
	room := newRoom(maxHeldBack)
	gate, upgrade := newHolding(&outlet{}, room, time.Now), newHolding(nil, room, time.Now)
	upgrade.out = gate
	e := &event.Event{Name: "MESSAGE_CREATE", Seq: 2, Data: []byte(`{"id":"1"}`), ReceivedAt: time.Now()}
	if err := upgrade.put(t.Context(), &event.Session{ID: "x", Seq: 2}, e); err != nil {
		t.Fatal(err)
	}
	delivered := []event.Delivered{{Digest: digestOf(e), ReceivedAt: e.ReceivedAt}}
	if err := upgrade.open(t.Context(), newCopies(delivered, e.ReceivedAt, e.ReceivedAt, time.Second)); err != nil {
		t.Fatal(err)
	}
	if kept, _ := gate.takeKept(false); len(kept) != 1 || kept[0].event != nil || kept[0].session.Seq != 2 {
		t.Errorf("the set's holding kept %+v", kept)
	}
}
