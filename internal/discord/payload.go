package discord

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	// maxPayload is Config.MaxPayload unless that says otherwise, in bytes.
	maxPayload = 64 << 20
	// keepPayload is how much memory a connection holds on to between two
	// payloads, in bytes. Most payloads have 1 to 4 KiB, and most shards are
	// quiet most of the time: there may be a thousand of them.
	keepPayload = 32 << 10
	// keepHead is how much is kept of a payload that is too large, in bytes.
	// Discord writes t, s and op before d.
	keepHead = 1 << 10
)

// ErrDefect marks a message that could not be inflated. The connection is unusable
// from then on.
var ErrDefect = errors.New("a message from Discord could not be understood")

// Flaw is why one payload is of no use. It is a label: the values are few.
type Flaw string

// The flaws.
const (
	FlawNotJSON    Flaw = "not_json"
	FlawNoEnvelope Flaw = "no_envelope" // JSON, but not a payload of the gateway
	FlawTooLarge   Flaw = "too_large"
)

// PayloadError says that one payload is lost, and only that one: what comes after
// it can be read.
type PayloadError struct {
	Flaw Flaw
	Err  error
}

// Error implements error. It may quote the payload.
func (e *PayloadError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *PayloadError) Unwrap() error { return e.Err }

// payload collects the bytes of one payload. Of one that is larger than limit it
// keeps the beginning only.
type payload struct {
	b     []byte
	size  int // of the whole payload
	limit int
}

// reset makes room for the next payload. It reports whether memory was given up:
// nobody may hold on to it then.
func (p *payload) reset() (freed bool) {
	if freed = cap(p.b) > keepPayload; freed {
		p.b = nil
	}
	p.b, p.size = p.b[:0], 0
	return freed
}

// err returns a *PayloadError if the payload is too large.
func (p *payload) err() error {
	if p.size <= p.limit {
		return nil
	}
	return &PayloadError{FlawTooLarge, fmt.Errorf("a payload of %d bytes, more than %d", p.size, p.limit)}
}

// Write implements io.Writer. It never fails: a decoder has to go through all of
// a payload, or its context would be lost.
func (p *payload) Write(b []byte) (int, error) {
	if p.size += len(b); p.size <= p.limit {
		p.b = append(p.b, b...)
		return len(b), nil
	}
	p.cut()
	p.b = append(p.b, b[:min(max(keepHead-len(p.b), 0), len(b))]...)
	return len(b), nil
}

// ReadFrom implements io.ReaderFrom, without a buffer in between.
func (p *payload) ReadFrom(r io.Reader) (int64, error) {
	before := p.size
	for p.size <= p.limit {
		p.b = slices.Grow(p.b, bytes.MinRead)
		n, err := r.Read(p.b[len(p.b):cap(p.b)])
		p.b = p.b[:len(p.b)+n]
		if p.size += n; p.size > p.limit {
			p.cut()
		}
		switch {
		case errors.Is(err, io.EOF):
			return int64(p.size - before), nil
		case err != nil:
			return int64(p.size - before), err
		}
	}
	n, err := io.Copy(io.Discard, r)
	p.size += int(n)
	return int64(p.size - before), err
}

// cut gives up all but the beginning.
func (p *payload) cut() {
	if len(p.b) > keepHead {
		p.b = bytes.Clone(p.b[:keepHead])
	}
}
