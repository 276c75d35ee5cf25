package discord

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

// DialTimeout bounds a dial, up to the end of the WebSocket handshake.
const DialTimeout = 20 * time.Second

// DialFunc opens the socket beneath a connection, as [net.Dialer.DialContext]
// does.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Config of a Dialer. The zero value of every field is usable.
type Config struct {
	// Agent is the User-Agent header (Discord: User Agent).
	Agent string
	// Compression of the messages from Discord. The zero value means ZstdStream.
	Compression Compression
	// MaxPayload bounds one payload in bytes, both as it arrives and after
	// inflating; 0 means 64 MiB. Without a bound, a few bytes of a hostile stream
	// could fill the memory.
	MaxPayload int
	// Dial opens the sockets; nil means a net.Dialer.
	Dial DialFunc
	// Received, if not nil, is called with the size of every message as it
	// arrived (wire) and with that of every payload that was inflated (inflated),
	// in bytes; the other argument is 0. The readers of all connections call it
	// concurrently.
	Received func(wire, inflated int)
}

// Dialer opens connections. It is safe for concurrent use.
type Dialer struct{ cfg Config }

// NewDialer returns a Dialer, which need not be closed.
func NewDialer(cfg Config) *Dialer {
	if cfg.Compression == "" {
		cfg.Compression = ZstdStream
	}
	if cfg.MaxPayload == 0 {
		cfg.MaxPayload = maxPayload
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Received == nil {
		cfg.Received = func(int, int) {}
	}
	return &Dialer{cfg}
}

// Dial opens a connection to a gateway URL, within DialTimeout. It sets the
// query itself and follows no redirect. If ctx ends first, the error wraps its
// cause. The caller ends the connection with Close and then calls Release.
func (d *Dialer) Dial(ctx context.Context, gatewayURL string) (*Conn, error) {
	target, err := dialURL(gatewayURL, d.cfg.Compression)
	if err != nil {
		return nil, fmt.Errorf("dial the gateway: %w", err)
	}
	c := &Conn{
		reading:     context.WithoutCancel(ctx),
		compression: d.cfg.Compression, maxPayload: d.cfg.MaxPayload, received: d.cfg.Received,
		sent: Window{Length: SendWindow, Limit: SendLimit},
	}
	ctx, cancel := context.WithTimeoutCause(ctx, DialTimeout, fmt.Errorf("no answer within %v", DialTimeout))
	defer cancel()
	// The socket is kept so that Close can be bounded: the library waits up to
	// ten seconds for a peer that does not answer.
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: DialTimeout,
		DisableKeepAlives:   true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			socket, err := d.cfg.Dial(ctx, network, addr)
			c.socket = socket
			return socket, err
		},
	}
	ws, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{ //nolint:bodyclose // the library says: never close it
		HTTPClient: &http.Client{Transport: transport, CheckRedirect: followNone},
		HTTPHeader: http.Header{"User-Agent": {d.cfg.Agent}},
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("dial the gateway: %w", err)
	}
	ws.SetReadLimit(int64(c.maxPayload))
	c.ws = ws
	if c.compression != NoCompression {
		c.inflater = newInflater(c.compression, c.maxPayload)
	}
	return c, nil
}

// followNone makes an HTTP client follow no redirect: the token would be sent
// wherever the redirect points.
func followNone(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// dialURL adds the query of every connection (Discord: Gateway URL Query String
// Params). The version is never left out: Discord's default, 6, no longer
// works.
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
