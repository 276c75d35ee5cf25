package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

const (
	dialTimeout  = 20 * time.Second
	writeTimeout = 10 * time.Second
	// closeGrace is how long Discord is given to answer a close frame.
	closeGrace = time.Second
)

// conn is one WebSocket connection. read is for one goroutine, send and close
// are for any.
type conn struct {
	ws          *websocket.Conn
	socket      net.Conn
	compression Compression
	inflater    *inflater // nil without compression
	parser      frameParser
	message     bytes.Buffer
	metrics     *metrics
}

// dial opens a connection to a gateway URL. The caller ends it with close and
// then calls release.
func dial(ctx context.Context, gatewayURL, agent string, compression Compression, m *metrics) (*conn, error) {
	target, err := dialURL(gatewayURL, compression)
	if err != nil {
		return nil, fmt.Errorf("dial the gateway: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer within %v", dialTimeout))
	defer cancel()
	c := &conn{compression: compression, metrics: m}
	// The socket is kept so that close can be bounded: the library waits up to
	// ten seconds for a peer that says nothing.
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives:   true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			socket, err := new(net.Dialer).DialContext(ctx, network, addr)
			c.socket = socket
			return socket, err
		},
	}
	ws, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{ //nolint:bodyclose // the library says: never close it
		HTTPClient: &http.Client{Transport: transport},
		HTTPHeader: http.Header{"User-Agent": {agent}},
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("dial the gateway: %w", err)
	}
	ws.SetReadLimit(maxPayload)
	c.ws = ws
	if compression != NoCompression {
		c.inflater = newInflater(compression)
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
			if c.message.Len() > maxPayload {
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

// send writes one command. It is not ended by ctx, which would drop the socket
// as well.
func (c *conn) send(ctx context.Context, op int, d any) error {
	b, err := command{Op: op, D: d}.encode()
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
