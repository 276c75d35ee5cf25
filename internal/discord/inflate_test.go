package discord

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

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
	w, err := zstd.NewWriter(&d.out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
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
			d, i := newDeflater(t, c), newInflater(c, maxPayload)
			defer i.close()
			for n, want := range payloads {
				got, err := i.inflate(d.message(t, want))
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
	bomb := bytes.Repeat([]byte{0}, 1<<20+1)
	for _, c := range streams {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			t.Run("garbage", func(t *testing.T) {
				t.Parallel()
				refuses(t, c, []byte("this is not a compressed stream"), "")
			})
			t.Run("larger than the limit", func(t *testing.T) {
				t.Parallel()
				refuses(t, c, newDeflater(t, c).message(t, bomb), errTooLarge.Error())
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
	i := newInflater(c, 1<<20)
	defer i.close()
	_, err := i.inflate(message)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	if _, again := i.inflate(message); !errors.Is(again, err) {
		t.Errorf("error %v after %v", again, err)
	}
}

func TestInflateClosed(t *testing.T) {
	t.Parallel()
	for _, c := range streams {
		i := newInflater(c, maxPayload)
		i.close()
		i.close()
		if _, err := i.inflate([]byte("x")); err == nil {
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
		i := newInflater(map[bool]Compression{true: ZlibStream, false: ZstdStream}[zlibStream], maxPayload)
		defer i.close()
		for _, message := range [][]byte{first, second} {
			payload, err := i.inflate(message)
			if len(payload) > maxPayload || err != nil && payload != nil {
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
			var i *inflater
			n := len(messages)
			for b.Loop() {
				if n == len(messages) {
					if i != nil {
						i.close()
					}
					i, n = newInflater(c, maxPayload), 0
				}
				if _, err := i.inflate(messages[n]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			i.close()
		})
	}
}
