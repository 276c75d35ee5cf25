package callback

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

const (
	// inline is the size, in bytes, of the largest request that is written before its
	// response is read. Any socket takes that many bytes, even if the other side does
	// not read.
	inline = 16 << 10
	// maxResponse bounds, in bytes, how much of a response is read so that its
	// connection can be used again. A longer response is cut off.
	maxResponse = 64 << 10
	// maxHeader bounds a response's header, in bytes.
	maxHeader = 32 << 10
)

// conn is a connection to a callback. It carries one POST at a time (HTTP/1.1, RFC
// 9112), in the caller's goroutine. http.Transport needs two more goroutines and passes
// everything between them, which doubles the processor time of a POST.
type conn struct {
	net.Conn // over TLS, if the callback uses it
	// raw is the socket below Conn.
	raw syscall.RawConn
	in  *bufio.Reader // reads conn
	// budget is how many bytes may still be read.
	budget int
	// broken is the error of the last Read. It is kept because the parser would report
	// a malformed line instead.
	broken error
	// until is when the connection becomes too old for another POST.
	until time.Time
}

func newConn(c net.Conn, raw syscall.RawConn) *conn {
	n := &conn{Conn: c, raw: raw}
	n.in = bufio.NewReader(n)
	return n
}

var errTooMuch = errors.New("the response is longer than Gatehook reads")

// Read reads within the budget, which cuts off an endless response.
func (c *conn) Read(p []byte) (int, error) {
	if c.budget <= 0 {
		c.broken = errTooMuch
		return 0, c.broken
	}
	n, err := c.Conn.Read(p[:min(len(p), c.budget)])
	c.budget -= n
	c.broken = err
	return n, err //nolint:wrapcheck // it is an io.Reader: io.EOF stays io.EOF
}

// reply is the received part of a response.
type reply struct {
	status int // 0 for no response
	header http.Header
	body   []byte // at most maxResponse bytes of it
}

// post sends a request and reads the response, until the connection's deadline. keep
// reports whether the connection can be used again. rest is nil if head is the whole
// request; head then has at most inline bytes.
func (c *conn) post(head, rest []byte) (a reply, keep bool, err error) {
	wrote := c.write(head, rest)
	c.budget = maxHeader
	resp, err := c.response() //nolint:bodyclose // see readBody
	if err == nil {
		a.status, a.header = resp.StatusCode, resp.Header
		c.budget += 2 * maxResponse // chunks are longer than their content
		a.body, keep, err = readBody(resp.Body)
		// Unread bytes of this response would be taken for the next one.
		keep = keep && !resp.Close && resp.StatusCode >= 200 && c.in.Buffered() == 0
	}
	if err != nil && c.broken != nil {
		err = c.broken
	}
	select {
	case failed := <-wrote:
		if failed != nil && a.status == 0 {
			err = failed // it happened first
		}
		return a, keep && failed == nil, err
	default:
		// The callback answered without reading everything, or it hangs. Closing
		// the connection ends the writer.
		_ = c.Close()
		<-wrote //nolint:errcheck // there is an answer or an error already
		return a, false, err
	}
}

// response reads the header of the response. It skips interim ones (RFC 9110, section
// 15.2).
func (c *conn) response() (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err //nolint:wrapcheck // failed describes it
		}
	}
}

// write writes a request. It writes a large one in the background while the response is
// read, because a callback that refuses a request may never read it.
func (c *conn) write(head, rest []byte) <-chan error {
	wrote := make(chan error, 1)
	if rest == nil {
		_, err := c.Write(head)
		wrote <- err
		return wrote
	}
	go func() {
		both := net.Buffers{head, rest}
		_, err := both.WriteTo(c.Conn)
		wrote <- err
	}()
	return wrote
}

// readBody reads at most maxResponse bytes of a body. whole reports whether that is all
// of it. readBody does not close the body, because closing reads it to its end, however
// far that is.
func readBody(body io.Reader) (text []byte, whole bool, err error) {
	if body == http.NoBody {
		return nil, true, nil
	}
	limited := io.LimitedReader{R: body, N: maxResponse}
	text, err = io.ReadAll(&limited)
	return text, err == nil && limited.N > 0, err //nolint:wrapcheck // failed describes it
}

// spent reports whether the other side has closed an idle connection, or sent
// unrequested bytes: a POST on it would fail. Bytes that arrive on an idle TLS
// connection almost always mean its end, too.
func (c *conn) spent() bool {
	var (
		n       int
		readErr error
		b       [1]byte
	)
	err := c.raw.Read(func(fd uintptr) bool {
		n, readErr = syscall.Read(int(fd), b[:]) //nolint:gosec // descriptors are small
		return true                              // never wait
	})
	return err != nil || n >= 0 || !errors.Is(readErr, syscall.EAGAIN)
}

// interruptible runs f, which uses a connection, and makes f fail when ctx ends. It
// returns false if ctx ended; the connection's deadline is then lost.
func interruptible(ctx context.Context, c net.Conn, f func()) bool {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	f()
	return stop()
}
