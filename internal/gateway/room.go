package gateway

import (
	"sync"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// maxHeldBack bounds the memory of all events that a server holds back, in bytes.
	maxHeldBack = 256 << 20
	// keptOverhead is about what an event takes besides its payload, in bytes.
	keptOverhead = 400
)

// room is what all holdings of a server may keep together. While it is used up,
// connections that hold back are not read: their events wait at Discord.
type room struct {
	mu    sync.Mutex // guards the fields below
	left  int        // bytes
	waits int        // how often a connection had to wait
	freed chan struct{}
}

func newRoom(bytes int) *room { return &room{left: bytes, freed: make(chan struct{})} }

// take takes the room of an event, and reports whether there is enough. alone means
// that the caller keeps no other event: it gets what it needs, or an event that is
// larger than all of the room would never fit. If there is not enough, freed is closed
// when there is more.
func (r *room) take(e *event.Event, alone bool) (size int, freed <-chan struct{}, ok bool) {
	size = keptOverhead
	if e != nil { // nil: only the session advances
		size += len(e.Data)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if size > r.left && !alone {
		r.waits++
		return 0, r.freed, false
	}
	r.left -= size
	return size, nil, true
}

// give gives room back.
func (r *room) give(size int) {
	if size == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left += size
	close(r.freed)
	r.freed = make(chan struct{})
}

// load returns the bytes in use of a room that had so many, and how often a connection
// had to wait for more.
func (r *room) load(bytes int) (used, waits int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes - r.left, r.waits
}
