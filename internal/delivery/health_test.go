package delivery

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gatehook/gatehook/internal/event"
)

func TestStreaks(t *testing.T) {
	t.Parallel()
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 0, 0, s, 0, time.UTC) }
	attempt := func(s int, k kind) record {
		return record{attempted: true, startedAt: at(s), outcome: outcome{kind: k}, job: job{listener: 1}}
	}
	for name, c := range map[string]struct {
		recs   []record
		before time.Time // when the known failures began
		want   healthRows
	}{
		"no attempts":             {recs: []record{{job: job{listener: 1}}}},
		"success":                 {recs: []record{attempt(1, delivered)}},
		"failure":                 {recs: []record{attempt(1, retryAt), attempt(2, exhausted)}, want: healthRows{begun: []int64{1}, failed: []time.Time{at(1)}}},
		"gone":                    {recs: []record{attempt(1, disable)}, want: healthRows{begun: []int64{1}, failed: []time.Time{at(1)}}},
		"unparsable":              {recs: []record{attempt(1, unparsable)}},
		"one more failure":        {recs: []record{attempt(5, retryAt)}, before: at(1)},
		"success after failures":  {recs: []record{attempt(5, delivered)}, before: at(1), want: healthRows{ended: []int64{1}, succeeded: []time.Time{at(5)}}},
		"an older success":        {recs: []record{attempt(1, delivered)}, before: at(5)},
		"success, then failures":  {recs: []record{attempt(9, retryAt), attempt(8, retryAt), attempt(7, delivered)}, before: at(1), want: healthRows{ended: []int64{1}, succeeded: []time.Time{at(7)}, begun: []int64{1}, failed: []time.Time{at(8)}}},
		"failures, then success":  {recs: []record{attempt(1, retryAt), attempt(7, delivered)}},
		"failures around success": {recs: []record{attempt(1, retryAt), attempt(9, retryAt), attempt(7, delivered)}, want: healthRows{begun: []int64{1}, failed: []time.Time{at(9)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := health{failing: map[int64]time.Time{}}
			if !c.before.IsZero() {
				h.failing[1] = c.before
			}
			if diff := cmp.Diff(c.want, h.changes(streaks(c.recs)), cmp.AllowUnexported(healthRows{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// stored returns the data of the stored events with a name.
func (b *bundle) stored(t *testing.T, name string) (all []map[string]any) {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT data FROM events WHERE name = $1 ORDER BY batch_id`, name)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var data []byte
		var fields map[string]any
		if err := rows.Scan(&data); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &fields); err != nil {
			t.Fatal(err)
		}
		all = append(all, fields)
	}
	return all
}

// Several deliveries that get a 410 at once disable the listener once, and report that
// once. Each of them is exhausted, which is reported, too.
func TestGoneIsReportedOnce(t *testing.T) {
	t.Parallel()
	const atOnce = 4
	gate := make(chan struct{})
	arrived := make(chan struct{}, atOnce)
	gone := newReceiver(t, func(call) (int, http.Header) {
		arrived <- struct{}{}
		<-gate
		return http.StatusGone, nil
	})
	operator := newReceiver(t, ok)
	b := setup(t, Config{Schedule: Schedule{time.Hour}}, gone.URL, operator.URL)
	b.registry.change(2, func(l *event.Listener) { l.Event = "RAW_GATEHOOK_*" })
	b.deliver(t, b.commit(t, atOnce, 1, 1))
	for range atOnce {
		<-arrived
	}
	close(gate)
	names := map[string]int{}
	for _, got := range operator.await(t, 1+atOnce) {
		names[got.name]++
	}
	if diff := cmp.Diff(map[string]int{"RAW_GATEHOOK_LISTENER_DISABLED": 1, "RAW_GATEHOOK_DELIVERY_EXHAUSTED": atOnce}, names); diff != "" {
		t.Errorf("received notices (-want +got):\n%s", diff)
	}
	if n := testutil.ToFloat64(b.Delivery.metrics.disabled.WithLabelValues(reasonGone)); n != 1 {
		t.Errorf("%v listeners were counted as disabled", n)
	}
	disabled := b.stored(t, eventDisabled)
	if len(disabled) != 1 || disabled[0]["reason"] != "gone" || disabled[0]["listener_id"] != event.ListenerID(1) ||
		disabled[0]["event"] != "MESSAGE_CREATE" || disabled[0]["failing_since"] != nil {
		t.Errorf("stored notices: %v", disabled)
	}
	spent := b.stored(t, eventExhausted)
	if len(spent) != atOnce || spent[0]["attempts"] != 1.0 || spent[0]["status"] != 410.0 || spent[0]["event"] != "MESSAGE_CREATE" || spent[0]["error"] != nil {
		t.Errorf("stored notices: %v", spent)
	}
	b.books(t, 2*atOnce+1, 0, atOnce, 0)
}

// An exhausted delivery is reported, unless it is a delivery of such a report.
func TestExhaustedIsNotReportedForever(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(call) (int, http.Header) { return http.StatusInternalServerError, nil })
	b := setup(t, Config{}, c.URL, c.URL+"/all")
	b.registry.change(2, func(l *event.Listener) { l.Event = "*" })
	b.deliver(t, b.commit(t, 2, 1, 1, 2))
	// Two events for two listeners, and four that report those: 3 attempts each.
	c.await(t, 3*(4+4))
	b.stop()
	if n := len(b.stored(t, eventExhausted)); n != 4 {
		t.Errorf("%d notices report exhausted deliveries, want 4", n)
	}
	if n := b.count(t, `SELECT count(*) FROM retries WHERE state = 'exhausted'`); n != 8 {
		t.Errorf("%d deliveries are exhausted, want 8", n)
	}
}

// The time since which a listener has been failing survives a restart. A success clears
// it.
func TestFailuresAreRemembered(t *testing.T) {
	t.Parallel()
	c, broken := fallible(t, http.StatusInternalServerError)
	cfg := Config{Schedule: Schedule{time.Hour}, AllowTargets: loopback}
	b := setup(t, cfg, c.URL)
	since := func() (at *time.Time) {
		t.Helper()
		if err := b.recorder.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.pool.QueryRow(t.Context(), `SELECT failing_since FROM listener_health`).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	round := func() {
		b.deliver(t, b.commit(t, 1, 1, 1))
		c.await(t, 1)
		<-b.settled
	}
	round()
	first := since()
	if first == nil {
		t.Fatal("the failure is not stored")
	}
	b.stop()
	b.open(t, cfg, 1)
	round()
	if again := since(); again == nil || !again.Equal(*first) {
		t.Errorf("failing since %v after a restart, want %v", again, first)
	}
	broken.Store(false)
	round()
	if again := since(); again != nil {
		t.Errorf("failing since %v after a success", again)
	}
	broken.Store(true)
	round()
	if again := since(); again == nil || !again.After(*first) {
		t.Errorf("failing since %v, want a later time than %v", again, first)
	}
}

// The attempt that completes five days of failures disables the listener, unless
// another instance has seen a success meanwhile.
func TestFailingForDaysDisables(t *testing.T) {
	t.Parallel()
	c, _ := fallible(t, http.StatusInternalServerError)
	operator := newReceiver(t, ok)
	cfg := Config{Schedule: Schedule{time.Hour}, AllowTargets: loopback}
	b := setup(t, cfg, c.URL, c.URL+"/2", c.URL+"/3", operator.URL)
	b.registry.change(4, func(l *event.Listener) { l.Event = eventDisabled })
	b.stop()
	b.exec(t, `INSERT INTO listener_health VALUES (1, now() - interval '121 h'), (2, now() - interval '119 h'), (3, now() - interval '121 h')`)
	b.open(t, cfg, 1)
	b.exec(t, `UPDATE listener_health SET failing_since = NULL WHERE listener_id = 3`)
	b.deliver(t, b.commit(t, 1, 1, 1, 2, 3))
	c.await(t, 3)
	operator.await(t, 1)
	<-b.settled
	if diff := cmp.Diff(map[int64]string{1: reasonFailing}, b.registry.disabled); diff != "" {
		t.Errorf("disabled (-want +got):\n%s", diff)
	}
	if notices := b.stored(t, eventDisabled); len(notices) != 1 || notices[0]["reason"] != reasonFailing || notices[0]["failing_since"] == nil {
		t.Errorf("stored notices: %v", notices)
	}
	// The delivery waits for the listener to be enabled again.
	b.books(t, 4, 3, 0, 0)
}

// If a process dies after it disabled a listener but before it recorded the attempt
// that was the reason, nothing is left undone. Its heir finds the listener disabled,
// lets the delivery wait, and does not report it again.
func TestCrashBetweenDisablingAndItsRecord(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(call) (int, http.Header) { return http.StatusGone, nil })
	operator := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL, operator.URL)
	b.registry.change(2, func(l *event.Listener) { l.Event = eventDisabled })
	batch := b.commit(t, 1, 1, 1)
	b.condemn(&record{
		attempted: true, startedAt: time.Now(), outcome: outcome{kind: disable, reason: reasonGone},
		job: job{stored: &batch.Events[0], listener: 1, owner: 1},
	}, b.registry.Listener(1))
	operator.await(t, 1)
	b.stop() // without recording the attempt
	b.open(t, Config{AllowTargets: loopback}, 2)
	b.inherit(t, batch)
	if err := b.Recover(t.Context(), []*event.Batch{batch}); err != nil {
		t.Fatal(err)
	}
	<-b.settled
	if n := len(b.stored(t, eventDisabled)); n != 1 {
		t.Errorf("the notice is stored %d times", n)
	}
	if len(c.got) != 0 {
		t.Error("a disabled listener's callback was called")
	}
	b.books(t, 1, 1, 0, 0)
}
