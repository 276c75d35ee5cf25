package delivery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// speaker is a callback that says what it likes, byte for byte.
func speaker(t *testing.T, say func(c net.Conn, done <-chan struct{})) (address string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				// Also of a connection that nobody has asked anything on.
				ended := context.AfterFunc(ctx, func() { c.Close() }) //nolint:errcheck // the other side has gone
				defer func() {
					ended()
					c.Close() //nolint:errcheck // the other side has gone
				}()
				// Spoken to first: an answer to nothing is an error of its own.
				if _, err := c.Read(make([]byte, 1)); err == nil {
					say(c, ctx.Done())
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close() //nolint:errcheck // ends Accept
		conns.Wait()
	})
	return l.Addr().String()
}

// drip writes the parts one by one, the last one for ever, until nobody reads
// them any more.
func drip(c io.Writer, done <-chan struct{}, parts ...string) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		if _, err := io.WriteString(c, parts[min(i, len(parts)-1)]); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-done:
			return
		}
	}
}

// TestDripsEnd: a callback that always sends a little more is ended at the
// attempt's timeout, whatever part of the response it sends.
func TestDripsEnd(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 200 OK\r\n"
	for name, parts := range map[string][]string{
		"status line":       {"HTTP/1.1 ", "2"},
		"a header's name":   {head, "x"},
		"a header's value":  {head + "X: ", "x"},
		"body":              {head + "Content-Length: 60000\r\n\r\n", "x"},
		"body to its end":   {head + "\r\n", "x"},
		"chunks":            {head + "Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"},
		"a chunk's header":  {head + "Transfer-Encoding: chunked\r\n\r\n1", ";x"},
		"trailer":           {head + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n0\r\nX: ", "x"},
		"interim responses": {"HTTP/1.1 103 Early Hints\r\n\r\n", ""},
		"nothing":           {""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := speaker(t, func(c net.Conn, done <-chan struct{}) { drip(c, done, parts...) })
			s := newTestSender(t, 200*time.Millisecond)
			if r := send(t, s, testListener("http://"+address)); r.class != classTimeout || r.err == nil {
				t.Errorf("%v, status %d, %v", r.class, r.status, r.err)
			}
		})
	}
	t.Run("TLS handshake", func(t *testing.T) {
		t.Parallel()
		// A record of 16 KiB, of which a byte comes at a time (RFC 8446, 5.1).
		address := speaker(t, func(c net.Conn, done <-chan struct{}) { drip(c, done, "\x16\x03\x03\x3f\xff", "\x02") })
		s := newTestSender(t, 200*time.Millisecond)
		if r := send(t, s, testListener("https://"+address)); r.class != classTimeout {
			t.Errorf("%v, status %d, %v", r.class, r.status, r.err)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		s := newTestSender(t, 500*time.Millisecond)
		srv := startTLS(t, s, func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 1 {
				t.Errorf("it is %s", r.Proto)
			}
			drip(flushing{w}, r.Context().Done(), "x")
		}, nil)
		if r := send(t, s, testListener(srv.URL)); r.class != classTimeout || r.status != 200 {
			t.Errorf("%v, status %d, %v", r.class, r.status, r.err)
		}
	})
}

// TestFloodsEnd: what never ends and comes fast is cut off by size, long before
// the timeout.
func TestFloodsEnd(t *testing.T) {
	t.Parallel()
	x := strings.Repeat("x", 4<<10)
	for name, tt := range map[string]struct {
		parts []string
		class class
	}{
		"status line":       {[]string{"HTTP/1.1 200 ", x}, classConnection},
		"one header":        {[]string{"HTTP/1.1 200 OK\r\nX: ", x}, classConnection},
		"many headers":      {[]string{"HTTP/1.1 200 OK\r\n", "X: " + x + "\r\n"}, classConnection},
		"interim responses": {[]string{"HTTP/1.1 103 Early Hints\r\nX: " + x + "\r\n\r\n"}, classConnection},
		"body":              {[]string{"HTTP/1.1 200 OK\r\n\r\n", x}, class2xx},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := speaker(t, func(c net.Conn, done <-chan struct{}) {
				for i := 0; ; i++ {
					if _, err := io.WriteString(c, tt.parts[min(i, len(tt.parts)-1)]); err != nil {
						return
					}
				}
			})
			r := send(t, newTestSender(t, time.Minute), testListener("http://"+address))
			if r.class != tt.class || len(r.response) > responseKept {
				t.Errorf("%v, status %d, %d bytes, %v", r.class, r.status, len(r.response), r.err)
			}
			if r.err != nil && len(r.err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(r.err.Error()))
			}
		})
	}
}

