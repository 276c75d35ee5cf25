package discordtest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// The limits of a client's payloads, with the section of Discord's documentation.
const (
	maxPayload = 4096             // bytes (Gateway, Sending Events)
	maxSends   = 120              // payloads per sendWindow (Gateway, Rate Limiting)
	sendWindow = 60 * time.Second // a sliding window here; Discord does not say
)

// Close codes (Discord: Gateway Close Event Codes). 4006 is undocumented, but
// was observed for a wrong token in RESUME and for two connections on one
// session. The code for a missed heartbeat is undocumented too; we use 4000,
// since the session must stay resumable.
const (
	closeUnknown     = 4000
	closeOpcode      = 4001 // also for a bad payload of a known op
	closeDecode      = 4002
	closeNotAuth     = 4003
	closeAuthFailed  = 4004
	closeAlreadyAuth = 4005
	closeSession     = 4006
	closeSeq         = 4007
	closeRateLimited = 4008
	closeShard       = 4010
	closeVersion     = 4012
	closeIntents     = 4013
	closeDisallowed  = 4014
)

// Op codes that a client sends (Discord: Gateway Opcodes).
const (
	opHeartbeat        = 1
	opIdentify         = 2
	opPresence         = 3
	opVoiceState       = 4
	opResume           = 6
	opMembers          = 8
	opSoundboardSounds = 31
	opChannelInfo      = 43
)

func parseQuery(v url.Values) query {
	version, _ := strconv.Atoi(v.Get("v")) // 0 is not a version, and is refused
	return query{version, v.Get("encoding"), v.Get("compress")}
}

// checkQueryLocked refuses URLs that ask for something not simulated. Discord
// treats a missing version as 6, which is deprecated and has no resume URL.
func (c *conn) checkQueryLocked() bool {
	switch q := c.query; {
	case q.version != 9 && q.version != 10:
		c.refuseLocked(closeVersion, "the URL asks for version %d", q.version)
	case q.encoding != "json":
		c.refuseLocked(closeDecode, "the URL asks for encoding %q: only json is simulated", q.encoding)
	case q.compress != "" && q.compress != zlibStream && q.compress != zstdStream:
		c.refuseLocked(closeDecode, "the URL asks for compression %q", q.compress)
	default:
		return true
	}
	return false
}

// illegalLocked records a broken rule.
func (s *Server) illegalLocked(c *conn, format string, args ...any) {
	s.noteLocked(Entry{Kind: Illegal, Conn: c.id, Shard: c.shard, Session: c.sessionIDLocked(), Detail: fmt.Sprintf(format, args...)})
}

// refuseLocked records a broken rule and closes with the code.
func (c *conn) refuseLocked(code int, format string, args ...any) {
	c.srv.illegalLocked(c, format, args...)
	c.deaf = true
	c.enqueueNowLocked(Close(code))
}

// receive handles a message from the client.
func (c *conn) receive(typ websocket.MessageType, message []byte) {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.ending || c.deaf {
		return
	}
	var payload struct {
		Op *int            `json:"op"`
		D  json.RawMessage `json:"d"`
	}
	switch {
	case len(message) > maxPayload:
		c.refuseLocked(closeDecode, "a payload of %d bytes: the limit is %d", len(message), maxPayload)
		return
	case typ != websocket.MessageText:
		c.refuseLocked(closeDecode, "a binary message: JSON goes into text messages and is never compressed")
		return
	case json.Unmarshal(message, &payload) != nil || payload.Op == nil:
		c.refuseLocked(closeDecode, "a payload that is not JSON with an op")
		return
	}
	op := *payload.Op
	if op != opHeartbeat && !c.withinRateLocked() {
		return
	}
	switch op {
	case opHeartbeat:
		c.heartbeatLocked(payload.D)
	case opIdentify:
		c.identifyLocked(payload.D)
	case opResume:
		c.resumeSessionLocked(payload.D)
	case opPresence, opVoiceState, opMembers, opSoundboardSounds, opChannelInfo:
		c.commandLocked(op, payload.D)
	default:
		c.refuseLocked(closeOpcode, "op %d", op)
	}
}

// withinRateLocked counts a payload against the rate limit and reports whether
// it is allowed. Heartbeats don't count: the documentation does not say that they
// do, and the short intervals of tests would exceed the limit.
func (c *conn) withinRateLocked() bool {
	now := time.Now()
	if len(c.sends) < maxSends {
		c.sends = append(c.sends, now)
		return true
	}
	if now.Sub(c.sends[0]) < sendWindow {
		c.refuseLocked(closeRateLimited, "more than %d payloads within %v", maxSends, sendWindow)
		return false
	}
	copy(c.sends, c.sends[1:])
	c.sends[maxSends-1] = now
	return true
}

// heartbeatLocked handles op 1 (Discord: Gateway, Sending Heartbeats).
func (c *conn) heartbeatLocked(d json.RawMessage) {
	s := c.srv
	seq := int64(-1)
	if len(d) == 0 || string(d) != "null" && json.Unmarshal(d, &seq) != nil || seq < -1 {
		c.refuseLocked(closeOpcode, "a heartbeat with %q: it is a sequence number or null", d)
		return
	}
	c.extendLocked()
	s.noteLocked(Entry{Kind: Heartbeat, Conn: c.id, Shard: c.shard, Session: c.sessionIDLocked(), Seq: seq})
	if ss := c.session; ss != nil && seq >= 0 {
		if seq > c.cursor {
			s.illegalLocked(c, "a heartbeat acknowledges %d, but the last dispatch sent is %d", seq, c.cursor)
		}
		ss.acked = max(ss.acked, min(seq, c.cursor))
		if s.cfg.TrimAcked {
			ss.frames.trim(ss.acked)
			s.room.Broadcast()
		}
		s.signalLocked()
	}
	actions := s.fireLocked(AtHeartbeat, c.shard)
	c.enqueueNowLocked(actions...)
	if !skipsStep(actions) {
		c.enqueueNowLocked(Send([]byte(`{"t":null,"s":null,"op":11,"d":null}`)))
	}
}
