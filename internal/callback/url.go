package callback

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// hosts maps the name of a host as browsers do (WHATWG URL, section 3.3; UTS 46). Unlike
// a name of the DNS, that of a service in a private network may have underscores.
var hosts = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false), idna.CheckHyphens(false),
	idna.CheckJoiners(true), idna.BidiRule(), idna.VerifyDNSLength(true))

// ParseURL parses a callback's URL, and normalizes it: URLs of the same form are the same
// callback, and what the form has is what is sent. The host is in ASCII and in lower case,
// the port is left out if it is the scheme's, and bytes that a request line can't have are
// percent-encoded. The error is meant for people, and does not quote the URL.
func ParseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, errors.New("it is not a URL such as https://example.com/discord")
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "" {
		return nil, errors.New("it is not a URL such as https://example.com/discord")
	}
	host, err := normalHost(u.Hostname())
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" && strings.HasSuffix(u.Host, ":") {
		return nil, errors.New("its port is empty: leave the colon out")
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a port", port)
		}
		if port = strconv.FormatUint(n, 10); port == portOf(&url.URL{Scheme: u.Scheme}) {
			port = ""
		}
	}
	if u.Host = host; port != "" {
		u.Host += ":" + port
	}
	u.RawQuery = escape(u.RawQuery)
	return u, nil
}

// normalHost returns the host as it is dialed and sent.
func normalHost(host string) (string, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		switch {
		case addr.Zone() != "":
			return "", errors.New("its address has a zone, which means nothing to another machine")
		case addr.Is4():
			return addr.String(), nil
		default:
			return "[" + addr.String() + "]", nil
		}
	}
	ascii, err := hosts.ToASCII(host)
	if err != nil || !utf8.ValidString(host) || strings.Trim(ascii, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return "", fmt.Errorf("%.100q is not the name of a host", host)
	}
	return ascii, nil
}

// escape percent-encodes the bytes of a query that have no place in a request line
// (WHATWG URL, query percent-encode set).
func escape(query string) string {
	var b strings.Builder
	for i := range len(query) {
		switch c := query[i]; {
		case c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>':
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
