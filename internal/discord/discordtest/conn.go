package discordtest

import (
	"context"
	"encoding/binary"
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
	// readLimit is what the WebSocket library refuses by itself; Discord's
	// own limit, which has a close code, is far below.
	readLimit = 1 << 20
	// closeGrace is how long a client may take to answer a close frame.
	closeGrace = 2 * time.Second
	// batchLimit is how many dispatches leave under one lock and, if they are
	// small, in one system call.
	batchLimit = 64
	// stepLimit bounds what waits to be sent besides dispatches. Only a client
	// that floods with heartbeats and does not read comes that far.
	stepLimit = 1024
)

// query is what the client asked for in the URL.
type query struct {
	version  int
	encoding string
	compress string
}

// step is an action that waits for its turn: it is taken when the dispatches
// up to after are sent.
type step struct {
	after  int64
	action Action
}

// conn is one WebSocket. Its reader is the goroutine of the HTTP handler; its
// writer is a second one, which the reader waits for.
type conn struct {
	srv    *Server
	id     int
	ctx    context.Context // never done: the end of wire ends everything
	ws     *websocket.Conn
	wire   *wire
	resume bool // it came in on the resume URL
	query  query
	enc    encoder       // the writer's
	wake   chan struct{} // holds a token when the writer has something to look at
	done   chan struct{} // closed when the connection is over and booked

	// Server.mu guards what follows.
	shard   int
	session *session
	cursor  int64 // the last dispatch of the session that the writer took
	steps   []step
	sends   []time.Time // when the last commands came, for the rate limit
	// presences are when the last Update Presence came, for theirs.
	presences []time.Time
	leaving   bool   // something was done that makes a client leave
	client    string // whose token it came with
	stopped   bool   // the client was suspended with this connection open
	deaf      bool   // what comes is ignored: it is being closed or silenced
	ending    bool   // nothing is sent any more and what comes is ignored
	silenced  bool   // ending, by Silence
}

// handleGateway is the gateway's side of the WebSocket handshake, and then the
// connection's reader.
func (s *Server) handleGateway(w http.ResponseWriter, r *http.Request, resume bool) {
	at := AtConnect
	if resume {
		at = AtResumeConnect
	}
	s.mu.Lock()
	actions := s.fire(at, AnyShard)
	s.mu.Unlock()
	if !s.actHTTP(w, r, actions) {
		return
	}
	t := &tap{ResponseWriter: w}
	// Permessage-deflate is not among Discord's compressions.
	ws, err := websocket.Accept(t, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // Accept has answered
	}
	ws.SetReadLimit(readLimit)
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

// open books a connection and queues what it is greeted with.
func (s *Server) open(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.lastConn++
	c.id = s.lastConn
	s.conns[c] = struct{}{}
	s.note(Entry{Kind: Connected, Conn: c.id, Shard: AnyShard})
	if !c.checkQuery() {
		return true
	}
	actions := s.fire(AtHello, AnyShard)
	c.now(actions...)
	if !skipsStep(actions) {
		c.now(Send(fmt.Appendf(nil, `{"t":null,"s":null,"op":10,"d":{"heartbeat_interval":%d,"_trace":["discordtest"]}}`,
			s.cfg.HeartbeatInterval.Milliseconds())))
	}
	c.extend()
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
	_ = c.wire.Close() // it is over, whichever side began
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

// extend moves the deadline of the next heartbeat. s.mu is held.
func (c *conn) extend() {
	if !c.ending {
		at := time.Now().Add(c.srv.cfg.HeartbeatInterval + c.srv.cfg.HeartbeatGrace)
		_ = c.wire.SetReadDeadline(at) // fails on a closed socket only, where the reader ends anyway
	}
}

// missed tells whether a deadline was that of a heartbeat, and then begins to
// close.
func (c *conn) missed() bool {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.ending {
		return false
	}
	s.note(Entry{Kind: Missed, Conn: c.id, Shard: c.shard, Session: c.sessionID()})
	c.deaf = true
	c.now(Close(closeUnknown))
	// A client that does not read either must not hold the writer for ever.
	at := time.Now().Add(closeGrace)
	_ = c.wire.SetDeadline(at) // as in extend
	return true
}

// over books the end of a connection.
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
		s.note(Entry{Kind: ClientClosed, Conn: c.id, Shard: c.shard, Session: c.sessionID(), Code: code})
	}
	// Discord: Gateway, Initiating a Disconnect. A silenced connection stands
	// for one on which Discord does not hear the client.
	if ss := c.session; ss != nil && !c.ending && !c.deaf && (code == 1000 || code == 1001) {
		s.kill(ss, fmt.Sprintf("the client closed with %d", code), true)
		ss.tell(c.client)
	}
	c.ending = true
	c.detach()
	c.nudge()
}

