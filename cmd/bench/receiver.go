package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// verifyEvery means that the signature of one in this many deliveries to a listener is
// verified. Verifying all of them would measure the verifier.
const verifyEvery = 97

// receiver serves the callbacks of all listeners; the path is the listener's number.
// It shares the machine with the measured server, so it implements only the part of
// HTTP/1.1 that it needs: net/http's server costs several times more.
type receiver struct {
	listener net.Listener
	conns    sync.WaitGroup
	inboxes  atomic.Pointer[[]*inbox]
	// delivered counts deliveries without repetitions; when it reaches wakeAt,
	// wake gets a token.
	delivered atomic.Int64
	wakeAt    atomic.Int64
	wake      chan struct{}
	// bare counts the POSTs of the bare loop.
	bare atomic.Int64

	mu       sync.Mutex // guards the fields below
	open     map[net.Conn]struct{}
	problems []error
}

// inbox records the deliveries to one listener.
type inbox struct {
	verify *standardwebhooks.Webhook

	mu        sync.Mutex // guards the fields below
	seen      []uint64   // one bit per event
	count     int64      // deliveries without repetitions
	twice     int64      // repetitions
	verified  int64
	timed     bool            // whether latencies are kept
	latencies []time.Duration // from frame to POST
	sample    post            // the last verified delivery
}

func newReceiver() (*receiver, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // does not wait
	if err != nil {
		return nil, fmt.Errorf("start the receiver: %w", err)
	}
	r := &receiver{listener: l, wake: make(chan struct{}, 1), open: map[net.Conn]struct{}{}}
	r.inboxes.Store(&[]*inbox{})
	r.conns.Go(r.accept)
	return r, nil
}

func (r *receiver) url() string { return "http://" + r.listener.Addr().String() }

// expect replaces the inboxes, one per listener, and counts from zero again.
func (r *receiver) expect(inboxes []*inbox) {
	r.inboxes.Store(&inboxes)
	r.delivered.Store(0)
}

func newInbox(secret string) (*inbox, error) {
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return nil, fmt.Errorf("use the listener's secret: %w", err)
	}
	return &inbox{verify: w}, nil
}

func (r *receiver) close() error {
	err := r.listener.Close()
	r.mu.Lock()
	for c := range r.open {
		err = errors.Join(err, c.Close())
	}
	r.mu.Unlock()
	r.conns.Wait()
	return err
}

func (r *receiver) accept() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		r.mu.Lock()
		r.open[c] = struct{}{}
		r.mu.Unlock()
		r.conns.Go(func() {
			r.serve(c)
			r.mu.Lock()
			defer r.mu.Unlock()
			if _, ok := r.open[c]; ok {
				delete(r.open, c)
				_ = c.Close() // the connection is over anyway
			}
		})
	}
}

var (
	headEnd  = []byte("\r\n\r\n")
	noAnswer = []byte("HTTP/1.1 204 No Content\r\n\r\n")
)

// serve answers the requests of one connection, one at a time: none of the
// measured clients pipelines.
func (r *receiver) serve(c net.Conn) {
	buf := make([]byte, 0, 4<<10)
	for {
		head, size := -1, 0
		for head < 0 || len(buf) < head+size {
			if len(buf) == cap(buf) {
				buf = append(buf, make([]byte, cap(buf))...)[:len(buf)]
			}
			n, err := c.Read(buf[len(buf):cap(buf)])
			if n == 0 && err != nil {
				if len(buf) > 0 && !errors.Is(err, net.ErrClosed) {
					r.problem(fmt.Errorf("a request was cut off: %w", err))
				}
				return
			}
			buf = buf[:len(buf)+n]
			if head >= 0 {
				continue
			}
			if i := bytes.Index(buf, headEnd); i >= 0 {
				head = i + len(headEnd)
				if size, err = contentLength(buf[:head]); err != nil {
					r.problem(err)
					return
				}
			}
		}
		r.take(buf[:head], buf[head:head+size], time.Now())
		buf = buf[:copy(buf, buf[head+size:])]
		if _, err := c.Write(noAnswer); err != nil {
			r.problem(fmt.Errorf("answer a request: %w", err))
			return
		}
	}
}

