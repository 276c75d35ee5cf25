package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/discord"
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
	cursor := o.at()
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
	if sessionID == "" || sessionID != o.at().ID {
		return 0
	}
	return o.claim.Stored()
}

func (o *outlet) at() event.Session {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cursor
}

// The data of shard events. Consumers of SHARD_CONNECT, CONNECT and
// SHARD_RESUME get {"shard_id":n}.
type shardData struct {
	ShardID int `json:"shard_id"`
}

// disconnectData is the data of SHARD_DISCONNECT and DISCONNECT. Code is the
// WebSocket close code: Discord's, or the one that this side sent, or 1006
// where the connection broke without any.
type disconnectData struct {
	ShardID int    `json:"shard_id"`
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
}

// lostData is the data of GATEHOOK_SESSION_LOST. What Discord dispatched after
// AfterSeq of session SessionID and before NextSeq of session NextSessionID
// could not be had.
type lostData struct {
	ShardID       int    `json:"shard_id"`
	SessionID     string `json:"session_id"`
	AfterSeq      int64  `json:"after_seq"`
	NextSessionID string `json:"next_session_id"`
	NextSeq       int64  `json:"next_seq"`
	Reason        string `json:"reason"`
}

// ownEvent makes an event that Discord did not number.
func ownEvent(shard event.Shard, name string, data any) (*event.Event, error) {
	b, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	return &event.Event{ID: id, Name: name, Shard: shard, ReceivedAt: time.Now(), Data: b}, nil
}

// closeText says for people how a connection ended. Addresses of this machine
// are not in it: it goes to callbacks.
func closeText(cause error) (code int, reason string) {
	if sent := (ending{cause: cause}).code(); sent != 0 {
		code = int(sent)
		return code, cmp.Or(sent.Meaning(), "closed with code "+strconv.Itoa(code))
	}
	for _, own := range ownCauses {
		if errors.Is(cause, own.err) {
			return int(discord.CodeKeepSession), own.err.Error()
		}
	}
	return abnormalClosure, "the connection broke"
}

// abnormalClosure stands for a connection that ended without a close frame
// (RFC 6455, section 7.1.5).
const abnormalClosure = 1006
