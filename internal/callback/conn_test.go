package callback_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
)

// counted starts a server that counts its connections.
func counted(t *testing.T, h http.HandlerFunc) (srv *httptest.Server, opened *atomic.Int64) {
	t.Helper()
	opened = new(atomic.Int64)
	srv = httptest.NewUnstartedServer(h)
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv, opened
}

// TestConnectionsAreReused: one connection is enough as long as answers are complete.
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
		"too long":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 64<<10+1)) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, opened := counted(t, tt.answer)
			s := newClient(t, testConfig(time.Minute))
			for range 3 {
				if r := send(t, s, testListener(srv.URL)); r.Class != callback.Class2xx {
					t.Fatalf("%v, %v", r.Class, r.Err)
				}
			}
			if n, counted := opened.Load(), s.Opened(); n != tt.want || counted != n {
				t.Errorf("%d connections for three POSTs, want %d; %d were counted", n, tt.want, counted)
			}
			if kept := s.Idle(); (kept == 1) != (tt.want == 1) {
				t.Errorf("%d connections are kept", kept)
			}
		})
	}
}

// TestUnfinishedAnswer: a connection on which the rest of an answer may still come is
// not used again, because the next POST would take that rest for its own answer.
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
			s := newClient(t, testConfig(50*time.Millisecond))
			if r := send(t, s, testListener("http://"+address)); r.Status != http.StatusOK || r.Class != callback.ClassTimeout {
				t.Errorf("%v, %d, %v", r.Class, r.Status, r.Err)
			}
			if n := s.Idle(); n != 0 {
				t.Errorf("%d connections are kept", n)
			}
		})
	}
}

// TestAnsweredEarly: an answer counts even if the callback sends it before it has read
// a large body, or never reads that body.
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
			s := newClient(t, testConfig(time.Minute))
			r := sendBody(t.Context(), t, s, testListener("http://"+address), make([]byte, 64<<20))
			if r.Status != 413 || r.Class != callback.Class4xx || string(r.Response) != "long" {
				t.Errorf("%v, %d, %q, %v", r.Class, r.Status, r.Response, r.Err)
			}
			if n := s.Idle(); n != 0 {
				t.Error("the connection is kept, with half a request on it")
			}
		})
	}
}

// TestBodiesOfAllSizes: a body arrives unchanged whether it is written in one piece, in
// two or in many, with and without TLS.
func TestBodiesOfAllSizes(t *testing.T) {
	t.Parallel()
	bodies := make(chan []byte, 1)
	receive := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(body)) {
			t.Errorf("Content-Length is %d, the body has %d bytes, %v", r.ContentLength, len(body), err)
		}
		bodies <- body
		w.WriteHeader(http.StatusNoContent)
	}
	plain, opened := counted(t, receive)
	secure, roots := startTLS(t, receive, nil)
	cfg := testConfig(time.Minute)
	cfg.Roots = roots
	s := newClient(t, cfg)
	for _, u := range []string{plain.URL, secure.URL} {
		for _, size := range []int{0, 1, 1400, 15 << 10, 16<<10 - 1, 16 << 10, 16<<10 + 1, 100_000, 5 << 20} {
			sent := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
			if r := sendBody(t.Context(), t, s, testListener(u), sent); r.Class != callback.Class2xx {
				t.Fatalf("%d bytes: %v, %v", size, r.Class, r.Err)
			}
			if !bytes.Equal(<-bodies, sent) {
				t.Errorf("a body of %d bytes arrived changed", size)
			}
		}
	}
	if opened.Load() > 5 {
		t.Errorf("%d connections", opened.Load())
	}
}

// TestAttemptIsEnded: the end of the context ends a POST that hangs. The error is the
// context's cause.
func TestAttemptIsEnded(t *testing.T) {
	t.Parallel()
	reason := errors.New("the server stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	address := speaker(t, func(_ net.Conn, done <-chan struct{}) {
		cancel(reason)
		<-done
	})
	s := newClient(t, testConfig(time.Minute))
	if r := sendBody(ctx, t, s, testListener("http://"+address), []byte("{}")); r.Class != callback.ClassConnection || !errors.Is(r.Err, reason) {
		t.Errorf("%v, %v", r.Class, r.Err)
	}
}
