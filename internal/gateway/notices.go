package gateway

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// Notices are events that Discord did not send. They report that a shard
// connected, disconnected, resumed, lost its session or could not read a payload.

// shardData is the data of SHARD_CONNECT, CONNECT and SHARD_RESUME.
type shardData struct {
	ShardID int `json:"shard_id"`
}

// disconnectData is the data of SHARD_DISCONNECT and DISCONNECT. Code is the
// WebSocket close code that Discord or this side sent, or 1006 if the
// connection broke without one.
type disconnectData struct {
	ShardID int    `json:"shard_id"`
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
}

// lostData is the data of GATEHOOK_SESSION_LOST: the events after AfterSeq of
// session SessionID and before NextSeq of session NextSessionID are lost. If an
// instance ended before it stored the session that it began, SessionID is "" and
// AfterSeq 0.
type lostData struct {
	ShardID       int    `json:"shard_id"`
	SessionID     string `json:"session_id"`
	AfterSeq      int64  `json:"after_seq"`
	NextSessionID string `json:"next_session_id"`
	NextSeq       int64  `json:"next_seq"`
	Reason        string `json:"reason"`
}

// droppedData is the data of GATEHOOK_PAYLOAD_DROPPED.
type droppedData struct {
	ShardID   int     `json:"shard_id"`
	SessionID string  `json:"session_id"` // "" before READY
	Seq       *int64  `json:"seq"`        // nil if unknown
	Event     *string `json:"event"`      // nil if unknown
	Reason    string  `json:"reason"`
}

// newDroppedData describes a payload by what could be read of it.
func newDroppedData(shard int, sessionID string, f discord.Frame, reason string) droppedData {
	d := droppedData{ShardID: shard, SessionID: sessionID, Reason: reason}
	if f.Seq > 0 {
		d.Seq = &f.Seq
	}
	if event.IsName(f.Name) {
		name := string(f.Name)
		d.Event = &name
	}
	return d
}

// newNotice makes an event that Discord did not number.
func newNotice(shard event.Shard, now time.Time, name string, data any) (*event.Event, error) {
	b, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	return &event.Event{ID: id, Name: name, Shard: shard, ReceivedAt: now, Data: b}, nil
}
