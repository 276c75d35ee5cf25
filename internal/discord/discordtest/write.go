package discordtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/websocket"
)

const (
	// maxBatch is how many dispatches the writer takes under one lock and, if
	// they are small, sends in one system call.
	maxBatch = 64
	// maxSteps is how many actions may wait to be sent. Only a client that
	// floods with heartbeats without reading exceeds it.
	maxSteps = 1024
)

// step is an action that is due once the dispatches up to after are sent.
type step struct {
	after  int64
	action Action
}

// enqueueNowLocked adds actions behind the steps that are already due.
func (c *conn) enqueueNowLocked(actions ...Action) {
	for _, a := range actions {
		c.enqueueLocked(c.cursor+a.later, a)
	}
}

// enqueueLocked adds a step behind those that are due no later than it.
func (c *conn) enqueueLocked(after int64, a Action) {
	if len(c.steps) >= maxSteps {
		c.srv.illegalLocked(c, "the client sends heartbeats without reading their ACKs")
		c.abortLocked()
		return
	}
	i := len(c.steps)
	for i > 0 && c.steps[i-1].after > after {
		i--
	}
	c.steps = slices.Insert(c.steps, i, step{after, a})
	c.leaving = c.leaving || a.expels()
	c.nudge()
}

// nudge makes the writer check for work again.
func (c *conn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write sends dispatches and performs actions until the connection ends.
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
			_ = c.wire.Close() // ends the reader, which records the end
			return
		}
	}
}

// next waits for the writer's next work: either dispatches, numbered from first
// on, or an action. ok is false when the connection is ending.
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
		if batch, first = c.takeLocked(batch); len(batch) > 0 {
			s.mu.Unlock()
			return batch, first, Action{}, true
		}
		s.mu.Unlock()
		<-c.wake
	}
}

// takeLocked takes the dispatches before the next step.
func (c *conn) takeLocked(batch []frame) (_ []frame, first int64) {
	ss := c.session
	if ss == nil {
		return batch, 0
	}
	c.enc.payloads = ss.compress
	first = c.cursor + 1
	last := min(ss.seq, c.cursor+maxBatch)
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

// perform performs an action, in the writer.
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
	case verbClose:
		c.end(a.code)
		return c.sendClose(a.code)
	case verbDelay:
		c.sleep(a.wait)
	case verbSilence:
		c.silence()
	case verbReset:
		c.reset()
	case verbSkip:
	default: // Drop, and Status, which is for HTTP requests only
		c.end(1006)
		return c.wire.closeWrite()
	}
	return nil
}

// sleep waits for d, or until the connection or the server ends.
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
				c.nudge() // returns the token, so that next notices
				return
			}
		}
	}
}

// invalidate separates the connection from its session before an op 9, which
// ends the session unless it is resumable.
func (c *conn) invalidate(resumable bool) {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	ss := c.session
	if ss == nil {
		return
	}
	c.detachLocked()
	if !resumable {
		s.killLocked(ss, "it was invalidated with op 9", false)
		ss.markAware(c.client)
	}
}

// end records that Discord ends the connection.
func (c *conn) end(code int) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.endLocked(code)
}

// endLocked is end for callers that hold the lock.
func (c *conn) endLocked(code int) {
	if c.ending {
		return
	}
	s := c.srv
	c.ending, c.leaving = true, true
	s.noteLocked(Entry{Kind: ServerClosed, Conn: c.id, Shard: c.shard, Session: c.sessionIDLocked(), Code: code})
	if ss := c.session; ss != nil && ends(code) {
		// A deaf connection is closed because the client broke a rule.
		s.killLocked(ss, fmt.Sprintf("the connection was closed with %d", code), c.deaf)
	}
	c.detachLocked()
	_ = c.wire.SetReadDeadline(time.Now().Add(closeGrace)) // as in extendLocked
}

// reset performs Reset.
func (c *conn) reset() {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.abortLocked()
}

// abortLocked records the end and resets the TCP connection, without waiting
// for the writer.
func (c *conn) abortLocked() {
	c.endLocked(1006)
	c.wire.reset()
	c.nudge()
}

// ends reports whether a close code ends the session: after these codes,
// documented or observed, a client has to start a new one.
func ends(code int) bool {
	return code == 4001 || code >= 4003 && code <= 4007 || code >= 4009 && code <= 4014
}

// silence makes the connection half-open from now on.
func (c *conn) silence() {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(Entry{Kind: Silenced, Conn: c.id, Shard: c.shard, Session: c.sessionIDLocked()})
	c.ending, c.leaving, c.silenced = true, true, true
	c.wire.muted.Store(true)
	c.detachLocked()
	_ = c.wire.SetReadDeadline(time.Time{}) // as in extendLocked; the socket stays until the client gives up
}

// sendClose writes a close frame by hand (RFC 6455, section 5.5.1), because the
// library would refuse some codes and wait for the answer. Nothing is written
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
