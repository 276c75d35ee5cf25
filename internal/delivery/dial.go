package delivery

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

// RefusedAddressError says that a callback's address may not be dialed.
type RefusedAddressError struct {
	Addr   netip.AddrPort
	Reason string
}

func (e *RefusedAddressError) Error() string {
	return fmt.Sprintf("refused to dial %v: %s (GATEHOOK_ALLOW_TARGETS can allow it)", e.Addr, e.Reason)
}

// guard decides which addresses callbacks may have. It is asked with the very
// address that is about to be connected to, after the name was resolved: a
// name whose answer changes between a check and the dial gains nothing.
type guard struct{ allow []netip.Prefix }

// private are the ranges that are no place for a callback although
// netip.Addr has no method that says so (IANA special-purpose registries).
var private = []struct {
	prefix netip.Prefix
	reason string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "it is in \"this network\""},
	{netip.MustParsePrefix("100.64.0.0/10"), "it is a carrier's shared address"},
	{netip.MustParsePrefix("192.0.0.0/24"), "it is reserved for protocols"},
	{netip.MustParsePrefix("192.0.2.0/24"), "it is reserved for documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "it is a 6to4 relay"},
	{netip.MustParsePrefix("198.18.0.0/15"), "it is reserved for benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), "it is reserved for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "it is reserved for documentation"},
	{netip.MustParsePrefix("240.0.0.0/4"), "it is reserved"},
	{netip.MustParsePrefix("::/96"), "it is an IPv4 address in disguise"},
	{netip.MustParsePrefix("64:ff9b::/96"), "it is a translated IPv4 address"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "it is a translated IPv4 address"},
	{netip.MustParsePrefix("100::/64"), "it is a discard address"},
	{netip.MustParsePrefix("2001::/23"), "it is reserved for protocols"},
	{netip.MustParsePrefix("2001:db8::/32"), "it is reserved for documentation"},
	{netip.MustParsePrefix("2002::/16"), "it is a translated IPv4 address"},
	{netip.MustParsePrefix("3fff::/20"), "it is reserved for documentation"},
	{netip.MustParsePrefix("5f00::/16"), "it is reserved for segment routing"},
	{netip.MustParsePrefix("fec0::/10"), "it is a site-local address"},
}

// check says why an address may not be dialed, or nil. Callbacks without TLS
// are for allowed addresses only: their signature keeps nothing secret.
func (g guard) check(to netip.AddrPort, plain bool) error {
	addr := to.Addr().Unmap().WithZone("")
	for _, p := range g.allow {
		if p.Contains(addr) {
			return nil
		}
	}
	reason := ""
	switch port := to.Port(); {
	case addr.IsUnspecified():
		reason = "it is the unspecified address"
	case addr.IsLoopback():
		reason = "it is a loopback address"
	case addr.IsPrivate():
		reason = "it is a private address"
	case addr.IsLinkLocalUnicast():
		reason = "it is a link-local address, where clouds serve their metadata"
	case addr.IsMulticast():
		reason = "it is a multicast address"
	case port < 1024 && port != 80 && port != 443:
		reason = "of the ports below 1024 only 80 and 443 are for callbacks"
	case plain:
		reason = "plain http:// is for allowed addresses only, use https://"
	}
	for _, p := range private {
		if reason == "" && p.prefix.Contains(addr) {
			reason = p.reason
		}
	}
	if reason == "" {
		return nil
	}
	return &RefusedAddressError{Addr: to, Reason: reason}
}

// plainKey marks the context of an attempt without TLS.
type plainKey struct{}

// dialer returns one that asks the guard before every connection.
func (g guard) dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:   10 * time.Second,
		KeepAlive: 30 * time.Second,
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
	port := uint64(443)
	if plain {
		port = 80
	}
	if s := u.Port(); s != "" {
		var err error
		if port, err = strconv.ParseUint(s, 10, 16); err != nil || port == 0 {
			return fmt.Errorf("%q is not a port", s)
		}
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		host = "127.0.0.1" // RFC 6761, section 6.3
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return g.check(netip.AddrPortFrom(addr, uint16(port)), plain)
	}
	switch {
	case len(allow) > 0: // the name may have an allowed address
		return nil
	case plain:
		return errors.New("plain http:// is for the addresses of GATEHOOK_ALLOW_TARGETS only: use https://")
	case port < 1024 && port != 80 && port != 443:
		return fmt.Errorf("port %d is refused: of the ports below 1024 only 80 and 443 are for callbacks", port)
	}
	return nil
}
