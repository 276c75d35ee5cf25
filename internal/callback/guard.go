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
)

// RefusedAddressError reports that a callback's address may not be dialed.
type RefusedAddressError struct {
	Addr   netip.AddrPort
	Reason string
}

func (e *RefusedAddressError) Error() string {
	return fmt.Sprintf("refused to dial %v: %s", e.Addr, e.Reason)
}

// guard decides which addresses callbacks may have. It checks the very address that is
// about to be dialed, after the name was resolved. So a name gains nothing by changing
// its address between a check and the dial.
type guard struct{ allow []netip.Prefix }

// special are the ranges that no callback may use unless they are allowed: those in
// IANA's special-purpose registries, even if globally reachable (they are anycast
// infrastructure), and those that clouds reserve for themselves. The first range that
// contains an address gives the reason. IPv4 addresses mapped into IPv6 count as IPv4.
var special = []struct {
	prefix netip.Prefix
	reason string
}{
	{netip.MustParsePrefix("0.0.0.0/32"), "it is the unspecified address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "it is in \"this network\""},
	{netip.MustParsePrefix("10.0.0.0/8"), "it is a private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), "it is a carrier's shared address"},
	{netip.MustParsePrefix("127.0.0.0/8"), "it is a loopback address"},
	{netip.MustParsePrefix("168.63.129.16/32"), "it is a service address of a cloud"},
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
	{netip.MustParsePrefix("::/96"), "it is an IPv4 address written as IPv6"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "it is a translated IPv4 address"},
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
	// RFC 4291, section 2.4: global unicast addresses begin with 001. All others are
	// reserved; these ranges contain them.
	{netip.MustParsePrefix("::/3"), "it is reserved"},
	{netip.MustParsePrefix("4000::/2"), "it is reserved"},
	{netip.MustParsePrefix("8000::/1"), "it is reserved"},
}

// check returns why an address may not be dialed, or nil. Callbacks without TLS must
// have allowed addresses, because a signature keeps nothing secret. Ports are refused
// even on allowed addresses: nothing on these ports answers HTTP, and many services
// take a POST's body for commands.
func (g guard) check(to netip.AddrPort, plain bool) error {
	addr := to.Addr().Unmap().WithZone("")
	reason := refusedPort(uint64(to.Port()))
	if reason == "" && !g.allowed(addr) {
		switch reason = refusedAddr(untranslated(addr)); {
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

// translation is the prefix under which a network without IPv4 reaches IPv4 addresses
// (DNS64; RFC 6052, section 2.1).
var translation = netip.MustParsePrefix("64:ff9b::/96")

// untranslated returns the IPv4 address that is reached through a translated one: behind
// DNS64, names that have only IPv4 addresses resolve to these.
func untranslated(addr netip.Addr) netip.Addr {
	if !translation.Contains(addr) {
		return addr
	}
	b := addr.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

func (g guard) allowed(addr netip.Addr) bool {
	for _, p := range g.allow {
		if p.Contains(addr) || p.Contains(untranslated(addr)) {
			return true
		}
	}
	return false
}

// refusedAddr returns why a callback may not have an address, or "".
func refusedAddr(addr netip.Addr) string {
	for _, s := range special {
		if s.prefix.Contains(addr) {
			return s.reason
		}
	}
	return ""
}

// refusedPort returns why a callback may not have a port, or "".
func refusedPort(port uint64) string {
	if port < 1024 && port != 80 && port != 443 {
		return fmt.Sprintf("of the ports below 1024, callbacks may use only 80 and 443, not %d", port)
	}
	return ""
}

// plainKey marks the context of an attempt without TLS.
type plainKey struct{}

const (
	dialTimeout = 10 * time.Second
	keepAlive   = 30 * time.Second
)

// dialer returns a dialer that asks the guard before every connection. A nil resolver stands
// for the system's.
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

// CheckTarget returns why a callback at a URL of ParseURL can never be dialed, or nil. It
// resolves no name, because the addresses of a name are checked when it is dialed.
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

// portOf returns the port of a callback's or a proxy's URL, or the default port of its
// scheme.
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

// hostIn returns the host of a URL, in lower case and without a final dot, or the
// address of localhost.
func hostIn(u *url.URL) string {
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return "127.0.0.1" // RFC 6761, section 6.3
	}
	return host
}

// locateTimeout bounds the lookup of a name for Locate.
const locateTimeout = 5 * time.Second

// Locate returns why a callback that CheckTarget accepts can't be dialed now, or nil.
// The name of a callback without TLS must have an allowed address. Locate is meant for
// the registration: the addresses of a name are checked again when it is dialed. A nil
// resolver stands for the system's.
func Locate(ctx context.Context, allow []netip.Prefix, r *net.Resolver, u *url.URL) error {
	host := hostIn(u)
	if _, err := netip.ParseAddr(host); err == nil || u.Scheme != "http" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	addrs, err := r.LookupNetIP(ctx, "ip", host)
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

// looksNumeric reports whether some resolvers and proxies take a host for an IPv4
// address in an unusual form, such as 127.1 or 0x7f000001 (WHATWG URL, "ends in a
// number").
func looksNumeric(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}
