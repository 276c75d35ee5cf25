package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

var quiet = slog.New(slog.DiscardHandler)

func TestBudgetWait(t *testing.T) {
	t.Parallel()
	hour := time.Hour.Milliseconds()
	tests := []struct {
		name  string
		limit startLimit
		spent int
		since time.Duration
		want  time.Duration
	}{
		{"plenty", startLimit{Total: 1000, Remaining: 1000, ResetAfter: hour}, 0, 0, 0},
		{"above the reserve", startLimit{Total: 1000, Remaining: 51, ResetAfter: hour}, 0, 0, 0},
		{"at the reserve", startLimit{Total: 1000, Remaining: 50, ResetAfter: hour}, 0, 0, time.Hour},
		{"spent since", startLimit{Total: 1000, Remaining: 60, ResetAfter: hour}, 10, 0, time.Hour},
		{"some time ago", startLimit{Total: 1000, Remaining: 0, ResetAfter: hour}, 0, 20 * time.Minute, 40 * time.Minute},
		{"reset since", startLimit{Total: 1000, Remaining: 0, ResetAfter: hour}, 0, 2 * time.Hour, 0},
		{"a small total has no reserve", startLimit{Total: 10, Remaining: 1, ResetAfter: hour}, 0, 0, 0},
		{"the last of a small total", startLimit{Total: 10, Remaining: 1, ResetAfter: hour}, 1, 0, time.Hour},
		{"not told", startLimit{}, 5, 0, 0},
	}
	for _, tt := range tests {
		if got := budgetWait(tt.limit, tt.spent, tt.since); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

type startsFunc func(ctx context.Context, id event.Snowflake, bucket int) error

func (f startsFunc) Wait(ctx context.Context, id event.Snowflake, bucket int) error {
	return f(ctx, id, bucket)
}

var atOnce = startsFunc(func(context.Context, event.Snowflake, int) error { return nil })

// TestStartsTurn: the shards of a bucket come one by one and in order, those
// of different buckets don't wait for each other.
func TestStartsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStarts(1, gatewayInfo{Limit: startLimit{MaxConcurrency: 2}}, nil, atOnce, quiet)
		first, err := s.turn(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.turn(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		defer other()
		order := make(chan int, 2)
		for _, id := range []int{4, 2} {
			go func() {
				release, err := s.turn(t.Context(), id)
				if err != nil {
					t.Error(err)
					return
				}
				order <- id
				release()
			}()
			synctest.Wait()
		}
		if len(order) != 0 {
			t.Fatal("two shards of a bucket had their turn at once")
		}
		first()
		first() // once is enough
		if a, b := <-order, <-order; a != 2 || b != 4 {
			t.Errorf("shard %d before %d", a, b)
		}
	})
}

func TestStartsTurnEnds(t *testing.T) {
	t.Parallel()
	s := newStarts(1, gatewayInfo{Limit: startLimit{MaxConcurrency: 1}}, nil, atOnce, quiet)
	release, err := s.turn(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDrain)
	if _, err := s.turn(ctx, 1); !errors.Is(err, errDrain) {
		t.Errorf("error %v, want %v", err, errDrain)
	}
}

// TestStartsWaitForReset: at the reserve nothing is identified, until Discord
// says that there is a budget again.
func TestStartsWaitForReset(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		limit := `{"total":1000,"remaining":3,"reset_after":40,"max_concurrency":4}`
		if asked.Add(1) > 1 {
			limit = `{"total":1000,"remaining":1000,"reset_after":86400000,"max_concurrency":4}`
		}
		_, _ = w.Write([]byte(`{"url":"ws://x","shards":1,"session_start_limit":` + limit + `}`))
	}))
	defer srv.Close()
	rest := newRESTClient(srv.URL, secret.New("t"), "test", quiet)
	defer rest.close()
	info, err := rest.gateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bucket int
	s := newStarts(1, info, rest, startsFunc(func(_ context.Context, _ event.Snowflake, b int) error {
		bucket = b
		return nil
	}), quiet)
	start := time.Now()
	if err := s.permit(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(start); waited < 30*time.Millisecond || asked.Load() != 2 || bucket != 2 {
		t.Errorf("after %v, %d questions, bucket %d", waited, asked.Load(), bucket)
	}
}
