package journal

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const testTTL = 8 * time.Second

// ledger takes the place of the table of instances. Like Recover, bury gives an heir
// to every instance whose lease has run out.
type ledger struct {
	mu    sync.Mutex
	last  int64
	until map[int64]time.Time
	// delay is how long an answer takes after the renewal took effect.
	delay time.Duration
	down  error
	tries int
}

func (*ledger) now(context.Context) (time.Time, error) { return time.Now(), nil }

func (l *ledger) join(context.Context, bool) (member, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.until[l.last] = time.Now().Add(testTTL)
	return member{id: l.last}, nil
}

func (l *ledger) renew(ctx context.Context, id int64) (alive bool, now time.Time, err error) {
	l.mu.Lock()
	l.tries++
	down, delay := l.down, l.delay
	_, alive = l.until[id]
	if down == nil && alive {
		l.until[id] = time.Now().Add(testTTL)
	}
	l.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return false, time.Time{}, context.Cause(ctx)
		}
	}
	return alive, time.Now(), down
}

func (l *ledger) leave(context.Context, int64) error { return nil }

// bury gives an heir to every instance whose lease ran out, and returns them.
func (l *ledger) bury() (dead []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, until := range l.until {
		if !time.Now().Before(until) {
			delete(l.until, id)
			dead = append(dead, id)
		}
	}
	return dead
}

func (l *ledger) set(down error, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down, l.delay, l.tries = down, delay, 0
}

// isValid reports whether Hold returns at once.
func isValid(ctx context.Context, i *Instance) bool {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err := i.Hold(ctx)
	return err == nil
}

var errDown = errors.New("the database is away")

// bubble runs f with an instance that sends heartbeats.
func bubble(t *testing.T, f func(t *testing.T, i *Instance, l *ledger)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{until: make(map[int64]time.Time)}
		i, err := joinRegister(t.Context(), l, testTTL, time.Now, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- i.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		f(t, i, l)
	})
}

func TestLeaseIsHeldWhileItIsRenewed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *Instance, l *ledger) {
		t.Helper()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if !isValid(t.Context(), i) || len(l.bury()) > 0 {
				t.Fatal("the lease ran out")
			}
		}
		if i.ID() != 1 {
			t.Errorf("the number is %d", i.ID())
		}
	})
}

// A lease that is valid here is valid in the database, however slow its answers are.
func TestLeaseEndsHereBeforeInTheDatabase(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *Instance, l *ledger) {
		t.Helper()
		l.set(nil, 1500*time.Millisecond)
		time.Sleep(20 * time.Second)
		l.set(errDown, 0)
		lapsed := 0
		for range 200 {
			time.Sleep(50 * time.Millisecond)
			valid := isValid(t.Context(), i)
			if !valid {
				lapsed++
			}
			if dead := l.bury(); len(dead) > 0 {
				if valid {
					t.Error("the lease ran out in the database while it was valid here")
				}
				break
			}
		}
		if lapsed == 0 {
			t.Error("the lease did not run out here before it ran out in the database")
		}
	})
}

// After an outage in which no other instance became its heir, an instance keeps its
// number.
func TestInstanceWithoutHeirKeepsItsNumber(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *Instance, l *ledger) {
		t.Helper()
		l.set(errDown, 0)
		time.Sleep(time.Minute)
		if isValid(t.Context(), i) {
			t.Fatal("the lease is valid without a database")
		}
		waited := make(chan int64, 1)
		go func() {
			id, err := i.Hold(t.Context())
			if err != nil {
				t.Error(err)
			}
			waited <- id
		}()
		synctest.Wait()
		back := time.Now()
		l.set(nil, 0)
		if id := <-waited; id != 1 {
			t.Errorf("the number is %d after the outage, want 1", id)
		}
		if d := time.Since(back); d > time.Second {
			t.Errorf("the database was back for %v before it was noticed", d)
		}
		if until := i.lease.Load().judgesUntil; !until.IsZero() {
			t.Error("it judges others just after the outage")
		}
		time.Sleep(testTTL)
		if until := i.lease.Load().judgesUntil; !time.Now().Before(until) {
			t.Error("it never judges others again")
		}
	})
}

func TestInstanceWithAnHeirGetsANewNumber(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *Instance, l *ledger) {
		t.Helper()
		l.set(errDown, 0)
		time.Sleep(testTTL + time.Second)
		if dead := l.bury(); len(dead) != 1 {
			t.Fatalf("buried %v", dead)
		}
		l.set(nil, 0)
		id, err := i.Hold(t.Context())
		if err != nil || id != 2 || i.ID() != 2 {
			t.Errorf("the number is %d (%v) after an heir took over, want 2", id, err)
		}
	})
}

func TestRenewalsThatHangAreCutOff(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *Instance, l *ledger) {
		t.Helper()
		l.set(nil, time.Hour)
		time.Sleep(2 * testTTL)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.tries < 4 {
			t.Errorf("%d renewals were tried within the time of two leases, want at least 4", l.tries)
		}
	})
}

