package delivery

import (
	"net/http"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// What the old URL of a listener answers, or has answered, is not applied to the new one.
func TestNewURLStartsAnew(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]struct {
		status     int
		retryAfter string
	}{
		"gone":             {http.StatusGone, ""},
		"in an hour":       {http.StatusServiceUnavailable, "3600"},
		"for the schedule": {http.StatusInternalServerError, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			arrived, moved := make(chan struct{}), make(chan struct{})
			before := newReceiver(t, func(got call) (int, http.Header) {
				if got.seq%2 == 1 { // in flight while the listener moves
					arrived <- struct{}{}
					<-moved
				}
				return answer.status, http.Header{"Retry-After": {answer.retryAfter}}
			})
			after := newReceiver(t, ok)
			b := setup(t, Config{Schedule: Schedule{time.Hour, time.Hour}}, before.URL)
			b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1 })
			if name != "gone" {
				b.deliver(t, b.commit(t, 1, 1, 1)) // it waits for the old URL's hour
				before.await(t, 1)
				eventually(t, "it waits", func() bool {
					return b.count(t, `SELECT count(*) FROM retries WHERE due_at > now() + interval '1 minute'`) == 1
				})
				b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 2 }) // ends the pause
			}
			for b.batch%2 == 0 {
				b.batch++
			}
			b.deliver(t, b.commit(t, 1, 1, 1))
			<-arrived
			b.registry.change(1, func(l *event.Listener) { l.URL = after.URL })
			close(moved)
			want := 1
			if name != "gone" {
				want = 2
			}
			after.await(t, want)
			if reason := b.registry.disabled[1]; reason != "" {
				t.Errorf("the listener is disabled: %s", reason)
			}
			b.stop()
			if n := b.count(t, `SELECT count(*) FROM retries`); n != 0 {
				t.Errorf("%d deliveries still wait", n)
			}
		})
	}
}

// What somebody asked for again and fails again does not stand before newer events of its
// ordering key.
func TestAskedForStandsBeforeNothing(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(got call) (int, http.Header) {
		if got.seq == 1025 {
			return http.StatusInternalServerError, nil
		}
		return http.StatusNoContent, nil
	})
	for name, ask := range map[string]func(t *testing.T, b *bundle, old *event.Batch){
		"a bulk retry": func(t *testing.T, b *bundle, _ *event.Batch) {
			t.Helper()
			if _, err := b.retryAll(t.Context(), 1, []string{"exhausted"}, time.Time{}, time.Now()); err != nil {
				t.Fatal(err)
			}
		},
		"a replay": func(t *testing.T, b *bundle, old *event.Batch) {
			t.Helper()
			b.journal.span = func(take func([]event.Stored) error) error { return take(old.Events) }
			if _, err := b.replay(t.Context(), b.registry.Listener(1), time.Time{}, time.Now()); err != nil {
				t.Fatal(err)
			}
		},
		"a retry": func(t *testing.T, b *bundle, old *event.Batch) {
			t.Helper()
			e := entry{id: ID{old.Events[0].Key, 1}, event: old.Events[0]}
			if err := b.again(t.Context(), &e, b.registry.Listener(1)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, Config{Schedule: Schedule{}}, c.URL)
			b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
			b.batch = 1
			old := b.commit(t, 1, 1, 1)
			for i := range old.Events {
				old.Events[i].ID[6] = old.Events[i].ID[6]&0x0f | 0x70 // a random id would make it a sample
			}
			b.deliver(t, old)
			eventually(t, "it is exhausted", func() bool { return b.count(t, `SELECT count(*) FROM retries WHERE state = 'exhausted'`) == 1 })
			b.stop()
			b.open(t, Config{Schedule: Schedule{time.Hour, time.Hour}, AllowTargets: loopback}, 1)
			ask(t, b, old)
			eventually(t, "it waits for its schedule", func() bool {
				return b.count(t, `SELECT count(*) FROM retries WHERE state = 'pending' AND due_at > now() + interval '1 minute'`) == 1
			})
			newer := b.commit(t, 1, 1, 1)
			b.deliver(t, newer)
			eventually(t, "the newer event of the channel is delivered", func() bool {
				return b.count(t, `SELECT count(*) FROM attempts WHERE delivered`) == 1
			})
		})
	}
}

// Deliveries that wait for longer than events are kept expire, and are told.
func TestWaitingPastTheRetentionExpires(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{Schedule: Schedule{time.Hour}, Retention: 2 * time.Hour}, "http://127.0.0.1:1", "http://127.0.0.1:1")
	b.stop()
	b.journal.at = func(at time.Time) int64 { return at.Unix() }
	old, young := time.Now().Add(-3*time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	for _, batch := range []int64{old, young} {
		b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at) SELECT $1, generate_series(1, 6000), 1, 1, now() + interval '1 hour'`, batch)
	}
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, owner) VALUES ($1, 0, 1, 1, now(), 1)`, old) // in flight
	if err := b.upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[string]int{"expired": 6000, "pending": 6001} {
		if n := b.count(t, `SELECT count(*) FROM retries WHERE state = '`+state+`'`); n != want {
			t.Errorf("%d are %s, want %d", n, state, want)
		}
	}
	counted := nonzero(b.scrape(t), `state="expired"`)
	for series, n := range counted {
		if n != "6000" {
			t.Errorf("%s is %s", series, n)
		}
	}
	if len(counted) != 1 {
		t.Errorf("counted are %v", counted)
	}
}

// A record that is older than the retention, because the database was away for longer,
// does not stop the others.
func TestRecordPastTheRetention(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{Retention: time.Hour}, "http://127.0.0.1:1")
	batch := b.commit(t, 2, 1, 1)
	for i, at := range []time.Time{time.Now(), time.Now().Add(-90 * 24 * time.Hour)} {
		rec := record{
			job:       job{stored: &batch.Events[i], listener: 1, owner: 1, bodies: &bodies{}},
			attempted: true, startedAt: at, began: time.Now(), outcome: outcome{kind: delivered},
		}
		if err := b.recorder.put(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.recorder.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := b.count(t, `SELECT count(*) FROM attempts`); n != 2 {
		t.Errorf("%d attempts are stored", n)
	}
}
