package discordtest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// What Discord's documentation says of what clients send.
const (
	payloadLimit = 4096             // bytes (Gateway, Sending Events)
	sendLimit    = 120              // payloads per sendWindow (Gateway, Rate Limiting)
	sendWindow   = 60 * time.Second // a sliding one here; Discord does not say
)

// fenceGrace is how long a RESUME waits for the session's old connection to
// end, before it counts as a second connection on one session: the end of the
// old one may be on its way.
const fenceGrace = 500 * time.Millisecond

// Close codes (Discord: Gateway Close Event Codes). 4006 is undocumented: seen
// for a wrong token in RESUME and for two connections on one session. Which
// code a missed heartbeat gets is undocumented too; 4000 can be resumed from,
// as it must.
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

// privileged maps the bit of a privileged intent to the application flags that
// allow it: enabled, or enabled for less than the limit of servers.
var privileged = map[int64]int64{
	1 << 1:  1<<14 | 1<<15,
	1 << 8:  1<<12 | 1<<13,
	1 << 15: 1<<18 | 1<<19,
}

func parseQuery(v url.Values) query {
	version, _ := strconv.Atoi(v.Get("v")) // 0 is no version, and refused
	return query{version, v.Get("encoding"), v.Get("compress")}
}

// checkQuery refuses what can't be served. Discord takes a missing version for
// 6, which is deprecated and knows no resume URL. s.mu is held.
func (c *conn) checkQuery() bool {
	switch q := c.query; {
	case q.version != 9 && q.version != 10:
		c.refuse(closeVersion, "the URL asks for version %d", q.version)
	case q.encoding != "json":
		c.refuse(closeDecode, "the URL asks for encoding %q: only json is simulated", q.encoding)
	case q.compress != "" && q.compress != zlibStream && q.compress != zstdStream:
		c.refuse(closeDecode, "the URL asks for compression %q", q.compress)
	default:
		return true
	}
	return false
}

// illegal books what a client must not do. s.mu is held.
func (s *Server) illegal(c *conn, format string, args ...any) {
	s.note(Entry{Kind: Illegal, Conn: c.id, Shard: c.shard, Session: c.sessionID(), Detail: fmt.Sprintf(format, args...)})
}

// refuse books a violation and closes with the code. s.mu is held.
func (c *conn) refuse(code int, format string, args ...any) {
	c.srv.illegal(c, format, args...)
	c.deaf = true
	c.now(Close(code))
}

// receive handles one message of the client.
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
	case len(message) > payloadLimit:
		c.refuse(closeDecode, "a payload of %d bytes: the limit is %d", len(message), payloadLimit)
		return
	case typ != websocket.MessageText:
		c.refuse(closeDecode, "a binary message: JSON goes in text messages, and is never compressed")
		return
	case json.Unmarshal(message, &payload) != nil || payload.Op == nil:
		c.refuse(closeDecode, "a payload that is not JSON with an op")
		return
	}
	op := *payload.Op
	if op != opHeartbeat && !c.withinRate() {
		return
	}
	switch op {
	case opHeartbeat:
		c.heartbeat(payload.D)
	case opIdentify:
		c.identify(payload.D)
	case opResume:
		c.resumeSession(payload.D)
	case opPresence, opVoiceState, opMembers, opSoundboardSounds, opChannelInfo:
		c.command(op, payload.D)
	default:
		c.refuse(closeOpcode, "op %d", op)
	}
}

// withinRate counts a payload against the rate limit. Heartbeats are not
// counted: the documentation does not say that they are, and the short
// intervals of tests would exceed it. s.mu is held.
func (c *conn) withinRate() bool {
	now := time.Now()
	if len(c.sends) < sendLimit {
		c.sends = append(c.sends, now)
		return true
	}
	if now.Sub(c.sends[0]) < sendWindow {
		c.refuse(closeRateLimited, "more than %d payloads within %v", sendLimit, sendWindow)
		return false
	}
	copy(c.sends, c.sends[1:])
	c.sends[sendLimit-1] = now
	return true
}

// heartbeat handles op 1 (Discord: Gateway, Sending Heartbeats). s.mu is held.
func (c *conn) heartbeat(d json.RawMessage) {
	s := c.srv
	seq := int64(-1)
	if len(d) == 0 || string(d) != "null" && json.Unmarshal(d, &seq) != nil || seq < -1 {
		c.refuse(closeOpcode, "a heartbeat with %q: it is a sequence number or null", d)
		return
	}
	c.extend()
	s.note(Entry{Kind: Heartbeat, Conn: c.id, Shard: c.shard, Session: c.sessionID(), Seq: seq})
	if ss := c.session; ss != nil && seq >= 0 {
		if seq > c.cursor {
			s.illegal(c, "a heartbeat acknowledges %d, of %d sent", seq, c.cursor)
		}
		ss.acked = max(ss.acked, min(seq, c.cursor))
		if s.cfg.TrimAcked {
			ss.frames.trim(ss.acked)
			s.room.Broadcast()
		}
		s.signal()
	}
	actions := s.fire(AtHeartbeat, c.shard)
	c.now(actions...)
	if !skipsStep(actions) {
		c.now(Send([]byte(`{"t":null,"s":null,"op":11,"d":null}`)))
	}
}

