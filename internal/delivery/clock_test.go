package delivery

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

// behind is an instance whose database's clock is behind the machine's: the machine's
// clock is ahead.
type behind struct {
	self

	by time.Duration
}

func (b behind) Now() time.Time { return time.Now().Add(-b.by) }

// The database's clock decides when a retry is due, how old an event is and when an
// attempt was made, however far ahead the machine's clock is.
func TestTimesAreTheDatabases(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(call) (int, http.Header) { return http.StatusInternalServerError, nil })
	b := setup(t, Config{}, c.URL)
	b.stop()
	const by, wait = 2 * time.Hour, 30 * time.Minute
	b.registry.change(1, func(l *event.Listener) { l.MaxAge = time.Hour })
	b.openAs(t, Config{Schedule: Schedule{wait}, AllowTargets: loopback}, behind{1, by})
	batch := b.commit(t, 1, 1, 1)
	batch.Events[0].ReceivedAt = time.Now().Add(-by) // now, by the database's clock
	b.deliver(t, batch)
	c.await(t, 1)
	b.stop()
	var due, started time.Time
	if err := b.pool.QueryRow(t.Context(), `SELECT due_at, started_at FROM retries JOIN attempts USING (batch_id, ordinal, listener_id)
		WHERE state = 'pending'`).Scan(&due, &started); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(-by)
	if d := now.Sub(started); d < 0 || d > time.Minute {
		t.Errorf("the attempt was %v ago", d)
	}
	if d := due.Sub(now.Add(wait)); d < -wait/2 || d > wait/2 {
		t.Errorf("the retry is due at %v, want about %v", due, now.Add(wait))
	}
}

// stopped is an instance whose database's clock was set back: until it has caught up, the
// time stands still.
type stopped struct {
	self

	at time.Time
}

func (s stopped) Now() time.Time { return s.at }

// A pause that a callback asked for ends by the machine's clock: it lasts no longer
// because the database's clock was set back.
func TestPauseEndsThoughTheDatabasesClockStandsStill(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := newReceiver(t, func(call) (int, http.Header) {
		if calls.Add(1) == 1 {
			return http.StatusServiceUnavailable, http.Header{"Retry-After": {"1"}}
		}
		return http.StatusNoContent, nil
	})
	b := setup(t, Config{}, c.URL)
	b.stop()
	b.openAs(t, Config{AllowTargets: loopback}, stopped{1, time.Now().Add(-time.Minute)})
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1 })
	b.deliver(t, b.commit(t, 3, 1, 1))
	c.await(t, 4)
	b.stop()
}

// As many replays and bulk retries as may be are under way: one more is told when to come
// back, at once, and is welcome when one of them has ended.
func TestBulkCallsAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{Bulk: 2}, "http://127.0.0.1:1")
	reading, end := make(chan struct{}), make(chan struct{})
	b.journal.span = func(func([]event.Stored) error) error {
		reading <- struct{}{}
		<-end
		return nil
	}
	id := event.ListenerID(1)
	replay := func() error {
		_, err := b.ReplayListener(t.Context(), openapi.ReplayListenerRequestObject{Id: id, Body: &openapi.Replay{Since: time.Now().Add(-time.Hour)}})
		return err
	}
	retry := func() error {
		_, err := b.RetryListener(t.Context(), openapi.RetryListenerRequestObject{Id: id, Body: &openapi.RetryFilter{
			Status: []openapi.RetryFilterStatus{openapi.RetryFilterStatusExhausted},
		}})
		return err
	}
	done := make(chan error)
	for range 2 {
		go func() { done <- replay() }()
		<-reading
	}
	// Some more wait for their turn, and all others are refused at once.
	waiting := make(chan error)
	for range bulkWaiting {
		go func() { waiting <- retry() }()
	}
	eventually(t, "they wait", func() bool { return b.bulkWaiting.Load() == 2+bulkWaiting })
	for name, call := range map[string]func() error{"a replay": replay, "a bulk retry": retry} {
		refused := (*openapi.Error)(nil)
		if err := call(); !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || refused.RetryAfter != bulkAgain {
			t.Errorf("%s is answered with %v", name, err)
		}
	}
	close(end)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for range bulkWaiting {
		if err := <-waiting; err != nil {
			t.Errorf("one that waited: %v", err)
		}
	}
	if err := retry(); err != nil {
		t.Errorf("after that: %v", err)
	}
}
