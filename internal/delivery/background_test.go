package delivery

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/event"
)

// What is received while thousands of deliveries are replayed overtakes them.
func TestLiveEventsOvertakeAReplay(t *testing.T) {
	t.Parallel()
	const replayed, live = 10_000, 60
	var gate sync.RWMutex // locked: the callback does not answer
	c := newCallback(t, func(call) (int, http.Header) {
		gate.RLock()
		defer gate.RUnlock()
		return http.StatusNoContent, nil
	})
	b := setup(t, Config{}, c.URL)
	b.commit(t, replayed, 1, 1)
	b.exec(t, `DELETE FROM batches`)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, asked, background)
		SELECT batch_id, ordinal, 1, 0, now(), true, true FROM events`)
	fresh := b.commit(t, live, 1, 1)
	b.wake()
	c.await(t, 300) // it is well under way, and the lane holds some two hundred
	gate.Lock()
	c.mu.Lock()
	before := len(c.calls)
	c.mu.Unlock()
	b.deliver(t, fresh)
	gate.Unlock()
	<-b.settled // all the fresh ones are delivered
	c.mu.Lock()
	calls := c.calls
	c.mu.Unlock()
	isLive := map[string]bool{}
	for i := range fresh.Events {
		isLive[ID{fresh.Events[i].Key, 1}.String()] = true
	}
	first := slices.IndexFunc(calls, func(got call) bool { return isLive[got.id] })
	between := 0
	// An answer may be noted late: the last four, as many as are in flight,
	// don't count.
	for i, seen := first, 0; seen < live-4; i++ {
		if isLive[calls[i].id] {
			seen++
		} else {
			between++
		}
	}
	t.Logf("%d of the replay went before the first, %d in between", first-before, between)
	if first-before > 8 { // those that were in flight
		t.Errorf("%d of the replay went before the first that was received meanwhile", first-before)
	}
	if between > live/(backgroundShare-1)+8 {
		t.Errorf("%d of the replay went in between the %d that were received meanwhile", between, live)
	}
	if len(calls) > replayed {
		t.Error("nothing was left to be overtaken")
	}
}

// Neither do those in the database wait behind a replay, nor the replay for ever.
func TestBackgroundGoesLastAndGoesOn(t *testing.T) {
	t.Parallel()
	var q line
	add := func(n int, j job) {
		for range n {
			q.push(j)
		}
	}
	add(3, job{stored: &event.Stored{}, background: true})
	add(20, job{stored: &event.Stored{}})
	add(1, job{stored: &event.Stored{Event: event.Event{Name: interaction}}})
	order := ""
	for q.len() > 0 {
		switch j := q.pop(); {
		case j.background:
			order += "b"
		case j.stored.Name == interaction:
			order += "i"
		default:
			order += "u"
		}
	}
	if diff := cmp.Diff("iuuuuuuubuuuuuuubuuuuuub", order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}

	c := newCallback(t, func(call) (int, http.Header) { return http.StatusOK, nil })
	b := setup(t, Config{}, c.URL)
	b.stop()
	b.commit(t, 40, 1, 1)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, background)
		SELECT batch_id, ordinal, 1, 0, now() - interval '1 h', ordinal < 20 FROM events`)
	jobs, _, err := b.claim(t.Context(), []room{{1, 30, 5}}, 1000)
	background := 0
	for _, j := range jobs {
		if j.background {
			background++
		}
	}
	if err != nil || len(jobs) != 25 || background != 5 {
		t.Errorf("took up %d, %d of the background (%v); want 25, 5", len(jobs), background, err)
	}
}

// However many rows wait, and whatever the planner knows of them, a claim reads
// little more than what it takes.
func TestClaimReadsWhatItTakes(t *testing.T) {
	t.Parallel()
	const waiting, taken = 20_000, 100
	b := setup(t, Config{})
	b.stop()
	fill := func(listeners string) {
		b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, order_key, background)
			SELECT i, 0, l, 0, now() - interval '1 minute', CASE WHEN i % 3 = 0 THEN 'c' || i % 300 ELSE '' END, i % 3 = 1
			FROM generate_series(1, `+strconv.Itoa(waiting)+`) AS i, (VALUES `+listeners+`) AS v (l)`)
	}
	claims := func(listener int64) {
		for name, due := range map[string]string{"ordered": dueOfKeys, "usual": dueOf("NOT q.background"), "background": dueOf("q.background")} {
			plan, kinds, read := b.explain(t, claimOf(due), []int64{listener}, []int32{taken}, int64(1), 2*taken)
			if read == 0 || read > 4*taken+10 || kinds["Seq Scan"] > 0 {
				t.Errorf("listener %d, %s: %v rows were read for %d; by %v\n%s", listener, name, read, taken, kinds, plan)
			}
		}
	}
	fill(`(1), (2)`)
	claims(1) // nothing is known of the table
	b.exec(t, `ANALYZE retries`)
	claims(1)
	fill(`(3)`)
	claims(3) // it is known that there is no such listener
	b.exec(t, `ANALYZE retries`)
	claims(3)
}

// All lanes together take up a limited number, whatever they have room for.
func TestClaimIsLimited(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{})
	b.stop()
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, order_key, background)
		SELECT i, 0, l, 0, now() - interval '1 minute', CASE WHEN i % 3 = 0 THEN 'c' || i ELSE '' END, i % 3 = 1
		FROM generate_series(1, 60) AS i, generate_series(1, 3) AS l`)
	rooms := []room{{1, 50, 50}, {2, 50, 50}, {3, 50, 50}}
	for _, most := range []int{7, 63, 60} { // the last two have to go on to the next kind
		jobs, keys, err := b.claim(t.Context(), rooms, most)
		if err != nil || len(jobs) != most || len(keys) != most {
			t.Errorf("took up %d (%v), want %d", len(jobs), err, most)
		}
	}
	if n := b.count(t, `SELECT count(*) FROM retries WHERE owner = 1`); n != 7+63+60 {
		t.Errorf("%d are claimed", n)
	}
}

// Nobody waits for the records of a drain: they are written many at once.
func TestUrgentRecords(t *testing.T) {
	t.Parallel()
	stored, of := &event.Stored{}, &batch{}
	for name, tt := range map[string]struct {
		rec  record
		want bool
	}{
		"close":             {record{}, true},
		"flush":             {record{mark: make(chan struct{})}, true},
		"nothing to do":     {record{settle: of}, false},
		"received":          {record{job: job{stored: stored, batch: of}}, false},
		"received in order": {record{job: job{stored: stored, batch: of, orderKey: "1"}}, false},
		"taken up":          {record{job: job{stored: stored}}, false},
		"taken up in order": {record{job: job{stored: stored, orderKey: "1"}}, true},
	} {
		if got := tt.rec.urgent(); got != tt.want {
			t.Errorf("%s: urgent %t", name, got)
		}
	}
}
