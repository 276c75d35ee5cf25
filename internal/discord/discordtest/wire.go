package discordtest

import (
	"bufio"
	"net"
	"net/http"
	"sync/atomic"
)

// maxCorked is how many bytes a corked wire holds back before it writes them.
const maxCorked = 64 << 10

// wire is the TCP connection beneath a WebSocket. It lets a batch of frames
// leave in one system call (cork), and lets a script write bytes that no
// WebSocket library would, or nothing at all (mute).
type wire struct {
	net.Conn
	// muted discards everything written: the peer sees a connection on which
	// nothing happens.
	muted atomic.Bool

	// mu guards the fields below and the order of writes. A write to a peer that
	// reads nothing may block for long, and a goroutine that waits for it on a
	// sync.Mutex would keep the fake clock of synctest from moving.
	mu     chanMutex
	corked bool
	buf    []byte
}

// newWire returns a wire over c, which the wire closes.
func newWire(c net.Conn) *wire { return &wire{Conn: c, mu: make(chanMutex, 1)} }

// chanMutex is a lock whose waiters count as blocked for synctest.
type chanMutex chan struct{}

// Lock implements sync.Locker.
func (m chanMutex) Lock() { m <- struct{}{} }

// Unlock implements sync.Locker.
func (m chanMutex) Unlock() { <-m }

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.muted.Load() {
		return len(p), nil
	}
	if !w.corked && len(w.buf) == 0 {
		return w.Conn.Write(p)
	}
	w.buf = append(w.buf, p...)
	if !w.corked || len(w.buf) >= maxCorked {
		return len(p), w.flushLocked()
	}
	return len(p), nil
}

// cork holds back all writes until uncork.
func (w *wire) cork() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.corked = true
}

// uncork writes the bytes held back.
func (w *wire) uncork() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.corked = false
	return w.flushLocked()
}

func (w *wire) flushLocked() error {
	if len(w.buf) == 0 || w.muted.Load() {
		return nil
	}
	_, err := w.Conn.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

// closeWrite ends the stream to the peer in an orderly way. Close would send a
// reset if the peer had sent something meanwhile, and the peer could lose
// unread data.
func (w *wire) closeWrite() error {
	if tcp, ok := w.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return w.Close()
}

// reset closes with a TCP RST where the system can. The peer may lose unread
// data.
func (w *wire) reset() {
	if tcp, ok := w.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a socket that is already closed needs no RST
	}
	_ = w.Close() // fails only if it is closed already
}

// tap makes Hijack return a wire to the WebSocket library, instead of the bare
// TCP connection.
type tap struct {
	http.ResponseWriter
	wire *wire
}

// Hijack implements http.Hijacker.
func (t *tap) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	t.wire = newWire(nc)
	return t.wire, bufio.NewReadWriter(rw.Reader, bufio.NewWriterSize(t.wire, 4<<10)), nil
}
