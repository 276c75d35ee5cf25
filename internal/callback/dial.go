package callback

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"golang.org/x/net/proxy"
)

// handshakeTimeout bounds a TLS handshake.
const handshakeTimeout = 10 * time.Second

// dialer makes connections to callbacks.
type dialer struct {
	allow []netip.Prefix
	// direct dials callbacks and asks the guard. plain dials only proxies, whose
	// addresses the operator chose.
	direct, plain *net.Dialer
	proxy         func(*url.URL) (*url.URL, error)
	tls           *tls.Config
}

func newDialer(c Config) dialer {
	return dialer{
		allow:  c.Allow,
		direct: guard{allow: c.Allow}.dialer(c.Resolver),
		plain:  &net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive, Resolver: c.Resolver},
		proxy:  c.Proxy,
		tls: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    c.Roots,
			// HTTP/2 would put all POSTs to a host on one connection, where a
			// lost packet delays all of them.
			NextProtos: []string{"http/1.1"},
			// A POST is written in one piece. Without this, a new connection would send
			// small records, and the POST would take several packets.
			DynamicRecordSizingDisabled: true,
		},
	}
}

// refusal is the reason why a target is not dialed.
type refusal struct{ error }

// connect opens a connection to a target, over TLS if the target uses it, and sets the
// deadline. The caller must close it.
func (d *dialer) connect(ctx context.Context, t *Target, deadline time.Time) (*conn, error) {
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, errTimeout)
	defer cancel()
	if t.url.Scheme == "http" {
		ctx = context.WithValue(ctx, plainKey{}, true)
	}
	socket, end, err := d.reach(ctx, t)
	if err == nil && t.url.Scheme == "https" {
		end, err = d.secure(ctx, end, hostOf(t.address))
	}
	var raw syscall.RawConn
	if err == nil {
		raw, err = rawOf(socket)
	}
	var c *conn
	if err == nil {
		c = newConn(end, raw)
		err = c.expire(deadline)
	}
	if err != nil {
		if socket != nil {
			_ = socket.Close()
		}
		return nil, err
	}
	return c, nil
}

func rawOf(c net.Conn) (syscall.RawConn, error) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a connection of type %T has no socket", c)
	}
	return s.SyscallConn() //nolint:wrapcheck // failed describes it
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// secure makes the TLS handshake.
func (d *dialer) secure(ctx context.Context, c net.Conn, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	config := d.tls.Clone()
	config.ServerName = host
	secured := tls.Client(c, config)
	return secured, secured.HandshakeContext(ctx) //nolint:wrapcheck // failed describes it
}

// reach connects to a target, directly or through a proxy. It returns the socket and
// end, the connection to the target: they differ if the proxy itself is reached over
// TLS. A proxy resolves names itself, so only the proxy can refuse their addresses. An
// address in the URL is checked here. Callbacks without TLS are in the operator's own
// network, and are never reached through a proxy.
func (d *dialer) reach(ctx context.Context, t *Target) (socket, end net.Conn, err error) {
	var via *url.URL
	if d.proxy != nil && t.url.Scheme == "https" {
		if via, err = d.proxy(t.url); err != nil {
			return nil, nil, refusal{fmt.Errorf("choose a proxy: %w", err)}
		}
	}
	if via == nil {
		socket, err = d.direct.DialContext(ctx, "tcp", t.address)
		return socket, socket, err //nolint:wrapcheck // failed describes it
	}
	if err := CheckTarget(d.allow, t.url); err != nil {
		return nil, nil, refusal{err}
	}
	if socket, err = d.plain.DialContext(ctx, "tcp", proxyAddress(via)); err == nil {
		end, err = d.tunnel(ctx, socket, via, t.address)
	}
	if err != nil {
		err = &net.OpError{Op: "proxyconnect", Net: "tcp", Err: err}
	}
	return socket, end, err
}

func proxyAddress(via *url.URL) string { return net.JoinHostPort(via.Hostname(), portOf(via)) }

// tunnel asks a proxy for a connection to an address.
func (d *dialer) tunnel(ctx context.Context, c net.Conn, via *url.URL, address string) (net.Conn, error) {
	switch via.Scheme {
	case "socks5", "socks5h":
		return socks(ctx, c, via, address)
	case "https":
		var err error
		if c, err = d.secure(ctx, c, via.Hostname()); err != nil {
			return c, err
		}
	}
	var err error
	if !interruptible(ctx, c, func() { err = sendConnect(c, via, address) }) {
		err = context.Cause(ctx)
	}
	return c, err
}

// sendConnect sends a CONNECT (RFC 9110, 9.3.6) and checks the proxy's answer.
func sendConnect(c net.Conn, via *url.URL, address string) error {
	request := []byte("CONNECT " + address + " HTTP/1.1\r\n")
	request = appendField(request, "Host", address)
	if via.User != nil {
		password, _ := via.User.Password()
		request = appendField(request, "Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(via.User.Username()+":"+password)))
	}
	if _, err := c.Write(append(request, "\r\n"...)); err != nil {
		return err //nolint:wrapcheck // the caller describes it
	}
	limited := newConn(c, nil)
	limited.budget = maxHeader
	// A callback does not send first, so bytes after the answer are the proxy's.
	resp, err := http.ReadResponse(limited.in, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // it has none
	switch {
	case err != nil:
		return unquoted(err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the proxy answered %d to CONNECT", resp.StatusCode)
	case limited.in.Buffered() > 0:
		return errors.New("the proxy sent more than its answer to CONNECT")
	}
	return nil
}

// socks asks a SOCKS5 proxy (RFC 1928) for a connection to an address.
func socks(ctx context.Context, c net.Conn, via *url.URL, address string) (net.Conn, error) {
	var auth *proxy.Auth
	if via.User != nil {
		password, _ := via.User.Password()
		auth = &proxy.Auth{User: via.User.Username(), Password: password}
	}
	d, err := proxy.SOCKS5("tcp", proxyAddress(via), auth, opened{c})
	if err != nil {
		return c, err //nolint:wrapcheck // the caller describes it
	}
	asking, ok := d.(proxy.ContextDialer)
	if !ok {
		return c, errors.New("the SOCKS5 dialer can't be interrupted")
	}
	return asking.DialContext(ctx, "tcp", address) //nolint:wrapcheck // the caller describes it
}

// opened is a dialer whose connection is already open.
type opened struct{ net.Conn }

// Dial returns the connection.
func (d opened) Dial(string, string) (net.Conn, error) { return d.Conn, nil }

// DialContext returns the connection.
func (d opened) DialContext(context.Context, string, string) (net.Conn, error) { return d.Conn, nil }
