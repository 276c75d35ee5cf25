package callback_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
)

// speaker is a callback whose every byte the test decides.
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
				// This also ends a connection on which no request came.
				ended := context.AfterFunc(ctx, func() { c.Close() }) //nolint:errcheck // the other side has gone
				defer func() {
					ended()
					c.Close() //nolint:errcheck // the other side has gone
				}()
				// A byte of the request must come first, because an answer without a
				// request is another error.
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

// drip writes the parts one by one, and repeats the last one until the other side stops
// reading.
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

// TestDripsEnd: the attempt's timeout ends a response that drips forever, whichever
// part of it drips.
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
			s := newClient(t, testConfig(200*time.Millisecond))
			if r := send(t, s, testListener("http://"+address)); r.Class != callback.ClassTimeout || r.Err == nil {
				t.Errorf("%v, status %d, %v", r.Class, r.Status, r.Err)
			}
		})
	}
	t.Run("TLS handshake", func(t *testing.T) {
		t.Parallel()
		// A record of 16 KiB, sent byte by byte (RFC 8446, section 5.1).
		address := speaker(t, func(c net.Conn, done <-chan struct{}) { drip(c, done, "\x16\x03\x03\x3f\xff", "\x02") })
		s := newClient(t, testConfig(200*time.Millisecond))
		if r := send(t, s, testListener("https://"+address)); r.Class != callback.ClassTimeout {
			t.Errorf("%v, status %d, %v", r.Class, r.Status, r.Err)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		srv, roots := startTLS(t, func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 1 {
				t.Errorf("the protocol is %s", r.Proto)
			}
			drip(flushing{w}, r.Context().Done(), "x")
		}, nil)
		cfg := testConfig(500 * time.Millisecond)
		cfg.Roots = roots
		s := newClient(t, cfg)
		if r := send(t, s, testListener(srv.URL)); r.Class != callback.ClassTimeout || r.Status != 200 {
			t.Errorf("%v, status %d, %v", r.Class, r.Status, r.Err)
		}
	})
}

// TestFloodsEnd: a fast response that never ends is cut off by size, long before the
// timeout.
func TestFloodsEnd(t *testing.T) {
	t.Parallel()
	x := strings.Repeat("x", 4<<10)
	for name, tt := range map[string]struct {
		parts []string
		class callback.Class
	}{
		"status line":       {[]string{"HTTP/1.1 200 ", x}, callback.ClassConnection},
		"one header":        {[]string{"HTTP/1.1 200 OK\r\nX: ", x}, callback.ClassConnection},
		"many headers":      {[]string{"HTTP/1.1 200 OK\r\n", "X: " + x + "\r\n"}, callback.ClassConnection},
		"interim responses": {[]string{"HTTP/1.1 103 Early Hints\r\nX: " + x + "\r\n\r\n"}, callback.ClassConnection},
		"body":              {[]string{"HTTP/1.1 200 OK\r\n\r\n", x}, callback.Class2xx},
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
			r := send(t, newClient(t, testConfig(time.Minute)), testListener("http://"+address))
			if r.Class != tt.class || len(r.Response) > 1024 {
				t.Errorf("%v, status %d, %d bytes, %v", r.Class, r.Status, len(r.Response), r.Err)
			}
			if r.Err != nil && len(r.Err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(r.Err.Error()))
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
