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

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

var quiet = slog.New(slog.DiscardHandler)

// slots are Starts in memory. wait, if not nil, is what Wait does.
type slots struct {
	remaining atomic.Int64
	wait      func(ctx context.Context, bucket int) error
}

func (s *slots) Learn(_ context.Context, _ event.Snowflake, _, remaining int, _ time.Duration) error {
	s.remaining.Store(int64(remaining))
	return nil
}

func (s *slots) Spend(context.Context, event.Snowflake) (time.Duration, error) {
	if s.remaining.Add(-1) < 50 {
		return 10 * time.Millisecond, nil
	}
	return 0, nil
}

func (s *slots) Wait(ctx context.Context, _ event.Snowflake, bucket int) error {
	if s.wait == nil {
		return nil
	}
	return s.wait(ctx, bucket)
}

// TestStartsRefused: what is known to be refused stays so for an hour, for
// these intents or for all of them, or until it is lifted.
func TestStartsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStarts(1, discord.GatewayInfo{}, nil, &slots{}, quiet)
		const asked, other = event.IntentGuilds | event.IntentMessageContent, event.IntentGuilds
		tests := []struct {
			code          discord.CloseCode
			asked, others discord.CloseCode // what an IDENTIFY with these intents is refused with
		}{
			{4004, 4004, 4004},
			{4012, 4012, 4012},
			{4013, 4013, 0},
			{4014, 4014, 0},
			{4010, 0, 0}, // of the shard
			{4011, 0, 0},
			{4009, 0, 0},
			{0, 0, 0},
		}
		for _, tt := range tests {
			s.refuse(tt.code, asked)
			got, gotOther := ending{cause: s.allowed(asked)}.code(), ending{cause: s.allowed(other)}.code()
			if got != tt.asked || gotOther != tt.others {
				t.Errorf("%d: refused with %d, and with %d for other intents", tt.code, got, gotOther)
			}
			s.lift()
			if err := s.allowed(asked); err != nil {
				t.Errorf("%d: still refused after it was lifted: %v", tt.code, err)
			}
		}
		s.refuse(4014, asked)
		time.Sleep(refusalKept)
		if err := s.allowed(asked); err != nil {
			t.Errorf("still refused after %v: %v", refusalKept, err)
		}
	})
}

// TestStartsTurn: the shards of a bucket come one by one and in order, those
// of different buckets don't wait for each other.
func TestStartsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStarts(1, discord.GatewayInfo{Limit: discord.StartLimit{MaxConcurrency: 2}}, nil, &slots{}, quiet)
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
	s := newStarts(1, discord.GatewayInfo{Limit: discord.StartLimit{MaxConcurrency: 1}}, nil, &slots{}, quiet)
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
	rest := discord.NewREST(discord.RESTConfig{URL: srv.URL, Token: secret.New("t"), Agent: "test"})
	defer rest.Close()
	info, err := rest.Gateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bucket int
	s := newStarts(1, info, rest, &slots{wait: func(_ context.Context, b int) error {
		bucket = b
		return nil
	}}, quiet)
	if err := s.permit(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 2 || bucket != 2 {
		t.Errorf("%d questions, bucket %d", asked.Load(), bucket)
	}
}
