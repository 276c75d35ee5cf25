package gateway

import (
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

var shard0 = event.Shard{ID: 0, Count: 1}

func newOutlet(t *testing.T, m *memory) *outlet {
	t.Helper()
	claims, err := m.join().Claim(t.Context(), 1, []event.Shard{shard0})
	if err != nil {
		t.Fatal(err)
	}
	return newTenure(claims[0], dutyDeliver, newRoom(maxHeldBack), nil, nil).out
}

func named(name string, seq int64) *event.Event {
	return &event.Event{Name: name, Seq: seq, Shard: shard0, Data: []byte(name)}
}

// TestOutletKeepsLateNotices: a journal that takes nothing delays a notice, but
// not the shard. The notice still comes before the next event.
func TestOutletKeepsLateNotices(t *testing.T) {
	t.Parallel()
	m := newMemory()
	o := newOutlet(t, m)
	a := event.Session{ID: "a", Seq: 1}
	if err := o.put(t.Context(), &a, named("READY", 1)); err != nil {
		t.Fatal(err)
	}
	m.setBusy(true)
	o.putSoon(t.Context(), time.Millisecond, named("SHARD_DISCONNECT", 0), named("DISCONNECT", 0))
	m.setBusy(false)
	b := event.Session{ID: "b", Seq: 1}
	if err := o.put(t.Context(), &b, named("READY", 1)); err != nil {
		t.Fatal(err)
	}
	want := []string{"READY", "SHARD_DISCONNECT", "DISCONNECT", "READY"}
	if got := names(m.all()); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := m.session(shard0); got != b {
		t.Errorf("session %+v", got)
	}
}

// TestOutletCursor: an event without a sequence number does not move the
// cursor, and stored returns a number only for the cursor's session.
func TestOutletCursor(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.row(shard0).session = event.Session{ID: "old", Seq: 7}
	o := newOutlet(t, m)
	if err := o.put(t.Context(), nil, named("SHARD_CONNECT", 0)); err != nil {
		t.Fatal(err)
	}
	if got := m.session(shard0); got.ID != "old" || got.Seq != 7 {
		t.Errorf("session %+v", got)
	}
	if o.stored("old") != 7 || o.stored("new") != 0 || o.stored("") != 0 {
		t.Errorf("stored %d, %d, %d", o.stored("old"), o.stored("new"), o.stored(""))
	}
}
