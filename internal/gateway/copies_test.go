package gateway

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// change is a simulated takeover: what Discord sends, and what the two connections
// receive of it. Times are in milliseconds.
type change struct {
	// begin is when the new connection certainly receives everything; it began to a
	// little earlier. end is until when the old one certainly does.
	begin, end int
	// began and ended are when that really was.
	began, ended int
	sent         []dispatch
}

// dispatch is something that Discord sends at a time, and how much later each
// connection receives it.
type dispatch struct {
	content       string
	at            int
	toOld, toNew  int
	late          bool // on the new connection
	readByNewAtMS int  // if late
}

const simulatedMargin = 2000 * time.Millisecond

// tell returns how often each dispatch is told: by the old connection, and by the new one
// after it took over. Dispatches are distinguished by their place, even if their content
// is the same.
func (c change) tell() (byOld, byNew []int) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	make1 := func(d dispatch, ms int) *event.Event {
		return &event.Event{Name: "X", Seq: 1, Data: []byte(d.content), ReceivedAt: at(ms), Late: d.late}
	}
	byOld, byNew = make([]int, len(c.sent)), make([]int, len(c.sent))
	o := &overlap{margin: simulatedMargin}
	type receipt struct{ i, at int }
	var old, fresh []receipt
	for i, d := range c.sent {
		if d.at < c.ended {
			old = append(old, receipt{i, d.at + d.toOld})
		}
		if d.at >= c.began {
			r := receipt{i, d.at + d.toNew}
			if d.late {
				r.at = d.readByNewAtMS
			}
			fresh = append(fresh, r)
		}
	}
	for _, list := range [][]receipt{old, fresh} {
		slices.SortStableFunc(list, func(a, b receipt) int { return a.at - b.at })
	}
	begun := false
	for _, r := range old {
		if !begun && r.at >= c.begin {
			begun = true
			o.begin(at(c.begin))
		}
		d := c.sent[r.i]
		d.late = false
		o.add(make1(d, r.at))
		byOld[r.i]++
	}
	if !begun {
		o.begin(at(c.begin))
	}
	copies := o.copies(at(c.end))
	behind := false
	for _, r := range fresh {
		if !copies.take(make1(c.sent[r.i], r.at), &behind) {
			byNew[r.i]++
		}
	}
	return byOld, byNew
}

// told sums how often each content was told, and was sent.
func (c change) told() (told, sent map[string]int) {
	told, sent = make(map[string]int), make(map[string]int)
	byOld, byNew := c.tell()
	for i, d := range c.sent {
		told[d.content] += byOld[i] + byNew[i]
		sent[d.content]++
	}
	return told, sent
}

