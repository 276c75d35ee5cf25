package callback

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// refused are the ranges that are never dialed unless they are allowed.
//
//go:embed testdata/refused.txt
var refused string

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// dialed are ordinary addresses, including those next to a refused range.
var dialed = []string{
	"1.0.0.0", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
	"168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
	"192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.192.255", "192.52.194.0", "192.88.98.255", "192.88.100.0",
	"192.167.255.255", "192.169.0.0", "192.175.47.255", "192.175.49.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0",
	"203.0.112.255", "203.0.114.0", "223.255.255.255", "::ffff:93.184.216.34",
	"2001:200::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::",
	"2606:2800:220:1::1", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::",
}

// hook runs the check that precedes every connection, without opening one.
func hook(allow []netip.Prefix, addr string, port uint16, plain bool) error {
	ctx := context.WithValue(context.Background(), plainKey{}, plain)
	to := netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
	return guard{allow: allow}.dialer(nil).ControlContext(ctx, "tcp", to, nil)
}

func TestEveryRefusedAddress(t *testing.T) {
	t.Parallel()
	tested := make([]bool, len(special))
	for line := range strings.Lines(refused) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] == "#" {
			continue
		}
		about := strings.Join(fields[2:], " ")
		for _, addr := range fields[:2] {
			if _, ok := errors.AsType[*RefusedAddressError](hook(nil, addr, 443, false)); !ok {
				t.Errorf("%s, %s, would be dialed", addr, about)
			}
			u := &url.URL{Scheme: "https", Host: "[" + addr + "]"}
			if err := CheckTarget(nil, u); err == nil {
				t.Errorf("%s, %s, could be registered", addr, about)
			}
			plain := netip.MustParseAddr(addr).Unmap().WithZone("")
			for i, s := range special {
				if s.prefix.Contains(plain) {
					tested[i] = true
					break
				}
			}
			// The operator can allow an address, and that allows no other address.
			if err := hook([]netip.Prefix{netip.PrefixFrom(plain, plain.BitLen())}, addr, 443, true); err != nil {
				t.Errorf("%s is allowed, but refused: %v", addr, err)
			}
			if hook(loopback, addr, 443, false) == nil && !loopback[0].Contains(plain) {
				t.Errorf("%s is dialed although only %v is allowed", addr, loopback)
			}
		}
	}
	for i, ok := range tested {
		if !ok {
			t.Errorf("no row tests %v", special[i].prefix)
		}
	}
	for _, addr := range dialed {
		if err := errors.Join(hook(nil, addr, 443, false), hook(nil, addr, 80, false), hook(nil, addr, 8443, false)); err != nil {
			t.Errorf("%s is an ordinary address: %v", addr, err)
		}
		if hook(loopback, addr, 80, true) == nil {
			t.Errorf("%s would be dialed without TLS", addr)
		}
	}
}

// TestRefusedPorts: ports are refused even where every address is allowed.
func TestRefusedPorts(t *testing.T) {
	t.Parallel()
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	for port := range uint16(2000) {
		ok := port == 80 || port == 443 || port >= 1024
		for _, allow := range [][]netip.Prefix{nil, all} {
			if err := hook(allow, "93.184.216.34", port, false); (err == nil) != ok {
				t.Errorf("port %d with %v: %v", port, allow, err)
			}
			for _, host := range []string{"example.com", "93.184.216.34"} {
				u := &url.URL{Scheme: "https", Host: fmt.Sprint(host, ":", port)}
				if err := CheckTarget(allow, u); (err == nil) != ok {
					t.Errorf("%v with %v: %v", u, allow, err)
				}
			}
		}
	}
}
