package callback_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
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

	"github.com/gatehook/gatehook/internal/callback"
)

// startTLS starts a TLS server with HTTP/2, and returns the roots that trust its
// certificate. change, unless nil, changes the server's configuration.
func startTLS(t *testing.T, h http.HandlerFunc, change func(*tls.Config)) (srv *httptest.Server, roots *x509.CertPool) {
	t.Helper()
	srv = httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{}
	if change != nil {
		change(srv.TLS)
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots = x509.NewCertPool()
	for _, c := range srv.TLS.Certificates {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		roots.AddCert(leaf)
	}
	return srv, roots
}

// certificate makes a self-signed certificate. change may change its template.
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

// TestTLSIsVerified: nothing is sent to a server that does not prove that it is the
// callback.
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
			c.NextProtos = []string{"http/1.1"} // otherwise HTTP/2 would refuse it
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, roots := startTLS(t, func(w http.ResponseWriter, _ *http.Request) {
				if !tt.good {
					t.Error("a request was received")
				}
				w.WriteHeader(http.StatusNoContent)
			}, tt.change)
			cfg := testConfig(time.Minute)
			cfg.Roots = roots
			s := newClient(t, cfg)
			r := send(t, s, testListener(srv.URL))
			if tt.good && r.Class != callback.Class2xx || !tt.good && r.Class != callback.ClassTLS && r.Class != callback.ClassConnection {
				t.Errorf("%v, %v", r.Class, r.Err)
			}
		})
	}
}

// testProxy is a proxy that connects every request to one callback.
type testProxy struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func startProxy(t *testing.T, destination string, status int) *testProxy {
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
		server, err := (&net.Dialer{}).DialContext(context.WithoutCancel(r.Context()), "tcp", destination)
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

// TestProxy: the proxy is asked for callbacks over TLS by name. Its own address is not
// checked. Addresses in callbacks' URLs are still refused here.
func TestProxy(t *testing.T) {
	t.Parallel()
	names := newNameServer(func(int, bool) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	c := testConfig(time.Minute)
	c.Allow, c.Resolver = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, names.resolver()
	var via *url.URL
	c.Proxy = func(u *url.URL) (*url.URL, error) {
		if u.Hostname() == "127.0.0.1" || strings.HasPrefix(u.Hostname(), "direct.") { // NO_PROXY
			return nil, nil //nolint:nilnil // as documented
		}
		return via, nil
	}
	came := make(chan struct{}, 1)
	destination, roots := startTLS(t, func(w http.ResponseWriter, _ *http.Request) {
		came <- struct{}{}
		w.WriteHeader(http.StatusNoContent)
	}, func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, func(*x509.Certificate) {})} })
	c.Roots = roots
	s := newClient(t, c)
	p := startProxy(t, destination.Listener.Addr().String(), http.StatusOK)
	var err error
	if via, err = url.Parse(strings.Replace(p.URL, "http://", "http://user:hunter2@", 1)); err != nil {
		t.Fatal(err)
	}
	if r := send(t, s, testListener("https://callback.test/x")); r.Class != callback.Class2xx || r.Status != 204 {
		t.Errorf("through the proxy: %v, %v", r.Class, r.Err)
	}
	<-came
	if got, want := p.log(), "CONNECT callback.test:443 Basic dXNlcjpodW50ZXIy"; got != want {
		t.Errorf("the proxy was asked %q, want %q", got, want)
	}
	// The server at the end of the tunnel must prove its name, as without a proxy.
	if r := send(t, s, testListener("https://other.test/")); r.Class != callback.ClassTLS {
		t.Errorf("a callback of another name: %v, %v", r.Class, r.Err)
	}
	if n := names.queries.Load(); n != 0 {
		t.Errorf("%d names were looked up here", n)
	}
	asked := p.log()
	for _, u := range []string{
		"https://10.0.0.1/", "https://[::1]/", "https://169.254.169.254/", "https://127.1/", "https://x.localhost/", "https://callback.test:25/",
		destination.URL, "http://93.184.216.34/", "http://callback.test/",
	} {
		if r := send(t, s, testListener(u)); r.Class != callback.ClassRefused {
			t.Errorf("%s: %v, %v", u, r.Class, r.Err)
		}
	}
	if got := p.log(); got != asked {
		t.Errorf("the proxy was asked for a refused callback:\n%s", got)
	}
}

