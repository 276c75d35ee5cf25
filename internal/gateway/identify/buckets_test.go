package identify

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

func TestMain(m *testing.M) { postgrestest.Main(m) }

var quiet = slog.New(slog.DiscardHandler)

// TestBuckets: in one bucket, the IDENTIFYs of several instances that share a
// database are at least a slot apart. Different buckets don't wait for each
// other.
func TestBuckets(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	const slot, perInstance = 100 * time.Millisecond, 3
	var mu sync.Mutex
	var at []time.Time
	var running sync.WaitGroup
	for range 3 {
		instance := NewBuckets(pool, quiet)
		instance.Slot = slot
		running.Go(func() {
			for range perInstance {
				for {
					wait, err := instance.Take(t.Context(), 1, 0, ClassWarming)
					if err != nil {
						t.Error(err)
						return
					}
					if wait == 0 {
						break
					}
					if err := discord.Sleep(t.Context(), wait); err != nil {
						t.Error(err)
						return
					}
				}
				mu.Lock()
				at = append(at, time.Now())
				mu.Unlock()
			}
		})
	}
	running.Wait()
	if len(at) != 3*perInstance {
		t.Fatalf("%d starts", len(at))
	}
	// A wait may end late, so that the next start is closer to it. In all, the
	// starts can't be faster than the slots.
	if took := at[len(at)-1].Sub(at[0]); took < (3*perInstance-2)*slot {
		t.Errorf("%d starts within %v", len(at), took)
	}
}

// TestBucketsTake: a slot is taken when it has come, and not before. Of those
// that wait for one, on whatever instance, the most urgent class tries first.
func TestBucketsTake(t *testing.T) {
	t.Parallel()
	b := NewBuckets(postgrestest.New(t), quiet)
	take := func(applicationID event.Snowflake, bucket int, class Class) time.Duration {
		t.Helper()
		wait, err := b.Take(t.Context(), applicationID, bucket, class)
		if err != nil {
			t.Fatal(err)
		}
		return wait
	}
	if wait := take(7, 0, ClassWarming); wait != 0 {
		t.Errorf("the first start waits %v", wait)
	}
	if wait := take(7, 1, ClassWarming); wait != 0 {
		t.Errorf("another bucket waits %v", wait)
	}
	if wait := take(8, 0, ClassWarming); wait != 0 {
		t.Errorf("another application waits %v", wait)
	}
	if _, err := b.pool.Exec(t.Context(), `UPDATE identify_buckets SET next_at = next_at - interval '4 s' WHERE application_id = 7 AND bucket = 0`); err != nil {
		t.Fatal(err)
	}
	if err := b.Extend(t.Context(), 7, 0); err != nil {
		t.Fatal(err)
	}
	// Waits for one slot do not add up.
	const late = 2 * time.Second // on a busy machine
	for range 3 {
		for class := ClassLost; class <= ClassWarming; class++ {
			want := SlotLength + time.Duration(class)*SlotLength/50
			if wait := take(7, 0, class); wait > want+time.Millisecond || wait < want-late {
				t.Errorf("%v waits %v, want %v", class, wait, want)
			}
		}
	}
}

// TestBucketsAfterTheClockWasSetBack: a slot that was taken in what is the future now
// holds up no IDENTIFY for longer than a slot, and Discord's number of starts counts.
func TestBucketsAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := NewBuckets(pool, quiet)
	if wait, err := b.Take(t.Context(), 7, 0, ClassLost); err != nil || wait != 0 {
		t.Fatal(wait, err)
	}
	if err := b.Learn(t.Context(), 7, 100, 5, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Spend(t.Context(), 7, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE identify_buckets SET next_at = next_at + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE session_starts SET spent_at = spent_at + interval '1 hour', reset_at = reset_at + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if wait, err := b.Take(t.Context(), 7, 0, ClassLost); err != nil || wait <= 0 || wait > SlotLength+time.Millisecond {
		t.Errorf("waits %v (%v), want at most a slot", wait, err)
	}
	if err := b.Learn(t.Context(), 7, 100, 50, time.Hour); err != nil {
		t.Fatal(err)
	}
	if wait, err := b.Spend(t.Context(), 7, 48); err != nil || wait != 0 {
		t.Errorf("a start waits %v (%v) although Discord has 50 left", wait, err)
	}
}

// TestBudget: whatever the number of instances, they start no more sessions
// than Discord allows, less those that are kept back.
func TestBudget(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	const instances, tries = 4, 20
	for range instances {
		b := NewBuckets(pool, quiet)
		if err := b.Learn(t.Context(), 1, 100, 30, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	var running sync.WaitGroup
	var spent, waits atomic.Int64
	for range instances {
		b := NewBuckets(pool, quiet)
		running.Go(func() {
			for range tries {
				wait, err := b.Spend(t.Context(), 1, 5)
				switch {
				case err != nil:
					t.Error(err)
				case wait == 0:
					spent.Add(1)
				case wait > time.Hour+resetMargin || wait < 50*time.Minute:
					t.Errorf("waits %v for a reset in an hour", wait)
				default:
					waits.Add(1)
				}
			}
		})
	}
	running.Wait()
	if spent.Load() != 25 || waits.Load() != instances*tries-25 {
		t.Errorf("%d spent, %d had to wait", spent.Load(), waits.Load())
	}
}

func TestBudgetLearns(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := NewBuckets(pool, quiet)
	left := func() (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT remaining FROM session_starts`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	learn := func(remaining int, reset time.Duration) {
		t.Helper()
		if err := b.Learn(t.Context(), 1, 1000, remaining, reset); err != nil {
			t.Fatal(err)
		}
	}
	learn(500, time.Hour)
	if wait, err := b.Spend(t.Context(), 1, 50); err != nil || wait != 0 {
		t.Fatal(wait, err)
	}
	learn(500, time.Hour)
	if got := left(); got != 499 {
		t.Errorf("%d left: a start that Discord may not have counted yet was forgotten", got)
	}
	learn(400, time.Hour)
	if got := left(); got != 400 {
		t.Errorf("%d left: another program's starts were not counted", got)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE session_starts SET spent_at = now() - interval '2 minutes'`); err != nil {
		t.Fatal(err)
	}
	learn(450, time.Hour)
	if got := left(); got != 450 {
		t.Errorf("%d left: starts that were never made were not given back", got)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE session_starts SET spent_at = now(), remaining = 50, reset_at = now() - interval '1 s'`); err != nil {
		t.Fatal(err)
	}
	if wait, err := b.Spend(t.Context(), 1, 50); err != nil || wait <= 0 || wait > time.Minute {
		t.Errorf("with nothing left and the reset due: %v, %v", wait, err)
	}
	learn(1000, 24*time.Hour)
	if got := left(); got != 1000 {
		t.Errorf("after the reset: %d left", got)
	}
}
