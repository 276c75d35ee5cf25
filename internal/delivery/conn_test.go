package delivery

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted serves, and counts the connections that were made and that ended.
func counted(t *testing.T, h http.HandlerFunc) (srv *httptest.Server, opened *atomic.Int64, closed chan struct{}) {
	t.Helper()
	opened, closed = new(atomic.Int64), make(chan struct{}, 100)
	srv = httptest.NewUnstartedServer(h)
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed <- struct{}{}
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv, opened, closed
}

// TestConnectionsAreReused: as long as answers are whole, one connection does.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   int64
	}{
		"empty": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, 1},
		"text":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 5000)) }, 1},
		"chunks": {func(w http.ResponseWriter, _ *http.Request) {
			for range 3 {
				_, _ = flushing{w}.Write(make([]byte, 5000))
			}
		}, 1},
		"trailer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X")
			_, _ = flushing{w}.Write([]byte("text"))
			w.Header().Set("X", "y")
		}, 1},
		"early hints": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusOK)
		}, 1},
		"kept for 5 s": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Keep-Alive", "timeout=5, max=100") }, 1},
		"kept for 1 s": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Keep-Alive", "timeout=1") }, 3},
		"close":        {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }, 3},
		"too long":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, responseRead+1)) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, opened, _ := counted(t, tt.answer)
			s := newTestSender(t, time.Minute)
			for range 3 {
				if r := send(t, s, testListener(srv.URL)); r.class != class2xx {
					t.Fatalf("%v, %v", r.class, r.err)
				}
			}
			if n, told := opened.Load(), s.opened.Load(); n != tt.want || told != n {
				t.Errorf("%d connections for three POSTs, want %d; %d were counted", n, tt.want, told)
			}
			if kept := len(s.idle.conns["http://"+srv.Listener.Addr().String()]); (kept == 1) != (tt.want == 1) {
				t.Errorf("%d connections are kept", kept)
			}
		})
	}
}

// TestUnfinishedAnswer: a connection on which the rest of an answer may still come
// is not used again. The next POST would take it for its own answer.
func TestUnfinishedAnswer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf",
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := speaker(t, func(c net.Conn, done <-chan struct{}) {
				_, _ = io.WriteString(c, answer)
				<-done
			})
			s := newTestSender(t, 50*time.Millisecond)
			if r := send(t, s, testListener("http://"+address)); r.status != http.StatusOK || r.class != classTimeout {
				t.Errorf("%v, %d, %v", r.class, r.status, r.err)
			}
			if n := s.idle.len(); n != 0 {
				t.Errorf("%d connections are kept", n)
			}
		})
	}
}

// TestClosedWhileIdle: a connection that the other side ended, or spoke on,
// before the next POST costs no attempt.
func TestClosedWhileIdle(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(net.Conn) error{
		"closed": net.Conn.Close,
		"reset":  func(c net.Conn) error { return errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close()) },
		"spoken on": func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answered := make(chan net.Conn, 1)
			address := speaker(t, func(c net.Conn, done <-chan struct{}) {
				// A byte of the request has been read already.
				req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader("P"), c)))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				answered <- c
				<-done
			})
			s := newTestSender(t, time.Minute)
			for range 3 {
				r := send(t, s, testListener("http://"+address))
				if r.class != class2xx || r.status != 204 {
					t.Fatalf("%v, %d, %v", r.class, r.status, r.err)
				}
				if err := between(<-answered); err != nil {
					t.Fatal(err)
				}
				// Loopback hands it over at once, but not in the same instant.
				kept := s.idle.conns["http://"+address]
				for deadline := time.Now().Add(time.Minute); !kept[0].spent(); {
					if time.Now().After(deadline) {
						t.Fatal("the end of the connection is not seen")
					}
				}
			}
		})
	}
}

