package delivery

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gatehook/gatehook/internal/event"
)

// lessee is an instance whose lease the test controls.
type lessee struct {
	mu   sync.Mutex
	id   int64
	held chan struct{} // closed while the lease is held
}

func newLessee(id int64) *lessee {
	l := &lessee{id: id, held: make(chan struct{})}
	close(l.held)
	return l
}

func (l *lessee) ID() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

func (l *lessee) Hold(ctx context.Context) (int64, error) {
	l.mu.Lock()
	held := l.held
	l.mu.Unlock()
	select {
	case <-held:
		return l.ID(), nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (*lessee) Now() time.Time { return time.Now() }

func (l *lessee) lapse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = make(chan struct{})
}

func (l *lessee) regain(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	close(l.held)
}

func (l *lessee) hasLease() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.held:
		return true
	default:
		return false
	}
}

// row is the part of a row of retries that the tests check.
type row struct {
	Batch   int64
	State   string
	Attempt int
	Owner   int64 // 0 for none
}

func (b *bundle) retries(t *testing.T) (out []row) {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT batch_id, state, attempt, coalesce(owner, 0) FROM retries ORDER BY batch_id, ordinal`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.Batch, &r.State, &r.Attempt, &r.Owner); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func (b *bundle) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := b.pool.Exec(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

// An outcome changes only rows that this instance owns. Attempts are facts, and always
// stored.
func TestOutcomesAreRecordedForOwnRowsOnly(t *testing.T) {
	t.Parallel()
	const me, heir, before = 1, 2, 9
	failed := outcome{kind: retryAt, at: time.Now().Add(time.Hour)}
	done := outcome{kind: delivered}
	fresh := func(owner int64) func(*event.Stored) job {
		return func(e *event.Stored) job {
			return job{stored: e, listener: 1, owner: owner, batch: &batch{id: e.Key.Batch, owner: owner, left: 1}}
		}
	}
	taken := func(owner int64) func(*event.Stored) job {
		return func(e *event.Stored) job { return job{stored: e, listener: 1, owner: owner, attempt: 1} }
	}
	for name, c := range map[string]struct {
		job     func(*event.Stored) job
		batch   int64 // the current owner of the batch; 0 if it is settled
		row     int64 // the current owner of the row in retries, -1 for none; 0 if there is no row
		outcome outcome
		inHand  bool
		want    []row
		batches int
	}{
		"own batch, failed":               {job: fresh(me), batch: me, outcome: failed, want: []row{{State: "pending", Attempt: 1}}},
		"own batch, delivered":            {job: fresh(me), batch: me, outcome: done},
		"own batch, in hand":              {job: fresh(me), batch: me, outcome: failed, inHand: true, want: []row{{State: "pending", Attempt: 1, Owner: me}}},
		"own batch, exhausted":            {job: fresh(me), batch: me, outcome: outcome{kind: exhausted}, want: []row{{State: "exhausted", Attempt: 1}}},
		"inherited batch, failed":         {job: fresh(me), batch: heir, outcome: failed, batches: 1},
		"inherited batch, in hand":        {job: fresh(me), batch: heir, outcome: failed, inHand: true, batches: 1},
		"inherited batch, delivered":      {job: fresh(me), batch: heir, outcome: done, batches: 1},
		"settled by the heir, failed":     {job: fresh(me), outcome: failed},
		"number is dead, failed":          {job: fresh(before), batch: before, outcome: failed, batches: 1},
		"number is dead, delivered":       {job: fresh(before), batch: before, outcome: done, batches: 1},
		"heir has recorded it, failed":    {job: fresh(me), batch: heir, row: heir, outcome: failed, want: []row{{State: "pending", Attempt: 1, Owner: heir}}, batches: 1},
		"own row, failed":                 {job: taken(me), row: me, outcome: failed, want: []row{{State: "pending", Attempt: 2}}},
		"own row, delivered":              {job: taken(me), row: me, outcome: done},
		"freed row, failed":               {job: taken(me), row: -1, outcome: failed, want: []row{{State: "pending", Attempt: 1}}},
		"freed row, delivered":            {job: taken(me), row: -1, outcome: done, want: []row{{State: "pending", Attempt: 1}}},
		"row of another, failed":          {job: taken(me), row: heir, outcome: failed, want: []row{{State: "pending", Attempt: 1, Owner: heir}}},
		"row of another, delivered":       {job: taken(me), row: heir, outcome: done, want: []row{{State: "pending", Attempt: 1, Owner: heir}}},
		"number is dead, row, delivered":  {job: taken(before), row: before, outcome: done, want: []row{{State: "pending", Attempt: 1, Owner: before}}},
		"number is dead, row now our own": {job: taken(before), row: me, outcome: done, want: []row{{State: "pending", Attempt: 1, Owner: me}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, Config{}, "http://127.0.0.1:1")
			b.stop()
			e := &b.commit(t, 1, 1, 1).Events[0]
			if b.exec(t, `DELETE FROM batches`); c.batch != 0 {
				b.exec(t, `INSERT INTO batches VALUES ($1, $2)`, e.Key.Batch, c.batch)
			}
			if c.row != 0 {
				b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, owner)
					VALUES ($1, 0, 1, 1, now() + interval '1 h', nullif($2, -1))`, e.Key.Batch, c.row)
			}
			rec := record{job: c.job(e), attempted: true, startedAt: time.Now(), outcome: c.outcome, inHand: c.inHand}
			if err := b.recorder.write(t.Context(), []record{rec}); err != nil {
				t.Fatal(err)
			}
			for i := range c.want {
				c.want[i].Batch = e.Key.Batch
			}
			if diff := cmp.Diff(c.want, b.retries(t)); diff != "" {
				t.Errorf("retries (-want +got):\n%s", diff)
			}
			if n := b.count(t, `SELECT count(*) FROM batches`); n != c.batches {
				t.Errorf("%d batches are unsettled, want %d", n, c.batches)
			}
			if n := b.count(t, `SELECT count(*) FROM attempts`); n != 1 {
				t.Errorf("%d attempts, want 1", n)
			}
		})
	}
}

