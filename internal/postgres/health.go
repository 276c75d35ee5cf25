package postgres

import "sync"

// Health remembers whether the last transaction of a writer succeeded. The zero
// value is healthy. It is safe for concurrent use.
type Health struct {
	mu  sync.Mutex
	err error
}

// Set records the outcome of a transaction: its error, or nil.
func (h *Health) Set(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

// Err returns why the last transaction failed, or nil.
func (h *Health) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}