// TestAnsweredEarly: a callback that answers before it has read a large body,
// or that never reads it, has answered.
func TestAnsweredEarly(t *testing.T) {
	t.Parallel()
	for name, closes := range map[string]bool{"and closes": true, "and waits": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := speaker(t, func(c net.Conn, done <-chan struct{}) {
				_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong")
				if closes {
					_ = c.(*net.TCPConn).CloseWrite()
				}
				<-done
			})
			s := newTestSender(t, time.Minute)
			r := sendBody(t.Context(), t, s, testListener("http://"+address), make([]byte, 64<<20))
			if r.status != 413 || r.class != class4xx || string(r.response) != "long" {
				t.Errorf("%v, %d, %q, %v", r.class, r.status, r.response, r.err)
			}
			if n := len(s.idle.conns["http://"+address]); n != 0 {
				t.Error("the connection is kept, with half a request on it")
			}
		})
	}
}

// TestBodiesOfAllSizes: what is written in one piece, in two and in many comes
// as it was, with and without TLS.
func TestBodiesOfAllSizes(t *testing.T) {
	t.Parallel()
	s := newTestSender(t, time.Minute)
	bodies := make(chan []byte, 1)
	receive := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(body)) {
			t.Errorf("a length of %d, %d bytes, %v", r.ContentLength, len(body), err)
		}
		bodies <- body
		w.WriteHeader(http.StatusNoContent)
	}
	plain, opened, _ := counted(t, receive)
	for _, u := range []string{plain.URL, startTLS(t, s, receive, nil).URL} {
		for _, size := range []int{0, 1, 1400, 15 << 10, inline - 1, inline, inline + 1, 100_000, 5 << 20} {
			sent := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
			if r := sendBody(t.Context(), t, s, testListener(u), sent); r.class != class2xx {
				t.Fatalf("%d bytes: %v, %v", size, r.class, r.err)
			}
			if !bytes.Equal(<-bodies, sent) {
				t.Errorf("%d bytes came as others", size)
			}
		}
	}
	if opened.Load() > 5 {
		t.Errorf("%d connections", opened.Load())
	}
}

// TestAttemptIsEnded: the end of the context ends a POST that hangs, for the
// context's reason.
func TestAttemptIsEnded(t *testing.T) {
	t.Parallel()
	reason := errors.New("the server stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	address := speaker(t, func(_ net.Conn, done <-chan struct{}) {
		cancel(reason)
		<-done
	})
	s := newTestSender(t, time.Minute)
	if r := sendBody(ctx, t, s, testListener("http://"+address), []byte("{}")); r.class != classConnection || !errors.Is(r.err, reason) {
		t.Errorf("%v, %v", r.class, r.err)
	}
}

