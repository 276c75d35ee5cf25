package gateway

import (
	"context"
	"sync"
	"testing"

	"github.com/gatehook/gatehook/internal/event"
)

// memory is a Store that commits at once, unless it is held up. What it keeps
// outlives a Gateway, as a database does.
type memory struct {
	mu       sync.Mutex
	sessions map[event.Shard]event.Session
	events   []*event.Event
	owners   map[event.Shard]*memoryClaim
	busy     bool          // appending waits
	frozen   bool          // appended things are not committed
	change   chan struct{} // closed and replaced at every change
}

func newMemory() *memory {
	return &memory{
		sessions: make(map[event.Shard]event.Session), owners: make(map[event.Shard]*memoryClaim),
		change: make(chan struct{}),
	}
}

func (m *memory) changed() {
	close(m.change)
	m.change = make(chan struct{})
}

func (m *memory) do(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.changed()
}

func (m *memory) setBusy(busy bool)     { m.do(func() { m.busy = busy }) }
func (m *memory) setFrozen(frozen bool) { m.do(func() { m.frozen = frozen }) }

func (m *memory) session(s event.Shard) event.Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[s]
}

func (m *memory) all() []*event.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*event.Event(nil), m.events...)
}

// wait returns the events as soon as they are as wanted.
func (m *memory) wait(ctx context.Context, t *testing.T, what string, wanted func([]*event.Event) bool) []*event.Event {
	t.Helper()
	for {
		m.mu.Lock()
		events, change := append([]*event.Event(nil), m.events...), m.change
		m.mu.Unlock()
		if wanted(events) {
			return events
		}
		select {
		case <-change:
		case <-ctx.Done():
			t.Fatalf("%s did not happen; there are %v", what, names(events))
		}
	}
}

func (m *memory) Claim(_ context.Context, _ event.Snowflake, shard event.Shard) (Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.owners[shard] != nil {
		return nil, ErrHeld
	}
	c := &memoryClaim{memory: m, shard: shard, claimed: m.sessions[shard], lost: make(chan struct{})}
	c.appended, c.stored = c.claimed, c.claimed.Seq
	m.owners[shard] = c
	return c, nil
}

// steal takes a shard away as another instance would.
func (m *memory) steal(shard event.Shard) {
	m.do(func() {
		close(m.owners[shard].lost)
		m.owners[shard] = &memoryClaim{}
	})
}

// free gives a stolen shard back.
func (m *memory) free(shard event.Shard) { m.do(func() { delete(m.owners, shard) }) }

type memoryClaim struct {
	memory   *memory
	shard    event.Shard
	claimed  event.Session
	lost     chan struct{}
	appended event.Session
	stored   int64
}

func (c *memoryClaim) Session() event.Session { return c.claimed }

func (c *memoryClaim) Append(ctx context.Context, session event.Session, e *event.Event) error {
	m := c.memory
	for {
		m.mu.Lock()
		if !m.busy {
			break
		}
		change := m.change
		m.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer m.mu.Unlock()
	if c.appended.ID != session.ID {
		c.stored = 0
	}
	c.appended = session
	if !m.frozen {
		m.sessions[c.shard], c.stored = session, session.Seq
	}
	if e != nil {
		m.events = append(m.events, e)
	}
	m.changed()
	return nil
}

func (c *memoryClaim) Stored() int64 {
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	return c.stored
}

func (c *memoryClaim) Lost() <-chan struct{} { return c.lost }

func (c *memoryClaim) Release(context.Context) error {
	c.memory.do(func() { delete(c.memory.owners, c.shard) })
	return nil
}

func names(events []*event.Event) []string {
	list := make([]string, len(events))
	for i, e := range events {
		list[i] = e.Name
	}
	return list
}
