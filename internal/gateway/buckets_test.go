package gateway

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestBuckets: several instances that share a database never come closer in
// one bucket than a slot, and different buckets don't wait for each other.
func TestBuckets(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	const slot, perInstance = 100 * time.Millisecond, 3
	var mu sync.Mutex
	var at []time.Time
	var running sync.WaitGroup
	for range 3 {
		instance := NewBuckets(pool, quiet)
		instance.slot = slot
		running.Go(func() {
			for range perInstance {
				if err := instance.Wait(t.Context(), 1, 0); err != nil {
					t.Error(err)
					return
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
	// A wait may end late, and then the next one is closer; in all they can't
	// be faster than the slots.
	if took := at[len(at)-1].Sub(at[0]); took < (3*perInstance-2)*slot {
		t.Errorf("%d starts within %v", len(at), took)
	}
}

func TestBucketsReserve(t *testing.T) {
	t.Parallel()
	b := NewBuckets(postgrestest.New(t), quiet)
	want := []time.Duration{0, slotLength, 2 * slotLength}
	for i, want := range want {
		wait, err := b.reserve(t.Context(), 7, 0)
		if err != nil {
			t.Fatal(err)
		}
		if wait > want || wait < want-time.Second*time.Duration(min(i, 1)) {
			t.Errorf("start %d waits %v, want %v", i, wait, want)
		}
	}
	if wait, err := b.reserve(t.Context(), 7, 1); err != nil || wait != 0 {
		t.Errorf("another bucket waits %v, %v", wait, err)
	}
	if wait, err := b.reserve(t.Context(), 8, 0); err != nil || wait != 0 {
		t.Errorf("another application waits %v, %v", wait, err)
	}
}

func TestBucketsEnd(t *testing.T) {
	t.Parallel()
	b := NewBuckets(postgrestest.New(t), quiet)
	if err := b.Wait(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errDrain) })
	if err := b.Wait(ctx, 1, 0); !errors.Is(err, errDrain) && !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, errDrain)
	}
}

// pacedBuckets are Buckets with a shorter slot.
func pacedBuckets(t *testing.T, slot time.Duration) *Buckets {
	t.Helper()
	b := NewBuckets(postgrestest.New(t), quiet)
	b.slot = slot
	return b
}
