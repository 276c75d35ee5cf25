package delivery

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// responseRead is how much of a response is read, in bytes, so that its
	// connection can be used again; a longer one is cut off.
	responseRead = 64 << 10
	// headerRead bounds a response's header, in bytes.
	headerRead = 32 << 10
)

// class is what became of an attempt, for metrics: few and fixed.
type class int

const (
	class2xx class = iota
	class3xx
	class4xx
	class429
	class5xx
	classTimeout
	classRefused
	classDNS
	classTLS
	classConnection
	classes // how many there are
)

// String is the metric's label.
func (c class) String() string {
	return [...]string{"2xx", "3xx", "4xx", "429", "5xx", "timeout", "refused", "dns", "tls", "connection"}[c]
}

// result is what one attempt saw.
type result struct {
	// status is 0 when there was no response.
	status     int
	retryAfter string
	// response is the body: of what do returned at most responseRead, of what
	// send returned at most responseKept and without the event's tokens.
	response []byte
	duration time.Duration
	class    class
	// err is why there was no usable response. Its text holds neither the
	// callback's path nor any header, nor anything that the callback sent.
	err error
}

// target is how to reach a listener: what of its registration is worth
// preparing once instead of at every attempt.
type target struct {
	listener *event.Listener
	url      *url.URL
	header   http.Header // the listener's own
	signer   *signer
}

func newTarget(l *event.Listener) (*target, error) {
	u, err := url.Parse(l.URL)
	if err != nil {
		// Without the error's text: it holds the whole URL.
		return nil, errors.New("the listener's url can't be parsed: set it again")
	}
	s, err := newSigner(l)
	if err != nil {
		return nil, err
	}
	t := &target{listener: l, url: u, signer: s, header: make(http.Header, len(l.Headers))}
	for name, value := range l.Headers {
		t.header.Set(name, value)
	}
	return t, nil
}

// senderConfig of a sender.
type senderConfig struct {
	Allow   []netip.Prefix
	Timeout time.Duration
	Version string
	// Proxy tells through which proxy, if any, a callback over TLS is asked for;
	// nil for none ever.
	Proxy func(*url.URL) (*url.URL, error)
	// Resolver looks names up; nil for the system's.
	Resolver *net.Resolver
	// Key signs in the format discord. It is asked at every attempt.
	Key func() signingKey
}

// sender makes attempts. All lanes share one, and so its connections.
type sender struct {
	allow []netip.Prefix
	// direct dials callbacks itself and asks the guard; proxied asks a proxy
	// for them, and dials nothing else.
	direct, proxied *http.Transport
	proxy           func(*url.URL) (*url.URL, error)

	timeout   time.Duration
	userAgent []string
	key       func() signingKey
}

func newSender(c senderConfig) *sender {
	s := &sender{
		timeout:   c.Timeout,
		key:       c.Key,
		userAgent: []string{"Gatehook/" + c.Version},
		allow:     c.Allow,
		direct:    newTransport(guard{allow: c.Allow}.dialer(c.Resolver)),
	}
	if c.Proxy != nil {
		s.proxy = c.Proxy
		// The proxy's own address is the operator's choice: no guard.
		s.proxied = newTransport(&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive, Resolver: c.Resolver})
		s.proxied.Proxy = func(r *http.Request) (*url.URL, error) { return c.Proxy(r.URL) }
		s.proxied.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			return fmt.Errorf("the proxy answered %d to CONNECT", resp.StatusCode)
		}
	}
	return s
}

func newTransport(d *net.Dialer) *http.Transport {
	return &http.Transport{
		DialContext:         d.DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		// As many as may be in flight to one host, where many listeners have
		// it: what is over is closed after its POST and dialed anew.
		MaxIdleConnsPerHost:    2048,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: headerRead,
		// A compressed response could inflate to anything.
		DisableCompression: true,
		ForceAttemptHTTP2:  true,
		TLSClientConfig:    &tls.Config{MinVersion: tls.VersionTLS12},
	}
}

func (s *sender) close() {
	s.direct.CloseIdleConnections()
	if s.proxied != nil {
		s.proxied.CloseIdleConnections()
	}
}

// route is the transport for a callback, or why there is none. A proxy looks
// the names up by itself, so that only the proxy can refuse what they resolve
// to; what is an address is refused here. Callbacks without TLS are for
// addresses of the operator's own network: they are never asked for through a
// proxy.
func (s *sender) route(u *url.URL) (*http.Transport, error) {
	if s.proxy == nil || u.Scheme != "https" {
		return s.direct, nil
	}
	by, err := s.proxy(u)
	if err != nil {
		return nil, fmt.Errorf("choose a proxy: %w", err)
	}
	if by == nil {
		return s.direct, nil
	}
	return s.proxied, CheckTarget(s.allow, u)
}

// send makes one attempt: one POST, no redirects, all of it within the
// timeout. The transport may go on to read body after send has returned;
// attempt counts from 1.
func (s *sender) send(ctx context.Context, t *target, e *event.Stored, body []byte, id ID, attempt int) result {
	ctx, cancel := context.WithTimeoutCause(ctx, timeoutOf(&e.Event, s.timeout), errTimeout)
	defer cancel()
	if t.url.Scheme == "http" {
		ctx = context.WithValue(ctx, plainKey{}, true)
	}
	start := time.Now()
	r := s.do(ctx, t, s.header(t, e, id, attempt, start, body), body)
	r.duration = time.Since(start)
	r.response = excerpt(&r, e.Data)
	return r
}