// flushing sends every write at once.
type flushing struct{ http.ResponseWriter }

// Write implements io.Writer.
func (f flushing) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

// startTLS serves over TLS with HTTP/2, with a certificate that the sender
// trusts; change, if any, changes what it serves with.
func startTLS(t *testing.T, s *sender, h http.HandlerFunc, change func(*tls.Config)) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{}
	if change != nil {
		change(srv.TLS)
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	for _, c := range srv.TLS.Certificates {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		roots.AddCert(leaf)
	}
	s.dialer.tls.RootCAs = roots
	return srv
}

// certificate makes one, signed by itself, that is what change makes of it.
func certificate(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "callback"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"callback.test"}, BasicConstraintsValid: true, IsCA: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestTLSIsVerified: nothing is sent to who does not prove to be the callback.
func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	with := func(change func(*x509.Certificate)) func(*tls.Config) {
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, change)} }
	}
	for name, tt := range map[string]struct {
		change func(*tls.Config)
		good   bool
	}{
		"good":             {with(func(*x509.Certificate) {}), true},
		"TLS 1.2":          {func(c *tls.Config) { with(func(*x509.Certificate) {})(c); c.MaxVersion = tls.VersionTLS12 }, true},
		"expired":          {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), false},
		"not valid yet":    {with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), false},
		"another address":  {with(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} }), false},
		"not for a server": {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), false},
		"TLS 1.1": {func(c *tls.Config) {
			with(func(*x509.Certificate) {})(c)
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			c.NextProtos = []string{"http/1.1"} // or HTTP/2 would refuse it
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestSender(t, time.Minute)
			srv := startTLS(t, s, func(w http.ResponseWriter, _ *http.Request) {
				if !tt.good {
					t.Error("a request came")
				}
				w.WriteHeader(http.StatusNoContent)
			}, tt.change)
			r := send(t, s, testListener(srv.URL))
			if tt.good && r.class != class2xx || !tt.good && r.class != classTLS && r.class != classConnection {
				t.Errorf("%v, %v", r.class, r.err)
			}
		})
	}
}

// testProxy asks for callbacks on behalf of others. It takes every name for
// the one callback that it knows.
type testProxy struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func startProxy(t *testing.T, callback string, status int) *testProxy {
	t.Helper()
	p := &testProxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.Host+" "+r.Header.Get("Proxy-Authorization"))
		p.mu.Unlock()
		if w.WriteHeader(status); status != http.StatusOK {
			return
		}
		client, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close() //nolint:errcheck // it is a tunnel
		server, err := (&net.Dialer{}).DialContext(context.WithoutCancel(r.Context()), "tcp", callback)
		if err != nil {
			t.Error(err)
			return
		}
		defer server.Close() //nolint:errcheck // it is a tunnel
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(server, in); _ = server.Close() })
		both.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
		both.Wait()
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *testProxy) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.asked, "\n")
}

