package discordtest

import (
	"encoding/json"
	"fmt"
	"time"
)

// fenceGrace is how long a RESUME waits for the session's old connection, whose
// end may be on its way, before it counts as a second connection on one session.
const fenceGrace = 500 * time.Millisecond

// resumeAvoided is how long clients may avoid the resume URL after it did not answer
// one of them.
const resumeAvoided = 2 * time.Minute

// resumeSessionLocked handles op 6 (Discord: Gateway, Resuming). It releases
// s.mu while it waits for an old connection of the session to end.
func (c *conn) resumeSessionLocked(d json.RawMessage) {
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
	s.noteLocked(e)
	switch {
	case c.session != nil:
		c.refuseLocked(closeAlreadyAuth, "RESUME on a connection that has a session")
		return
	case err != nil || p.Seq == nil || *p.Seq < 0:
		c.refuseLocked(closeOpcode, "RESUME without a sequence number, or that can't be decoded")
		return
	case !c.authenticateLocked(p.Token):
		c.refuseLocked(closeSession, "RESUME with a wrong token%s", hint(p.Token))
		return
	}
	if !c.resume && (s.resumeDown.IsZero() || time.Since(s.resumeDown) > resumeAvoided) {
		s.illegalLocked(c, "RESUME on the gateway's URL, although the session's own answers")
	}
	if ss == nil {
		c.rejectLocked("there is no such session")
		return
	}
	s.expireLocked(ss)
	if ss.knows(c.client) {
		s.illegalLocked(c, "RESUME of a session that the client knows is gone: %s", ss.dead)
	}
	if ss.dead == "" {
		s.fenceLocked(c, ss)
	}
	if ss.dead == "" && c.query != ss.query {
		s.illegalLocked(c, "RESUME with another query than IDENTIFY: %v instead of %v", c.query, ss.query)
	}
	c.replayLocked(ss, *p.Seq)
}

// replayLocked answers a well-formed RESUME from seq.
func (c *conn) replayLocked(ss *session, seq int64) {
	s := c.srv
	switch {
	case c.ending || c.deaf || s.closed:
		return
	case ss.dead != "":
		ss.markAware(c.client)
		c.rejectLocked(ss.dead)
		return
	case seq > ss.seq:
		s.killLocked(ss, "its RESUME had a wrong sequence number", true)
		c.refuseLocked(closeSeq, "RESUME from %d, but the last dispatch is %d", seq, ss.seq)
		return
	case seq < ss.frames.first-1:
		s.killLocked(ss, fmt.Sprintf("RESUME from %d, but only dispatches after %d are kept", seq, ss.frames.first-1), false)
		ss.markAware(c.client)
		c.rejectLocked(ss.dead)
		return
	}
	c.rewindLocked(seq)
	actions := s.fireLocked(AtResume, ss.shard)
	c.enqueueNowLocked(actions...)
	if skipsStep(actions) {
		for _, a := range actions {
			if a.killsSession() {
				s.killLocked(ss, "the script ended it", false)
				ss.markAware(c.client)
			}
		}
		return
	}
	c.attachLocked(ss)
	s.noteLocked(Entry{Kind: Resumed, Conn: c.id, Shard: ss.shard, Session: ss.id, Seq: seq})
	// RESUMED, which ends the replay, is a dispatch with a new number.
	s.pushLocked(ss, frame{name: "RESUMED", data: []byte(`{"_trace":["discordtest"]}`)}, 0)
}

// fenceLocked takes the session away from the connection that still uses it. It
// releases s.mu while it waits for that connection to end by itself.
func (s *Server) fenceLocked(c *conn, ss *session) {
	old := ss.conn
	if old == nil {
		return
	}
	if old.suspended && old.client != c.client {
		s.expelLocked(old)
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
		s.illegalLocked(c, "two connections on one session: %q resumed it on connection %d, and %q has it on %d (suspended: %t)",
			c.client, c.id, ss.conn.client, ss.conn.id, ss.conn.suspended)
		s.expelLocked(ss.conn)
	}
}

// expelLocked takes the session away from a connection, and closes the
// connection.
func (s *Server) expelLocked(old *conn) {
	old.detachLocked()
	old.deaf = true
	old.enqueueNowLocked(Close(closeSession))
}
