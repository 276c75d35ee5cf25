package discord

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"syscall"
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
	// Compression of the messages from Discord. The zero value means ZlibStream.
	Compression Compression
	// MaxPayload bounds one payload, inflated, in bytes: a few bytes of a
	// hostile stream could otherwise fill the memory. A larger payload is
	// lost, see PayloadError. 0 means 64 MiB.
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
		cfg.Compression = ZlibStream
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
// cause. Every error is a *DialError. The caller ends the
// connection with Close and then calls Release.
func (d *Dialer) Dial(ctx context.Context, gatewayURL string) (*Conn, error) {
	target, compression, err := dialURL(gatewayURL, d.cfg.Compression)
	if err != nil {
		return nil, &DialError{Reason: "other", Err: fmt.Errorf("dial the gateway: %w", err)}
	}
	c := &Conn{
		reading:     context.WithoutCancel(ctx),
		compression: compression, payload: payload{limit: d.cfg.MaxPayload}, received: d.cfg.Received,
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
	ws, answer, err := websocket.Dial(ctx, target, &websocket.DialOptions{ //nolint:bodyclose // the library says: never close it
		HTTPClient: &http.Client{Transport: transport, CheckRedirect: followNone},
		HTTPHeader: http.Header{"User-Agent": {d.cfg.Agent}},
	})
	if err != nil {
		transport.CloseIdleConnections() // ends a dial that would go on without ctx
		reason := dialFailure(err, answer)
		if ctx.Err() != nil {
			if reason == "other" && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				reason = "timeout" // err may be nothing but the cause
			}
			err = context.Cause(ctx)
		}
		return nil, &DialError{Reason: reason, Err: fmt.Errorf("dial the gateway: %w", err)}
	}
	ws.SetReadLimit(-1) // payload has the limit, and goes on after one that is too large
	c.ws, c.ahead = ws, ahead(answer.Header.Get("Date"), time.Now())
	if c.compression != NoCompression {
		c.inflater = newInflater(c.compression, &c.payload)
	}
	return c, nil
}

// DialError is why a connection could not be opened.
type DialError struct {
	// Reason is a label: dns, refused, timeout, tls, http_status or other.
	Reason string
	Err    error
}

// Error implements error. It may contain an address of this machine.
func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// dialFailure returns the reason of a failed handshake; answer is what came
// instead of an upgrade, nil for nothing.
func dialFailure(err error, answer *http.Response) string {
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "dns"
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "timeout"
	}
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	op, alert := errors.AsType[*net.OpError](err)
	alert = alert && (op.Op == "remote error" || op.Op == "local error") // as crypto/tls calls alerts
	switch {
	case answer != nil && answer.StatusCode != http.StatusSwitchingProtocols:
		return "http_status"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case unverified, noTLS, alert, errors.Is(err, http.ErrSchemeMismatch):
		return "tls"
	default:
		return "other"
	}
}

// ahead returns how much a Date header is ahead of now. It has no fractions of a
// second, so less than two seconds are none.
func ahead(date string, now time.Time) time.Duration {
	at, err := http.ParseTime(date)
	if err != nil {
		return 0
	}
	if d := at.Sub(now); d.Abs() >= 2*time.Second {
		return d
	}
	return 0
}

// followNone makes an HTTP client follow no redirect: the token would be sent
// wherever the redirect points.
func followNone(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// WithCompression returns a gateway URL that asks for a compression, unless it
// asks for one already. A session is stored with such a URL: its RESUME needs the
// query of its IDENTIFY (Discord: Preparing to Resume), whatever the settings say by
// then. What is no URL is returned as it is.
func WithCompression(gatewayURL string, c Compression) string {
	u, err := url.Parse(gatewayURL)
	if err != nil || u.Query().Has("compress") {
		return gatewayURL
	}
	q := u.Query()
	q.Set("compress", string(c))
	u.RawQuery = q.Encode()
	return u.String()
}

// CompressionOf returns the compression that a gateway URL asks for; "" for none.
func CompressionOf(gatewayURL string) Compression {
	u, err := url.Parse(gatewayURL)
	if err != nil {
		return ""
	}
	return Compression(u.Query().Get("compress"))
}

// dialURL adds the query of every connection (Discord: Gateway URL Query String
// Params). The version is never left out: Discord's default, 6, no longer
// works. A compression in gatewayURL comes before the usual one.
func dialURL(gatewayURL string, usual Compression) (string, Compression, error) {
	u, err := url.Parse(gatewayURL)
	if err != nil {
		return "", "", err
	}
	if u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" {
		return "", "", fmt.Errorf("%q is not a WebSocket URL", gatewayURL)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	q := u.Query()
	c := Compression(q.Get("compress"))
	if c != ZstdStream && c != ZlibStream && c != NoCompression {
		c = usual
	}
	q.Set("v", "10")
	q.Set("encoding", "json")
	q.Del("compress")
	if c != NoCompression {
		q.Set("compress", string(c))
	}
	u.RawQuery = q.Encode()
	return u.String(), c, nil
}
