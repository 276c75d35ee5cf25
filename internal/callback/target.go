package callback

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/gatehook/gatehook/internal/event"
)

// Target is a listener's callback, prepared once instead of at every POST. It is safe
// for concurrent use.
type Target struct {
	url *url.URL
	// address is dialed: a name or an IP address, and a port.
	address string
	// endpoint is the key under which connections are kept: a scheme and an address.
	endpoint string
	// head is the beginning that all requests have in common.
	head   []byte
	signer *signer
	// discord: the POSTs are signed with the Client's key as well.
	discord bool
}

// NewTarget prepares a listener's callback. The error names the part of the
// registration that must be set again, and quotes neither the URL nor a secret.
func NewTarget(l *event.Listener) (*Target, error) {
	// An older version may have stored a URL that is not normalized.
	u, err := ParseURL(l.URL)
	if err != nil {
		return nil, fmt.Errorf("the listener's url can't be used, set it again: %w", err)
	}
	t := &Target{url: u, discord: l.Format == event.FormatDiscord}
	if t.signer, err = newSigner(l); err != nil {
		return nil, err
	}
	t.address = net.JoinHostPort(u.Hostname(), portOf(u))
	t.endpoint = u.Scheme + "://" + t.address
	t.head = append(t.head, "POST "+u.RequestURI()+" HTTP/1.1\r\n"...)
	t.head = appendField(t.head, "host", u.Host)
	t.head = appendField(t.head, "content-type", "application/json")
	for name, value := range l.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("the listener's header %q can't be sent: set it again", name)
		}
		t.head = appendField(t.head, strings.ToLower(name), value)
	}
	return t, nil
}

// Server returns the host and the port of the callback's URL.
func (t *Target) Server() (host, port string) { return t.url.Hostname(), portOf(t.url) }

// appendField appends a header field. A control character in the value becomes a
// question mark: a line break would begin a field of its own. The name of an event
// that an older version stored may have one.
func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	start := len(dst)
	dst = append(dst, value...)
	for i, c := range dst[start:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			dst[start+i] = '?'
		}
	}
	return append(dst, "\r\n"...)
}
