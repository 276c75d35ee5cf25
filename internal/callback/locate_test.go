package callback_test

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/gatehook/gatehook/internal/callback"
)

func TestCheckTarget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url   string
		allow []netip.Prefix
		ok    bool
	}{
		{"https://example.com", nil, true},
		{"https://example.com:8443", nil, true},
		{"https://1.example.com", nil, true},
		{"https://0xample.com", nil, true},
		{"http://example.com", nil, false},
		{"http://example.com", loopback, true}, // the name may have an allowed address
		{"https://localhost", nil, false},
		{"https://LOCALHOST.", nil, false},
		{"https://x.localhost", nil, false},
		{"http://localhost:8081", loopback, true},
		{"http://127.0.0.1:8081", loopback, true},
		{"http://127.0.0.1:8081", nil, false},
		{"https://127.0.0.1./", nil, false},
		{"http://93.184.216.34", loopback, false},
		{"https://[::1]", loopback, false},
		// Some resolvers and proxies take these for 127.0.0.1.
		{"https://127.1", loopback, false},
		{"https://2130706433", loopback, false},
		{"https://0x7f000001", loopback, false},
		{"https://0x7F.0.0.1", loopback, false},
		{"https://0177.0.0.01.", loopback, false},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		if err := callback.CheckTarget(tt.allow, u); (err == nil) != tt.ok || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s with %v: %v", tt.url, tt.allow, err)
		}
	}
}

// TestLocate: a name without TLS needs an allowed address when it is registered.
func TestLocate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url, v4, v6 string
		refused     string // a part of the error
		queries     bool
	}{
		{"https://callback.test/", "93.184.216.34", "", "", false},
		{"http://127.0.0.1:1/", "93.184.216.34", "", "", false},
		{"http://[::1]/", "93.184.216.34", "", "", false},
		{"http://LocalHost./", "93.184.216.34", "", "", false},
		{"http://callback.test/", "127.0.0.7", "", "", true},
		{"http://bücher.test/", "127.0.0.7", "", "", true},
		{"http://callback.test/", "10.0.0.1", "", "resolves to 10.0.0.1", true},
		{"http://callback.test/", "93.184.216.34", "2606:4700::1", "callback.test resolves to", true},
		{"http://callback.test/", "127.0.0.7", "2606:4700::1", "", true},
		{"http://callback.test/", "", "", "does not resolve", true},
	} {
		names := newNameServer(func(_ int, v6 bool) netip.Addr {
			addr, _ := netip.ParseAddr(map[bool]string{false: tt.v4, true: tt.v6}[v6])
			return addr
		})
		u, err := callback.ParseURL(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		err = callback.Locate(t.Context(), loopback, names.resolver(), u)
		if (err == nil) != (tt.refused == "") || err != nil && !strings.Contains(err.Error(), tt.refused) || (names.queries.Load() > 0) != tt.queries {
			t.Errorf("%s at %q and %q: %v, %d queries", tt.url, tt.v4, tt.v6, err, names.queries.Load())
		}
	}
}

// nameServer answers DNS queries in memory, so that no test asks a real server.
type nameServer struct {
	// answer returns the address for the n-th query of a kind, counted from 0; the zero
	// Addr for none.
	answer  func(n int, v6 bool) netip.Addr
	queries atomic.Int32

	mu   sync.Mutex
	seen map[bool]int
}

func newNameServer(answer func(n int, v6 bool) netip.Addr) *nameServer {
	return &nameServer{answer: answer, seen: map[bool]int{}}
}

func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go s.serve(theirs) // it ends when the resolver closes its end
		return ours, nil
	}}
}

