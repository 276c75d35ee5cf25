package callback

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

func newClient(t *testing.T) *Client {
	t.Helper()
	c := New(Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Timeout: time.Minute})
	t.Cleanup(c.Close)
	return c
}

func post(t *testing.T, c *Client, u string) Result {
	t.Helper()
	target, err := NewTarget(testListener(u))
	if err != nil {
		t.Fatal(err)
	}
	return c.Send(t.Context(), target, &Request{Event: &event.Event{}, Body: []byte("{}")})
}

func testListener(u string) *event.Listener {
	return &event.Listener{URL: u, Secrets: []secret.Value{secret.New("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")}}
}

// TestClosedWhileIdle: a connection that the other side closed or wrote to before the
// next POST costs no attempt.
func TestClosedWhileIdle(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(net.Conn) error{
		"closed": net.Conn.Close,
		"reset":  func(c net.Conn) error { return errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close()) },
		"written to": func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answered := make(chan net.Conn, 1)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				answered <- c
			}))
			defer srv.Close()
			s := newClient(t)
			for range 3 {
				r := post(t, s, srv.URL)
				if r.Class != Class2xx || r.Status != 204 {
					t.Fatalf("%v, %d, %v", r.Class, r.Status, r.Err)
				}
				c := <-answered
				defer c.Close() //nolint:errcheck // it may have ended already
				if err := between(c); err != nil {
					t.Fatal(err)
				}
				// Even on loopback, the end may arrive a moment later.
				kept := s.idle.conns[srv.URL]
				for deadline := time.Now().Add(time.Minute); !kept[0].spent(); {
					if time.Now().After(deadline) {
						t.Fatal("the end of the connection is not seen")
					}
				}
			}
		})
	}
}

// TestIdleConnectionsEnd: connections that were idle for too long are closed. Closing
// the client closes all of them.
func TestIdleConnectionsEnd(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{}, 100)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			closed <- struct{}{}
		}
	}
	srv.Start()
	defer srv.Close()
	s := newClient(t)
	post := func() {
		t.Helper()
		if r := post(t, s, srv.URL); r.Class != Class2xx {
			t.Fatal(r.Err)
		}
	}
	post()
	for _, conns := range s.idle.conns {
		conns[0].until = time.Now().Add(-time.Second)
	}
	s.idle.clean()
	<-closed
	if s.idle.len() != 0 || len(s.idle.conns) != 0 || s.idle.sweep != nil {
		t.Error("a connection that is too old is left")
	}
	post()
	for _, conns := range s.idle.conns {
		conns[0].until = time.Now().Add(-time.Second)
	}
	post() // does not use a connection that is too old
	<-closed
	s.Close()
	<-closed
	post()
	<-closed // at once, because the client is closed
}

// TestIdleConnectionsAreBounded: a connection above the bound closes another one.
func TestIdleConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	var p idlePool
	defer p.close()
	ends := make(chan error, 1)
	for i := range maxIdle + 1 {
		ours, theirs := net.Pipe()
		if i < 10 {
			go func() {
				_, err := theirs.Read(make([]byte, 1))
				ends <- err
			}()
		}
		p.put(fmt.Sprint("http://", i/10), newConn(ours, nil), time.Minute)
	}
	if p.len() != maxIdle {
		t.Errorf("the pool counts %d connections, want %d", p.len(), maxIdle)
	}
	kept := 0
	for _, conns := range p.conns {
		kept += len(conns)
	}
	if kept != maxIdle {
		t.Errorf("the pool has %d connections, want %d", kept, maxIdle)
	}
	p.close()
	for range 10 {
		if err := <-ends; !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
}
