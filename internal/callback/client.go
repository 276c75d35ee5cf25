package callback

import (
	"cmp"
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// Config configures a Client.
type Config struct {
	// Allow are the private address ranges that callbacks may use. Callbacks without
	// TLS must be in these ranges.
	Allow []netip.Prefix
	// Timeout bounds one POST, from dial to the end of the response. Ping makes two
	// POSTs.
	Timeout time.Duration
	// Version is part of the User-Agent.
	Version string
	// Proxy returns the proxy for a callback over TLS, or nil for none. A nil Proxy
	// means that there are no proxies.
	Proxy func(*url.URL) (*url.URL, error)
	// Resolver resolves names; nil means the system's.
	Resolver *net.Resolver
	// Roots are the authorities trusted to issue certificates of callbacks and proxies;
	// nil means the system's.
	Roots *x509.CertPool
	// Key returns the key that signs in the format discord. It is called for every such
	// POST, concurrently.
	Key func() Key
}

// Client makes the POSTs. All listeners share one Client and its connections. It is
// safe for concurrent use. Its owner must Close it.
type Client struct {
	dialer    dialer
	idle      idlePool
	opened    atomic.Int64 // connections opened so far
	heads     sync.Pool    // of *[]byte
	timeout   time.Duration
	userAgent string
	key       func() Key
}

// New makes a Client. It opens no connection.
func New(c Config) *Client {
	return &Client{
		dialer: newDialer(c), timeout: c.Timeout, userAgent: "Gatehook/" + c.Version, key: c.Key,
		heads: sync.Pool{New: func() any { return new([]byte) }},
	}
}

// Close closes the idle connections. From then on, every other connection is closed
// after its POST.
func (c *Client) Close() { c.idle.close() }

// Idle returns how many connections wait for the next POST.
func (c *Client) Idle() int { return c.idle.len() }

// Opened returns how many connections were made so far.
func (c *Client) Opened() int64 { return c.opened.Load() }

// Request is one POST of a delivery.
type Request struct {
	// ID is the delivery's id, the same at every attempt (webhook-id). Name is the
	// event's name for this listener (gatehook-event).
	ID, Name string
	// Event is the event to deliver. The tokens of its payload are redacted in the
	// response.
	Event *event.Event
	Body  []byte
	// Attempt counts from 1.
	Attempt int
	// Traceparent is the attempt's trace context.
	Traceparent string
	// Timeout bounds the POST; 0 means the Config's.
	Timeout time.Duration
}

// Send makes one POST within the timeout. It follows no redirect. A failure is part of
// the Result.
func (c *Client) Send(ctx context.Context, t *Target, r *Request) Result {
	start := time.Now()
	res := c.do(ctx, t, start.Add(cmp.Or(r.Timeout, c.timeout)), r.Body, func(head []byte) []byte {
		return c.appendFields(head, t, r, start)
	})
	res.Duration = time.Since(start)
	res.Response = excerpt(&res, r.Event.Data)
	return res
}

// appendFields appends the header fields that describe and sign a delivery.
func (c *Client) appendFields(dst []byte, t *Target, r *Request, at time.Time) []byte {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	dst = appendField(dst, "webhook-id", r.ID)
	dst = appendField(dst, "webhook-timestamp", timestamp)
	dst = appendField(dst, "webhook-signature", t.signer.sign(r.ID, timestamp, r.Body))
	dst = appendField(dst, "gatehook-event", r.Name)
	dst = appendField(dst, "gatehook-event-id", r.Event.ID.String())
	dst = appendField(dst, "gatehook-attempt", strconv.Itoa(r.Attempt))
	dst = appendField(dst, "gatehook-shard", r.Event.Shard.String())
	dst = appendField(dst, "traceparent", r.Traceparent)
	if t.discord {
		dst = appendDiscord(dst, c.key().sign(timestamp, r.Body), timestamp)
	}
	return dst
}

// appendDiscord appends the header fields with which Discord signs (Discord: Security
// and Authorization).
func appendDiscord(dst []byte, signature, timestamp string) []byte {
	return appendField(appendField(dst, "x-signature-ed25519", signature), "x-signature-timestamp", timestamp)
}

// do makes a POST. fields appends the header fields that are specific to it.
func (c *Client) do(ctx context.Context, t *Target, deadline time.Time, body []byte, fields func(head []byte) []byte) Result {
	buf, _ := c.heads.Get().(*[]byte)
	defer c.heads.Put(buf)
	head := appendField(append((*buf)[:0], t.head...), "user-agent", c.userAgent)
	head = appendField(fields(head), "content-length", strconv.Itoa(len(body)))
	head = append(head, "\r\n"...)
	if len(head)+len(body) <= inline {
		head, body = append(head, body...), nil
	}
	*buf = head
	conn := c.idle.take(t.endpoint, deadline)
	if conn != nil {
		a, err := c.post(ctx, t, conn, head, body)
		if err == nil || !a.silent {
			return c.result(ctx, a, err)
		}
		// The connection ended or went mute while it was idle, and so may have the others.
		c.idle.drop(t.endpoint)
		if !isEnd(err) || ctx.Err() != nil {
			return c.result(ctx, a, err)
		}
		// It ended at the moment of this POST, before a byte of an answer. That is no
		// attempt: the callback may be well.
	}
	conn, err := c.dialer.connect(ctx, t, deadline)
	if err != nil {
		return failed(ctx, err)
	}
	c.opened.Add(1)
	a, err := c.post(ctx, t, conn, head, body)
	return c.result(ctx, a, err)
}

// post makes a POST on a connection, and keeps or closes it.
func (c *Client) post(ctx context.Context, t *Target, conn *conn, head, body []byte) (a reply, err error) {
	keep := false
	uninterrupted := interruptible(ctx, conn, func() { a, keep, err = conn.post(head, body) })
	if keep && uninterrupted {
		c.idle.put(t.endpoint, conn, keptFor(a.header))
	} else {
		_ = conn.Close()
	}
	return a, err
}

// result returns the result of a POST. An incomplete response is not an answer.
func (c *Client) result(ctx context.Context, a reply, err error) Result {
	if err != nil {
		r := failed(ctx, err)
		r.Status, r.Response = a.status, a.body
		return r
	}
	return Result{Status: a.status, Class: classOf(a.status), RetryAfter: a.header.Get("Retry-After"), Response: a.body}
}