// TestProxy: callbacks over TLS are asked of the proxy by name, its own address
// is taken as it is, and what is an address is still refused here.
func TestProxy(t *testing.T) {
	t.Parallel()
	names := newNameServer(func(int, bool) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	c := testSenderConfig(time.Minute)
	c.Allow, c.Resolver = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, names.resolver()
	var by *url.URL
	c.Proxy = func(u *url.URL) (*url.URL, error) {
		if u.Hostname() == "127.0.0.1" || strings.HasPrefix(u.Hostname(), "direct.") { // NO_PROXY
			return nil, nil //nolint:nilnil // by its documentation
		}
		return by, nil
	}
	s := newSender(c)
	t.Cleanup(s.close)
	came := make(chan struct{}, 1)
	callback := startTLS(t, s, func(w http.ResponseWriter, _ *http.Request) {
		came <- struct{}{}
		w.WriteHeader(http.StatusNoContent)
	}, func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, func(*x509.Certificate) {})} })
	p := startProxy(t, callback.Listener.Addr().String(), http.StatusOK)
	var err error
	if by, err = url.Parse(strings.Replace(p.URL, "http://", "http://user:hunter2@", 1)); err != nil {
		t.Fatal(err)
	}
	if r := send(t, s, testListener("https://callback.test/x")); r.class != class2xx || r.status != 204 {
		t.Errorf("by way of the proxy: %v, %v", r.class, r.err)
	}
	<-came
	if got, want := p.log(), "CONNECT callback.test:443 Basic dXNlcjpodW50ZXIy"; got != want {
		t.Errorf("the proxy was asked %q, want %q", got, want)
	}
	// The tunnel changes nothing about who has to be at its end.
	if r := send(t, s, testListener("https://other.test/")); r.class != classTLS {
		t.Errorf("a callback of another name: %v, %v", r.class, r.err)
	}
	if n := names.queries.Load(); n != 0 {
		t.Errorf("%d names were looked up here", n)
	}
	asked := p.log()
	for _, u := range []string{
		"https://10.0.0.1/", "https://[::1]/", "https://169.254.169.254/", "https://127.1/", "https://x.localhost/", "https://callback.test:25/",
		callback.URL, "http://93.184.216.34/", "http://callback.test/",
	} {
		if r := send(t, s, testListener(u)); r.class != classRefused {
			t.Errorf("%s: %v, %v", u, r.class, r.err)
		}
	}
	if got := p.log(); got != asked {
		t.Errorf("the proxy was asked for what is refused:\n%s", got)
	}
}

// TestProxyHangs: a proxy that does not answer ends at the attempt's timeout, as a
// callback does, and in one line.
func TestProxyHangs(t *testing.T) {
	t.Parallel()
	address := speaker(t, func(_ net.Conn, done <-chan struct{}) { <-done })
	for _, scheme := range []string{"http", "https", "socks5"} {
		c := testSenderConfig(100 * time.Millisecond)
		c.Proxy = func(*url.URL) (*url.URL, error) { return &url.URL{Scheme: scheme, Host: address}, nil }
		s := newSender(c)
		defer s.close()
		if r := send(t, s, testListener("https://callback.test/")); r.class != classTimeout || r.err == nil || strings.Contains(r.err.Error(), "\n") {
			t.Errorf("%s: %v, %v", scheme, r.class, r.err)
		}
	}
}

// TestProxyFails: what is the proxy's fault is said to be, without its password.
func TestProxyFails(t *testing.T) {
	t.Parallel()
	p := startProxy(t, "", http.StatusForbidden)
	gone := httptest.NewServer(nil)
	gone.Close()
	for address, want := range map[string]string{p.URL: "the proxy answered 403 to CONNECT", gone.URL: "proxyconnect"} {
		by, err := url.Parse(strings.Replace(address, "http://", "http://user:hunter2@", 1))
		if err != nil {
			t.Fatal(err)
		}
		c := testSenderConfig(time.Minute)
		c.Proxy = func(*url.URL) (*url.URL, error) { return by, nil }
		s := newSender(c)
		defer s.close()
		r := send(t, s, testListener("https://callback.test/secret-path"))
		if r.class != classConnection || r.err == nil || !strings.Contains(r.err.Error(), want) ||
			strings.Contains(r.err.Error(), "hunter2") || strings.Contains(r.err.Error(), "secret-path") {
			t.Errorf("%v, %v, want %s", r.class, r.err, want)
		}
	}
}
