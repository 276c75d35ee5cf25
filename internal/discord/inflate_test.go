package discord

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

var messageCreate = discordtest.MessageCreate()

// deflater compresses payloads as Discord does: one stream, flushed after
// every payload.
type deflater struct {
	out bytes.Buffer
	w   interface {
		io.WriteCloser
		Flush() error
	}
}

func newDeflater(tb testing.TB, c Compression) *deflater {
	tb.Helper()
	d := new(deflater)
	if c == ZlibStream {
		d.w = zlib.NewWriter(&d.out)
		return d
	}
	w, err := zstd.NewWriter(&d.out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10))
	if err != nil {
		tb.Fatal(err)
	}
	d.w = w
	return d
}

func (d *deflater) message(tb testing.TB, payload []byte) []byte {
	tb.Helper()
	d.out.Reset()
	if _, err := d.w.Write(payload); err != nil {
		tb.Fatal(err)
	}
	if err := d.w.Flush(); err != nil {
		tb.Fatal(err)
	}
	return bytes.Clone(d.out.Bytes())
}

var streams = []Compression{ZlibStream, ZstdStream}

// reader is an inflater with the payload that it fills.
type reader struct {
	*inflater
	payload payload
}

func newReader(c Compression, limit int) *reader {
	r := &reader{payload: payload{limit: limit}}
	r.inflater = newInflater(c, &r.payload)
	return r
}

// read returns the payload of a message, which comes in pieces as from a socket.
func (r *reader) read(message []byte) ([]byte, error) {
	r.payload.reset()
	if err := r.inflate(iotest.HalfReader(bytes.NewReader(message))); err != nil {
		return nil, err
	}
	return r.payload.b, r.payload.err()
}

func TestInflate(t *testing.T) {
	t.Parallel()
	random := make([]byte, 300<<10)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(random)
	payloads := [][]byte{
		[]byte(`{"op":10}`), messageCreate, messageCreate, []byte("x"), random, bytes.Repeat([]byte("ab"), 1<<20),
		messageCreate, bytes.Repeat(messageCreate, 3000), random[:70000], []byte(`{}`),
	}
	for _, c := range streams {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			d, r := newDeflater(t, c), newReader(c, maxPayload)
			defer r.close()
			for n, want := range payloads {
				got, err := r.read(d.message(t, want))
				if err != nil {
					t.Fatalf("payload %d: %v", n, err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("payload %d: %d bytes, want %d", n, len(got), len(want))
				}
			}
		})
	}
}

func TestInflateRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range streams {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			t.Run("garbage", func(t *testing.T) {
				t.Parallel()
				refuses(t, c, []byte("this is not a compressed stream"), "")
			})
			t.Run("an end", func(t *testing.T) {
				t.Parallel()
				d := newDeflater(t, c)
				_, _ = d.w.Write([]byte("x"))
				if err := d.w.Close(); err != nil {
					t.Fatal(err)
				}
				if c == ZlibStream { // a zstd stream may go on with another frame
					refuses(t, c, d.out.Bytes(), "ended")
				}
			})
		})
	}
}

func refuses(t *testing.T, c Compression, message []byte, want string) {
	t.Helper()
	r := newReader(c, maxPayload)
	defer r.close()
	_, err := r.read(message)
	if !errors.Is(err, ErrDefect) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	if _, again := r.read(message); !errors.Is(again, err) {
		t.Errorf("error %v after %v", again, err)
	}
}

// TestInflateGoesOnAfterTooMuch: a payload that is too large costs only itself.
// Its beginning is kept, for its place in the session, and nothing else of it.
func TestInflateGoesOnAfterTooMuch(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	head := []byte(`{"t":"GUILD_CREATE","s":7,"op":0,"d":{"name":"`)
	for _, c := range streams {
		for _, size := range []int{limit + 1, 64 * limit} {
			t.Run(fmt.Sprintf("%s %d", c, size), func(t *testing.T) {
				t.Parallel()
				d, r := newDeflater(t, c), newReader(c, limit)
				defer r.close()
				for n := range 3 {
					if got, err := r.read(d.message(t, messageCreate)); err != nil || !bytes.Equal(got, messageCreate) {
						t.Fatalf("payload %d before: %v: %.80s", n, err, got)
					}
					got, err := r.read(d.message(t, append(head, bytes.Repeat([]byte{'x'}, size-len(head))...)))
					if !hasFlaw(err, FlawTooLarge) || r.payload.size != size {
						t.Fatalf("%v, %d bytes, want %d", err, r.payload.size, size)
					}
					if !bytes.HasPrefix(got, head) || cap(got) > 2*keepHead {
						t.Fatalf("%d bytes are kept: %.80s", cap(got), got)
					}
				}
			})
		}
	}
}

