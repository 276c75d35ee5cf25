package discord

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	// WriteTimeout bounds one write to the socket.
	WriteTimeout = 10 * time.Second
	// CloseGrace bounds Close: Discord has this long to answer a close frame.
	CloseGrace = time.Second

	// SendLimit is how many sends Discord takes within SendWindow. One more
	// costs the connection, and in the end the token (Discord: Rate Limiting).
	SendLimit = 120
	// SendWindow is the length of the sliding window to which SendLimit applies.
	SendWindow = time.Minute
	// SendRoom is the part of SendLimit that Command leaves to Send: for
	// heartbeats, including those that Discord asks for, IDENTIFY and RESUME. It
	// also allows for sends that a delay in the network makes arrive together.
	SendRoom = 10
)

// Conn is one WebSocket connection to the gateway. Read and Release are for one
// goroutine, the other methods are safe for concurrent use.
//
// When a context ends, no method returns early: the library would drop the
// socket without a close frame. Close ends a Read and a write; a write also
// ends after WriteTimeout.
type Conn struct {
	ws          *websocket.Conn
	reading     context.Context // of all reads; it never ends
	socket      net.Conn
	ahead       time.Duration
	compression Compression
	inflater    *inflater // nil without compression
	payload     payload
	parser      frameParser
	received    func(wire, inflated int)

	mu   sync.Mutex // guards sent
	sent Window
}

// Read returns the next payload, which is valid until the next Read. With a
// *PayloadError only this payload is lost, and the frame is what could be read
// of it. After any other error the connection has to be closed: the error wraps
// ErrDefect, or it is the one that ended the socket, of which CloseCodeOf knows
// Discord's close code.
func (c *Conn) Read() (Frame, error) {
	if err := c.readPayload(); err != nil {
		return noFrame, err
	}
	f, err := c.parser.parse(c.payload.b)
	if tooLarge := c.payload.err(); tooLarge != nil {
		err = tooLarge // the parser saw the beginning only
	}
	return f, err
}

// readPayload reads as many messages as the payload has.
func (c *Conn) readPayload() error {
	if c.payload.reset() {
		c.parser = frameParser{} // it points into the memory that was given up
	}
	for {
		kind, message, err := c.ws.Reader(c.reading)
		switch {
		case err != nil:
			return err
		case kind == websocket.MessageText || c.inflater == nil:
			if c.payload.size > 0 {
				return fmt.Errorf("%w: a text message within a compressed payload", ErrDefect)
			}
			// A text message is never part of a compressed stream.
			_, err = c.payload.ReadFrom(message)
			c.received(c.payload.size, 0)
			return err
		}
		err = c.inflater.inflate(message)
		c.received(c.inflater.size, 0)
		if err != nil {
			return err
		}
		if c.compression != ZlibStream || c.inflater.flushed() {
			c.received(0, c.payload.size)
			return nil
		}
	}
}

// Compression returns how Discord compresses what it sends on this connection.
func (c *Conn) Compression() Compression { return c.compression }

// Ahead returns how much Discord's clock is ahead of this machine's, to a second;
// 0 if it did not say.
func (c *Conn) Ahead() time.Duration { return c.ahead }

// Send writes a payload that cannot wait. The payload counts against SendLimit,
// but is sent even if that is used up. The error is a *SizeError if d is too
// large; nothing was sent then.
func (c *Conn) Send(ctx context.Context, op int, d any) error {
	return c.write(ctx, op, d, func(now time.Time) error {
		c.sent.Add(now)
		return nil
	})
}

// Command writes a payload that can wait. The error is a *LimitError when
// SendLimit is used up, except for SendRoom, and a *SizeError if d is too
// large; nothing was sent then.
func (c *Conn) Command(ctx context.Context, op int, d any) error {
	return c.write(ctx, op, d, func(now time.Time) error {
		if wait := c.sent.Wait(now, SendRoom); wait > 0 {
			return &LimitError{wait}
		}
		c.sent.Add(now)
		return nil
	})
}

// write sends a payload unless count refuses it.
func (c *Conn) write(ctx context.Context, op int, d any, count func(time.Time) error) error {
	b, err := Encode(op, d)
	if err == nil {
		c.mu.Lock()
		err = count(time.Now())
		c.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("send op %d: %w", op, err)
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), WriteTimeout, errors.New("the socket accepts no data"))
	defer cancel()
	if err := c.ws.Write(ctx, websocket.MessageText, b); err != nil {
		return fmt.Errorf("send op %d: %w", op, err)
	}
	return nil
}

// LimitError says that the limit of sends is used up.
type LimitError struct {
	Wait time.Duration // until there is room
}

// Error implements error.
func (e *LimitError) Error() string {
	return fmt.Sprintf("the %d sends that Discord takes in %v are used up", SendLimit, SendWindow)
}

// Close sends a close frame and ends the connection within CloseGrace, even if
// the other side does not answer. A Read under way returns. reason has at most
// 123 bytes (RFC 6455, section 5.5).
func (c *Conn) Close(code CloseCode, reason string) {
	// An error of either close means that the other side was faster.
	cut := time.AfterFunc(CloseGrace, func() { _ = c.socket.Close() })
	defer cut.Stop()
	_ = c.ws.Close(websocket.StatusCode(code), reason)
}

// Release frees the decoder. It is called after Close, once no Read is under
// way.
func (c *Conn) Release() {
	if c.inflater != nil {
		c.inflater.close()
	}
}