// TestProxyHangs: a POST through a proxy that does not answer ends at the attempt's
// timeout, with an error of one line.
func TestProxyHangs(t *testing.T) {
	t.Parallel()
	address := speaker(t, func(_ net.Conn, done <-chan struct{}) { <-done })
	for _, scheme := range []string{"http", "https", "socks5"} {
		c := testConfig(100 * time.Millisecond)
		c.Proxy = func(*url.URL) (*url.URL, error) { return &url.URL{Scheme: scheme, Host: address}, nil }
		s := newClient(t, c)
		if r := send(t, s, testListener("https://callback.test/")); r.Class != callback.ClassTimeout || r.Err == nil || strings.Contains(r.Err.Error(), "\n") {
			t.Errorf("%s: %v, %v", scheme, r.Class, r.Err)
		}
	}
}

// TestProxyFails: the error names the proxy when it is at fault, without its password.
func TestProxyFails(t *testing.T) {
	t.Parallel()
	p := startProxy(t, "", http.StatusForbidden)
	gone := httptest.NewServer(nil)
	gone.Close()
	for address, want := range map[string]string{p.URL: "the proxy answered 403 to CONNECT", gone.URL: "proxyconnect"} {
		via, err := url.Parse(strings.Replace(address, "http://", "http://user:hunter2@", 1))
		if err != nil {
			t.Fatal(err)
		}
		c := testConfig(time.Minute)
		c.Proxy = func(*url.URL) (*url.URL, error) { return via, nil }
		s := newClient(t, c)
		r := send(t, s, testListener("https://callback.test/secret-path"))
		if r.Class != callback.ClassConnection || r.Err == nil || !strings.Contains(r.Err.Error(), want) ||
			strings.Contains(r.Err.Error(), "hunter2") || strings.Contains(r.Err.Error(), "secret-path") {
			t.Errorf("%v, %v, want %s", r.Class, r.Err, want)
		}
	}
}

// socksProxy speaks the part of RFC 1928 and 1929 that asks for a name with a user and
// a password.
func socksProxy(t *testing.T, destination string, asked chan<- string) (address string) {
	t.Helper()
	return speaker(t, func(c net.Conn, _ <-chan struct{}) {
		in := bufio.NewReader(c)
		next := func(n int) string {
			b := make([]byte, n)
			if _, err := io.ReadFull(in, b); err != nil {
				t.Error(err)
			}
			return string(b)
		}
		counted := func() string { return next(int(next(1)[0])) }
		_ = counted() // the methods; the version has been read
		_, _ = c.Write([]byte{5, 2})
		_ = next(1)
		user, password := counted(), counted()
		_, _ = c.Write([]byte{1, 0})
		head := next(4)
		name, port := counted(), next(2)
		asked <- fmt.Sprintf("%x %s %s:%s:%x", head, user, password, name, port)
		_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		server, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", destination)
		if err != nil {
			t.Error(err)
			return
		}
		defer server.Close() //nolint:errcheck // it is a tunnel
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(server, in); _ = server.Close() })
		both.Go(func() { _, _ = io.Copy(c, server) })
		both.Wait()
	})
}

// TestProxyKinds: proxies can be reached over TLS and by SOCKS5.
func TestProxyKinds(t *testing.T) {
	t.Parallel()
	good := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	asked := make(chan string, 2)
	var via *url.URL
	c := testConfig(time.Minute)
	c.Allow = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	c.Proxy = func(*url.URL) (*url.URL, error) { return via, nil }
	destination, roots := startTLS(t, good, nil)
	c.Roots = roots // one certificate serves both
	tunnels := startProxy(t, destination.Listener.Addr().String(), http.StatusOK)
	secured, _ := startTLS(t, tunnels.Config.Handler.ServeHTTP, nil)
	for _, u := range []string{
		strings.Replace(secured.URL, "https://", "https://user:pass@", 1),
		"socks5://user:pass@" + socksProxy(t, destination.Listener.Addr().String(), asked),
	} {
		var err error
		if via, err = url.Parse(u); err != nil {
			t.Fatal(err)
		}
		s := newClient(t, c)
		for range 2 { // the second POST uses the connection of the first
			if r := send(t, s, testListener("https://example.com/x")); r.Class != callback.Class2xx {
				t.Errorf("%s: %v, %v", via.Scheme, r.Class, r.Err)
			}
		}
	}
	if got, want := tunnels.log(), "CONNECT example.com:443 Basic dXNlcjpwYXNz"; got != want {
		t.Errorf("the proxy was asked %q, want %q", got, want)
	}
	if got, want := <-asked, "05010003 user pass:example.com:01bb"; got != want {
		t.Errorf("the SOCKS proxy was asked %q, want %q", got, want)
	}
	if len(asked) != 0 {
		t.Error("the SOCKS proxy was asked twice")
	}
}