// A database whose answers take seconds costs no lease.
func TestSlowAnswersKeepTheLease(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3500 * time.Millisecond} {
		bubble(t, func(t *testing.T, i *Instance, l *ledger) {
			t.Helper()
			l.set(nil, delay)
			for range 600 {
				time.Sleep(100 * time.Millisecond)
				if !isValid(t.Context(), i) || len(l.bury()) > 0 {
					t.Fatalf("with answers that take %v, the lease ran out", delay)
				}
			}
			if until := i.lease.Load().judgesUntil; i.Err() != nil || until.IsZero() {
				t.Errorf("with answers that take %v: %v; it judges until %v", delay, i.Err(), until)
			}
		})
	}
}

func TestHoldEndsWithItsContext(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, i *Instance, l *ledger) {
		t.Helper()
		l.set(errDown, 0)
		time.Sleep(testTTL)
		why := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { time.Sleep(time.Second); cancel(why) }()
		if _, err := i.Hold(ctx); !errors.Is(err, why) {
			t.Errorf("%v, want %v", err, why)
		}
	})
}

// An instance judges others after two renewals in a row without trouble, and no later than
// half a lease after the last one.
func TestWhoJudges(t *testing.T) {
	t.Parallel()
	start := time.Now()
	database := start.Add(time.Hour) // its clock is another one
	for name, c := range map[string]struct {
		// steps are renewals, 2 s apart: r in time, f failed, l after the lease ran out,
		// s sent in time, with an answer that came late, c in time after a clock was set.
		steps  string
		judges bool
	}{
		"it has just joined":                 {"", false},
		"one renewal":                        {"r", false},
		"two renewals":                       {"rr", true},
		"many renewals":                      {"rrrrrrr", true},
		"the last one failed":                {"rrrf", false},
		"one since it failed":                {"rrrfr", false},
		"two since it failed, one regains":   {"rrrfrr", false},
		"two after the one that regained it": {"rrrfrrr", true},
		"many failed":                        {"rrffff", false},
		"it ran out":                         {"rrrl", false},
		"one since it ran out":               {"rrrlr", false},
		"two since it ran out":               {"rrrlrr", true},
		"the answer was late":                {"rrrs", false},
		"failed, then ran out":               {"rrfflr", false},
		"on and off":                         {"rfrfrrfrr", false},
		"a clock was set":                    {"rrrrc", false},
		"two since, one regains":             {"rrrrcrr", false},
		"two after the one that regains it":  {"rrrrcrrr", true},
	} {
		l, at := newLease(member{id: 1}, start, testTTL), time.Duration(0)
		for _, step := range c.steps {
			at += 2 * time.Second
			sent := start.Add(at)
			switch step {
			case 'f':
				l = l.failed()
				continue
			case 'l':
				at += testTTL
				sent = start.Add(at)
			}
			answered := sent.Add(time.Millisecond)
			if step == 's' {
				answered = sent.Add(testTTL)
			}
			l = l.renewed(sent, answered, database.Add(at), step == 'c', testTTL)
		}
		until := l.judgesUntil
		if want := database.Add(at + testTTL/2); c.judges && !until.Equal(want) || !c.judges && !until.IsZero() {
			t.Errorf("%s: judges until %v", name, until)
		}
	}
}

// A suspended machine stops the monotonic clock, but not the wall clock.
func TestLeaseUsesBothClocks(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := newLease(member{id: 1}, now, testTTL)
	for name, c := range map[string]struct {
		at    time.Time
		valid bool
	}{
		"just before":                       {now.Add(testTTL - 1), true},
		"at the end":                        {now.Add(testTTL), false},
		"only the wall clock advanced":      {now.Round(0).Add(testTTL), false},
		"the wall clock just before":        {now.Round(0).Add(testTTL - 1), true},
		"long after":                        {now.Add(time.Hour), false},
		"before it was sent, by both":       {now.Add(-time.Hour), true},
		"the wall clock before it was sent": {now.Round(0).Add(-time.Hour), true},
	} {
		if l.valid(c.at) != c.valid {
			t.Errorf("%s: valid is %v", name, !c.valid)
		}
	}
	// The wall clock was set back: the monotonic one still counts.
	set := *l
	set.wall = l.wall.Add(time.Hour)
	if set.valid(now.Add(testTTL)) {
		t.Error("the lease is still valid after the wall clock was set back")
	}
	// The machine was suspended: the monotonic clock stood still.
	slept := *l
	slept.wall = now.Round(0).Add(-time.Hour)
	if slept.valid(now.Add(time.Second)) {
		t.Error("the lease is still valid after the machine was suspended")
	}
}

func BenchmarkHold(b *testing.B) {
	i, err := joinRegister(b.Context(), &ledger{until: make(map[int64]time.Time)}, time.Hour, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := i.Hold(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
