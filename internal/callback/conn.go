package callback

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
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
	// restTimeout bounds the wait for the part of a response that nobody keeps: it only
	// lets the connection be used again.
	restTimeout = time.Second
)

// conn is a connection to a callback. It carries one POST at a time (HTTP/1.1, RFC
// 9112), in the caller's goroutine. http.Transport needs two more goroutines and passes
// everything between them, which doubles the processor time of a POST.
type conn struct {
	net.Conn // over TLS, if the callback uses it
	// raw is the socket below Conn.
	raw syscall.RawConn
	in  *bufio.Reader // reads conn
	// deadline is that of the POST.
	deadline time.Time
	// budget is how many bytes may still be read.
	budget int
	// head keeps what was read of a response until its header is parsed, while inHead.
	head   []byte
	inHead bool
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

// expire sets the deadline of the next POST.
func (c *conn) expire(deadline time.Time) error {
	c.deadline = deadline
	return c.SetDeadline(deadline)
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
	if c.inHead {
		c.head = append(c.head, p[:n]...)
	}
	return n, err //nolint:wrapcheck // it is an io.Reader: io.EOF stays io.EOF
}

// reply is the received part of a response.
type reply struct {
	status int // 0 for no response
	header http.Header
	body   []byte // at most maxResponse bytes of it
	// silent: not a byte came.
	silent bool
}

// accepted reports whether the callback has accepted the delivery.
func (a *reply) accepted() bool { return a.status >= 200 && a.status < 300 }

// post sends a request and reads the response, until the connection's deadline. keep
// reports whether the connection can be used again. rest is nil if head is the whole
// request; head then has at most inline bytes.
func (c *conn) post(head, rest []byte) (a reply, keep bool, err error) {
	wrote := c.write(head, rest)
	a, keep, err = c.answer()
	if err == nil && a.accepted() {
		failed := c.handOver(wrote, keep)
		keep = keep && failed == nil
		if isEnd(failed) {
			failed = nil // only the callback itself may cut the request short
		}
		return a, keep, failed
	}
	select {
	case failed := <-wrote:
		if failed != nil && a.status == 0 {
			err = failed // it happened first
		}
		return a, keep && failed == nil, err
	default:
		// The callback refused without reading everything, or it hangs. Closing
		// the connection ends the writer.
		_ = c.Close()
		<-wrote //nolint:errcheck // there is an answer or an error already
		return a, false, err
	}
}

// handOver waits until the request of an accepted delivery is written, and returns why it
// was not. Many callbacks accept first and read afterwards: what is not written by the
// deadline is not handed over. whole reports that the whole response was read.
func (c *conn) handOver(wrote <-chan error, whole bool) error {
	select {
	case err := <-wrote:
		return err
	default:
	}
	if whole {
		return <-wrote
	}
	// A callback that sends more than we keep may read only after it has sent all.
	drained := make(chan struct{})
	defer func() {
		_ = c.Close()
		<-drained
	}()
	_ = c.SetReadDeadline(c.deadline)
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, c.Conn)
	}()
	err := <-wrote
	if both, ok := c.Conn.(interface{ CloseWrite() error }); ok && err == nil && both.CloseWrite() == nil {
		// The callback may still read. To close the connection while bytes of the response
		// arrive would reset it, and lose what the callback has not read.
		if until := time.Now().Add(linger); until.Before(c.deadline) {
			_ = c.SetReadDeadline(until)
		}
		<-drained
	}
	return err
}

// linger is how long a callback may take to read what was handed over, after a response of
// which not all is read.
const linger = 2 * time.Second

// isEnd reports whether the other side has ended the connection.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// answer reads the response.
func (c *conn) answer() (a reply, keep bool, err error) {
	c.budget, c.broken = maxHeader, nil
	c.head, c.inHead = c.head[:0], true
	resp, err := c.response() //nolint:bodyclose // see readBody
	c.inHead = false
	if err != nil && c.broken == nil {
		a, err = c.salvage()
	}
	a.silent = len(c.head) == 0
	if cap(c.head) > 4<<10 {
		c.head = nil // rare, and idle connections should be small
	}
	if err != nil || resp == nil {
		if c.broken != nil {
			err = c.broken
		}
		return a, false, err
	}
	a.status, a.header = resp.StatusCode, resp.Header
	c.budget += 2 * maxResponse // chunks are longer than their content
	a.body, keep, err = c.readBody(resp.Body)
	if err != nil && c.broken != nil {
		err = c.broken
	}
	// Unread bytes of this response would be taken for the next one. Those of a body
	// that may not be there come later.
	keep = keep && !resp.Close && resp.StatusCode >= 200 && c.in.Buffered() == 0 && !forbiddenBody(resp)
	return a, keep, err
}

// forbiddenBody reports whether a response announces a body although its status has none
// (RFC 9110, section 6.4.1).
func forbiddenBody(resp *http.Response) bool {
	if resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusNotModified {
		return false
	}
	length := resp.Header.Get("Content-Length")
	return length != "" && length != "0" || len(resp.TransferEncoding) > 0
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
// of it. Only what is kept of a response (maxExcerpt) has to come: a callback that has
// answered is not asked again because the rest is odd, endless or slow. readBody does not
// close the body, because closing reads it to its end, however far that is.
func (c *conn) readBody(body io.Reader) (text []byte, whole bool, err error) {
	if body == http.NoBody {
		return nil, true, nil
	}
	text, err = io.ReadAll(io.LimitReader(body, maxExcerpt))
	if err != nil || len(text) < maxExcerpt {
		return text, err == nil, err //nolint:wrapcheck // failed describes it
	}
	if rest := time.Now().Add(restTimeout); rest.Before(c.deadline) {
		_ = c.SetReadDeadline(rest)
	}
	limited := io.LimitedReader{R: body, N: maxResponse - maxExcerpt}
	more, err := io.ReadAll(&limited)
	return append(text, more...), err == nil && limited.N > 0, nil
}

// spent reports whether the other side has closed an idle connection, or sent
// unrequested bytes: a POST on it would fail, or take these bytes for its answer. Bytes
// can wait in the socket, or in what TLS has read from it.
func (c *conn) spent() bool {
	if c.in.Buffered() > 0 {
		return true
	}
	var b [1]byte
	if _, ok := c.Conn.(*tls.Conn); ok {
		// With a deadline that is over, nothing is read from the socket.
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			return true
		}
		if n, err := c.Conn.Read(b[:]); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			return true
		}
	}
	var (
		n       int
		readErr error
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
