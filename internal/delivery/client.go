package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

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
	// address is what is dialed: a name or an address, and a port.
	address string
	// endpoint is what connections are kept for.
	endpoint string
	// head is the part of the requests that is the same in all of them.
	head   []byte
	signer *signer
}

func newTarget(l *event.Listener) (*target, error) {
	u, err := url.Parse(l.URL)
	if err != nil {
		// Without the error's text: it holds the whole URL.
		return nil, errors.New("the listener's url can't be parsed: set it again")
	}
	t := &target{listener: l, url: u}
	if t.signer, err = newSigner(l); err != nil {
		return nil, err
	}
	host, err := httpguts.PunycodeHostPort(u.Host)
	if err != nil {
		return nil, errors.New("the listener's url has a host that is no name: set it again")
	}
	ascii := url.URL{Scheme: u.Scheme, Host: host}
	t.address = net.JoinHostPort(ascii.Hostname(), portOf(&ascii))
	t.endpoint = u.Scheme + "://" + t.address
	t.head = append(t.head, "POST "+u.RequestURI()+" HTTP/1.1\r\n"...)
	t.head = appendField(t.head, "Host", host)
	t.head = appendField(t.head, "Content-Type", "application/json")
	for name, value := range l.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("the listener's header %q can't be sent: set it again", name)
		}
		t.head = appendField(t.head, http.CanonicalHeaderKey(name), value)
	}
	return t, nil
}

func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
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
	dialer  dialer
	idle    idle
	opened  atomic.Int64 // connections, so far
	heads   sync.Pool    // of *[]byte
	timeout time.Duration
	// userAgent is the name of this software.
	userAgent string
	key       func() signingKey
}

func newSender(c senderConfig) *sender {
	return &sender{
		dialer: newDialer(c), timeout: c.Timeout, userAgent: "Gatehook/" + c.Version, key: c.Key,
		heads: sync.Pool{New: func() any { return new([]byte) }},
	}
}

func (s *sender) close() { s.idle.close() }

// send makes one attempt: one POST, no redirects, all of it within the
// timeout. attempt counts from 1, and parent is its traceparent.
func (s *sender) send(ctx context.Context, t *target, e *event.Stored, body []byte, id ID, attempt int, parent string) result {
	start := time.Now()
	r := s.do(ctx, t, start.Add(timeoutOf(&e.Event, s.timeout)), body, func(head []byte) []byte {
		return s.appendFields(head, t, e, id, attempt, parent, start, body)
	})
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

// appendFields appends the header fields that say what a delivery is.
func (s *sender) appendFields(dst []byte, t *target, e *event.Stored, id ID, attempt int, parent string, at time.Time, body []byte) []byte {
	webhookID, timestamp := id.String(), strconv.FormatInt(at.Unix(), 10)
	dst = appendField(dst, "Webhook-Id", webhookID)
	dst = appendField(dst, "Webhook-Timestamp", timestamp)
	dst = appendField(dst, "Webhook-Signature", t.signer.sign(webhookID, timestamp, body))
	dst = appendField(dst, "Gatehook-Event", deliveredName(t.listener, &e.Event))
	dst = appendField(dst, "Gatehook-Event-Id", e.ID.String())
	dst = appendField(dst, "Gatehook-Attempt", strconv.Itoa(attempt))
	dst = appendField(dst, "Gatehook-Shard", e.Shard.String())
	dst = appendField(dst, "Traceparent", parent)
	if t.listener.Format == event.FormatDiscord {
		dst = appendDiscord(dst, s.key().sign(timestamp, body), timestamp)
	}
	return dst
}

// appendDiscord appends the header fields by which Discord signs (Discord:
// Security and Authorization).
func appendDiscord(dst []byte, signature, timestamp string) []byte {
	return appendField(appendField(dst, "X-Signature-Ed25519", signature), "X-Signature-Timestamp", timestamp)
}

// do makes a POST; fields appends to the header what is its own.
func (s *sender) do(ctx context.Context, t *target, deadline time.Time, body []byte, fields func(head []byte) []byte) result {
	c := s.idle.take(t.endpoint, deadline)
	if c == nil {
		var err error
		if c, err = s.dialer.connect(ctx, t, deadline); err != nil {
			return failed(ctx, err)
		}
		s.opened.Add(1)
	}
	buf, _ := s.heads.Get().(*[]byte)
	defer s.heads.Put(buf)
	head := appendField(append((*buf)[:0], t.head...), "User-Agent", s.userAgent)
	head = appendField(fields(head), "Content-Length", strconv.Itoa(len(body)))
	head = append(head, "\r\n"...)
	if len(head)+len(body) <= inline {
		head, body = append(head, body...), nil
	}
	*buf = head
	var (
		a    reply
		keep bool
		err  error
	)
	lasts := interruptible(ctx, c, func() { a, keep, err = c.post(head, body) })
	if keep && lasts {
		s.idle.put(t.endpoint, c, keptFor(a.header))
	} else {
		_ = c.Close()
	}
	if err != nil {
		// A response that never ends has not answered.
		r := failed(ctx, err)
		r.status, r.response = a.status, a.body
		return r
	}
	return result{status: a.status, class: classOf(a.status), retryAfter: a.header.Get("Retry-After"), response: a.body}
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
		return result{class: classConnection, err: fmt.Errorf("the attempt was ended: %w", cause)}
	}
	var (
		refused  *RefusedAddressError
		before   refusal
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
	case errors.As(err, &before):
		return result{class: classRefused, err: before.error}
	case errors.As(err, &dns):
		return result{class: classDNS, err: fmt.Errorf("the name %s does not resolve: %s", dns.Name, dns.Err)}
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &hostname), errors.As(err, &record), errors.As(err, &alert):
		return result{class: classTLS, err: fmt.Errorf("TLS: %w", err)}
	case errors.Is(err, errTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return result{class: classTimeout, err: errTimeout}
	case errors.As(err, &op):
		return result{class: classConnection, err: fmt.Errorf("%s: %w", op.Op, op.Err)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return result{class: classConnection, err: errors.New("it closed the connection before a complete response")}
	default:
		return result{class: classConnection, err: unquoted(err)}
	}
}

// unquoted is an error without what it quotes. That is what the other side sent
// in place of a response, at any length: it may be a payload with its tokens,
// even that of the delivery before on the same connection.
func unquoted(err error) error {
	text := err.Error()
	if i := strings.IndexAny(text, `":`); i >= 0 {
		return errors.New(strings.TrimRight(text[:i], " "))
	}
	return err
}
