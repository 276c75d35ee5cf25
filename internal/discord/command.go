package discord

import (
	"encoding/json"
	"fmt"
)

// MaxSend is the size of the largest payload that Discord takes, in bytes. A
// larger one costs the connection (Discord: Sending Events).
const MaxSend = 4096

// Identify is the d of OpIdentify (Discord: Identify).
type Identify struct {
	Token      string          `json:"token"` // without the prefix "Bot "
	Properties Properties      `json:"properties"`
	Shard      [2]int          `json:"shard"` // its id and how many there are
	Intents    int64           `json:"intents"`
	Presence   json.RawMessage `json:"presence,omitempty"` // the d of an OpPresence
}

// Properties say which program this is (Discord: Identify Connection
// Properties).
type Properties struct {
	OS      string `json:"os"`
	Browser string `json:"browser"`
	Device  string `json:"device"`
}

// Resume is the d of OpResume (Discord: Resume).
type Resume struct {
	Token     string `json:"token"` // without the prefix "Bot "
	SessionID string `json:"session_id"`
	Seq       int64  `json:"seq"` // of the last event that need not be replayed
}

// Encode returns the payload that sends d with an opcode. The error is a
// *SizeError if Discord would not take it.
func Encode(op int, d any) ([]byte, error) {
	b, err := json.Marshal(struct {
		Op int `json:"op"`
		D  any `json:"d"`
	}{op, d})
	if err != nil {
		return nil, err
	}
	if len(b) > MaxSend {
		return nil, &SizeError{len(b)}
	}
	return b, nil
}

// SizeError says that a payload is larger than MaxSend.
type SizeError struct{ Size int } // in bytes

// Error implements error.
func (e *SizeError) Error() string {
	return fmt.Sprintf("a payload of %d bytes: Discord takes at most %d", e.Size, MaxSend)
}
