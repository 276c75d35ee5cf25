package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestRelay: a command is taken once, by an instance that asks for its shard,
// and its caller gets the answer.
func TestRelay(t *testing.T) {
	t.Parallel()
	r := NewRelay(postgrestest.New(t))
	ctx := t.Context()
	id := event.Shard{ID: 1, Count: 2}
	asked := make(chan error, 1)
	go func() { asked <- r.ask(ctx, 7, id, discord.OpVoiceState, json.RawMessage(`{"a":1}`)) }()
	mine, others := []*shard{{id: event.Shard{ID: 0, Count: 2}}, {id: id}}, []*shard{{id: event.Shard{ID: 0, Count: 2}}, {id: event.Shard{ID: 1, Count: 3}}}
	var (
		mu    sync.Mutex
		taken []relayed
		tasks sync.WaitGroup
		found = make(chan struct{})
	)
	for range 4 {
		tasks.Go(func() {
			for range 1000 {
				got, _, err := r.take(ctx, 7, mine, presence{})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				taken = append(taken, got...)
				if len(got) > 0 {
					close(found) // panics if the command is taken twice
				}
				mu.Unlock()
				select {
				case <-found:
					return
				default:
				}
			}
		})
	}
	if got, _, err := r.take(ctx, 7, others, presence{}); err != nil || len(got) > 0 {
		t.Errorf("taken for other shards: %v, %v", got, err)
	}
	if got, _, err := r.take(ctx, 8, mine, presence{}); err != nil || len(got) > 0 {
		t.Errorf("taken for another application: %v, %v", got, err)
	}
	tasks.Wait()
	if len(taken) != 1 || taken[0].shard != id || taken[0].op != discord.OpVoiceState || string(taken[0].d) != `{"a":1}` {
		t.Fatalf("taken: %+v, want the command of shard 1/2 once", taken)
	}
	if got, _, err := r.take(ctx, 7, mine, presence{}); err != nil || len(got) > 0 {
		t.Errorf("taken again: %v, %v", got, err)
	}
	want := commandError{outcome: outcomeLimited, detail: "slower", retryAfter: 1500 * time.Millisecond}
	if err := r.answer(ctx, taken[0].id, &want); err != nil {
		t.Fatal(err)
	}
	var got *commandError
	if err := <-asked; !errors.As(err, &got) || *got != want {
		t.Errorf("answered: %v, want %v", err, want)
	}
}

// TestRelaySharesLooks: callers that wait at once look for their answers together, and
// each gets its own.
func TestRelaySharesLooks(t *testing.T) {
	t.Parallel()
	r := NewRelay(postgrestest.New(t))
	ctx := t.Context()
	var looks atomic.Int64
	r.answers = postgres.NewShared(func(ctx context.Context) (map[int64]commandError, error) {
		looks.Add(1)
		return r.look(ctx)
	})
	const callers = 50
	var tasks sync.WaitGroup
	for id := range callers {
		tasks.Go(func() {
			var got *commandError
			err := r.ask(ctx, 7, event.Shard{ID: id, Count: callers}, discord.OpVoiceState, json.RawMessage(`{}`))
			if !errors.As(err, &got) || got.outcome != outcomeLimited || got.detail != strconv.Itoa(id) {
				t.Errorf("the caller of shard %d was answered: %v", id, err)
			}
		})
	}
	shards := make([]*shard, callers)
	for id := range shards {
		shards[id] = &shard{id: event.Shard{ID: id, Count: callers}}
	}
	began := time.Now()
	for taken := 0; taken < callers; {
		commands, _, err := r.take(ctx, 7, shards, presence{})
		if err != nil {
			t.Fatal(err)
		}
		taken += len(commands)
		for _, c := range commands {
			if err := r.answer(ctx, c.id, &commandError{outcome: outcomeLimited, detail: strconv.Itoa(c.shard.ID)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	tasks.Wait()
	// A look serves every caller who looks before the next one is due.
	if n, most := looks.Load(), int64(2*time.Since(began)/answerPollInterval)+4; n > most {
		t.Errorf("%d callers looked %d times in %v; want at most %d", callers, n, time.Since(began), most)
	}
}

// TestRelayForgets: a command that was not taken in time is not taken later,
// one that was taken but not answered is reported as such, and old rows are
// deleted.
func TestRelayForgets(t *testing.T) {
	t.Parallel()
	r := NewRelay(postgrestest.New(t))
	ctx := t.Context()
	shards := []*shard{{id: event.Shard{ID: 0, Count: 1}}}
	insert := func(age time.Duration) (id int64) {
		t.Helper()
		if err := r.pool.QueryRow(ctx, `INSERT INTO shard_commands (application_id, shard_count, shard_id, op, payload, created_at)
			VALUES (7, 1, 0, 4, '{}', now() - $1::interval) RETURNING id`, age).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	r.timeout = time.Minute
	late := insert(2 * time.Minute)
	if got, _, err := r.take(ctx, 7, shards, presence{}); err != nil || len(got) > 0 {
		t.Errorf("taken too late: %v, %v", got, err)
	}
	fresh := insert(0)
	if got, _, err := r.take(ctx, 7, shards, presence{}); err != nil || len(got) != 1 || got[0].id != fresh {
		t.Errorf("taken: %v, %v", got, err)
	}
	if err := r.sweep(ctx); err != nil {
		t.Fatal(err)
	}
	var left []int64
	if err := r.pool.QueryRow(ctx, `SELECT array_agg(id) FROM shard_commands`).Scan(&left); err != nil || len(left) != 1 || left[0] != fresh {
		t.Errorf("%v are left, want %d and not %d: %v", left, fresh, late, err)
	}
	var got *commandError
	if err := r.giveUp(ctx, fresh, shards[0].id); !errors.As(err, &got) || got.outcome != outcomeUnanswered || got.detail !=
		"the server that has shard 0/1 did not answer in 1m0s: the command may have been sent" {
		t.Errorf("given up: %v, want that the server did not answer", err)
	}
}