// excerpt is what an attempt keeps of a response. Callbacks echo what they
// can't handle, and people read excerpts: tokens go, before a cut could leave
// half of one. A success keeps nothing (attemptRows.add) and is not searched.
func excerpt(r *result, data []byte) []byte {
	text := r.response
	if r.err != nil || r.class != class2xx {
		text = event.RedactTokens(text, data)
	}
	return text[:min(len(text), responseKept)]
}

// interaction is the event that is worth nothing after 3 s.
const interaction = "INTERACTION_CREATE"

// interactionTimeout bounds an attempt to deliver an interaction: Discord waits
// 3 s for the answer to it, from when it sent it.
const interactionTimeout = 2500 * time.Millisecond

// timeoutOf bounds one attempt to deliver an event.
func timeoutOf(e *event.Event, usual time.Duration) time.Duration {
	if e.Name == interaction {
		return min(usual, interactionTimeout)
	}
	return usual
}

var errTimeout = errors.New("no complete response within the attempt timeout")

func (s *sender) header(t *target, e *event.Stored, id ID, attempt int, at time.Time, body []byte) http.Header {
	webhookID, timestamp := id.String(), strconv.FormatInt(at.Unix(), 10)
	h := make(http.Header, 12+len(t.header))
	maps.Copy(h, t.header)
	// Canonical keys, set directly: Set would search each one again.
	h["Content-Type"] = jsonType
	h["User-Agent"] = s.userAgent
	values := make([]string, 0, 10)
	set := func(name, value string) {
		values = append(values, value) // one allocation for all
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	set("Webhook-Id", webhookID)
	set("Webhook-Timestamp", timestamp)
	set("Webhook-Signature", t.signer.sign(webhookID, timestamp, body))
	set("Gatehook-Event", deliveredName(t.listener, &e.Event))
	set("Gatehook-Event-Id", e.ID.String())
	set("Gatehook-Attempt", strconv.Itoa(attempt))
	set("Gatehook-Shard", e.Shard.String())
	set("Traceparent", traceparent(e.ID))
	if t.listener.Format == event.FormatDiscord {
		set("X-Signature-Ed25519", s.key().sign(timestamp, body))
		set("X-Signature-Timestamp", timestamp)
	}
	return h
}

var jsonType = []string{"application/json"}

func (s *sender) do(ctx context.Context, t *target, h http.Header, body []byte) result {
	transport, err := s.route(t.url)
	if err != nil {
		return result{class: classRefused, err: err}
	}
	// Of this very type, which the transport knows not to block: with any other
	// it would send the header in a packet of its own.
	again := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	reader, _ := again()
	req := (&http.Request{
		Method: http.MethodPost, URL: t.url, Host: t.url.Host, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: reader, ContentLength: int64(len(body)), GetBody: again,
	}).WithContext(ctx)
	// The transport itself, not http.Client: a client follows redirects.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return failed(ctx, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing is lost with it
	r := result{status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After"), class: classOf(resp.StatusCode)}
	if resp.Body == http.NoBody {
		return r
	}
	r.response, err = io.ReadAll(io.LimitReader(resp.Body, responseRead))
	if err != nil {
		// A response that never ends has not answered.
		f := failed(ctx, err)
		f.status, f.response = r.status, r.response
		return f
	}
	return r
}

func classOf(status int) class {
	if status == http.StatusTooManyRequests {
		return class429
	}
	switch status / 100 {
	case 2:
		return class2xx
	case 3:
		return class3xx
	case 4:
		return class4xx
	default:
		return class5xx
	}
}

// failed turns a transport's error into a result whose text is safe to show.
func failed(ctx context.Context, err error) result {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errTimeout) {
			return result{class: classTimeout, err: errTimeout}
		}
		return result{class: classConnection, err: fmt.Errorf("the attempt was ended: %w", cause)}
	}
	var (
		refused  *RefusedAddressError
		dns      *net.DNSError
		verify   *tls.CertificateVerificationError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		record   tls.RecordHeaderError
		alert    tls.AlertError
		op       *net.OpError
		timeout  net.Error
	)
	switch {
	case errors.As(err, &refused):
		return result{class: classRefused, err: refused}
	case errors.As(err, &dns):
		return result{class: classDNS, err: fmt.Errorf("the name %s does not resolve: %s", dns.Name, dns.Err)}
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &hostname), errors.As(err, &record), errors.As(err, &alert):
		return result{class: classTLS, err: fmt.Errorf("TLS: %w", err)}
	case errors.As(err, &timeout) && timeout.Timeout():
		return result{class: classTimeout, err: errTimeout}
	case errors.As(err, &op):
		return result{class: classConnection, err: fmt.Errorf("%s: %w", op.Op, op.Err)}
	default:
		return result{class: classConnection, err: unquoted(err)}
	}
}

// unquoted is an error of the transport without what it quotes. That is what
// the callback sent in place of a response, at any length: it may be a payload
// with its tokens, even that of the delivery before on the same connection.
func unquoted(err error) error {
	text, _, quotes := strings.Cut(err.Error(), `"`)
	if !quotes {
		return err
	}
	return errors.New(strings.TrimRight(text, " "))
}
