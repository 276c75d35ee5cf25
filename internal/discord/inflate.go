package discord

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// Compression is how Discord compresses its messages (Discord: Transport
// Compression). The zero value means ZstdStream.
type Compression string

// The transport compressions.
const (
	ZstdStream    Compression = "zstd-stream"
	ZlibStream    Compression = "zlib-stream"
	NoCompression Compression = "none"
)

const (
	// maxPayload is the default of Config.MaxPayload, in bytes.
	maxPayload = 64 << 20
	// keepPayload is how much memory a connection holds on to between two
	// payloads, in bytes. The GUILD_CREATE of a large guild is rare.
	keepPayload = 1 << 20
)

var errTooLarge = errors.New("the payload is too large")

// inflater undoes one connection's compression, one message at a time, with
// the context that the messages of a connection share. It is for one
// goroutine.
//
// The decoders pull from a reader until it ends, but a gateway stream has no
// end: it pauses after every message. So the decoder runs as a coroutine. When
// it asks for more than the message has, it has returned everything that the
// message holds, and pauses until the next message comes.
type inflater struct {
	in    []byte // the part of the message that the decoder has not consumed
	out   []byte
	next  func() (struct{}, bool)
	stop  func()
	pause func(struct{}) bool // pauses the decoder; false when it must end
	err   error               // why the decoder ended

	limit int // of one payload, in bytes
}

// newInflater returns an inflater for payloads of at most limit bytes. The
// caller closes it.
func newInflater(c Compression, limit int) *inflater {
	i := &inflater{limit: limit}
	open := map[Compression]func(io.Reader) (io.Reader, error){ZlibStream: openZlib, ZstdStream: openZstd}[c]
	i.next, i.stop = iter.Pull(func(pause func(struct{}) bool) {
		i.pause = pause
		if !pause(struct{}{}) {
			return
		}
		i.err = i.decode(open)
	})
	// This runs the coroutine up to its first pause.
	i.next()
	return i
}

func (i *inflater) decode(open func(io.Reader) (io.Reader, error)) error {
	r, err := open((*messageReader)(i))
	if err != nil {
		return err
	}
	if c, ok := r.(interface{ Close() }); ok {
		defer c.Close()
	}
	if _, err := io.Copy((*payloadWriter)(i), r); err != nil {
		return err
	}
	return errors.New("the compressed stream ended")
}

// inflate returns the payload of a message, which is valid until the next call.
// After an error the stream is lost, and so is the connection.
func (i *inflater) inflate(message []byte) ([]byte, error) {
	if i.err != nil {
		return nil, i.err
	}
	i.in = message
	if cap(i.out) > keepPayload {
		i.out = nil
	}
	i.out = i.out[:0]
	if _, ok := i.next(); !ok {
		if i.err == nil {
			i.err = errors.New("the inflater is closed")
		}
		i.err = fmt.Errorf("inflate: %w", i.err)
		return nil, i.err
	}
	return i.out, nil
}

// close ends the decoder. It may be called twice.
func (i *inflater) close() { i.stop() }

func openZlib(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) }

// maxWindow is the zstd window that every decoder should accept (RFC 8878,
// section 3.1.1.1.2). Discord's has 256 KiB. The decoder at once allocates the
// window that a frame's first bytes ask for, so a higher limit would let a few
// bytes take much memory.
const maxWindow = 8 << 20

// openZstd decodes in the caller's goroutine.
func openZstd(r io.Reader) (io.Reader, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

// messageReader is the side of an inflater that the decoder reads from.
type messageReader inflater

func (r *messageReader) more() bool {
	for len(r.in) == 0 {
		if !r.pause(struct{}{}) {
			return false
		}
	}
	return true
}

// Read implements io.Reader.
func (r *messageReader) Read(p []byte) (int, error) {
	if len(p) > 0 && !r.more() {
		return 0, io.EOF
	}
	n := copy(p, r.in)
	r.in = r.in[n:]
	return n, nil
}

// ReadByte implements io.ByteReader, which keeps zlib from reading ahead.
func (r *messageReader) ReadByte() (byte, error) {
	if !r.more() {
		return 0, io.EOF
	}
	b := r.in[0]
	r.in = r.in[1:]
	return b, nil
}

// payloadWriter is the side of an inflater that the decoder writes to.
type payloadWriter inflater

// Write implements io.Writer.
func (w *payloadWriter) Write(p []byte) (int, error) {
	if len(w.out)+len(p) > w.limit {
		return 0, errTooLarge
	}
	w.out = append(w.out, p...)
	return len(p), nil
}
