package callback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"
)

// RefusedAddressError says that a callback's address may not be dialed.
type RefusedAddressError struct {
	Addr   netip.AddrPort
	Reason string
}

func (e *RefusedAddressError) Error() string {
	return fmt.Sprintf("refused to dial %v: %s", e.Addr, e.Reason)
}

// guard decides which addresses callbacks may have. It is asked with the very
// address that is about to be connected to, after the name was resolved: a
// name whose answer changes between a check and the dial gains nothing.
type guard struct{ allow []netip.Prefix }

// special are the ranges that are no place for a callback: the special-purpose
// registries of IANA, those that are globally reachable among them (they are
// anycast infrastructure), and what clouds reserve for themselves. The first
// that holds an address gives the reason. IPv4 addresses mapped into IPv6 are
// looked at as IPv4.
var special = []struct {
	prefix netip.Prefix
	reason string
}{
	{netip.MustParsePrefix("0.0.0.0/32"), "it is the unspecified address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "it is in \"this network\""},
	{netip.MustParsePrefix("10.0.0.0/8"), "it is a private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), "it is a carrier's shared address"},
	{netip.MustParsePrefix("127.0.0.0/8"), "it is a loopback address"},
	{netip.MustParsePrefix("168.63.129.16/32"), "it is where a cloud serves its machines"},
	{netip.MustParsePrefix("169.254.0.0/16"), "it is a link-local address, where clouds serve their metadata"},
	{netip.MustParsePrefix("172.16.0.0/12"), "it is a private address"},
	{netip.MustParsePrefix("192.0.0.0/24"), "it is reserved for protocols"},
	{netip.MustParsePrefix("192.0.2.0/24"), "it is reserved for documentation"},
	{netip.MustParsePrefix("192.31.196.0/24"), "it is a sink of private DNS queries"},
	{netip.MustParsePrefix("192.52.193.0/24"), "it is a multicast relay"},
	{netip.MustParsePrefix("192.88.99.0/24"), "it is a 6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), "it is a private address"},
	{netip.MustParsePrefix("192.175.48.0/24"), "it is a sink of private DNS queries"},
	{netip.MustParsePrefix("198.18.0.0/15"), "it is reserved for benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), "it is reserved for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "it is reserved for documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "it is a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "it is the broadcast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "it is reserved"},

	{netip.MustParsePrefix("::/128"), "it is the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "it is a loopback address"},
	{netip.MustParsePrefix("::/96"), "it is an IPv4 address in disguise"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "it is a translated IPv4 address"},
	{netip.MustParsePrefix("64:ff9b::/96"), "it is a translated IPv4 address"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "it is a translated IPv4 address"},
	{netip.MustParsePrefix("100::/64"), "it is a discard address"},
	{netip.MustParsePrefix("100:0:0:1::/64"), "it is a dummy address"},
	{netip.MustParsePrefix("2001::/32"), "it is an IPv4 address in a Teredo tunnel"},
	{netip.MustParsePrefix("2001::/23"), "it is reserved for protocols"},
	{netip.MustParsePrefix("2001:db8::/32"), "it is reserved for documentation"},
	{netip.MustParsePrefix("2002::/16"), "it is an IPv4 address in a 6to4 tunnel"},
	{netip.MustParsePrefix("2620:4f:8000::/48"), "it is a sink of private DNS queries"},
	{netip.MustParsePrefix("3fff::/20"), "it is reserved for documentation"},
	{netip.MustParsePrefix("5f00::/16"), "it is reserved for segment routing"},
	{netip.MustParsePrefix("fc00::/7"), "it is a private address"},
	{netip.MustParsePrefix("fe80::/10"), "it is a link-local address, where clouds serve their metadata"},
	{netip.MustParsePrefix("fec0::/10"), "it is a site-local address"},
	{netip.MustParsePrefix("ff00::/8"), "it is a multicast address"},
	// RFC 4291, section 2.4: what is global unicast begins with 001; the rest
	// is reserved. The ranges that make up the rest are these.
	{netip.MustParsePrefix("::/3"), "it is reserved"},
	{netip.MustParsePrefix("4000::/2"), "it is reserved"},
	{netip.MustParsePrefix("8000::/1"), "it is reserved"},
}

// check says why an address may not be dialed, or nil. Callbacks without TLS
// are for allowed addresses only: their signature keeps nothing secret. The
// ports are refused on allowed addresses too: none of them answers HTTP, and
// many take a POST's body for commands.
func (g guard) check(to netip.AddrPort, plain bool) error {
	addr := to.Addr().Unmap().WithZone("")
	reason := refusedPort(uint64(to.Port()))
	if reason == "" && !g.allowed(addr) {
		switch reason = refusedAddr(addr); {
		case reason != "":
			reason += " (GATEHOOK_ALLOW_TARGETS can allow it)"
		case plain:
			reason = "plain http:// is for the addresses of GATEHOOK_ALLOW_TARGETS only: use https://"
		}
	}
	if reason == "" {
		return nil
	}
	return &RefusedAddressError{Addr: to, Reason: reason}
}

func (g guard) allowed(addr netip.Addr) bool {
	for _, p := range g.allow {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// refusedAddr says why an address is no place for a callback, or "".
func refusedAddr(addr netip.Addr) string {
	for _, s := range special {
		if s.prefix.Contains(addr) {
			return s.reason
		}
	}
	return ""
}

// refusedPort says why a port is not for callbacks, or "".
func refusedPort(port uint64) string {
	if port < 1024 && port != 80 && port != 443 {
		return fmt.Sprintf("port %d: of the ports below 1024 only 80 and 443 are for callbacks", port)
	}
	return ""
}

// plainKey marks the context of an attempt without TLS.
type plainKey struct{}

const (
	dialTimeout = 10 * time.Second
	keepAlive   = 30 * time.Second
)

// dialer returns one that asks the guard before every connection. A nil
// resolver is the system's.
func (g guard) dialer(r *net.Resolver) *net.Dialer {
	return &net.Dialer{
		Timeout:   dialTimeout,
		KeepAlive: keepAlive,
		Resolver:  r,
		ControlContext: func(ctx context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("dial %s: %w", strconv.Quote(address), err)
			}
			plain, _ := ctx.Value(plainKey{}).(bool)
			return g.check(to, plain)
		},
	}
}

// CheckTarget says why a callback at a URL could never be dialed, or nil. Which
// addresses a name has is looked at when it is dialed.
func CheckTarget(allow []netip.Prefix, u *url.URL) error {
	g := guard{allow: allow}
	plain := u.Scheme == "http"
	port, err := strconv.ParseUint(portOf(u), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is not a port", u.Port())
	}
	host := hostIn(u)
	addr, err := netip.ParseAddr(host)
	switch reason := refusedPort(port); {
	case err == nil:
		return g.check(netip.AddrPortFrom(addr, uint16(port)), plain)
	case looksNumeric(host):
		return fmt.Errorf("%q is neither a name nor an address in its usual form, such as 198.51.100.7", host)
	case reason != "":
		return errors.New(reason)
	case plain && len(allow) == 0:
		return errors.New("plain http:// is for the addresses of GATEHOOK_ALLOW_TARGETS only: use https://")
	}
	return nil
}

// portOf is the port that a URL of a callback or a proxy names, or its scheme's.
func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	switch u.Scheme {
	case "https":
		return "443"
	case "socks5", "socks5h":
		return "1080"
	default:
		return "80"
	}
}

// hostIn is the host of a URL as it is looked up, or the address that it is.
func hostIn(u *url.URL) string {
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return "127.0.0.1" // RFC 6761, section 6.3
	}
	return host
}

// locateTimeout bounds the lookup of a name for Locate.
const locateTimeout = 5 * time.Second

// Locate says why a callback that CheckTarget has nothing against has no place
// now, or nil: without TLS its name has to have an allowed address. It is for
// whoever registers it; what a name has when it is dialed is looked at again. A
// nil resolver is the system's.
func Locate(ctx context.Context, allow []netip.Prefix, r *net.Resolver, u *url.URL) error {
	host := hostIn(u)
	if _, err := netip.ParseAddr(host); err == nil || u.Scheme != "http" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	var addrs []netip.Addr
	name, err := httpguts.PunycodeHostPort(host) // as it is dialed
	if err == nil {
		addrs, err = r.LookupNetIP(ctx, "ip", name)
	}
	if err != nil {
		return fmt.Errorf("plain http:// is for the addresses of GATEHOOK_ALLOW_TARGETS only, and %s does not resolve: use https://", host)
	}
	for _, addr := range addrs {
		if (guard{allow: allow}).allowed(addr.Unmap().WithZone("")) {
			return nil
		}
	}
	return fmt.Errorf("plain http:// is for the addresses of GATEHOOK_ALLOW_TARGETS only, and %s resolves to %v: use https://", host, addrs[0])
}

// looksNumeric tells of a host that some resolvers and proxies take for an
// IPv4 address although it is none in its usual form: 127.1, 0x7f000001 (WHATWG
// URL, "ends in a number").
func looksNumeric(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}