// identification is the `d` of IDENTIFY, as far as it is checked.
type identification struct {
	Token      string            `json:"token"`
	Properties map[string]string `json:"properties"`
	Compress   bool              `json:"compress"`
	Threshold  *int              `json:"large_threshold"`
	Shard      []int             `json:"shard"`
	Intents    *int64            `json:"intents"`
	Presence   *presencePayload  `json:"presence"`
}

// check returns what Discord refuses it for, given the application's flags, and
// the close code; 0 if it is in order.
func (p *identification) check(flags int64) (code int, why string) {
	switch {
	case p.Properties == nil:
		return closeOpcode, "IDENTIFY without properties"
	case p.Threshold != nil && (*p.Threshold < 50 || *p.Threshold > 250):
		return closeOpcode, fmt.Sprintf("IDENTIFY with large_threshold %d: 50 to 250 are accepted", *p.Threshold)
	case p.Shard != nil && (len(p.Shard) != 2 || p.Shard[0] < 0 || p.Shard[0] >= p.Shard[1]):
		return closeShard, fmt.Sprintf("IDENTIFY with shard %v", p.Shard)
	case p.Intents == nil || *p.Intents&^AllIntents != 0:
		return closeIntents, "IDENTIFY without intents, or with bits that don't exist"
	}
	if p.Presence != nil {
		if why, _ := p.Presence.check(); why != "" {
			return closeOpcode, "IDENTIFY with a presence: " + why
		}
	}
	for bit, enabling := range privileged {
		if *p.Intents&bit != 0 && flags&enabling == 0 {
			return closeDisallowed, fmt.Sprintf("IDENTIFY with the privileged intent %d, which is not enabled", bit)
		}
	}
	return 0, ""
}

// identify handles op 2 (Discord: Gateway, Identifying). s.mu is held.
func (c *conn) identify(d json.RawMessage) {
	s := c.srv
	var p identification
	err := json.Unmarshal(d, &p)
	ss := &session{count: 1, compress: p.Compress && c.query.compress == "", query: c.query}
	if len(p.Shard) == 2 {
		ss.shard, ss.count = p.Shard[0], p.Shard[1]
	}
	if c.session == nil {
		c.shard = ss.shard
	}
	s.note(Entry{Kind: Identify, Conn: c.id, Shard: c.shard, Data: redact(d, p.Token)})
	switch {
	case c.session != nil:
		c.refuse(closeAlreadyAuth, "a second IDENTIFY on one connection")
		return
	case err != nil:
		c.refuse(closeOpcode, "IDENTIFY can't be decoded: %v", err)
		return
	case !c.authenticate(p.Token):
		c.refuse(closeAuthFailed, "IDENTIFY with a wrong token%s", hint(p.Token))
		return
	}
	if c.resume {
		s.illegal(c, "IDENTIFY on the resume URL")
	}
	if !s.spend(c) {
		return
	}
	if code, why := p.check(s.cfg.Flags); code != 0 {
		c.refuse(code, "%s", why)
		return
	}
	if p.Compress && !ss.compress {
		s.illegal(c, "payload compression together with transport compression")
	}
	if !s.takeBucket(ss.shard) {
		s.illegal(c, "IDENTIFY within %v of the last one in its bucket", s.cfg.IdentifyWindow)
		c.reject("too many IDENTIFYs at once")
		return
	}
	ss.intents = *p.Intents
	c.rewind(0)
	actions := s.fire(AtIdentify, ss.shard)
	c.now(actions...)
	if !skipsStep(actions) {
		s.begin(c, ss)
	}
}

// redact takes the token out of what is kept.
func redact(d json.RawMessage, token string) []byte {
	if token == "" {
		return d
	}
	return []byte(strings.ReplaceAll(string(d), token, "[redacted]"))
}

func hint(token string) string {
	if strings.HasPrefix(token, "Bot ") {
		return `: it begins with "Bot ", which belongs in HTTP headers only`
	}
	return ""
}

// spend takes an IDENTIFY off the daily budget. Who exceeds it loses all
// sessions and the token (Discord: Gateway, Identifying). s.mu is held.
func (s *Server) spend(c *conn) bool {
	if s.sessionStart(); s.limit.Remaining > 0 {
		s.limit.Remaining--
		return true
	}
	s.token = newSessionID()
	for other := range s.conns {
		if other != c && other.session != nil {
			other.deaf = true
			other.now(Close(closeAuthFailed))
		}
	}
	c.refuse(closeAuthFailed, "IDENTIFY after the session start limit was used up: the token is reset")
	return false
}

