package discordtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/coder/websocket"
)

const (
	// maxMessage is the size in bytes from which the WebSocket library refuses
	// a message. Discord's own limit, which has a close code, is far lower.
	maxMessage = 1 << 20
	// closeGrace is how long a client may take to answer a close frame.
	closeGrace = 2 * time.Second
)

// query holds the parameters of the client's URL.
type query struct {
	version  int
	encoding string
	compress string
}

// conn is one WebSocket. Its reader is the goroutine of the HTTP handler; its
// writer is a second goroutine, which the reader waits for.
type conn struct {
	srv    *Server
	id     int
	ctx    context.Context // never canceled: closing wire ends reads and writes
	ws     *websocket.Conn
	wire   *wire
	resume bool // the client dialed the resume URL
	query  query
	enc    encoder       // used by the writer only
	wake   chan struct{} // holds a token when the writer has something to check
	done   chan struct{} // closed when the connection is over and its end recorded

	// Server.mu guards the fields below.
	shard     int
	session   *session
	cursor    int64 // the last dispatch of the session that the writer took
	steps     []step
	sends     []time.Time // when the last payloads arrived, for the rate limit
	presences []time.Time // when the last Update Presence commands arrived
	leaving   bool        // an action was queued that makes a client leave
	client    string      // the client that the token names (see Server.TokenOf)
	suspended bool        // the client was suspended with this connection open
	deaf      bool        // ignores whatever arrives: it is being closed or silenced
	ending    bool        // sends nothing more, and ignores whatever arrives
	silenced  bool        // it is ending because of Silence
}

// handleGateway accepts the WebSocket, and then is the connection's reader.
func (s *Server) handleGateway(w http.ResponseWriter, r *http.Request, resume bool) {
	at := AtConnect
	if resume {
		at = AtResumeConnect
	}
	s.mu.Lock()
	actions := s.fireLocked(at, AnyShard)
	s.noteResumeDownLocked(resume, actions)
	s.mu.Unlock()
	if !s.actHTTP(w, r, actions) {
		return
	}
	t := &tap{ResponseWriter: w}
	// Discord does not offer permessage-deflate.
	ws, err := websocket.Accept(t, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // Accept has answered
	}
	ws.SetReadLimit(maxMessage)
	c := &conn{
		srv: s, ctx: context.WithoutCancel(r.Context()), ws: ws, wire: t.wire, resume: resume, shard: AnyShard,
		query: parseQuery(r.URL.Query()),
		wake:  make(chan struct{}, 1), done: make(chan struct{}),
	}
	c.enc = encoder{mode: c.query.compress, split: s.cfg.SplitEvery}
	if !s.open(c) {
		_ = c.wire.Close() // the server is closing
		return
	}
	c.serve()
}

// noteResumeDownLocked notes that a dial of the resume URL is refused, or answered
// late. A client gives up a late one when it likes.
func (s *Server) noteResumeDownLocked(resume bool, actions []Action) {
	if resume && slices.ContainsFunc(actions, func(a Action) bool { return a.skips() || a.verb == verbDelay }) {
		s.resumeDown = time.Now()
	}
}

// open registers a connection and queues its HELLO.
func (s *Server) open(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.lastConn++
	c.id = s.lastConn
	s.conns[c] = struct{}{}
	s.noteLocked(Entry{Kind: Connected, Conn: c.id, Shard: AnyShard})
	if !c.checkQueryLocked() {
		return true
	}
	actions := s.fireLocked(AtHello, AnyShard)
	c.enqueueNowLocked(actions...)
	s.noteResumeDownLocked(c.resume, actions)
	if !skipsStep(actions) {
		c.enqueueNowLocked(Send(fmt.Appendf(nil, `{"t":null,"s":null,"op":10,"d":{"heartbeat_interval":%d,"_trace":["discordtest"]}}`,
			s.cfg.HeartbeatInterval.Milliseconds())))
	}
	c.extendLocked()
	return true
}

// serve reads until the connection is over.
func (c *conn) serve() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	err := c.read()
	if errors.Is(err, os.ErrDeadlineExceeded) && c.missed() {
		<-written // the writer ends after the close frame, or after closeGrace
		_, err = io.Copy(io.Discard, c.wire)
	}
	_ = c.wire.Close() // the connection is over, whichever side ended it
	c.over(err)
	<-written
	close(c.done)
}

func (c *conn) read() error {
	for {
		typ, payload, err := c.ws.Read(c.ctx)
		if err != nil {
			return err
		}
		c.receive(typ, payload)
	}
}

// extendLocked moves the deadline of the next heartbeat.
func (c *conn) extendLocked() {
	if !c.ending {
		at := time.Now().Add(c.srv.cfg.HeartbeatInterval + c.srv.cfg.HeartbeatGrace)
		_ = c.wire.SetReadDeadline(at) // fails only on a closed socket, whose reader ends anyway
	}
}

// missed reports whether a read deadline that passed was that of a heartbeat.
// If so, it begins to close the connection.
func (c *conn) missed() bool {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.ending {
		return false
	}
	s.noteLocked(Entry{Kind: Missed, Conn: c.id, Shard: c.shard, Session: c.sessionIDLocked()})
	c.deaf = true
	c.enqueueNowLocked(Close(closeUnknown))
	// A client that also reads nothing must not block the writer forever.
	at := time.Now().Add(closeGrace)
	_ = c.wire.SetDeadline(at) // as in extendLocked
	return true
}

// over records the end of a connection.
func (c *conn) over(err error) {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	code := 1006
	if status := websocket.CloseStatus(err); status != -1 {
		code = int(status)
	}
	if !s.closed && (!c.ending || c.silenced) {
		s.noteLocked(Entry{Kind: ClientClosed, Conn: c.id, Shard: c.shard, Session: c.sessionIDLocked(), Code: code})
	}
	// Discord: Gateway, Initiating a Disconnect. On a silenced connection
	// Discord does not hear the client close.
	if ss := c.session; ss != nil && !c.ending && !c.deaf && (code == 1000 || code == 1001) {
		s.killLocked(ss, fmt.Sprintf("the client closed with %d", code), true)
		ss.markAware(c.client)
	}
	c.ending = true
	c.detachLocked()
	c.nudge()
}

func (c *conn) sessionIDLocked() string {
	if c.session == nil {
		return ""
	}
	return c.session.id
}

// rewindLocked prepares the connection for a session whose client has the
// dispatches up to cursor. Steps that are already due stay due.
func (c *conn) rewindLocked(cursor int64) {
	for i := range c.steps {
		if c.steps[i].after <= c.cursor {
			c.steps[i].after = 0
		}
	}
	c.cursor = cursor
	c.leaving = false // after an op 9 the client may start again on this connection
}

// attachLocked makes c the connection of the session.
func (c *conn) attachLocked(ss *session) {
	ss.conn, ss.awaySince, ss.client = c, time.Time{}, c.client
	c.session, c.shard = ss, ss.shard
	c.srv.signalLocked()
}

// detachLocked separates c from its session, which can then be resumed.
func (c *conn) detachLocked() {
	ss := c.session
	if ss == nil {
		return
	}
	c.session = nil
	if ss.conn == c {
		ss.conn, ss.awaySince = nil, time.Now()
	}
	c.srv.room.Broadcast()
	c.srv.signalLocked()
}
