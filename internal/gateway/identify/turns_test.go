package identify_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
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

// TestTurnsRefused: what is known to be refused stays so for an hour, for
// these intents, this number of shards or for all, or until it is lifted.
func TestTurnsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(discord.GatewayInfo{}, nil, &identifytest.Slots{})
		const asked, other = event.IntentGuilds | event.IntentMessageContent, event.IntentGuilds
		tests := []struct {
			code discord.CloseCode
			// What an IDENTIFY is refused with: the same again, with other intents,
			// or in a set of another size.
			same, intents, count discord.CloseCode
		}{
			{4004, 4004, 4004, 4004},
			{4012, 4012, 4012, 4012},
			{4013, 4013, 0, 4013},
			{4014, 4014, 0, 4014},
			{4010, 4010, 4010, 0},
			{4011, 0, 0, 0}, // of the shard
			{4009, 0, 0, 0},
			{0, 0, 0, 0},
		}
		for _, tt := range tests {
			turns.Refuse(tt.code, asked, 4)
			same, intents, count := refusedWith(turns.Allowed(asked, 4)), refusedWith(turns.Allowed(other, 4)), refusedWith(turns.Allowed(asked, 5))
			if same != tt.same || intents != tt.intents || count != tt.count {
				t.Errorf("%d: refused with %d, with %d for other intents, and with %d for another number of shards", tt.code, same, intents, count)
			}
			turns.Lift()
			if err := turns.Allowed(asked, 4); err != nil {
				t.Errorf("%d: still refused after it was lifted: %v", tt.code, err)
			}
		}
		turns.Refuse(4014, asked, 4)
		time.Sleep(time.Hour)
		if err := turns.Allowed(asked, 4); err != nil {
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
		first, err := turns.Turn(t.Context(), identify.ClassFirst, 0)
		if err != nil {
			t.Fatal(err)
		}
		other, err := turns.Turn(t.Context(), identify.ClassFirst, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Release()
		order := make(chan string, 4)
		want := []string{"lost session 6", "first session 2", "first session 4", "warming 8"}
		for _, join := range []struct {
			class identify.Class
			id    int
		}{{identify.ClassWarming, 8}, {identify.ClassFirst, 4}, {identify.ClassFirst, 2}} {
			go func() {
				turn, err := turns.Turn(t.Context(), join.class, join.id)
				if err != nil {
					t.Error(err)
					return
				}
				order <- fmt.Sprint(join.class, " ", join.id)
				turn.Release()
			}()
			synctest.Wait()
		}
		if len(order) != 0 {
			t.Fatal("two shards of a class had their turn at once")
		}
		// The turn of another shard does not hold back one of a more urgent class.
		lost, err := turns.Turn(t.Context(), identify.ClassLost, 6)
		if err != nil {
			t.Fatal(err)
		}
		order <- "lost session 6"
		first.Release()
		first.Release() // once is enough
		synctest.Wait()
		if len(order) != 1 {
			t.Fatal("a shard had its turn before one of a more urgent class")
		}
		lost.Release()
		for _, want := range want {
			if got := <-order; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
	})
}

// TestPermitGivesWay: a shard that has its turn, and waits for the bucket's slot or
// for the budget, sends its IDENTIFY after those of a more urgent class that
// came later.
func TestPermitGivesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		info := discord.GatewayInfo{Limit: discord.StartLimit{Total: 1000, Remaining: 1000, MaxConcurrency: 1}}
		turns := newTurns(info, nil, &identifytest.Slots{Slot: identify.SlotLength})
		begin := time.Now()
		var mu sync.Mutex
		var order []string
		var running sync.WaitGroup
		for i, class := range []identify.Class{identify.ClassWarming, identify.ClassWarming, identify.ClassIntents, identify.ClassFirst, identify.ClassLost} {
			running.Go(func() {
				turn, err := turns.Turn(t.Context(), class, i)
				if err != nil {
					t.Error(err)
					return
				}
				defer turn.Release()
				if err := turn.Permit(t.Context()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, fmt.Sprintf("%v of %d after %v", class, i, time.Since(begin)))
			})
			synctest.Wait()
		}
		running.Wait()
		want := []string{"warming of 0 after 0s", "lost session of 4 after 5.25s", "first session of 3 after 10.5s", "more intents of 2 after 15.75s", "warming of 1 after 21s"}
		if !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
	})
}