// takeBucket takes the shard's rate limit key for one window (Discord: Gateway,
// Max Concurrency). s.mu is held.
func (s *Server) takeBucket(shard int) bool {
	key, now := shard%s.limit.MaxConcurrency, time.Now()
	if last, ok := s.buckets[key]; ok && now.Sub(last) < s.cfg.IdentifyWindow {
		return false
	}
	s.buckets[key] = now
	return true
}

// reject answers IDENTIFY or RESUME with op 9, not resumable. s.mu is held.
func (c *conn) reject(why string) {
	c.srv.note(Entry{Kind: Refused, Conn: c.id, Shard: c.shard, Detail: why})
	c.now(Invalidate(false))
}

// resumeSession handles op 6 (Discord: Gateway, Resuming). s.mu is held, but
// let go while an old connection of the session ends.
func (c *conn) resumeSession(d json.RawMessage) {
	s := c.srv
	var p struct {
		Token   string `json:"token"`
		Session string `json:"session_id"`
		Seq     *int64 `json:"seq"`
	}
	err := json.Unmarshal(d, &p)
	ss := s.sessions[p.Session]
	if c.session == nil && ss != nil {
		c.shard = ss.shard
	}
	e := Entry{Kind: Resume, Conn: c.id, Shard: c.shard, Session: p.Session, Seq: -1}
	if p.Seq != nil {
		e.Seq = *p.Seq
	}
	s.note(e)
	switch {
	case c.session != nil:
		c.refuse(closeAlreadyAuth, "RESUME on a connection that has a session")
		return
	case err != nil || p.Seq == nil || *p.Seq < 0:
		c.refuse(closeOpcode, "RESUME without a sequence number, or that can't be decoded")
		return
	case !c.authenticate(p.Token):
		c.refuse(closeSession, "RESUME with a wrong token%s", hint(p.Token))
		return
	}
	if !c.resume {
		s.illegal(c, "RESUME on the gateway's URL")
	}
	if ss == nil {
		c.reject("there is no such session")
		return
	}
	s.expire(ss)
	if slices.Contains(ss.told, c.client) {
		s.illegal(c, "RESUME of a session that the client knows is gone: %s", ss.dead)
	}
	if ss.dead == "" {
		s.fence(c, ss)
	}
	if ss.dead == "" && c.query != ss.query {
		s.illegal(c, "RESUME with another query than IDENTIFY: %v instead of %v", c.query, ss.query)
	}
	c.replay(ss, *p.Seq)
}

// replay answers a RESUME that is in order. s.mu is held.
func (c *conn) replay(ss *session, seq int64) {
	s := c.srv
	switch {
	case c.ending || c.deaf || s.closed:
		return
	case ss.dead != "":
		ss.tell(c.client)
		c.reject(ss.dead)
		return
	case seq > ss.seq:
		s.kill(ss, "its RESUME had a wrong sequence number", true)
		c.refuse(closeSeq, "RESUME from %d, of %d", seq, ss.seq)
		return
	case seq < ss.frames.first-1:
		s.kill(ss, fmt.Sprintf("RESUME from %d, but what is behind %d only is kept", seq, ss.frames.first-1), false)
		ss.tell(c.client)
		c.reject(ss.dead)
		return
	}
	c.rewind(seq)
	actions := s.fire(AtResume, ss.shard)
	c.now(actions...)
	if skipsStep(actions) {
		for _, a := range actions {
			if a.killsSession() {
				s.kill(ss, "the script ended it", false)
				ss.tell(c.client)
			}
		}
		return
	}
	c.attach(ss)
	s.note(Entry{Kind: Resumed, Conn: c.id, Shard: ss.shard, Session: ss.id, Seq: seq})
	// The end of the replay is a dispatch with a number of its own.
	s.push(ss, "RESUMED", frame{name: "RESUMED", data: []byte(`{"_trace":["discordtest"]}`)}, 0)
}

// fence takes the session from the connection that still uses it. s.mu is
// held, but let go while that one may be about to end.
func (s *Server) fence(c *conn, ss *session) {
	old := ss.conn
	if old == nil {
		return
	}
	if old.stopped && old.client != c.client {
		s.expel(old)
		return
	}
	s.mu.Unlock()
	t := time.NewTimer(fenceGrace)
	select {
	case <-old.done:
	case <-t.C:
	case <-s.done:
	}
	t.Stop()
	s.mu.Lock()
	if ss.conn != nil && ss.conn != c {
		s.illegal(c, "two connections on one session")
		s.expel(ss.conn)
	}
}

// expel takes the session away from a connection. s.mu is held.
func (s *Server) expel(old *conn) {
	old.detach()
	old.deaf = true
	old.now(Close(closeSession))
}
