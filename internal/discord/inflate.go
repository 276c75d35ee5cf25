package discord

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Compression is how Discord compresses its messages (Discord: Transport
// Compression). The zero value means ZlibStream:
// its decoder keeps 50 KiB per connection, the one of ZstdStream 700 KiB.
type Compression string

// The transport compressions.
const (
	ZstdStream    Compression = "zstd-stream"
	ZlibStream    Compression = "zlib-stream"
	NoCompression Compression = "none"
)

// inflater undoes one connection's compression, one message at a time, with
// the context that the messages of a connection share. It is for one
// goroutine.
//
// The decoders pull from a reader until it ends, but a gateway stream has no
// end: it pauses after every message. So the decoder runs as a coroutine. It
// reads the message itself, without a copy in between. When it asks for more
// than the message has, it has given everything that the message holds, and
// pauses until the next one comes.
type inflater struct {
	out   io.Writer
	in    io.Reader // the message under way; nil when it was read to its end
	size  int       // how much of the message was read
	tail  [4]byte   // the last bytes that were read of the message
	cut   error     // why the message could not be read to its end
	next  func() (struct{}, bool)
	stop  func()
	pause func(struct{}) bool // pauses the decoder; false when it must end
	err   error               // why the decoder ended
}

// newInflater returns an inflater that writes to out, which never fails. The
// caller closes it.
func newInflater(c Compression, out io.Writer) *inflater {
	i := &inflater{out: out}
	decode := map[Compression]func(io.Writer, io.Reader) error{ZlibStream: decodeZlib, ZstdStream: decodeZstd}[c]
	i.next, i.stop = iter.Pull(func(pause func(struct{}) bool) {
		i.pause = pause
		if !pause(struct{}{}) {
			return
		}
		if i.err = decode(i.out, (*messageReader)(i)); i.err == nil {
			i.err = errors.New("the compressed stream ended")
		}
	})
	// This runs the coroutine up to its first pause.
	i.next()
	return i
}

// inflate reads a message to its end and writes what it holds. The error wraps
// ErrDefect, or it is the one of the message. After an error the stream is lost,
// and so is the connection.
func (i *inflater) inflate(message io.Reader) error {
	if i.err != nil {
		return i.err
	}
	i.in, i.size, i.tail = message, 0, [4]byte{}
	if _, ok := i.next(); !ok {
		if i.err == nil {
			i.err = errors.New("the inflater is closed")
		}
		i.err = fmt.Errorf("inflate: %w: %w", ErrDefect, i.err)
		return i.err
	}
	if i.cut != nil {
		i.err = i.cut
	}
	return i.err
}

// flushed reports whether the message was the last one of a payload (Discord:
// Zlib-stream).
func (i *inflater) flushed() bool { return i.tail == [4]byte{0x00, 0x00, 0xff, 0xff} }

// close ends the decoder. It may be called twice.
func (i *inflater) close() { i.stop() }

// decodeZlib decodes a zlib stream (RFC 1950). Its end, where there would be a
// checksum, never comes.
func decodeZlib(w io.Writer, r io.Reader) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	const deflate, dictionary = 8, 0x20
	if head[0]&0x0f != deflate || head[1]&dictionary != 0 || (int(head[0])<<8|int(head[1]))%31 != 0 {
		return errors.New("this is no zlib stream")
	}
	_, err := io.Copy(w, flate.NewReader(r)) // from the decoder's window to w, without a buffer
	return err
}

// maxWindow is the zstd window that every decoder should accept (RFC 8878,
// section 3.1.1.1.2). Discord's has 256 KiB. The decoder at once allocates the
// window that a frame's first bytes ask for, so a higher limit would let a few
// bytes take much memory.
const maxWindow = 8 << 20

// decodeZstd decodes in the caller's goroutine.
func decodeZstd(w io.Writer, r io.Reader) error {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = io.Copy(w, d)
	return err
}

// messageReader is the side of an inflater that the decoder reads from.
type messageReader inflater

// Read implements io.Reader. It returns what is there, and pauses only if that is
// nothing: so a buffer on top of it does not read ahead.
func (r *messageReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		for r.in == nil {
			if !r.pause(struct{}{}) {
				return 0, io.EOF
			}
		}
		n, err := r.in.Read(p)
		r.size += n
		if n >= len(r.tail) {
			copy(r.tail[:], p[n-len(r.tail):n])
		} else {
			copy(r.tail[:], r.tail[n:])
			copy(r.tail[len(r.tail)-n:], p[:n])
		}
		if err != nil {
			r.in = nil
			if !errors.Is(err, io.EOF) {
				r.cut = err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}