// An instance without its lease starts no POST, and drops deliveries that were taken
// over meanwhile.
func TestNoPostWithoutALease(t *testing.T) {
	t.Parallel()
	i := newLessee(1)
	arrived, answer := make(chan struct{}), make(chan struct{})
	c := newReceiver(t, func(got call) (int, http.Header) {
		if !i.hasLease() {
			t.Errorf("event %d was sent without a lease", got.seq)
		}
		arrived <- struct{}{}
		<-answer
		return http.StatusOK, nil
	})
	b := setup(t, Config{}, c.URL)
	b.stop()
	b.openAs(t, Config{AllowTargets: loopback}, i)
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1; l.Ordering = event.OrderingChannel })
	finish := func() {
		answer <- struct{}{}
		c.await(t, 1)
	}

	b.deliver(t, b.commit(t, 3, 1, 1))
	for range 3 {
		<-arrived
		i.lapse()
		finish()
		if len(c.got) > 0 {
			t.Error("more than one was in flight")
		}
		i.regain(1) // nobody took over meanwhile
	}
	<-b.settled
	if n := testutil.ToFloat64(b.Delivery.metrics.forsaken); n != 0 {
		t.Errorf("%v deliveries were dropped although nobody took them over", n)
	}

	i.lapse()
	lost := b.commit(t, 4, 2, 1)
	b.deliver(t, lost)
	b.exec(t, `UPDATE batches SET owner = 7 WHERE id = $1`, lost.ID)
	i.regain(2)
	own := b.commit(t, 1, 1, 1)
	own.Owner = 2
	b.exec(t, `UPDATE batches SET owner = 2 WHERE id = $1`, own.ID)
	b.deliver(t, own)
	<-arrived
	answer <- struct{}{}
	if got := c.await(t, 1)[0]; got.seq != own.Events[0].Seq {
		t.Errorf("event %d was delivered although an heir has it", got.seq)
	}
	<-b.settled
	if n := testutil.ToFloat64(b.Delivery.metrics.forsaken); n != 4 {
		t.Errorf("%v deliveries were dropped, want 4", n)
	}
	b.books(t, 4, 0, 0, 1)
}

func TestStopDoesNotWaitForALease(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL)
	b.stop()
	i := newLessee(1)
	i.lapse()
	b.openAs(t, Config{AllowTargets: loopback}, i)
	b.deliver(t, b.commit(t, 3, 1, 1))
	b.books(t, 0, 0, 0, 1)
	if len(c.got) > 0 {
		t.Error("a POST was made without a lease")
	}
}

