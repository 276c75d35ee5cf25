package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	dialTimeout  = 20 * time.Second
	writeTimeout = 10 * time.Second
	// closeGrace is how long Discord is given to answer a close frame.
	closeGrace = time.Second
	// maxSend is the largest payload that Discord takes, in bytes. A larger
	// one costs the connection (Discord: Sending Events).
	maxSend = 4096
	// sendLimit is how many sends Discord takes within sendWindow. One more
	// costs the connection, and in the end the token (Discord: Rate Limiting).
	sendLimit  = 120
	sendWindow = time.Minute
	// sendRoom of them are kept for what can't wait: heartbeats, those that
	// Discord asks for, IDENTIFY and RESUME. It is also what a jam on the way
	// to Discord may push together.
	sendRoom = 10
)

// conn is one WebSocket connection. read is for one goroutine, send and close
// are for any.
type conn struct {
	ws          *websocket.Conn
	socket      net.Conn
	compression Compression
	limit       int
	inflater    *inflater // nil without compression
	parser      frameParser
	message     bytes.Buffer
	metrics     *metrics

	mu   sync.Mutex
	sent window
}

// dialer opens connections. It is shared by all shards.
type dialer struct {
	agent       string
	compression Compression
	limit       int // of one payload, in bytes, as it arrives and inflated
	metrics     *metrics
	// socket opens what is beneath them.
	socket func(ctx context.Context, network, addr string) (net.Conn, error)
}

func newDialer(agent string, compression Compression, m *metrics) *dialer {
	return &dialer{agent: agent, compression: compression, limit: maxPayload, metrics: m, socket: new(net.Dialer).DialContext}
}

// dial opens a connection to a gateway URL. The caller ends it with close and
// then calls release.
func (d *dialer) dial(ctx context.Context, gatewayURL string) (*conn, error) {
	target, err := dialURL(gatewayURL, d.compression)
	if err != nil {
		return nil, fmt.Errorf("dial the gateway: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer within %v", dialTimeout))
	defer cancel()
	c := &conn{compression: d.compression, limit: d.limit, metrics: d.metrics, sent: window{length: sendWindow, limit: sendLimit}}
	// The socket is kept so that close can be bounded: the library waits up to
	// ten seconds for a peer that says nothing.
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives:   true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			socket, err := d.socket(ctx, network, addr)
			c.socket = socket
			return socket, err
		},
	}
	ws, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{ //nolint:bodyclose // the library says: never close it
		HTTPClient: &http.Client{
			Transport: transport,
			// IDENTIFY would carry the token to wherever a redirect points.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader: http.Header{"User-Agent": {d.agent}},
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("dial the gateway: %w", err)
	}
	ws.SetReadLimit(int64(d.limit))
	c.ws = ws
	if d.compression != NoCompression {
		c.inflater = newInflater(d.compression, d.limit)
	}
	return c, nil
}

// dialURL adds what every connection says (Discord: Gateway URL Query String
// Params). Discord's v=6 default is dead, so the version is never left out.
func dialURL(gatewayURL string, compression Compression) (string, error) {
	u, err := url.Parse(gatewayURL)
	if err != nil {
		return "", err
	}
	if u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" {
		return "", fmt.Errorf("%q is not a WebSocket URL", gatewayURL)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	q := u.Query()
	q.Set("v", "10")
	q.Set("encoding", "json")
	q.Del("compress")
	if compression != NoCompression {
		q.Set("compress", string(compression))
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// read returns the next payload, valid until the next call. ctx must be one
// that is never canceled: the library would drop the socket without a close
// frame. A read ends with close.
func (c *conn) read(ctx context.Context) (frame, error) {
	payload, err := c.readMessage(ctx)
	if err != nil {
		return frame{}, err
	}
	f, err := c.parser.parse(payload)
	if err != nil && !errors.Is(err, errOddFrame) {
		err = fmt.Errorf("%w: %w", errDefect, err)
	}
	return f, err
}

func (c *conn) readMessage(ctx context.Context) ([]byte, error) {
	if c.message.Cap() > keepPayload {
		c.message = bytes.Buffer{}
	}
	c.message.Reset()
	for {
		start := c.message.Len()
		kind, r, err := c.ws.Reader(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := c.message.ReadFrom(r); err != nil {
			return nil, err
		}
		part := c.message.Bytes()[start:]
		c.metrics.bytesIn.Add(float64(len(part)))
		switch {
		case kind == websocket.MessageText || c.inflater == nil:
			// In a compressed stream a text message is none of its parts.
			return part, nil
		case c.compression == ZlibStream && !bytes.HasSuffix(part, zlibSuffix):
			// The payload goes on in the next message.
			if c.message.Len() > c.limit {
				return nil, fmt.Errorf("%w: %w", errDefect, errTooLarge)
			}
			continue
		}
		payload, err := c.inflater.inflate(c.message.Bytes())
		c.metrics.bytesInflated.Add(float64(len(payload)))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errDefect, err)
		}
		return payload, nil
	}
}

// zlibSuffix ends a payload (Discord: Zlib-stream).
var zlibSuffix = []byte{0x00, 0x00, 0xff, 0xff}

// send writes what can't wait: it counts against the limit of sends and is not
// held to it. It is not ended by ctx, which would drop the socket as well.
func (c *conn) send(ctx context.Context, op int, d any) error {
	return c.write(ctx, op, d, func(now time.Time) error {
		c.sent.add(now)
		return nil
	})
}

// command writes what can wait. The error is a limitError when the limit of
// sends is used up, but for what is kept for send.
func (c *conn) command(ctx context.Context, op int, d any) error {
	return c.write(ctx, op, d, func(now time.Time) error {
		if wait := c.sent.wait(now, sendRoom); wait > 0 {
			return &limitError{wait}
		}
		c.sent.add(now)
		return nil
	})
}

func (c *conn) write(ctx context.Context, op int, d any, count func(time.Time) error) error {
	b, err := command{Op: op, D: d}.encode()
	if err == nil && len(b) > maxSend {
		err = &sizeError{len(b)}
	}
	if err == nil {
		c.mu.Lock()
		err = count(time.Now())
		c.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("send op %d: %w", op, err)
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), writeTimeout, errors.New("the socket takes nothing"))
	defer cancel()
	if err := c.ws.Write(ctx, websocket.MessageText, b); err != nil {
		return fmt.Errorf("send op %d: %w", op, err)
	}
	return nil
}

// limitError says that the limit of sends is used up.
type limitError struct {
	wait time.Duration // until there is room
}

// Error implements error.
func (e *limitError) Error() string {
	return fmt.Sprintf("the %d sends that Discord takes in %v are used up", sendLimit, sendWindow)
}

// sizeError says that a payload is too large.
type sizeError struct{ size int }

// Error implements error.
func (e *sizeError) Error() string {
	return fmt.Sprintf("a payload of %d bytes: Discord takes at most %d", e.size, maxSend)
}

// close sends the close frame and ends the connection within closeGrace, even
// if the other side says nothing. A read under way returns.
func (c *conn) close(code websocket.StatusCode, reason string) {
	// An error of either close means that the other side was faster.
	cut := time.AfterFunc(closeGrace, func() { _ = c.socket.Close() })
	defer cut.Stop()
	_ = c.ws.Close(code, reason)
}

// release frees the decoder, once no read is under way.
func (c *conn) release() {
	if c.inflater != nil {
		c.inflater.close()
	}
}
