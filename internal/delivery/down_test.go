package delivery

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gatehook/gatehook/internal/event"
)

// fallible is a callback that the test can break and repair.
func fallible(t *testing.T, status int) (*receiver, *atomic.Bool) {
	t.Helper()
	broken := &atomic.Bool{}
	broken.Store(true)
	return newReceiver(t, func(call) (int, http.Header) {
		if broken.Load() {
			return status, nil
		}
		return http.StatusNoContent, nil
	}), broken
}

// age makes the failures of a listener a minute older.
func (b *bundle) age(id int64) {
	l := b.lane(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pace.since = l.pace.since.Add(-downFor)
}

// While a callback is down, its deliveries lose no attempts and use no memory, and
// batches are settled. When it is back, all are delivered.
func TestDownCallbackCostsNoAttempts(t *testing.T) {
	t.Parallel()
	for _, ordering := range []event.Ordering{event.OrderingNone, event.OrderingChannel} {
		t.Run(string(ordering), func(t *testing.T) {
			t.Parallel()
			c, broken := fallible(t, http.StatusInternalServerError)
			b := setup(t, Config{Schedule: Schedule{time.Hour, time.Hour}}, c.URL)
			b.registry.change(1, func(l *event.Listener) { l.Ordering = ordering })
			b.deliver(t, b.commit(t, downAfter, downAfter, 1))
			c.await(t, downAfter)
			<-b.settled
			b.age(1)
			const more = 200
			// On other channels, where nothing failed.
			waiting := b.commit(t, more+downAfter, more+downAfter, 1)
			b.exec(t, `DELETE FROM events WHERE batch_id = $1 AND ordinal < $2`, waiting.ID, downAfter)
			waiting.Events = waiting.Events[downAfter:]
			b.deliver(t, waiting)
			<-b.settled // although the callback is down
			fresh := b.commit(t, more, more+2*downAfter, 1)
			b.exec(t, `UPDATE events SET channel_id = channel_id + 1000 WHERE batch_id = $1`, fresh.ID)
			for i := range fresh.Events {
				fresh.Events[i].ChannelID += 1000
			}
			b.deliver(t, fresh)
			l := b.lane(1)
			if size, _, _ := l.load(); size > 4 {
				t.Errorf("the lane of a callback that is down holds %d deliveries", size)
			}
			if err := b.recorder.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := b.count(t, `SELECT count(*) FROM retries WHERE attempt > 0`); n > downAfter+6 {
				t.Errorf("%d deliveries lost an attempt", n-downAfter)
			}
			if n := b.count(t, `SELECT count(*) FROM retries WHERE state = 'pending'`); n != 2*more+downAfter {
				t.Errorf("%d deliveries wait, want %d", n, 2*more+downAfter)
			}
			broken.Store(false)
			for n := 0; n < 2*more; { // the failed deliveries wait for an hour
				got := c.await(t, 1)[0]
				if got.attempt == 1 {
					n++
				}
			}
			b.stop()
			if n := b.count(t, `SELECT count(*) FROM retries WHERE attempt = 0`); n != 0 {
				t.Errorf("%d deliveries still wait", n)
			}
			if n := b.count(t, `SELECT count(*) FROM attempts`); n > downAfter+2*more+10 {
				t.Errorf("%d attempts were made", n)
			}
		})
	}
}

// With a short schedule, every delivery gets all its attempts soon, however long the
// callback fails.
func TestShortScheduleRunsToItsEnd(t *testing.T) {
	t.Parallel()
	c, _ := fallible(t, http.StatusInternalServerError)
	b := setup(t, Config{}, c.URL)
	for range 3 {
		b.deliver(t, b.commit(t, 40, 1, 1))
		b.age(1)
	}
	c.await(t, 3*3*40)
	b.books(t, 3*3*40, 0, 3*40, 0)
}

// Events that a callback can't handle delay no others.
func TestPoisonousEventsDelayNoOthers(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(got call) (int, http.Header) {
		if got.seq%16 == 0 {
			return http.StatusInternalServerError, nil
		}
		return http.StatusOK, nil
	})
	b := setup(t, Config{Schedule: Schedule{time.Hour, time.Hour}}, c.URL)
	for range 5 {
		b.deliver(t, b.commit(t, 160, 1, 1))
		b.age(1)
	}
	c.await(t, 800)
	b.books(t, 800, 50, 0, 0)
}

// Deliveries that get too old while their callback is down expire immediately, not when
// the callback is back.
func TestWaitingDeliveriesExpire(t *testing.T) {
	t.Parallel()
	c, _ := fallible(t, http.StatusServiceUnavailable)
	b := setup(t, Config{Schedule: Schedule{time.Hour}}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxAge = 50 * time.Millisecond })
	l := b.lane(1)
	l.mu.Lock()
	l.refreshLocked()
	l.pace.down, l.pace.limit, l.pace.until = true, 1, time.Now().Add(time.Hour)
	l.mu.Unlock()
	b.deliver(t, b.commit(t, 20, 1, 1))
	<-b.settled
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for b.count(t, `SELECT count(*) FROM retries WHERE state = 'expired'`) < 20 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("not all have expired")
		}
	}
	if len(c.got) != 0 {
		t.Error("the callback was called")
	}
	b.books(t, 0, 0, 20, 0)
}

// An ordering key whose first delivery fails until it is exhausted stops no other key,
// and then continues. A key whose delivery hangs leaves room for the others.
func TestStuckKeyStopsNoOther(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	c := newReceiver(t, func(got call) (int, http.Header) {
		switch {
		case got.channel == "1" && got.seq == 1024: // the first of all
			return http.StatusInternalServerError, nil
		case got.channel == "2" && got.seq == 1025:
			<-hang
		}
		return http.StatusNoContent, nil
	})
	b := setup(t, Config{LaneQueue: 32}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	b.deliver(t, b.commit(t, 300, 3, 1))
	free := 0 // deliveries of the third channel, of a hundred
	for free < 100 {
		if got := c.await(t, 1)[0]; got.channel == "3" {
			free++
		}
	}
	close(hang)
	<-b.settled
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for b.count(t, `SELECT count(*) FROM retries WHERE state = 'pending'`) > 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("not all were delivered")
		}
	}
	b.books(t, 299+3, 0, 1, 0)
	if n := testutil.ToFloat64(b.Delivery.metrics.keysSkipped); n != 1 {
		t.Errorf("%v keys continued without a delivery, want 1", n)
	}
	if n := b.parkedKeys(); n != 0 {
		t.Errorf("%d keys are parked", n)
	}
	last := map[string]int64{}
	for _, got := range c.calls {
		if got.seq < last[got.channel] {
			t.Errorf("channel %s: event %d was delivered after event %d", got.channel, got.seq, last[got.channel])
		}
		last[got.channel] = got.seq
	}
}

// An ordering key whose delivery hangs does not fill the lane. Otherwise the deliveries
// of other keys would wait in the database for room.
func TestHangingKeyLeavesRoom(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	open := sync.OnceFunc(func() { close(hang) })
	c := newReceiver(t, func(got call) (int, http.Header) {
		if got.channel == "1" {
			<-hang
		}
		return http.StatusNoContent, nil
	})
	t.Cleanup(open)
	b := setup(t, Config{LaneQueue: 32}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	b.deliver(t, b.commit(t, 32, 1, 1))
	others := b.commit(t, 100, 2, 1)
	others.Events = slices.DeleteFunc(others.Events, func(e event.Stored) bool { return e.ChannelID == 1 })
	b.deliver(t, others)
	c.await(t, 50)
	open()
	c.await(t, 32)
	b.books(t, 82, 0, 0, 0)
}
