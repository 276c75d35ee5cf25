package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// memnet is a network in memory. Unlike the system's network, it works with a
// fake clock, and it can break in ways that a loopback does not.
type memnet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	conns     []*memConn
	dials     []time.Time
	down      bool
}

func newMemnet() *memnet { return &memnet{listeners: make(map[string]*memListener)} }

// listen is for discordtest.Config.
func (n *memnet) listen() (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &memListener{name: fmt.Sprintf("memory-%d:80", len(n.listeners)), conns: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[l.name] = l
	return l, nil
}

var errNetworkDown = errors.New("the network is down")

func (n *memnet) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, time.Now())
	l, down := n.listeners[addr], n.down
	n.mu.Unlock()
	if l == nil || down {
		return nil, errNetworkDown
	}
	near, far := net.Pipe()
	c := &memConn{Conn: near, closed: make(chan struct{})}
	c.readable.Store(1 << 40)
	n.mu.Lock()
	n.conns = append(n.conns, c)
	n.mu.Unlock()
	select {
	case l.conns <- far:
		return c, nil
	case <-l.closed:
		return nil, errNetworkDown
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// setDown takes the network down, which ends all connections, or up again.
func (n *memnet) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
	for _, c := range n.conns {
		if down {
			_ = c.Close() // never fails
		}
	}
}

// dialed returns the times of all dials, failed or not.
func (n *memnet) dialed() []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dials)
}

// freeze makes all connections half-open: they read this many more bytes, and
// from now on write nothing unless writable.
func (n *memnet) freeze(readable int64, writable bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.readable.Store(readable)
		c.stuck.Store(!writable)
	}
}

type memListener struct {
	name   string
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr(l.name) }

type memAddr string

func (memAddr) Network() string  { return "memory" }
func (a memAddr) String() string { return string(a) }

// memConn is the client's end of a connection.
type memConn struct {
	net.Conn
	readable atomic.Int64 // bytes that are still read
	stuck    atomic.Bool  // writes don't return
	once     sync.Once
	closed   chan struct{}
}

func (c *memConn) Read(p []byte) (int, error) {
	left := c.readable.Load()
	if left > 0 {
		n, err := c.Conn.Read(p[:min(int64(len(p)), left)])
		if c.readable.Add(-int64(n)) >= 0 {
			return n, err
		}
	}
	<-c.closed
	return 0, net.ErrClosed
}

func (c *memConn) Write(p []byte) (int, error) {
	if c.stuck.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *memConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// clockRig is a rig with a fake clock and the waits of the real program.
type clockRig struct {
	*rig
	net *memnet
}

// withClock runs a test with a clockRig.
func withClock(t *testing.T, cfg discordtest.Config, test func(r *clockRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet()
		cfg.Listen = n.listen
		r := newRig(t, cfg)
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeout(t.Context(), 30*24*time.Hour)
		t.Cleanup(cancel)
		r.timing = usualTiming
		r.cfg.Dial = n.dial
		test(&clockRig{r, n})
	})
}

// sleep lets time pass.
func (r *clockRig) sleep(d time.Duration) {
	r.t.Helper()
	time.Sleep(d)
	synctest.Wait()
}
