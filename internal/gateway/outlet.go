package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// outlet is a shard's way into the journal. It is used by one goroutine at a
// time: the reader of the connection that delivers, and between connections
// the shard itself.
type outlet struct {
	claim Claim

	mu sync.Mutex // guards cursor, which a heart reads
	// cursor is where the journal was told last that the session stands. Until
	// a new session is READY it stays on the one before, even a dead one: a
	// process that starts in between tries to resume it and then says what was
	// lost.
	cursor event.Session

	// late are shard events that could not be handed on in time. They go
	// before the next one.
	late []*event.Event
}

// put hands on an event. session says where the session stands with it; nil
// leaves the cursor where it is.
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

// putSoon hands on shard events, or keeps them for later when the journal does
// not take them within the time: a shard that has no connection must not wait
// for the database before it looks for one.
func (o *outlet) putSoon(ctx context.Context, limit time.Duration, events ...*event.Event) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errors.New("the journal is busy"))
	defer cancel()
	for i, e := range events {
		if err := o.put(ctx, nil, e); err != nil {
			o.late = append(o.late, events[i:]...)
			return
		}
	}
}

// stored is the highest committed sequence number of a session; 0 for none,
// and for any other session than the one that the cursor is on.
func (o *outlet) stored(sessionID string) int64 {
	if sessionID == "" || sessionID != o.position().ID {
		return 0
	}
	return o.claim.Stored()
}

func (o *outlet) position() event.Session {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cursor
}

// sink is where a link puts its events: the shard's outlet, or a holding while
// another connection of the shard still delivers.
type sink interface {
	put(ctx context.Context, session *event.Session, e *event.Event) error
	putSoon(ctx context.Context, limit time.Duration, events ...*event.Event)
	stored(sessionID string) int64
}