// An ordering key whose deliveries don't all fit into the lane goes through the
// database as a whole: another instance must not take up the newer half.
func TestOrderHoldsWhenAnotherInstanceHelps(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	c := newReceiver(t, func(got call) (int, http.Header) {
		if got.seq == 1024 {
			<-answer
		}
		return http.StatusOK, nil
	})
	b := setup(t, Config{LaneQueue: 4}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	first := b.Delivery
	b.deliver(t, b.commit(t, 12, 1, 1))
	if err := first.recorder.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopFirst := b.stop
	b.open(t, Config{AllowTargets: loopback}, 2)
	if n := b.count(t, `SELECT count(*) FROM retries`); n != 12 {
		t.Errorf("%d of 12 deliveries have rows", n)
	}
	if jobs, _, err := b.claim(t.Context(), []room{{1, 100, 100}}, 1000); err != nil || len(jobs) > 0 {
		t.Errorf("another instance took up %d deliveries while the first is in flight (%v)", len(jobs), err)
	}
	close(answer)
	last := int64(0)
	for _, got := range c.await(t, 12) {
		if got.seq <= last {
			t.Errorf("event %d was delivered after event %d", got.seq, last)
		}
		last = got.seq
	}
	stopFirst()
	b.books(t, 12, 0, 0, 0)
}

// An ordering key does not wait for deliveries that another instance has made.
func TestKeyIsFreeWhenAnotherInstanceHasEmptiedIt(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL)
	b.stop()
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, order_key)
		VALUES (5, 0, 1, 1, now() + interval '1 h', 'c1'), (6, 0, 1, 1, now() + interval '1 h', 'c2')`)
	b.open(t, Config{AllowTargets: loopback}, 1)
	l := b.lane(1)
	if got := l.parked(nil, 10); len(got) != 2 {
		t.Fatalf("parked: %v", got)
	}
	b.exec(t, `DELETE FROM retries WHERE order_key = 'c1'`)
	if err := b.unparkKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []parkedKey{{1, "c2", event.Key{Batch: 6}}}
	if diff := cmp.Diff(want, l.parked(nil, 10), cmp.AllowUnexported(parkedKey{})); diff != "" {
		t.Errorf("parked (-want +got):\n%s", diff)
	}
}

// If a claim fails halfway, or its answer is lost, its rows are still taken up later.
func TestLostClaimIsGivenBack(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL)
	b.stop()
	batch := b.commit(t, 2, 1, 1)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at) VALUES ($1, 0, 1, 0, now()), ($1, 1, 1, 0, now())`, batch.ID)
	b.exec(t, `DELETE FROM batches`)
	failed := make(chan struct{})
	var once sync.Once
	b.readEvents = func() (err error) {
		once.Do(func() { close(failed); err = errors.New("no answer") })
		return err
	}
	b.open(t, Config{AllowTargets: loopback}, 1)
	<-failed
	c.await(t, 2)
	b.books(t, 2, 0, 0, 0)
}

// TestDeadNumberClaimsNoRetries checks that rows get no owner whose heir may be done:
// nobody would free them.
func TestDeadNumberClaimsNoRetries(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{}, newReceiver(t, ok).URL)
	b.stop()
	batch := b.commit(t, 1, 1, 1)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at) VALUES ($1, 0, 1, 0, now())`, batch.ID)
	dead := errors.New("it has an heir")
	b.journal.dead = dead
	if _, _, err := b.claim(t.Context(), []room{{listener: 1, all: 1}}, 1); !errors.Is(err, dead) {
		t.Errorf("claimed: %v", err)
	}
	if rows := b.retries(t); len(rows) != 1 || rows[0].Owner != 0 {
		t.Errorf("the rows are %+v", rows)
	}
	b.journal.dead = nil
	if jobs, _, err := b.claim(t.Context(), []room{{listener: 1, all: 1}}, 1); err != nil || len(jobs) != 1 {
		t.Errorf("claimed %d rows (%v)", len(jobs), err)
	}
}

// Before a shard goes to another instance, every ordered delivery in memory has
// a row, and the one in flight holds back the others.
func TestYieldedDeliveriesHaveRows(t *testing.T) {
	t.Parallel()
	arrived, answer := make(chan struct{}, 10), make(chan struct{})
	c := newReceiver(t, func(call) (int, http.Header) {
		arrived <- struct{}{}
		<-answer
		return http.StatusOK, nil
	})
	b := setup(t, Config{}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	batch := b.commit(t, 4, 1, 1)
	b.deliver(t, batch)
	<-arrived
	if err := b.Yield(t.Context(), event.Shard{ID: 7, Count: 8}); err != nil || len(b.retries(t)) != 0 {
		t.Errorf("yielded deliveries of another shard (%v)", err)
	}
	if err := b.Yield(t.Context(), event.Shard{}); err != nil {
		t.Fatal(err)
	}
	want := []row{{State: "pending", Owner: 1}, {State: "pending"}, {State: "pending"}, {State: "pending"}}
	for i := range want {
		want[i].Batch = batch.ID
	}
	if diff := cmp.Diff(want, b.retries(t)); diff != "" {
		t.Errorf("retries (-want +got):\n%s", diff)
	}
	if jobs, _, err := b.claim(t.Context(), []room{{1, 100, 100}}, 1000); err != nil || len(jobs) > 0 {
		t.Errorf("%d deliveries could overtake the one in flight (%v)", len(jobs), err)
	}
	close(answer)
	last := int64(0)
	for _, got := range c.await(t, 4) {
		if got.seq <= last {
			t.Errorf("event %d was delivered after event %d", got.seq, last)
		}
		last = got.seq
	}
	b.books(t, 4, 0, 0, 0)
}

// The deliveries that a dead instance left for an ordered listener are in retries when
// Recover returns: another instance may then get the shard, and looks for them there.
func TestInheritedOrderedDeliveriesHaveRows(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	c := newReceiver(t, func(call) (int, http.Header) { <-answer; return http.StatusOK, nil })
	b := setup(t, Config{}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	if err := b.Recover(t.Context(), []*event.Batch{b.commit(t, 6, 2, 1)}); err != nil {
		t.Fatal(err)
	}
	if n := len(b.retries(t)); n != 6 {
		t.Errorf("%d of 6 deliveries have rows", n)
	}
	close(answer)
	c.await(t, 6)
	b.books(t, 6, 0, 0, 0)
}
