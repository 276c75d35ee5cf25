package identify

import (
	"testing"
	"time"
)

// TestFloors: what the shards that deliver may need is kept back from those
// that begin a session for less.
func TestFloors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		total, shards                 int
		lost, first, intents, warming int
	}{
		{1000, 1, 50, 50, 51, 51},
		{1000, 50, 50, 50, 100, 100},
		{1000, 100, 50, 50, 150, 200},
		{1000, 0, 50, 50, 50, 50},
		{5000, 1000, 250, 250, 1250, 2000},
		{1, 1, 0, 0, 1, 2},
	} {
		b := Budget{Total: tt.total, Shards: tt.shards}
		got := [...]int{b.floor(ClassLost), b.floor(ClassFirst), b.floor(ClassIntents), b.floor(ClassWarming)}
		if want := [...]int{tt.lost, tt.first, tt.intents, tt.warming}; got != want {
			t.Errorf("%d a day, %d shards: %v, want %v", tt.total, tt.shards, got, want)
		}
		for i := range got[1:] {
			if got[i] > got[i+1] {
				t.Errorf("%d a day, %d shards: %v leaves less than %v", tt.total, tt.shards, Class(i+1), Class(i))
			}
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		total, remaining, shards, next int
		want                           bool
	}{
		{1000, 1000, 1, 2, true},
		{1000, 53, 1, 2, true},
		{1000, 52, 1, 2, false},
		{1000, 400, 100, 200, true},
		{1000, 399, 100, 200, false},
		{5000, 4000, 1000, 2000, true},
		{5000, 3999, 1000, 2000, false},
	} {
		b := Budget{Total: tt.total, Remaining: tt.remaining, Shards: tt.shards}
		if got := b.Covers(tt.next); got != tt.want {
			t.Errorf("%+v covers %d shards: %v", b, tt.next, got)
		}
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		remaining, shards int
		reset, want       time.Duration
	}{
		{1000, 1, 24 * time.Hour, 0},
		{500, 1, 24 * time.Hour, 0},
		{499, 1, 24 * time.Hour, 24 * time.Hour / 449},
		{450, 100, 20 * time.Hour, 5 * time.Hour},
		{60, 1, 10 * time.Hour, time.Hour},
		{51, 1, 10 * time.Hour, 10 * time.Hour},
		{51, 100, 10 * time.Hour, 10 * time.Hour},
		{50, 1, 10 * time.Hour, 10 * time.Hour},
		{0, 1, 10 * time.Hour, 10 * time.Hour},
		{100, 0, 10 * time.Hour, 12 * time.Minute},
		{0, 1, 0, 0},            // not said
		{0, 1, -time.Minute, 0}, // due
	} {
		b := Budget{Total: 1000, Remaining: tt.remaining, Shards: tt.shards, ResetAfter: tt.reset}
		if got := b.Spread(); got != tt.want {
			t.Errorf("%+v: %v, want %v", b, got, tt.want)
		}
	}
}

func TestShareOfStarts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ total, shards, want int }{{1000, 1, 500}, {1000, 100, 5}, {1000, 0, 500}, {1000, 900, 2}, {0, 1, 2}} {
		if got := (Budget{Total: tt.total, Shards: tt.shards}).Share(); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}