func (r *receiver) problem(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, err)
}

// field returns the value of a header field, or "". The name is in lower case.
func field(head []byte, name string) string {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if len(line) > len(name)+1 && line[len(name)] == ':' && bytes.EqualFold(line[:len(name)], []byte(name)) {
			return string(bytes.TrimSpace(line[len(name)+1:]))
		}
	}
	return ""
}

func contentLength(head []byte) (int, error) {
	n, err := strconv.Atoi(field(head, "content-length"))
	if err != nil {
		return 0, fmt.Errorf("a request without a usable Content-Length: %q", head)
	}
	return n, nil
}

// take records a request.
func (r *receiver) take(head, body []byte, at time.Time) {
	_, path, _ := bytes.Cut(head, []byte(" /"))
	path, _, _ = bytes.Cut(path, []byte(" "))
	if string(path) == bareCommand {
		r.bare.Add(1)
		return
	}
	inboxes := *r.inboxes.Load()
	n, err := strconv.Atoi(string(path))
	if err != nil || n >= len(inboxes) {
		r.problem(fmt.Errorf("a POST to /%s, which is no listener's path", path))
		return
	}
	event, sentAt, err := readStamp(body)
	if err != nil {
		r.problem(err)
		return
	}
	fresh, err := inboxes[n].take(head, body, event, at.Sub(sentAt))
	if err != nil {
		r.problem(err)
	}
	if fresh && r.delivered.Add(1) >= r.wakeAt.Load() {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// take records a delivery. It reports whether it is not a repetition, and returns
// an error if its signature was checked and is wrong.
func (b *inbox) take(head, body []byte, event int, latency time.Duration) (fresh bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for event/64 >= len(b.seen) {
		b.seen = append(b.seen, 0)
	}
	bit := uint64(1) << (event % 64)
	if b.seen[event/64]&bit != 0 {
		b.twice++
		return false, nil
	}
	b.seen[event/64] |= bit
	if b.timed {
		b.latencies = append(b.latencies, latency)
	}
	if b.count++; b.count%verifyEvery == 1 {
		err = b.checkLocked(head, body)
	}
	return true, err
}

// checkLocked verifies a signature as a user of Gatehook would.
func (b *inbox) checkLocked(head, body []byte) error {
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return fmt.Errorf("read a delivery's header: %w", err)
	}
	if err := b.verify.Verify(body, req.Header); err != nil {
		return fmt.Errorf("delivery %s: %w", req.Header.Get("webhook-id"), err)
	}
	b.verified++
	b.sample = post{Header: req.Header, Body: bytes.Clone(body)}
	return nil
}

// missing returns how many of the events before end have not arrived.
func (b *inbox) missing(end int) (missing int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for event := range end {
		if event/64 >= len(b.seen) || b.seen[event/64]&(1<<(event%64)) == 0 {
			missing++
		}
	}
	return missing
}

// takeLatencies returns the latencies kept so far, and keeps new ones if keep is
// true.
func (b *inbox) takeLatencies(keep bool) []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.latencies
	b.timed, b.latencies = keep, nil
	return kept
}

// await waits until n deliveries have arrived.
func (r *receiver) await(n int64, timeout <-chan time.Time, done <-chan struct{}) error {
	r.wakeAt.Store(n)
	for r.delivered.Load() < n {
		select {
		case <-r.wake:
		case <-timeout:
			return fmt.Errorf("%d of %d deliveries did not arrive", n-r.delivered.Load(), n)
		case <-done:
			return errors.New("the run was interrupted")
		}
	}
	return nil
}

// joined returns the problems so far as one error, or nil.
func (r *receiver) joined() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.problems) > 5 {
		return fmt.Errorf("%d problems, such as: %w", len(r.problems), errors.Join(r.problems[:5]...))
	}
	return errors.Join(r.problems...)
}
