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
	// inline is up to how many bytes a request is written before its answer is
	// looked for: any socket takes them, even if nobody reads on the other side.
	inline = 16 << 10
	// maxResponse is how much of a response is read, in bytes, so that its
	// connection can be used again; a longer one is cut off.
	maxResponse = 64 << 10
	// maxHeader bounds a response's header, in bytes.
	maxHeader = 32 << 10
)

// conn is a connection to a callback. It carries one POST at a time (HTTP/1.1,
// RFC 9112), all of which happens in the goroutine of whoever has it:
// http.Transport needs two more and hands everything over between them, which
// costs half of a POST.
type conn struct {
	net.Conn // over TLS, if the callback is
	// raw is the socket below.
	raw syscall.RawConn
	in  *bufio.Reader // reads conn
	// budget is how many bytes may still come.
	budget int
	// broken is why nothing more comes. It is kept here because parsers report
	// what they make of the half of a line instead.
	broken error
	// until is when the connection is too old for another POST.
	until time.Time
}

func newConn(c net.Conn, raw syscall.RawConn) *conn {
	n := &conn{Conn: c, raw: raw}
	n.in = bufio.NewReader(n)
	return n
}

var errTooMuch = errors.New("the response is longer than what is read of one")

// Read reads within the budget: who sends without end is cut off.
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

// reply is what came of a response.
type reply struct {
	status int // 0 for no response
	header http.Header
	body   []byte // at most maxResponse bytes of it
}

// post sends a request and reads the answer, until the connection's deadline.
// keep tells whether the connection can be used again. rest is nil if head is
// the whole request, which is for those of at most inline bytes.
func (c *conn) post(head, rest []byte) (a reply, keep bool, err error) {
	wrote := c.write(head, rest)
	c.budget = maxHeader
	resp, err := c.response() //nolint:bodyclose // see readBody
	if err == nil {
		a.status, a.header = resp.StatusCode, resp.Header
		c.budget += 2 * maxResponse // chunks are longer than what is in them
		a.body, keep, err = readBody(resp.Body)
		// What is still to come of an answer would be taken for the next one's.
		keep = keep && !resp.Close && resp.StatusCode >= 200 && c.in.Buffered() == 0
	}
	if err != nil && c.broken != nil {
		err = c.broken
	}
	select {
	case failed := <-wrote:
		if failed != nil && a.status == 0 {
			err = failed // it came first
		}
		return a, keep && failed == nil, err
	default:
		// It answered without having read everything. Or it hangs, and so does
		// the writer, which the end of the connection ends.
		_ = c.Close()
		<-wrote //nolint:errcheck // it has been answered, or has failed
		return a, false, err
	}
}

// response reads the header of a response. What is interim is none (RFC 9110,
// 15.2).
func (c *conn) response() (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err //nolint:wrapcheck // failed names it
		}
	}
}

// write writes a request, a large one while the answer is waited for: a callback
// that refuses it may never read it.
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

// readBody reads at most maxResponse bytes. whole tells that the body ended
// there. It is not closed: that would read to its end, however far that is.
func readBody(body io.Reader) (text []byte, whole bool, err error) {
	if body == http.NoBody {
		return nil, true, nil
	}
	limited := io.LimitedReader{R: body, N: maxResponse}
	text, err = io.ReadAll(&limited)
	return text, err == nil && limited.N > 0, err //nolint:wrapcheck // failed names it
}

// spent tells of a connection that nobody uses whether the other side has ended
// it, or sent what nobody asked for: a POST on it would fail. What comes over
// TLS on an idle connection is hardly ever anything but its end.
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

// interruptible runs f, which works on a connection, and ends it when ctx does.
// It returns false if ctx did: the connection's deadline is void then.
func interruptible(ctx context.Context, c net.Conn, f func()) bool {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	f()
	return stop()
}
