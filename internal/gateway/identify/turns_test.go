package identify_test

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
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/gateway/identify/identifytest"
	"github.com/gatehook/gatehook/internal/secret"
)

var quiet = slog.New(slog.DiscardHandler)

// newTurns returns Turns of an application that has all intents.
func newTurns(info discord.GatewayInfo, rest *discord.REST, slots identify.Slots) *identify.Turns {
	return identify.NewTurns(identify.Config{
		Application: discord.Application{ID: 1, Privileged: event.IntentsPrivileged}, Info: info, REST: rest, Slots: slots, Log: quiet,
	})
}

// refusedWith returns the code of a RefusedError; 0 for none.
func refusedWith(err error) discord.CloseCode {
	refused, _ := errors.AsType[identify.RefusedError](err)
	return refused.Code
}

// TestTurnsRefused: a refusal is remembered for an hour or until it is lifted,
// for these intents or for all.
func TestTurnsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(discord.GatewayInfo{}, nil, &identifytest.Slots{})
		const asked, other = event.IntentGuilds | event.IntentMessageContent, event.IntentGuilds
		tests := []struct {
			code          discord.CloseCode
			asked, others discord.CloseCode // the codes for an IDENTIFY with these and with other intents
		}{
			{4004, 4004, 4004},
			{4012, 4012, 4012},
			{4013, 4013, 0},
			{4014, 4014, 0},
			{4010, 0, 0}, // concerns one shard
			{4011, 0, 0},
			{4009, 0, 0},
			{0, 0, 0},
		}
		for _, tt := range tests {
			turns.Refuse(tt.code, asked)
			got, gotOther := refusedWith(turns.Allowed(asked)), refusedWith(turns.Allowed(other))
			if got != tt.asked || gotOther != tt.others {
				t.Errorf("%d: refused with %d, and with %d for other intents", tt.code, got, gotOther)
			}
			turns.Lift()
			if err := turns.Allowed(asked); err != nil {
				t.Errorf("%d: still refused after it was lifted: %v", tt.code, err)
			}
		}
		turns.Refuse(4014, asked)
		time.Sleep(time.Hour)
		if err := turns.Allowed(asked); err != nil {
			t.Errorf("still refused after an hour: %v", err)
		}
	})
}

// TestTurn: the shards of a bucket get their turns one by one and in order.
// Those of different buckets don't wait for each other.
func TestTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(discord.GatewayInfo{Limit: discord.StartLimit{MaxConcurrency: 2}}, nil, &identifytest.Slots{})
		first, err := turns.Turn(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		other, err := turns.Turn(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		defer other()
		order := make(chan int, 2)
		for _, id := range []int{4, 2} {
			go func() {
				release, err := turns.Turn(t.Context(), id)
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
		first() // a second call does nothing
		if a, b := <-order, <-order; a != 2 || b != 4 {
			t.Errorf("shard %d came before %d, want 2 before 4", a, b)
		}
	})
}

func TestTurnEnds(t *testing.T) {
	t.Parallel()
	turns := newTurns(discord.GatewayInfo{Limit: discord.StartLimit{MaxConcurrency: 1}}, nil, &identifytest.Slots{})
	release, err := turns.Turn(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the test ends it")
	cancel(cause)
	if _, err := turns.Turn(ctx, 1); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

// TestTurnsWaitForReset: once only the reserve is left, no IDENTIFY is
// permitted until Discord reports a budget again.
func TestTurnsWaitForReset(t *testing.T) {
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
	turns := newTurns(info, rest, &identifytest.Slots{OnWait: func(_ context.Context, b int) error {
		bucket = b
		return nil
	}})
	if err := turns.Permit(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 2 || bucket != 2 {
		t.Errorf("%d questions, bucket %d", asked.Load(), bucket)
	}
}