// TestReplayOfTheLastResume: what was on its way when the old connection was closed comes
// late there, and in time on the new one, after the old one had ended. It is a copy if the
// old connection was well long after the new one began.
func TestReplayOfTheLastResume(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	make1 := func(seq int64, ms int, late bool) *event.Event {
		return &event.Event{Name: "X", Seq: seq, Data: fmt.Appendf(nil, "%d", seq), ReceivedAt: at(ms), Late: late}
	}
	for _, tt := range []struct {
		name string
		last int // when the old connection received its last event in time
		want bool
	}{
		{"the old connection was well", 4900, true},
		{"it may have been silent since before the new one began", 1500, false},
		{"it received nothing", -1000, false},
	} {
		o := &overlap{margin: simulatedMargin}
		o.add(make1(1, -1000, false))
		o.begin(at(0))
		if tt.last > 0 {
			o.add(make1(2, tt.last, false))
		}
		o.add(make1(3, 5200, true))
		behind := false
		if got := o.copies(at(5000)).take(make1(3, 5050, false), &behind); got != tt.want {
			t.Errorf("%s: a copy: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestToggles: a reaction that is added, removed and added again is told each time,
// wherever the change falls.
func TestToggles(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		c    change
		want map[string]int
	}{
		{
			"the first one only on the old connection, the second only on the new one",
			change{began: 0, begin: 0, end: 5000, ended: 5000, sent: []dispatch{{content: "+", at: -1000}, {content: "-", at: 6000}, {content: "+", at: 8000}}},
			map[string]int{"+": 2, "-": 1},
		},
		{
			"within a moment, around a short change",
			change{began: 0, begin: 0, end: 100, ended: 100, sent: []dispatch{{content: "+", at: -500}, {content: "-", at: 50}, {content: "+", at: 300}}},
			map[string]int{"+": 2, "-": 1},
		},
		{
			"all on both",
			change{began: 0, begin: 0, end: 5000, ended: 5000, sent: []dispatch{{content: "+", at: 1000}, {content: "-", at: 2000}, {content: "+", at: 3000}}},
			map[string]int{"+": 2, "-": 1},
		},
		{
			"two on both, one after",
			change{began: 0, begin: 0, end: 5000, ended: 5100, sent: []dispatch{{content: "+", at: 1000}, {content: "+", at: 4900}, {content: "+", at: 5200}}},
			map[string]int{"+": 3},
		},
		{
			"the old connection lags behind",
			change{began: 0, begin: 0, end: 5000, ended: 6000, sent: []dispatch{{content: "+", at: 1000, toOld: 4000}, {content: "-", at: 2000, toOld: 4000}, {content: "+", at: 5900, toOld: 4000}, {content: "+", at: 6100}}},
			map[string]int{"+": 3, "-": 1},
		},
		{
			"the new connection lags behind",
			change{began: 0, begin: 0, end: 5000, ended: 5000, sent: []dispatch{{content: "+", at: 4900, toNew: 1500}, {content: "+", at: 5500, toNew: 1500}}},
			map[string]int{"+": 2},
		},
		{
			"the new connection was replayed after a crash",
			change{began: -500, begin: 0, end: 5000, ended: 5000, sent: []dispatch{
				{content: "0", at: -300, late: true, readByNewAtMS: 29_999}, {content: "a", at: 100, late: true, readByNewAtMS: 30_000}, {content: "b", at: 4000, late: true, readByNewAtMS: 30_001}, {content: "c", at: 6000, late: true, readByNewAtMS: 30_002},
			}},
			map[string]int{"0": 1, "a": 1, "b": 1, "c": 1},
		},
		{
			"a toggle across a crash",
			change{began: 0, begin: 0, end: 5000, ended: 5000, sent: []dispatch{
				{content: "+", at: -300}, {content: "a", at: 100, late: true, readByNewAtMS: 30_000}, {content: "+", at: 6000, late: true, readByNewAtMS: 30_001},
			}},
			map[string]int{"+": 2, "a": 1},
		},
		{
			"received by the old one before the new one can have it",
			change{began: 0, begin: 0, end: 5000, ended: 5000, sent: []dispatch{{content: "a", at: -100}, {content: "b", at: 100}}},
			map[string]int{"a": 1, "b": 1},
		},
		{
			"on the boundary, later on the new connection",
			change{began: -200, begin: 0, end: 5000, ended: 5000, sent: []dispatch{{content: "a", at: -100, toNew: 300}}},
			map[string]int{"a": 1},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, _ := tt.c.told()
			for content, n := range tt.want {
				if got[content] != n {
					t.Errorf("%q was told %d times, want %d", content, got[content], n)
				}
			}
		})
	}
}

// checkChange simulates a change and fails if an event was told never, or twice though it
// could be known.
func checkChange(t *testing.T, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	c := change{begin: 0, began: -r.IntN(1000), end: 1 + r.IntN(6000)}
	c.ended = c.end + r.IntN(2000)
	repeats := r.IntN(2) == 0
	// How late each connection receives, in order: as much as it may.
	oldLag, newLag := r.IntN(5000), r.IntN(int(simulatedMargin.Milliseconds()))
	if repeats {
		// What may have come before the new connection began must have come by its begin,
		// or nobody could tell whether it has a copy.
		oldLag = r.IntN(max(1, -c.began))
		newLag = r.IntN(100)
	}
	at := -3000
	for i := range 2 + r.IntN(60) {
		at += r.IntN(400)
		d := dispatch{content: fmt.Sprint(i), at: at, toOld: oldLag, toNew: newLag}
		if repeats {
			d.content = fmt.Sprint("again", r.IntN(3))
		}
		c.sent = append(c.sent, d)
	}
	told, sent := c.told()
	for content, n := range sent {
		switch {
		case told[content] < n:
			t.Fatalf("seed %d: %q was sent %d times and told %d times: %+v", seed, content, n, told[content], c)
		case told[content] > n && !repeats && !c.boundary(content):
			t.Fatalf("seed %d: %q was told %d times: %+v", seed, content, told[content], c)
		}
	}
}

// boundary reports whether a content that is sent once came to the old connection before
// begin, and to the new one after end: a short change, whose copies may be new events.
func (c change) boundary(content string) bool {
	for _, d := range c.sent {
		if d.content == content {
			return d.at+d.toOld < c.begin && d.at+d.toNew > c.end
		}
	}
	return false
}

func TestCopiesOfRandomChanges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20_000) {
		checkChange(t, seed)
		if t.Failed() {
			return // one is enough to read
		}
	}
}

func FuzzCopies(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(checkChange)
}

// TestCopiesEnd: when nothing can be a copy any more, the holding forgets what the other
// connection delivered.
func TestCopiesEnd(t *testing.T) {
	t.Parallel()
	m := newMemory()
	now := time.Now()
	h := newHolding(newOutlet(t, m), newRoom(maxHeldBack), time.Now)
	d := event.Delivered{Digest: digestOf(named("X", 1)), ReceivedAt: now}
	if err := h.open(t.Context(), newCopies([]event.Delivered{d}, now, now, time.Second)); err != nil {
		t.Fatal(err)
	}
	for i, after := range []time.Duration{3 * time.Second, time.Second} { // the second one is out of order
		e := named("X", int64(i+1))
		e.ReceivedAt = now.Add(after)
		if err := h.put(t.Context(), &event.Session{ID: "b", Seq: e.Seq}, e); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(m.all()); n != 2 || h.copies != nil {
		t.Errorf("%d of 2 events passed on, copies %v", n, h.copies)
	}
}
