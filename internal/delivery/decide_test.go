package delivery

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	schedule := Schedule{10 * time.Second, time.Minute}
	in := func(d time.Duration) time.Time { return now.Add(d) }
	date := func(d time.Duration) string { return in(d).Format(http.TimeFormat) }
	broken := errors.New("broken")
	tests := []struct {
		name    string
		r       callback.Result
		attempt int
		maxAge  time.Duration
		want    outcome
	}{
		{"200", callback.Result{Status: 200}, 1, 0, outcome{kind: delivered}},
		{"204 on a retry", callback.Result{Status: 204}, 3, 0, outcome{kind: delivered}},
		{"299", callback.Result{Status: 299}, 1, 0, outcome{kind: delivered}},
		{"200 whose body never ended", callback.Result{Status: 200, Err: broken}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second)}},
		{"301", callback.Result{Status: 301}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second)}},
		{"400", callback.Result{Status: 400}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second)}},
		{"404 the second time", callback.Result{Status: 404}, 2, 0, outcome{kind: retryAt, at: in(time.Minute)}},
		{"410", callback.Result{Status: 410}, 1, 0, outcome{kind: disable, reason: "gone"}},
		{"410 at the end", callback.Result{Status: 410}, 3, 0, outcome{kind: disable, reason: "gone"}},
		{"429", callback.Result{Status: 429}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second), slow: true}},
		{"429 with seconds", callback.Result{Status: 429, RetryAfter: "120"}, 1, 0, outcome{kind: retryAt, at: in(120 * time.Second), notBefore: in(120 * time.Second), slow: true}},
		{"429 with fewer seconds than the schedule", callback.Result{Status: 429, RetryAfter: "1"}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second), notBefore: in(time.Second), slow: true}},
		{"503 with a date", callback.Result{Status: 503, RetryAfter: date(time.Hour)}, 1, 0, outcome{kind: retryAt, at: in(time.Hour), notBefore: in(time.Hour), slow: true}},
		{"503 with a date in the past", callback.Result{Status: 503, RetryAfter: date(-time.Hour)}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second), slow: true}},
		{"503 with more than a day", callback.Result{Status: 503, RetryAfter: "999999"}, 1, 0, outcome{kind: retryAt, at: in(24 * time.Hour), notBefore: in(24 * time.Hour), slow: true}},
		{"500, where Retry-After does not apply", callback.Result{Status: 500, RetryAfter: "120"}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second)}},
		{"502", callback.Result{Status: 502}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second), slow: true}},
		{"504", callback.Result{Status: 504}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second), slow: true}},
		{"no model", callback.Result{Err: fmt.Errorf("it can't be parsed: %w", &event.ParseError{})}, 1, 0, outcome{kind: unparsable}},
		{"no response", callback.Result{Err: broken}, 1, 0, outcome{kind: retryAt, at: in(10 * time.Second)}},
		{"the last attempt", callback.Result{Status: 500}, 3, 0, outcome{kind: exhausted}},
		{"the last attempt, slowed down", callback.Result{Status: 503}, 3, 0, outcome{kind: exhausted, slow: true}},
		{"too old by then", callback.Result{Status: 500}, 1, 5 * time.Second, outcome{kind: expired}},
		{"just not too old", callback.Result{Status: 500}, 1, 11 * time.Second, outcome{kind: retryAt, at: in(10 * time.Second)}},
	}
	for _, tt := range tests {
		// 0.5 is the middle of the jitter.
		got := decide(tt.r, decision{attempt: tt.attempt, now: now, random: 0.5, schedule: schedule, receivedAt: now, maxAge: tt.maxAge})
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(outcome{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestAskedForHasNoAge: what somebody asked for again goes through its schedule, however
// old its event is.
func TestAskedForHasNoAge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := decision{attempt: 1, now: now, random: 0.5, schedule: Schedule{time.Minute}, receivedAt: now.Add(-time.Hour), maxAge: 3 * time.Second, asked: true}
	if got := decide(callback.Result{Status: 500}, d); got.kind != retryAt {
		t.Errorf("after one failure it is %v", got.kind)
	}
	d.asked = false
	if got := decide(callback.Result{Status: 500}, d); got.kind != expired {
		t.Errorf("what nobody asked for is %v", got.kind)
	}
}

func TestEveryKindHasAName(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for k := delivered; k <= dropped; k++ {
		if k.String() == "" || seen[k.String()] {
			t.Errorf("kind %d is called %q", k, k)
		}
		seen[k.String()] = true
	}
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	s, err := ParseSchedule("5s, 5m,30m,2h,5h,10h,14h,20h,24h")
	if err != nil || len(s) != 9 {
		t.Fatalf("%v, %v", s, err)
	}
	for _, tt := range []struct {
		attempt int
		random  float64
		want    time.Duration
		ok      bool
	}{
		{1, 0, 4 * time.Second, true},
		{1, 0.5, 5 * time.Second, true},
		{1, 1, 6 * time.Second, true},
		{9, 0.5, 24 * time.Hour, true},
		{10, 0.5, 0, false},
	} {
		if got, ok := s.wait(tt.attempt, tt.random); (got-tt.want).Abs() > time.Microsecond || ok != tt.ok {
			t.Errorf("wait(%d, %v) = %v, %v, want %v, %v", tt.attempt, tt.random, got, ok, tt.want, tt.ok)
		}
	}
	for _, bad := range []string{"", "5", "5s,", "soon", "-1s", "9999h", "5s;5m"} {
		if s, err := ParseSchedule(bad); err == nil {
			t.Errorf("%q was read as %v", bad, s)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "0", "120", "-1", "1.5", "99999999999999999999999", "Wed, 21 Oct 2026 07:28:00 GMT", " 7 ", "+3", "٣"} {
		f.Add(s)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if d := retryAfter(s, now); d < 0 || d > maxRetryAfter {
			t.Errorf("retryAfter(%q) = %v", s, d)
		}
	})
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"dlv_dyuvmkdd4mip_1_2", "dlv_0_0_0", "dlv_", "dlv_1_2", "dlv_1_2_3_4", "dlv_-1_0_0", "dlv_01_0_0", "dlv_A_0_0", "dlv_1y2p0ij32e8e8_0_0", "1_2_3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err == nil && id.String() != s {
			t.Errorf("%q was read as %v", s, id)
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Errorf("%v reads back as %v, %v", id, again, err)
		}
	})
}
