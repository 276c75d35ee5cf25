package main

import (
	"context"
	"sync"
)

// memory remembers which deliveries are done. A table in your database would outlive
// a restart, and be shared by all your processes.
type memory interface {
	Has(ctx context.Context, id string) (bool, error)
	Add(ctx context.Context, id string) error
}

// processMemory remembers a limited number of the latest ids, in this process only.
type processMemory struct {
	mu   sync.Mutex // guards the fields below
	done map[string]bool
	ids  []string // a ring; the oldest id is at next
	next int
}

func newProcessMemory(size int) *processMemory {
	return &processMemory{done: map[string]bool{}, ids: make([]string, size)}
}

func (m *processMemory) Has(_ context.Context, id string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done[id], nil
}

func (m *processMemory) Add(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.done, m.ids[m.next])
	m.ids[m.next], m.done[id] = id, true
	m.next = (m.next + 1) % len(m.ids)
	return nil
}
