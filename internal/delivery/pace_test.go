package delivery

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/event"
)

// longSchedule is like the default. shortSchedule gives up soon.
var (
	longSchedule  = Schedule{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour}
	shortSchedule = Schedule{time.Second, time.Second}
)

// answers is a sequence of answers of one kind.
type answers struct {
	signal     signal
	n          int
	deliveries int           // how many different deliveries; 0 for one per answer
	every      time.Duration // the time between two answers
	notBefore  time.Duration // after the answer
	inFlight   int           // 0 for as many as the limit allows
}

// play feeds answers to a pace. Each one answers a request that was sent after the
// previous answer.
func play(p pace, runs ...answers) (after pace, now time.Time) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now, next := begin, int64(0)
	for _, r := range runs {
		first := next
		for i := range r.n {
			sent := now.Add(time.Millisecond)
			now = now.Add(max(r.every, 2*time.Millisecond))
			next = first + int64(i)
			if r.deliveries > 0 {
				next = first + int64(i%r.deliveries)
			}
			a := observation{signal: r.signal, delivery: event.Key{Batch: next}, sent: sent, at: now, inFlight: r.inFlight}
			if a.inFlight == 0 {
				a.inFlight = p.limit
			}
			if r.notBefore > 0 {
				a.notBefore = now.Add(r.notBefore)
			}
			p = p.after(a)
		}
		next++
	}
	return p, now
}

func TestPaceGoesDown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		schedule Schedule
		runs     []answers
		down     bool
		wait     time.Duration // until the next try
	}{
		"works":                            {longSchedule, []answers{{signal: signalOK, n: 100}}, false, 0},
		"many fail, for a moment":          {longSchedule, []answers{{signal: signalFailed, n: 1000}}, false, 0},
		"many fail, for a minute":          {longSchedule, []answers{{signal: signalFailed, n: 70, every: time.Second}}, true, 6 * time.Second},
		"few fail, for a day":              {longSchedule, []answers{{signal: signalFailed, n: 1440, deliveries: 9, every: time.Minute}}, false, 0},
		"one in a hundred works":           {longSchedule, []answers{{signal: signalFailed, n: 50, every: time.Second}, {signal: signalOK, n: 1}, {signal: signalFailed, n: 50, every: time.Second}}, false, 0},
		"many hang, for a minute":          {longSchedule, []answers{{signal: signalLate, n: 11, every: 15 * time.Second}}, true, 2 * time.Second},
		"the schedule is short":            {shortSchedule, []answers{{signal: signalFailed, n: 1000, every: time.Second}}, false, 0},
		"overload, once":                   {longSchedule, []answers{{signal: signalBusy, n: 1}}, false, time.Second},
		"overload, twice":                  {longSchedule, []answers{{signal: signalBusy, n: 1}, {signal: signalBusy, n: 1, every: time.Minute}}, false, 2 * time.Second},
		"overload, from all in flight":     {longSchedule, []answers{{signal: signalBusy, n: 20}}, false, 962 * time.Millisecond},
		"overload, three times":            {longSchedule, []answers{{signal: signalBusy, n: 3, every: time.Minute}}, true, 4 * time.Second},
		"overload, with a success between": {longSchedule, []answers{{signal: signalBusy, n: 2, every: time.Minute}, {signal: signalOK, n: 1}, {signal: signalBusy, n: 2, every: time.Minute}}, false, 2 * time.Second},
		"overload, on a short schedule":    {shortSchedule, []answers{{signal: signalBusy, n: 9, every: time.Minute}}, true, time.Second},
		"overload, for hours":              {longSchedule, []answers{{signal: signalBusy, n: 90, every: 2 * time.Minute}}, true, time.Minute},
		"asks for a pause of an hour":      {longSchedule, []answers{{signal: signalBusy, n: 1, notBefore: time.Hour}}, false, time.Hour},
		"down, then fails otherwise":       {longSchedule, []answers{{signal: signalBusy, n: 3, every: time.Minute}, {signal: signalFailed, n: 1, every: time.Minute}}, true, 8 * time.Second},
		"down, then works":                 {longSchedule, []answers{{signal: signalBusy, n: 9, every: time.Minute}, {signal: signalOK, n: 1, every: time.Minute}}, false, 0},
		"down, works, fails once":          {longSchedule, []answers{{signal: signalFailed, n: 90, every: time.Second}, {signal: signalOK, n: 1, every: time.Minute}, {signal: signalFailed, n: 9, every: time.Hour}}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, now := play(newPace(16, c.schedule), c.runs...)
			if p.down != c.down {
				t.Errorf("down: %v, want %v", p.down, c.down)
			}
			if p.down && p.limit != 1 {
				t.Errorf("%d may be in flight while the lane is down", p.limit)
			}
			if wait := max(0, p.until.Sub(now)); wait != c.wait {
				t.Errorf("the pause is %v, want %v", wait, c.wait)
			}
		})
	}
}

func TestPaceFindsItsLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		max  int
		runs []answers
		want int
	}{
		"starts at the maximum":         {16, nil, 16},
		"never above the maximum":       {16, []answers{{signal: signalOK, n: 5000}}, 16},
		"failures do not lower it":      {16, []answers{{signal: signalFailed, n: 100}}, 16},
		"overload halves it":            {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1}}, 8},
		"overload with few in flight":   {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1, inFlight: 6}}, 3},
		"never below one":               {16, []answers{{signal: signalBusy, n: 2, every: time.Second}, {signal: signalOK, n: 1, inFlight: 1}, {signal: signalBusy, n: 2, every: time.Second, inFlight: 1}}, 1},
		"hangs at any limit":            {16, []answers{{signal: signalLate, n: 9, every: time.Second}}, 4},
		"hangs with a maximum of one":   {1, []answers{{signal: signalLate, n: 9, every: time.Second}}, 1},
		"quickly back to half":          {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1, inFlight: 1}, {signal: signalOK, n: 7}}, 8},
		"then one per round":            {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1}, {signal: signalOK, n: 8 + 9}}, 10},
		"waits below the refused level": {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1, inFlight: 6}, {signal: signalOK, n: 400}}, 5},
		"tries the refused level again": {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1, inFlight: 6}, {signal: signalOK, n: 505}}, 6},
		"passes it if accepted":         {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1, inFlight: 6}, {signal: signalOK, n: 1000}}, 16},
		"an unused limit does not grow": {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1}, {signal: signalOK, n: 100, inFlight: 3}}, 8},
		"maximum again after an outage": {16, []answers{{signal: signalOK, n: 1}, {signal: signalBusy, n: 1}, {signal: signalBusy, n: 20, every: time.Minute, inFlight: 1}, {signal: signalOK, n: 200}}, 16},
		"overload before any success":   {16, []answers{{signal: signalBusy, n: 1}, {signal: signalOK, n: 8}}, 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if p, _ := play(newPace(c.max, longSchedule), c.runs...); p.limit != c.want {
				t.Errorf("the limit is %d, want %d", p.limit, c.want)
			}
		})
	}
}

// Requests that were in flight together lower the limit once.
func TestPaceIsLoweredOncePerRound(t *testing.T) {
	t.Parallel()
	sent := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := newPace(16, longSchedule)
	for i := range 11 {
		p = p.after(observation{signal: signalBusy, delivery: event.Key{Batch: int64(i)}, sent: sent, at: sent.Add(time.Duration(i+1) * time.Millisecond), inFlight: 16 - i})
	}
	if p.limit != 8 {
		t.Errorf("the limit is %d, want 8", p.limit)
	}
}

// crowded is a callback that accepts atOnce requests at a time and answers the others
// with 429.
type crowded struct {
	atOnce int

	mu       sync.Mutex
	now      int
	accepted int
	refused  []int // how many requests were accepted before each refusal
	highest  int
}

func (l *crowded) answer(call) (int, http.Header) {
	l.mu.Lock()
	if l.now == l.atOnce {
		l.refused = append(l.refused, l.accepted)
		l.mu.Unlock()
		return http.StatusTooManyRequests, nil
	}
	l.now++
	l.highest = max(l.highest, l.now)
	l.mu.Unlock()
	timer := time.NewTimer(2 * time.Millisecond) // the time that a request takes
	<-timer.C
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	l.accepted++
	return http.StatusNoContent, nil
}

// A callback that accepts five requests at once gets five at once, and hardly ever a
// sixth.
func TestLaneFindsACallbacksLimit(t *testing.T) {
	t.Parallel()
	const atOnce, events = 5, 1500
	r := &crowded{atOnce: atOnce}
	c := newReceiver(t, r.answer)
	b := setup(t, Config{Schedule: Schedule{10 * time.Millisecond, time.Second, time.Second, time.Second, time.Second, time.Second}}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 16 })
	for range 3 {
		b.deliver(t, b.commit(t, events/3, 1, 1))
	}
	seen := map[string]bool{}
	for done := 0; done < events; {
		r.mu.Lock()
		done = r.accepted
		r.mu.Unlock()
		if done < events {
			seen[c.await(t, 1)[0].id] = true
		}
	}
	b.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	late := 0
	for _, accepted := range r.refused {
		if accepted > 300 {
			late++
		}
	}
	t.Logf("%d requests accepted, %d refused, %d of them after the first 300, up to %d at once", r.accepted, len(r.refused), late, r.highest)
	if r.highest != atOnce {
		t.Errorf("at most %d requests were handled at once, want %d", r.highest, atOnce)
	}
	if late > events/100 {
		t.Errorf("%d of the last %d requests were refused", late, events-300)
	}
	if diff := cmp.Diff(0, b.count(t, `SELECT count(*) FROM retries`)); diff != "" {
		t.Errorf("left:\n%s", diff)
	}
}
