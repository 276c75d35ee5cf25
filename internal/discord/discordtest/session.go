package discordtest

import (
	"crypto/rand"
	"encoding/hex"
	"slices"
	"time"
)

// Session is a snapshot of a gateway session.
type Session struct {
	ID      string
	Shard   int
	Count   int
	Intents int64
	// Seq is the sequence number of the last dispatch, Acked the highest one
	// that a heartbeat acknowledged.
	Seq, Acked int64
	// Connected means that a client is connected and in service: READY or
	// RESUMED is on its way, and no action has sent the client away.
	Connected bool
	// Client is the client that last began or resumed it (see Server.TokenOf).
	Client string
	// Ended is the reason why the session can no longer be resumed; empty while
	// it can. ByClient means that the client ended it, with 1000 or 1001 or by
	// breaking a rule.
	Ended    string
	ByClient bool
}

// session is one gateway session.
type session struct {
	// Server.mu guards all fields.
	id           string
	shard, count int
	intents      int64
	compress     bool // IDENTIFY asked for payload compression
	query        query
	seq, acked   int64
	frames       ring
	conn         *conn     // nil while the client is away
	awaySince    time.Time // zero while a client is connected
	client       string    // the client of the last connection
	dead         string    // why it can no longer be resumed; empty while it can
	byClient     bool      // the client ended it
	aware        []string  // the clients that were told that it is dead, each as often as it was
}

func newSessionID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// push appends a dispatch and wakes the connection's writer. It never drops a
// dispatch that has yet to be sent to the connected client: RESUMED and the
// answers to commands, which can't wait as Dispatch does, exceed the limit
// instead.
func (ss *session) push(f frame) {
	for ss.frames.full() && (ss.conn == nil || ss.frames.first <= ss.conn.cursor) {
		ss.frames.trim(ss.frames.first)
	}
	ss.seq++
	ss.frames.push(f)
	if ss.conn != nil {
		ss.conn.nudge()
	}
}

// blocked reports whether one more dispatch would exceed the limit, because the
// oldest one has yet to be sent to the connected client.
func (ss *session) blocked() bool {
	return ss.conn != nil && ss.frames.full() && ss.frames.first > ss.conn.cursor
}

func (ss *session) snapshot() Session {
	return Session{
		ID: ss.id, Shard: ss.shard, Count: ss.count, Intents: ss.intents, Seq: ss.seq, Acked: ss.acked,
		Connected: ss.conn != nil && !ss.conn.leaving, Client: ss.client, Ended: ss.dead, ByClient: ss.byClient,
	}
}

// maxSessions is how many sessions are remembered; when there are more, all
// dead ones are forgotten.
const maxSessions = 4096

// newestLocked returns the newest live session of the shard, or nil.
func (s *Server) newestLocked(shard int) *session {
	s.expireLocked(s.byShard[shard]...)
	if sessions := s.byShard[shard]; len(sessions) > 0 {
		return sessions[len(sessions)-1]
	}
	return nil
}

// beginLocked starts a session on a connection, with READY as its first
// dispatch.
func (s *Server) beginLocked(c *conn, ss *session) {
	ss.id = newSessionID()
	ss.frames = newRing(s.cfg.ReplayLimit)
	s.forgetLocked()
	s.sessions[ss.id] = ss
	s.order = append(s.order, ss)
	s.byShard[ss.shard] = append(s.byShard[ss.shard], ss)
	c.attachLocked(ss)
	s.pushLocked(ss, frame{name: "READY", data: s.readyDataLocked(ss)}, 0)
	s.noteLocked(Entry{Kind: Ready, Conn: c.id, Shard: ss.shard, Session: ss.id})
}

func (s *Server) forgetLocked() {
	if len(s.order) < maxSessions {
		return
	}
	s.order = slices.DeleteFunc(s.order, func(ss *session) bool {
		if ss.dead != "" {
			delete(s.sessions, ss.id)
		}
		return ss.dead != ""
	})
}

// killLocked ends a session: it can no longer be resumed.
func (s *Server) killLocked(ss *session, why string, byClient bool) {
	if ss.dead != "" {
		return
	}
	ss.dead, ss.byClient = why, byClient
	ss.frames = ring{limit: 1, first: ss.seq + 1}
	// A new slice, since a caller may be iterating over the old one.
	s.byShard[ss.shard] = slices.DeleteFunc(slices.Clone(s.byShard[ss.shard]), func(other *session) bool { return other == ss })
	if c := ss.conn; c != nil {
		c.detachLocked()
	}
	s.room.Broadcast()
	s.signalLocked()
}

// expireLocked ends those of the sessions whose client has been away for too
// long, and reports whether there were any. No timer does this: a session's age
// matters only when the session is used.
func (s *Server) expireLocked(sessions ...*session) (expired bool) {
	for _, ss := range sessions {
		if ss.dead == "" && ss.conn == nil && time.Since(ss.awaySince) > s.cfg.SessionLifetime {
			s.killLocked(ss, "it was away for longer than its lifetime", false)
			expired = true
		}
	}
	return expired
}

// Session returns the newest live session of the shard, if there is one.
func (s *Server) Session(shard int) (Session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ss := s.newestLocked(shard); ss != nil {
		return ss.snapshot(), true
	}
	return Session{}, false
}

// Sessions returns all sessions, dead ones included, oldest first. When there
// are thousands, dead ones are forgotten.
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked(s.order...)
	list := make([]Session, len(s.order))
	for i, ss := range s.order {
		list[i] = ss.snapshot()
	}
	return list
}