func (c *conn) sessionID() string {
	if c.session == nil {
		return ""
	}
	return c.session.id
}

// rewind prepares for a session of which the client has the dispatches up to
// cursor: steps that are due stay so. s.mu is held.
func (c *conn) rewind(cursor int64) {
	for i := range c.steps {
		if c.steps[i].after <= c.cursor {
			c.steps[i].after = 0
		}
	}
	c.cursor = cursor
	c.leaving = false // it was told to leave, with op 9, and tries anew
}

// attach makes c the connection of the session. s.mu is held.
func (c *conn) attach(ss *session) {
	ss.conn, ss.awaySince, ss.client = c, time.Time{}, c.client
	c.session, c.shard = ss, ss.shard
	c.srv.signal()
}

// detach leaves the session to whoever resumes it. s.mu is held.
func (c *conn) detach() {
	ss := c.session
	if ss == nil {
		return
	}
	c.session = nil
	if ss.conn == c {
		ss.conn, ss.awaySince = nil, time.Now()
	}
	c.srv.room.Broadcast()
	c.srv.signal()
}

// now adds a step behind those that are due by now. s.mu is held.
func (c *conn) now(actions ...Action) { c.enqueueAll(c.cursor, actions) }

// enqueue adds a step behind those that are due no later. s.mu is held.
func (c *conn) enqueue(after int64, a Action) {
	if len(c.steps) >= stepLimit {
		c.srv.illegal(c, "it sends heartbeats and does not read their ACKs")
		c.abort()
		return
	}
	i := len(c.steps)
	for i > 0 && c.steps[i-1].after > after {
		i--
	}
	c.steps = slices.Insert(c.steps, i, step{after, a})
	c.leaving = c.leaving || a.expelling()
	c.nudge()
}

func (c *conn) enqueueAll(after int64, actions []Action) {
	for _, a := range actions {
		c.enqueue(after+a.later, a)
	}
}

// nudge makes the writer look again.
func (c *conn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write sends what there is until the connection ends.
func (c *conn) write() {
	var batch []frame
	var payload []byte
	for {
		var a Action
		var first int64
		var ok bool
		if batch, first, a, ok = c.next(batch[:0]); !ok {
			return
		}
		var err error
		if len(batch) == 0 {
			err = c.perform(a)
		} else {
			payload, err = c.sendBatch(batch, first, payload)
		}
		if err != nil {
			_ = c.wire.Close() // makes the reader end, which books it
			return
		}
	}
}

// next waits for what is to be sent next: dispatches, the first of which has
// the number first, or an action.
func (c *conn) next(batch []frame) (_ []frame, first int64, _ Action, ok bool) {
	s := c.srv
	for {
		s.mu.Lock()
		if c.ending {
			s.mu.Unlock()
			return batch, 0, Action{}, false
		}
		if len(c.steps) > 0 && c.steps[0].after <= c.cursor {
			a := c.steps[0].action
			c.steps = slices.Delete(c.steps, 0, 1)
			s.mu.Unlock()
			return batch, 0, a, true
		}
		if batch, first = c.take(batch); len(batch) > 0 {
			s.mu.Unlock()
			return batch, first, Action{}, true
		}
		s.mu.Unlock()
		<-c.wake
	}
}

// take takes dispatches up to the next step. s.mu is held.
func (c *conn) take(batch []frame) (_ []frame, first int64) {
	ss := c.session
	if ss == nil {
		return batch, 0
	}
	c.enc.payloads = ss.compress
	first = c.cursor + 1
	last := min(ss.seq, c.cursor+batchLimit)
	if len(c.steps) > 0 {
		last = min(last, c.steps[0].after)
	}
	for ; c.cursor < last; c.cursor++ {
		batch = append(batch, ss.frames.at(c.cursor+1))
	}
	if c.srv.blocked > 0 {
		c.srv.room.Broadcast()
	}
	return batch, first
}

// sendBatch sends dispatches in as few system calls as it can. It returns the
// buffer for the next batch.
func (c *conn) sendBatch(batch []frame, first int64, payload []byte) ([]byte, error) {
	c.wire.cork()
	var err error
	for i := range batch {
		payload = batch[i].append(payload[:0], first+int64(i))
		if err = c.send(payload, true); err != nil {
			break
		}
	}
	clear(batch)
	return payload, errors.Join(err, c.wire.uncork())
}

// send sends one payload in the connection's encoding.
func (c *conn) send(payload []byte, dispatch bool) error {
	typ, messages, err := c.enc.encode(payload, dispatch)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if err := c.ws.Write(c.ctx, typ, m); err != nil {
			return err
		}
	}
	return nil
}

