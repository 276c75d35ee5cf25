package delivery

import (
	"context"
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

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// refusedRanges is the list of what is never dialed unless it is allowed,
// written down apart from the code: each range with its first and last address.
// Sources: the IANA registries of special-purpose addresses (RFC 6890 and what
// updated it), of multicast, and of IPv6 address space; and the documentation
// of clouds for the addresses of their metadata.
var refusedRanges = []struct{ about, first, last string }{
	{"unspecified", "0.0.0.0", "0.0.0.0"},
	{"this network, RFC 791", "0.0.0.1", "0.255.255.255"},
	{"private, RFC 1918", "10.0.0.0", "10.255.255.255"},
	{"carrier's shared, RFC 6598", "100.64.0.0", "100.127.255.255"},
	{"Alibaba Cloud's metadata", "100.100.100.200", "100.100.100.200"},
	{"loopback, RFC 1122", "127.0.0.0", "127.255.255.255"},
	{"Azure's WireServer", "168.63.129.16", "168.63.129.16"},
	{"link-local, RFC 3927", "169.254.0.0", "169.254.255.255"},
	{"metadata of AWS, Azure, Google, Oracle and others", "169.254.169.254", "169.254.169.254"},
	{"metadata of AWS ECS and EKS", "169.254.170.2", "169.254.170.23"},
	{"private, RFC 1918", "172.16.0.0", "172.31.255.255"},
	{"protocol assignments, RFC 6890", "192.0.0.0", "192.0.0.255"},
	{"DS-Lite, RFC 7335", "192.0.0.0", "192.0.0.7"},
	{"dummy, RFC 7600", "192.0.0.8", "192.0.0.8"},
	{"anycast of PCP and TURN", "192.0.0.9", "192.0.0.10"},
	{"NAT64 discovery, RFC 7050", "192.0.0.170", "192.0.0.171"},
	{"metadata of Oracle Cloud Classic", "192.0.0.192", "192.0.0.192"},
	{"documentation, RFC 5737", "192.0.2.0", "192.0.2.255"},
	{"AS112, RFC 7535", "192.31.196.0", "192.31.196.255"},
	{"AMT, RFC 7450", "192.52.193.0", "192.52.193.255"},
	{"6to4 relays, RFC 7526", "192.88.99.0", "192.88.99.255"},
	{"private, RFC 1918", "192.168.0.0", "192.168.255.255"},
	{"AS112, RFC 7534", "192.175.48.0", "192.175.48.255"},
	{"benchmarks, RFC 2544", "198.18.0.0", "198.19.255.255"},
	{"documentation, RFC 5737", "198.51.100.0", "198.51.100.255"},
	{"documentation, RFC 5737", "203.0.113.0", "203.0.113.255"},
	{"multicast, RFC 5771", "224.0.0.0", "239.255.255.255"},
	{"reserved, RFC 1112", "240.0.0.0", "255.255.255.254"},
	{"broadcast, RFC 919", "255.255.255.255", "255.255.255.255"},

	{"unspecified, RFC 4291", "::", "::"},
	{"loopback, RFC 4291", "::1", "::1"},
	{"IPv4-compatible, RFC 4291", "::2", "::255.255.255.255"},
	{"IPv4-mapped, private", "::ffff:10.0.0.0", "::ffff:10.255.255.255"},
	{"IPv4-mapped, loopback", "::ffff:127.0.0.1", "::ffff:127.255.255.255"},
	{"IPv4-mapped, metadata", "::ffff:169.254.169.254", "::ffff:169.254.169.254"},
	{"IPv4-translated, RFC 2765", "::ffff:0:0:0", "::ffff:0:ffff:ffff"},
	{"reserved by IETF", "0:0:0:1::", "63:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"NAT64, RFC 6052", "64:ff9b::", "64:ff9b::255.255.255.255"},
	{"NAT64 of the metadata address", "64:ff9b::169.254.169.254", "64:ff9b::169.254.169.254"},
	{"local NAT64, RFC 8215", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"},
	{"discard, RFC 6666", "100::", "100::ffff:ffff:ffff:ffff"},
	{"dummy, RFC 9780", "100:0:0:1::", "100::1:ffff:ffff:ffff:ffff"},
	{"reserved by IETF", "200::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"protocol assignments, RFC 2928", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"Teredo, RFC 4380", "2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"anycast of PCP, TURN and DNS-SD", "2001:1::1", "2001:1::3"},
	{"benchmarks, RFC 5180", "2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff"},
	{"AMT, RFC 7450", "2001:3::", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"AS112, RFC 7535", "2001:4:112::", "2001:4:112:ffff:ffff:ffff:ffff:ffff"},
	{"ORCHID, RFC 4843", "2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"ORCHIDv2, RFC 7343", "2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"drones, RFC 9374", "2001:30::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"documentation, RFC 3849", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"6to4, RFC 3056", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"6to4 of loopback", "2002:7f00:1::", "2002:7f00:1:ffff:ffff:ffff:ffff:ffff"},
	{"AS112, RFC 7534", "2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff"},
	{"documentation, RFC 9637", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"reserved by IETF", "4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"segment routing, RFC 9602", "5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"reserved by IETF", "6000::", "7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"reserved by IETF", "8000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"unique local, RFC 4193", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"AWS' metadata", "fd00:ec2::254", "fd00:ec2::254"},
	{"AWS EKS' credentials", "fd00:ec2::23", "fd00:ec2::23"},
	{"Google Cloud's metadata", "fd20:ce::254", "fd20:ce::254"},
	{"Scaleway's metadata", "fd00:42::42", "fd00:42::42"},
	{"reserved by IETF", "fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"link-local, RFC 4291", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"link-local with a zone", "fe80::1%lo", "fe80::a9fe:a9fe%eth0"},
	{"site-local, RFC 3879", "fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"multicast, RFC 4291", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
}

// dialed are ordinary addresses, those beside a refused range among them.
var dialed = []string{
	"1.0.0.0", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
	"168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
	"192.0.1.255", "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.52.192.255", "192.52.194.0", "192.88.98.255", "192.88.100.0",
	"192.167.255.255", "192.169.0.0", "192.175.47.255", "192.175.49.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0",
	"203.0.112.255", "203.0.114.0", "223.255.255.255", "::ffff:93.184.216.34",
	"2001:200::", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::",
	"2606:2800:220:1::1", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::",
}

// hook asks what is asked before every connection. It opens none.
func hook(allow []netip.Prefix, addr string, port uint16, plain bool) error {
	ctx := context.WithValue(context.Background(), plainKey{}, plain)
	to := netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
	return guard{allow: allow}.dialer(nil).ControlContext(ctx, "tcp", to, nil)
}

func TestEveryRefusedAddress(t *testing.T) {
	t.Parallel()
	tested := make([]bool, len(special))
	for _, r := range refusedRanges {
		for _, addr := range []string{r.first, r.last} {
			if _, ok := errors.AsType[*RefusedAddressError](hook(nil, addr, 443, false)); !ok {
				t.Errorf("%s, %s, would be dialed", addr, r.about)
			}
			u := &url.URL{Scheme: "https", Host: "[" + addr + "]"}
			if err := CheckTarget(nil, u); err == nil {
				t.Errorf("%s, %s, could be registered", addr, r.about)
			}
			plain := netip.MustParseAddr(addr).Unmap().WithZone("")
			for i, s := range special {
				if s.prefix.Contains(plain) {
					tested[i] = true
					break
				}
			}
			// What the operator allows is allowed, and nothing else is.
			if err := hook([]netip.Prefix{netip.PrefixFrom(plain, plain.BitLen())}, addr, 443, true); err != nil {
				t.Errorf("%s is allowed, and refused: %v", addr, err)
			}
			if hook(loopback, addr, 443, false) == nil && !loopback[0].Contains(plain) {
				t.Errorf("%s is dialed although only %v is allowed", addr, loopback)
			}
		}
	}
	for i, ok := range tested {
		if !ok {
			t.Errorf("no row is for %v", special[i].prefix)
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

// TestRefusedPorts: also where everything is allowed.
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
		// What some resolvers and proxies take for 127.0.0.1.
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
		if err := CheckTarget(tt.allow, u); (err == nil) != tt.ok || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s with %v: %v", tt.url, tt.allow, err)
		}
	}
}

// TestLocate: a name without TLS needs an allowed address when it is registered.
func TestLocate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url, v4, v6 string
		refused     string // a part of why
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
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		err = Locate(t.Context(), loopback, names.resolver(), u)
		if (err == nil) != (tt.refused == "") || err != nil && !strings.Contains(err.Error(), tt.refused) || (names.queries.Load() > 0) != tt.queries {
			t.Errorf("%s at %q and %q: %v, %d queries", tt.url, tt.v4, tt.v6, err, names.queries.Load())
		}
	}
}

// nameServer answers DNS queries in memory: no test asks a real one.
type nameServer struct {
	// answer gives the address for the n-th query of a kind, from 0 on; the
	// zero Addr for none of that kind.
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

// unreached is a listener on loopback that fails the test if anybody comes.
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
			c.Close() //nolint:errcheck // that it came is told
		}
	})
	t.Cleanup(func() {
		l.Close() //nolint:errcheck // ends Accept
		accepting.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// TestRefusedByName: no name leads to a refused IPv4 address, or an IPv6 one
// where the machine has IPv6, whatever a check before would have seen.
func TestRefusedByName(t *testing.T) {
	t.Parallel()
	port := unreached(t).Port()
	hasIPv6 := false
	if l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "[::1]:0"); err == nil {
		hasIPv6 = l.Close() == nil
	}
	for _, r := range refusedRanges {
		addr := netip.MustParseAddr(r.last)
		if addr.Is4In6() || addr.Zone() != "" || addr.Is6() && !hasIPv6 { // DNS has neither of the first two
			continue
		}
		s, closeIt := guardedSender(newNameServer(func(_ int, v6 bool) netip.Addr {
			if v6 == addr.Is6() {
				return addr
			}
			return netip.Addr{}
		}))
		got := send(t, s, testListener(fmt.Sprintf("https://callback.test:%d/", port)))
		closeIt()
		if got.class != classRefused {
			t.Errorf("a name of %v, %s: %v, %v", addr, r.about, got.class, got.err)
		}
	}
}

// guardedSender allows nothing.
func guardedSender(names *nameServer) (s *sender, closeIt func()) {
	c := testSenderConfig(time.Minute)
	c.Allow, c.Resolver = nil, names.resolver()
	s = newSender(c)
	return s, s.close
}

// TestRebinding: a name that has an ordinary address when it is checked, and a
// refused one when it is dialed, is refused; so is one of both kinds.
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
	s, closeIt := guardedSender(names)
	defer closeIt()
	first, err := names.resolver().LookupNetIP(t.Context(), "ip4", "callback.test")
	if err != nil || len(first) != 1 || hook(nil, first[0].Unmap().String(), 443, false) != nil {
		t.Fatalf("the check before: %v, %v", first, err)
	}
	u := fmt.Sprintf("https://callback.test:%d/", target.Port())
	parsed, err := url.Parse(u)
	if err != nil || CheckTarget(nil, parsed) != nil {
		t.Fatalf("it can't be registered: %v", err)
	}
	got := send(t, s, testListener(u))
	refused, ok := errors.AsType[*RefusedAddressError](got.err)
	if !ok || got.class != classRefused || refused.Addr != target {
		t.Errorf("dialed after the answer changed: %v, %v", got.class, got.err)
	}
	if names.queries.Load() < 2 {
		t.Error("the name was not looked up for the dial")
	}
}

// TestRefusedWhereverItIsDialed: the PING of a registration and the sample of
// POST /listeners/{id}/test go the same way as deliveries.
func TestRefusedWhereverItIsDialed(t *testing.T) {
	t.Parallel()
	target := unreached(t)
	b := setup(t, Config{})
	b.stop()
	b.open(t, Config{}, 2) // which allows nothing
	b.journal.add = func() event.Key { return event.Key{Batch: 1 << 40} }
	l := &event.Listener{
		ID: 1, Event: "RAW_GUILD_BAN_ADD", URL: "https://" + target.String(), Format: event.FormatDiscord,
		Secrets: []secret.Value{secret.New(testSecret)},
	}
	if err := b.Ping(t.Context(), l); err == nil || !strings.Contains(err.Error(), "refused to dial "+target.String()) {
		t.Errorf("the PING: %v", err)
	}
	made, err := b.test(t.Context(), l, &testEvent().Event)
	if err != nil || made.delivered || made.status != 0 || !strings.Contains(made.problem, "refused to dial "+target.String()) {
		t.Errorf("the sample: %+v, %v", made, err)
	}
}
