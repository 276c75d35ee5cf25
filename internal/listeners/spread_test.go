package listeners

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakePeers are the other instances, and what was told.
type fakePeers struct {
	mu       sync.Mutex
	self     int64
	versions map[int64]int64
	told     []int64
	away     bool
	looks    int
	slow     time.Duration // how long a look takes
}

func (p *fakePeers) Self() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.self
}

func (p *fakePeers) Applied(_ context.Context, _, version int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		return errors.New("the database is away")
	}
	p.told = append(p.told, version)
	return nil
}

func (p *fakePeers) Versions(context.Context) (map[int64]int64, error) {
	time.Sleep(p.slow)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	if p.away {
		return nil, errors.New("the database is away")
	}
	return maps.Clone(p.versions), nil
}

func (p *fakePeers) set(id, version int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.versions[id] = version
}

func TestSpreadWaits(t *testing.T) {
	t.Parallel()
	// waits returns how long a change of a version waits, if other instances tell at the
	// times.
	waits := func(t *testing.T, s *spread, version int64, at map[time.Duration]func()) time.Duration {
		t.Helper()
		for after, do := range at {
			timer := time.AfterFunc(after, do)
			defer timer.Stop()
		}
		began := time.Now()
		s.wait(t.Context(), version)
		return time.Since(began)
	}
	synctest.Test(t, func(t *testing.T) {
		p := &fakePeers{self: 1, versions: map[int64]int64{}}
		s := newSpread(p, slog.New(slog.DiscardHandler))
		if d := waits(t, s, 5, nil); d != 0 {
			t.Errorf("alone: waited %v", d)
		}
		p.set(2, 5)
		p.set(3, 6)
		if d := waits(t, s, 5, nil); d != 0 {
			t.Errorf("all have it: waited %v", d)
		}
		tell := func(id, version int64) func() { return func() { p.set(id, version) } }
		if d := waits(t, s, 7, map[time.Duration]func(){60 * time.Millisecond: tell(2, 7), 200 * time.Millisecond: tell(3, 8)}); d < 200*time.Millisecond || d > 200*time.Millisecond+lookEvery {
			t.Errorf("one tells after 200 ms: waited %v", d)
		}
		// One hangs: only the first change waits for it.
		if d := waits(t, s, 9, map[time.Duration]func(){10 * time.Millisecond: tell(2, 9)}); d != maxSpread {
			t.Errorf("one tells never: waited %v", d)
		}
		if d := waits(t, s, 10, map[time.Duration]func(){50 * time.Millisecond: tell(2, 10)}); d > 50*time.Millisecond+lookEvery {
			t.Errorf("for one that hangs, the second change waited %v", d)
		}
		// Once it has told what it had missed, it is waited for again.
		p.set(3, 10)
		p.set(2, 11)
		if d := waits(t, s, 11, map[time.Duration]func(){100 * time.Millisecond: tell(3, 11)}); d < 100*time.Millisecond {
			t.Errorf("for one that is back, the change waited only %v", d)
		}
		// One that died is not waited for.
		p.set(4, 0)
		if d := waits(t, s, 11, map[time.Duration]func(){300 * time.Millisecond: func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.versions, 4)
		}}); d > 300*time.Millisecond+lookEvery {
			t.Errorf("for one that died after 300 ms: waited %v", d)
		}
		p.mu.Lock()
		p.away = true
		p.mu.Unlock()
		if d := waits(t, s, 12, nil); d != maxSpread {
			t.Errorf("without the database: waited %v", d)
		}
	})
}

// A hundred changes that wait at once look as often as one.
func TestSpreadSharesLooks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &fakePeers{self: 1, versions: map[int64]int64{2: 1}, slow: time.Millisecond}
		s := newSpread(p, slog.New(slog.DiscardHandler))
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() { s.wait(t.Context(), 2) })
		}
		group.Wait()
		if most := int(maxSpread/lookEvery) + 2; p.looks > most {
			t.Errorf("100 changes looked %d times in a second; want at most %d", p.looks, most)
		}
	})
}

func TestSpreadTells(t *testing.T) {
	t.Parallel()
	p := &fakePeers{self: 1, versions: map[int64]int64{}}
	s := newSpread(p, slog.New(slog.DiscardHandler))
	tell := func(version int64, want ...int64) {
		t.Helper()
		err := s.tell(t.Context(), version)
		if (err != nil) != p.away {
			t.Error(err)
		}
		if len(p.told) != len(want) || len(want) > 0 && p.told[len(want)-1] != want[len(want)-1] {
			t.Errorf("told %v; want %v", p.told, want)
		}
	}
	tell(1, 1)
	tell(1, 1)
	p.away = true
	tell(2, 1)
	p.away = false
	tell(2, 1, 2)
	p.self = 7 // another instance took over, so this one joined again
	tell(2, 1, 2, 2)
	tell(2, 1, 2, 2)
}
