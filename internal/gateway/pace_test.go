package gateway

import (
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// TestPace: a table of what happened to a shard, and how long it waits.
func TestPace(t *testing.T) {
	t.Parallel()
	const begun, short, long = true, 10 * time.Second, time.Hour
	plenty := identify.Budget{Total: 1000, Remaining: 900, ResetAfter: 20 * time.Hour, Shards: 10}
	little := identify.Budget{Total: 1000, Remaining: 150, ResetAfter: 20 * time.Hour, Shards: 10} // ten tries of each shard
	type step struct {
		identified bool          // this long before its end, the connection sent an IDENTIFY: served
		served     time.Duration // for how long the shard was in service
		session    bool          // there was a session at the end
		resume     bool          // it is resumed
		want       time.Duration
	}
	tests := []struct {
		name   string
		budget identify.Budget
		steps  []step
	}{
		{"a good session ends", plenty, []step{
			{begun, long, true, true, 500 * time.Millisecond},
		}},
		{"a good session is lost", plenty, []step{
			{begun, long, true, false, 0},
		}},
		{"a good session is lost, with little left", little, []step{
			{begun, long, true, false, 0},
		}},
		{"resumes fail, then the session is lost", plenty, []step{
			{begun, long, true, true, 500 * time.Millisecond},
			{false, 0, true, true, time.Second},
			{false, 0, true, true, 2 * time.Second},
			{false, 0, true, true, 2 * time.Second},
			{false, 0, true, false, 0},
			{false, 0, false, false, 500 * time.Millisecond}, // the gateway can't be dialed
			{false, 0, false, false, time.Second},
		}},
		{"a resumed session ends soon, again and again", plenty, []step{
			{begun, long, true, true, 500 * time.Millisecond},
			{false, time.Second, true, true, time.Second},
			{false, time.Second, true, true, 2 * time.Second},
			{false, time.Second, true, true, 2 * time.Second},
			{false, long, true, true, 500 * time.Millisecond},
		}},
		{"sessions end soon", plenty, []step{
			{begun, short, true, false, 5 * time.Second},
			{begun, short, true, false, 10 * time.Second},
			{begun, short, true, true, 500 * time.Millisecond},
			{false, short, true, false, 20 * time.Second},
			{false, 0, false, false, 500 * time.Millisecond}, // the wait is over: only the dial failed
			{begun, 0, false, false, 40 * time.Second},
			{begun, long, true, false, 0},
			{begun, 0, false, false, 5 * time.Second},
		}},
		{"sessions end soon, with little left", little, []step{
			{begun, short, true, false, 5 * time.Second},
			{begun, short, true, false, 2*time.Hour - short},
			{begun, long, true, false, 0},
		}},
	}
	for _, tt := range tests {
		var p pace
		now := time.Unix(1e9, 0)
		for i, s := range tt.steps {
			end := ending{session: s.session, served: s.served}
			if s.identified {
				end.identified = now
			}
			now = now.Add(s.served)
			got := p.wait(end, s.resume, tt.budget, now, usualTiming, 0.5)
			if got != s.want {
				t.Errorf("%s, step %d: waits %v, want %v", tt.name, i, got, s.want)
			}
			now = now.Add(got)
		}
	}
}

// TestPaceOfAShare: a shard that used its share of the day's starts has to spread
// the next ones, however well each session went.
func TestPaceOfAShare(t *testing.T) {
	t.Parallel()
	var p pace
	b := identify.Budget{Total: 1000, Remaining: 450, ResetAfter: 20 * time.Hour, Shards: 100}
	now := time.Unix(1e9, 0)
	for n := range 8 {
		end := ending{session: true, served: time.Hour, identified: now}
		now = now.Add(end.served)
		var want time.Duration
		if n+1 > b.Share() {
			want = 4 * time.Hour // to the next IDENTIFY: 5 h from the last one
		}
		if got := p.wait(end, false, b, now, usualTiming, 0.5); got != want {
			t.Errorf("after %d starts it waits %v, want %v", n+1, got, want)
		}
	}
}

// TestPaceIsBounded: no wait overflows, and none is longer than its limit.
func TestPaceIsBounded(t *testing.T) {
	t.Parallel()
	var starts, resumes, dials pace
	now := time.Unix(1e9, 0)
	b := identify.Budget{Total: 1000, Remaining: 1000, Shards: 1}
	resumes.left = now
	for range 100 {
		if got := starts.wait(ending{identified: now}, false, b, now, usualTiming, 0.999); got < 0 || got > maxStartWait*3/2 {
			t.Fatalf("waits %v for an IDENTIFY", got)
		}
		if got := resumes.wait(ending{session: true}, true, b, now, usualTiming, 0.999); got < 0 || got > maxResumeWait*3/2 {
			t.Fatalf("waits %v for a resume", got)
		}
		if got := dials.wait(ending{}, false, b, now, usualTiming, 0.999); got < 0 || got > time.Minute*3/2 {
			t.Fatalf("waits %v for a dial", got)
		}
	}
}