// perform does an action, in the writer.
func (c *conn) perform(a Action) error {
	switch a.verb {
	case verbSend, verbReconnect:
		return c.send(a.payload, false)
	case verbInvalidate:
		c.invalidate(a.code == 1)
		return c.send(a.payload, false)
	case verbCorrupt:
		typ, broken := c.enc.corrupt()
		return c.ws.Write(c.ctx, typ, broken)
	case verbText:
		return c.ws.Write(c.ctx, websocket.MessageText, a.payload)
	case verbDelay:
		c.sleep(a.wait)
		return nil
	case verbSkip:
		return nil
	case verbClose:
		c.end(a.code)
		return c.sendClose(a.code)
	case verbSilence:
		c.silence()
		return nil
	case verbReset:
		c.reset()
		return nil
	default: // Drop: Arm refuses what is left
		c.end(1006)
		return c.wire.closeWrite()
	}
}

// sleep waits unless the connection or the server ends.
func (c *conn) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return
		case <-c.srv.done:
			return
		case <-c.wake:
			c.srv.mu.Lock()
			ending := c.ending
			c.srv.mu.Unlock()
			if ending {
				c.nudge() // for next
				return
			}
		}
	}
}

// invalidate books an op 9. If it is not resumable, the session is gone.
func (c *conn) invalidate(resumable bool) {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	ss := c.session
	if ss == nil {
		return
	}
	c.detach()
	if !resumable {
		s.kill(ss, "it was invalidated with op 9", false)
		ss.tell(c.client)
	}
}

// end books that Discord ends the connection.
func (c *conn) end(code int) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.bookEnd(code)
}

// bookEnd is end with s.mu held.
func (c *conn) bookEnd(code int) {
	if c.ending {
		return
	}
	s := c.srv
	c.ending, c.leaving = true, true
	s.note(Entry{Kind: ServerClosed, Conn: c.id, Shard: c.shard, Session: c.sessionID(), Code: code})
	if ss := c.session; ss != nil && ends(code) {
		// Deaf: it was refused, for what it must not do.
		s.kill(ss, fmt.Sprintf("the connection was closed with %d", code), c.deaf)
	}
	c.detach()
	_ = c.wire.SetReadDeadline(time.Now().Add(closeGrace)) // as in extend
}

// reset is Reset in the writer.
func (c *conn) reset() {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.abort()
}

// abort books the end and resets the TCP connection, whatever the writer is
// at. s.mu is held.
func (c *conn) abort() {
	c.bookEnd(1006)
	c.wire.reset()
	c.nudge()
}

// ends tells whether a close code ends the session: the class "start a new
// one" of the documented and known codes.
func ends(code int) bool {
	return code == 4001 || code >= 4003 && code <= 4007 || code >= 4009 && code <= 4014
}

// silence books that the connection is half-open from now on.
func (c *conn) silence() {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(Entry{Kind: Silenced, Conn: c.id, Shard: c.shard, Session: c.sessionID()})
	c.ending, c.leaving, c.silenced = true, true, true
	c.wire.muted.Store(true)
	c.detach()
	_ = c.wire.SetReadDeadline(time.Time{}) // as in extend; the socket stays until the client gives up
}

// sendClose writes a close frame by hand (RFC 6455, section 5.5.1): the
// library would refuse some codes, and wait for the answer. Nothing is written
// after it.
func (c *conn) sendClose(code int) error {
	close := []byte{0x88, 0}
	if code != 1005 {
		close[1] = 2
		close = binary.BigEndian.AppendUint16(close, uint16(code))
	}
	if _, err := c.wire.Write(close); err != nil {
		return err
	}
	c.wire.muted.Store(true)
	return nil
}