// TestIdleConnectionsEnd: those that nobody used for long are closed, and all
// when the sender is.
func TestIdleConnectionsEnd(t *testing.T) {
	t.Parallel()
	srv, _, closed := counted(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	s := newTestSender(t, time.Minute)
	post := func() {
		t.Helper()
		if r := send(t, s, testListener(srv.URL)); r.class != class2xx {
			t.Fatal(r.err)
		}
	}
	post()
	for _, of := range s.idle.conns {
		of[0].until = time.Now().Add(-time.Second)
	}
	s.idle.clean()
	<-closed
	if s.idle.len() != 0 || len(s.idle.conns) != 0 || s.idle.sweep != nil {
		t.Error("something is left of what was too old")
	}
	post()
	for _, of := range s.idle.conns {
		of[0].until = time.Now().Add(-time.Second)
	}
	post() // does not take what is too old
	<-closed
	s.close()
	<-closed
	post()
	<-closed // at once: the sender is closed
}

// TestIdleConnectionsAreBounded: one more makes another one go.
func TestIdleConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	var p idle
	defer p.close()
	ends := make(chan error, 1)
	for i := range mostIdle + 1 {
		ours, theirs := net.Pipe()
		if i < 10 {
			go func() {
				_, err := theirs.Read(make([]byte, 1))
				ends <- err
			}()
		}
		p.put(fmt.Sprint("http://", i/10), newConn(ours, nil), time.Minute)
	}
	if p.len() != mostIdle {
		t.Errorf("%d are kept, want %d", p.len(), mostIdle)
	}
	kept := 0
	for _, of := range p.conns {
		kept += len(of)
	}
	if kept != mostIdle {
		t.Errorf("%d are there, want %d", kept, mostIdle)
	}
	p.close()
	for range 10 {
		if err := <-ends; !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
}

// TestHosts: what a URL's host is dialed and asked as.
func TestHosts(t *testing.T) {
	t.Parallel()
	for u, want := range map[string][2]string{
		"https://example.com/x?q=1":     {"example.com:443", "POST /x?q=1 HTTP/1.1\r\nHost: example.com\r\n"},
		"http://example.com":            {"example.com:80", "POST / HTTP/1.1\r\nHost: example.com\r\n"},
		"https://example.com:8443?q=ü":  {"example.com:8443", "POST /?q=ü HTTP/1.1\r\nHost: example.com:8443\r\n"},
		"https://bücher.example/ä b":    {"xn--bcher-kva.example:443", "POST /%C3%A4%20b HTTP/1.1\r\nHost: xn--bcher-kva.example\r\n"},
		"https://[2606:4700::1]:8443/x": {"[2606:4700::1]:8443", "POST /x HTTP/1.1\r\nHost: [2606:4700::1]:8443\r\n"},
		"https://[2606:4700::1]/x":      {"[2606:4700::1]:443", "POST /x HTTP/1.1\r\nHost: [2606:4700::1]\r\n"},
	} {
		got, err := newTarget(testListener(u))
		if err != nil {
			t.Errorf("%s: %v", u, err)
			continue
		}
		if got.address != want[0] || !strings.HasPrefix(string(got.head), want[1]) {
			t.Errorf("%s: %s, %q; want %q", u, got.address, got.head, want)
		}
	}
	l := testListener("https://example.com")
	l.Headers = map[string]string{"x": "a\r\nGatehook-Event: forged"}
	if _, err := newTarget(l); err == nil || strings.Contains(err.Error(), "forged") {
		t.Errorf("a header of two lines: %v", err)
	}
}

// socksProxy speaks as much of RFC 1928 and 1929 as it takes to be asked for a
// name with a user and a password.
func socksProxy(t *testing.T, callback string, asked chan<- string) (address string) {
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
		server, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", callback)
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

// TestProxyKinds: proxies that are asked over TLS, and by SOCKS5.
func TestProxyKinds(t *testing.T) {
	t.Parallel()
	good := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	asked := make(chan string, 2)
	var by *url.URL
	c := testSenderConfig(time.Minute)
	c.Allow = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	c.Proxy = func(*url.URL) (*url.URL, error) { return by, nil }
	s := newSender(c)
	t.Cleanup(s.close)
	callback := startTLS(t, s, good, nil)
	roots := s.dialer.tls.RootCAs // one certificate serves both
	tunnels := startProxy(t, callback.Listener.Addr().String(), http.StatusOK)
	secured := startTLS(t, s, tunnels.Config.Handler.ServeHTTP, nil)
	s.dialer.tls.RootCAs = roots
	for _, u := range []string{
		strings.Replace(secured.URL, "https://", "https://user:pass@", 1),
		"socks5://user:pass@" + socksProxy(t, callback.Listener.Addr().String(), asked),
	} {
		var err error
		if by, err = url.Parse(u); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second on the connection of the first
			if r := send(t, s, testListener("https://example.com/x")); r.class != class2xx {
				t.Errorf("%s: %v, %v", by.Scheme, r.class, r.err)
			}
		}
		s.idle.close()
		s.idle.closed = false
	}
	if got, want := tunnels.log(), "CONNECT example.com:443 Basic dXNlcjpwYXNz"; got != want {
		t.Errorf("the proxy was asked %q, want %q", got, want)
	}
	if got, want := <-asked, "05010003 user pass:example.com:01bb"; got != want {
		t.Errorf("the SOCKS proxy was asked %q, want %q", got, want)
	}
	if len(asked) != 0 {
		t.Error("it was asked twice")
	}
}