func hasFlaw(err error, want Flaw) bool {
	e, ok := errors.AsType[*PayloadError](err)
	return ok && e.Flaw == want
}

// TestPayloadReadsPlain: without compression the limit is the same, and the
// socket is read to the end of the message.
func TestPayloadReadsPlain(t *testing.T) {
	t.Parallel()
	const limit = 2 * keepHead
	for size := range 4 * limit {
		if size > 10 && size%97 != 0 && size != limit && size != limit+1 {
			continue
		}
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader,
		} {
			p := payload{limit: limit}
			in := bytes.NewReader(bytes.Repeat([]byte{'x'}, size))
			n, err := p.ReadFrom(wrap(in))
			if err != nil || int(n) != size || in.Len() != 0 || p.size != size {
				t.Fatalf("%s, %d bytes: read %d, %v, %d are left", name, size, n, err, in.Len())
			}
			if tooLarge := size > limit; (p.err() != nil) != tooLarge || tooLarge && len(p.b) != keepHead || !tooLarge && len(p.b) != size {
				t.Fatalf("%s, %d bytes: %v, %d are kept", name, size, p.err(), len(p.b))
			}
		}
	}
	p := payload{limit: limit}
	if _, err := p.ReadFrom(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a broken socket: %v", err)
	}
}

func TestInflateClosed(t *testing.T) {
	t.Parallel()
	for _, c := range streams {
		r := newReader(c, maxPayload)
		r.close()
		r.close()
		if _, err := r.read([]byte("x")); err == nil {
			t.Errorf("%s: inflated after close", c)
		}
	}
}

// FuzzInflate feeds arbitrary messages: there may be an error, but no panic,
// no hang and no payload over the limit.
func FuzzInflate(f *testing.F) {
	for _, c := range streams {
		d := newDeflater(f, c)
		f.Add(c == ZlibStream, d.message(f, []byte(`{"op":10,"d":{"heartbeat_interval":41250}}`)), d.message(f, messageCreate))
	}
	f.Add(true, []byte{0x78, 0x9c}, []byte{0, 0, 0xff, 0xff})
	f.Add(false, []byte{0x28, 0xb5, 0x2f, 0xfd}, []byte{})
	f.Fuzz(func(t *testing.T, zlibStream bool, first, second []byte) {
		r := newReader(map[bool]Compression{true: ZlibStream, false: ZstdStream}[zlibStream], 1<<16)
		defer r.close()
		for _, message := range [][]byte{first, second} {
			payload, err := r.read(message)
			if len(payload) > 1<<16 || err != nil && len(payload) > keepHead {
				t.Fatalf("%d bytes, error %v", len(payload), err)
			}
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	for _, c := range streams {
		b.Run(string(c), func(b *testing.B) {
			// The messages differ, as real ones do. There are enough of them that the
			// stream never starts again within one round.
			d := newDeflater(b, c)
			var messages [][]byte
			for n := range 4096 {
				payload := bytes.ReplaceAll(messageCreate, []byte("1574344433229399253"), fmt.Appendf(nil, "15743444332%08d", n))
				messages = append(messages, d.message(b, payload))
			}
			b.SetBytes(int64(len(messageCreate)))
			b.ReportAllocs()
			var r *reader
			message := new(bytes.Reader)
			n := len(messages)
			for b.Loop() {
				if n == len(messages) {
					if r != nil {
						r.close()
					}
					r, n = newReader(c, maxPayload), 0
				}
				r.payload.reset()
				message.Reset(messages[n])
				if err := r.inflate(message); err != nil {
					b.Fatal(err)
				}
				n++
			}
			r.close()
		})
	}
}