// serve answers queries as over TCP (RFC 1035, section 4.2.2).
func (s *nameServer) serve(c net.Conn) {
	defer c.Close() //nolint:errcheck // in memory
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
			return
		}
		s.queries.Add(1)
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		q := m.Questions[0]
		v6 := q.Type == dnsmessage.TypeAAAA
		s.mu.Lock()
		addr := s.answer(s.seen[v6], v6)
		s.seen[v6]++
		s.mu.Unlock()
		header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 0}
		switch {
		case v6 && addr.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		case !v6 && addr.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		}
		packed, err := m.AppendPack([]byte{0, 0})
		if err != nil {
			return
		}
		binary.BigEndian.PutUint16(packed, uint16(len(packed)-2))
		if _, err := c.Write(packed); err != nil {
			return
		}
	}
}

// unreached is a listener on loopback that fails the test if anybody connects.
func unreached(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Errorf("%v connected", c.RemoteAddr())
			c.Close() //nolint:errcheck // the connection is reported
		}
	})
	t.Cleanup(func() {
		l.Close() //nolint:errcheck // ends Accept
		accepting.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// refused are the ranges that are never dialed unless they are allowed.
//
//go:embed testdata/refused.txt
var refused string

// TestRefusedByName: no name leads to a refused IPv4 address, nor to a refused IPv6
// address if the machine has IPv6, whatever an earlier check found.
func TestRefusedByName(t *testing.T) {
	t.Parallel()
	port := unreached(t).Port()
	hasIPv6 := false
	if l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "[::1]:0"); err == nil {
		hasIPv6 = l.Close() == nil
	}
	for line := range strings.Lines(refused) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] == "#" {
			continue
		}
		addr := netip.MustParseAddr(fields[1])
		if addr.Is4In6() || addr.Zone() != "" || addr.Is6() && !hasIPv6 { // DNS has neither of the first two
			continue
		}
		s := guardedClient(t, newNameServer(func(_ int, v6 bool) netip.Addr {
			if v6 == addr.Is6() {
				return addr
			}
			return netip.Addr{}
		}))
		got := send(t, s, testListener(fmt.Sprintf("https://callback.test:%d/", port)))
		if got.Class != callback.ClassRefused {
			t.Errorf("a name of %v, %s: %v, %v", addr, strings.Join(fields[2:], " "), got.Class, got.Err)
		}
	}
}

// guardedClient returns a client that allows no private address.
func guardedClient(t *testing.T, names *nameServer) *callback.Client {
	t.Helper()
	c := testConfig(time.Minute)
	c.Allow, c.Resolver = nil, names.resolver()
	return newClient(t, c)
}

// TestRebinding: a name is refused if it has an ordinary address when it is checked,
// and a refused one when it is dialed.
func TestRebinding(t *testing.T) {
	t.Parallel()
	target := unreached(t)
	innocent := netip.MustParseAddr("93.184.216.34")
	names := newNameServer(func(n int, v6 bool) netip.Addr {
		switch {
		case v6:
			return netip.Addr{}
		case n == 0:
			return innocent
		default:
			return target.Addr()
		}
	})
	s := guardedClient(t, names)
	first, err := names.resolver().LookupNetIP(t.Context(), "ip4", "callback.test")
	if err != nil || len(first) != 1 || callback.CheckTarget(nil, &url.URL{Scheme: "https", Host: first[0].Unmap().String()}) != nil {
		t.Fatalf("the check before the dial: %v, %v", first, err)
	}
	u := fmt.Sprintf("https://callback.test:%d/", target.Port())
	parsed, err := url.Parse(u)
	if err != nil || callback.CheckTarget(nil, parsed) != nil {
		t.Fatalf("the URL can't be registered: %v", err)
	}
	got := send(t, s, testListener(u))
	refused, ok := errors.AsType[*callback.RefusedAddressError](got.Err)
	if !ok || got.Class != callback.ClassRefused || refused.Addr != target {
		t.Errorf("dialed after the answer changed: %v, %v", got.Class, got.Err)
	}
	if names.queries.Load() < 2 {
		t.Error("the name was not looked up for the dial")
	}
}