func TestTurnEnds(t *testing.T) {
	t.Parallel()
	turns := newTurns(discord.GatewayInfo{Limit: discord.StartLimit{MaxConcurrency: 1}}, nil, &identifytest.Slots{})
	turn, err := turns.Turn(t.Context(), identify.ClassFirst, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer turn.Release()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the test ends it")
	cancel(cause)
	if _, err := turns.Turn(ctx, identify.ClassFirst, 1); !errors.Is(err, cause) {
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
	turns := newTurns(info, rest, &identifytest.Slots{OnTake: func(_ context.Context, b int) error {
		bucket = b
		return nil
	}})
	turn, err := turns.Turn(t.Context(), identify.ClassFirst, 6)
	if err != nil {
		t.Fatal(err)
	}
	defer turn.Release()
	if err := turn.Permit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 2 || bucket != 2 {
		t.Errorf("%d questions, bucket %d", asked.Load(), bucket)
	}
}

// TestLateIdentify: however late IDENTIFYs are sent after their slots, because the database
// is slow or the process is stopped, they are 5 s apart, with another instance too.
func TestLateIdentify(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string][]time.Duration{
		"once":               {4 * time.Second},
		"then a bit":         {3800 * time.Millisecond, 0, 200 * time.Millisecond},
		"longer than a slot": {10 * time.Second},
		"more and more":      {time.Second, 3 * time.Second, 5 * time.Second, 5300 * time.Millisecond, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				info := discord.GatewayInfo{Limit: discord.StartLimit{Total: 1000, Remaining: 1000, MaxConcurrency: 1}}
				slots := &spending{Slots: identifytest.Slots{Slot: identify.SlotLength}}
				var (
					instances sync.WaitGroup
					mu        sync.Mutex
					sent      []time.Time
				)
				for _, slow := range [][]time.Duration{slow, nil} {
					turns := newTurns(info, nil, slots)
					synctest.Wait() // the slow one takes the first slot
					instances.Go(func() {
						for i := range 3 {
							turn, err := turns.Turn(t.Context(), identify.ClassFirst, i)
							if err != nil {
								t.Error(err)
								return
							}
							for holds := false; !holds; holds = turn.Holds() {
								if err := turn.Permit(t.Context()); err != nil {
									t.Error(err)
									return
								}
								if len(slow) > 0 {
									time.Sleep(slow[0])
									slow = slow[1:]
								}
							}
							mu.Lock()
							sent = append(sent, time.Now())
							mu.Unlock()
							if err := turn.Sent(t.Context()); err != nil {
								t.Error(err)
							}
							turn.Release()
						}
					})
				}
				instances.Wait()
				for i, at := range sent[1:] {
					if gap := at.Sub(sent[i]); gap < 5*time.Second {
						t.Errorf("IDENTIFY %d is %v after the one before", i+1, gap)
					}
				}
				if n := int(slots.starts.Load()); n != len(sent) {
					t.Errorf("%d IDENTIFYs took %d session starts", len(sent), n)
				}
			})
		})
	}
}

// spending counts the session starts that were taken.
type spending struct {
	identifytest.Slots
	starts atomic.Int32
}

func (s *spending) Spend(ctx context.Context, id event.Snowflake, floor int) (time.Duration, error) {
	wait, err := s.Slots.Spend(ctx, id, floor)
	if wait == 0 {
		s.starts.Add(1)
	}
	return wait, err
}

// TestLateIdentifyWithoutTheDatabase: if the slot of a late IDENTIFY can't be extended, the
// next one of this instance is 5 s later nevertheless.
func TestLateIdentifyWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		info := discord.GatewayInfo{Limit: discord.StartLimit{Total: 1000, Remaining: 1000, MaxConcurrency: 1}}
		turns := newTurns(info, nil, unextended{&identifytest.Slots{Slot: identify.SlotLength}})
		var before time.Time
		for i, slow := range []time.Duration{3 * time.Second, time.Second, 0, 0} {
			turn, err := turns.Turn(t.Context(), identify.ClassFirst, i)
			if err != nil {
				t.Fatal(err)
			}
			if err := turn.Permit(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(slow)
			if gap := time.Since(before); gap < 5*time.Second || i > 0 && gap > 2*identify.SlotLength {
				t.Errorf("IDENTIFY %d is %v after the one before", i, gap)
			}
			before = time.Now()
			if err := turn.Sent(t.Context()); (err != nil) != (slow > 0) {
				t.Errorf("IDENTIFY %d was sent %v late: %v", i, slow, err)
			}
			turn.Release()
		}
	})
}

// unextended are slots whose database is away after each IDENTIFY.
type unextended struct{ *identifytest.Slots }

func (unextended) Extend(context.Context, event.Snowflake, int) error {
	return errors.New("the database is away")
}
