package postgres

import "sync"

// Health remembers whether the last transaction of a writer went through. The
// zero value is healthy. It is safe for concurrent use.
type Health struct {
	mu  sync.Mutex
	err error
}

// Set notes how a transaction went.
func (h *Health) Set(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

// Err is why the last transaction failed, or nil.
func (h *Health) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}
