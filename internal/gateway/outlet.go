package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// sink is where a link puts its events: the shard's outlet, or a holding while
// another connection of the shard still delivers.
type sink interface {
	// put passes on an event. session is the session and the position in it after
	// this event; nil leaves the cursor where it is.
	put(ctx context.Context, session *event.Session, e *event.Event) error
	// putSoon passes on notices, and waits no longer than limit.
	putSoon(ctx context.Context, limit time.Duration, notices ...*event.Event)
	// stored returns the highest committed sequence number of a session; 0 for
	// none, and for any session other than the cursor's.
	stored(sessionID string) int64
}

// outlet passes a shard's events to the journal. One goroutine at a time uses
// it: the reader of the connection that delivers or, between connections, the
// shard. Only stored may be called at any time.
type outlet struct {
	claim Claim

	// late are notices that the journal did not take in time. They go before
	// the next event.
	late []*event.Event

	mu sync.Mutex // guards cursor, which the heart reads too
	// cursor is the session and the position in it that the journal was given
	// last. Until a new session is READY, the cursor stays on the previous
	// session, even if that is dead: a process that starts in between tries to
	// resume it, and then reports what was lost.
	cursor event.Session
}

// put implements sink.
func (o *outlet) put(ctx context.Context, session *event.Session, e *event.Event) error {
	cursor := o.position()
	for len(o.late) > 0 {
		if err := o.claim.Append(ctx, cursor, o.late[0]); err != nil {
			return err
		}
		o.late = o.late[1:]
	}
	if session == nil {
		return o.claim.Append(ctx, cursor, e)
	}
	if err := o.claim.Append(ctx, *session, e); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cursor = *session
	return nil
}

// putSoon implements sink. It keeps the notices that the journal does not take
// in time, so that a shard without a connection need not wait for the database
// before it connects again.
func (o *outlet) putSoon(ctx context.Context, limit time.Duration, notices ...*event.Event) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errors.New("the journal is busy"))
	defer cancel()
	for i, e := range notices {
		if err := o.put(ctx, nil, e); err != nil {
			o.late = append(o.late, notices[i:]...)
			return
		}
	}
}

// stored implements sink.
func (o *outlet) stored(sessionID string) int64 {
	if sessionID == "" || sessionID != o.position().ID {
		return 0
	}
	return o.claim.Stored()
}

// position returns the cursor.
func (o *outlet) position() event.Session {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cursor
}
