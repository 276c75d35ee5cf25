package discordtest_test

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/klauspost/compress/zstd"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// feed is the input of a stream decoder: the bytes written to buf, followed by
// errMore instead of io.EOF. It hides the buffer's other methods, because
// klauspost's decoder treats a bytes.Buffer as a whole stream.
type feed struct{ buf bytes.Buffer }

func (f *feed) Read(p []byte) (int, error) {
	if f.buf.Len() == 0 {
		return 0, errMore
	}
	return f.buf.Read(p)
}

// zlibDecoder inflates a zlib-stream with the standard library's decoder, which
// is independent of the encoder. That decoder can't continue after errMore, so
// the whole stream is inflated anew for every payload.
func zlibDecoder() func(websocket.MessageType, []byte) ([]byte, error) {
	var stream []byte
	var seen int
	return func(typ websocket.MessageType, message []byte) ([]byte, error) {
		if typ != websocket.MessageBinary {
			return nil, fmt.Errorf("a message of type %v in a stream", typ)
		}
		stream = append(stream, message...)
		if !bytes.HasSuffix(message, []byte{0, 0, 0xff, 0xff}) {
			return nil, errMore
		}
		z, err := zlib.NewReader(bytes.NewReader(stream))
		if err != nil {
			return nil, err
		}
		all, err := io.ReadAll(z)
		if !errors.Is(err, io.ErrUnexpectedEOF) { // the stream never ends
			return nil, fmt.Errorf("inflate the stream: %w", err)
		}
		text := all[seen:]
		seen = len(all)
		return text, nil
	}
}

// zstdDecoder uses klauspost's decoder, because no other exists in Go. We
// checked by hand that the reference implementation decodes the same bytes.
func zstdDecoder(t *testing.T) func(websocket.MessageType, []byte) ([]byte, error) {
	t.Helper()
	var stream feed
	var z *zstd.Decoder
	t.Cleanup(func() {
		if z != nil {
			z.Close()
		}
	})
	return func(typ websocket.MessageType, message []byte) ([]byte, error) {
		if typ != websocket.MessageBinary {
			return nil, fmt.Errorf("a message of type %v in a stream", typ)
		}
		stream.buf.Write(message)
		if z == nil {
			var err error
			if z, err = zstd.NewReader(&stream, zstd.WithDecoderConcurrency(1)); err != nil {
				return nil, err
			}
		}
		var text []byte
		buf := make([]byte, 64<<10)
		for stream.buf.Len() > 0 || len(text) == 0 || text[len(text)-1] != '}' {
			n, err := z.Read(buf)
			text = append(text, buf[:n]...)
			if err != nil {
				return nil, err
			}
		}
		return text, nil
	}
}

// payloads returns small, repetitive, incompressible and large payloads.
func payloads() []string {
	noise := make([]byte, 0, 100_000)
	for x := uint32(1); len(noise) < cap(noise); {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		noise = append(noise, 'a'+byte(x%26))
	}
	return []string{`{}`, `{"x":"` + strings.Repeat("y", 50_000) + `"}`, `{"n":"` + string(noise) + `"}`, `{"x":"` + strings.Repeat("y", 50_000) + `"}`, `{}`}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, query string
		split       int
		decode      func(t *testing.T) func(websocket.MessageType, []byte) ([]byte, error)
	}{
		{"none", "", 0, func(*testing.T) func(websocket.MessageType, []byte) ([]byte, error) { return decodePlain }},
		{"zlib-stream", "&compress=zlib-stream", 0, func(*testing.T) func(websocket.MessageType, []byte) ([]byte, error) { return zlibDecoder() }},
		{"zlib-stream in pieces", "&compress=zlib-stream", 99, func(*testing.T) func(websocket.MessageType, []byte) ([]byte, error) { return zlibDecoder() }},
		{"zstd-stream", "&compress=zstd-stream", 0, zstdDecoder},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, discordtest.Config{SplitEvery: tt.split})
			connect := func(base string) *client {
				c := dial(t, srv, base+plainQuery+tt.query)
				c.decode = tt.decode(t)
				if p := c.next(); p.Op != 10 {
					t.Fatalf("got %s, want HELLO", p)
				}
				return c
			}
			c := connect(srv.GatewayURL())
			c.identify(0, 1)
			session := c.ready()
			check := func(first int) {
				t.Helper()
				for i, want := range payloads() {
					p := c.next()
					if p.String() != fmt.Sprintf("X %d", first+i) || string(p.D) != want {
						t.Fatalf("got %s with %d bytes, want X %d with %d", p, len(p.D), first+i, len(want))
					}
				}
			}
			for _, data := range payloads() {
				dispatch(t, srv, 0, "X", data)
			}
			check(2)
			do(t, srv, 0, discordtest.Drop())
			for _, data := range payloads() {
				dispatch(t, srv, 0, "X", data)
			}
			c.expectClose(1006)
			// The stream belongs to the connection: a new one begins.
			c = connect(srv.ResumeURL())
			c.resume(session, 6)
			check(7)
			c.expect("RESUMED 12")
			wantIllegal(t, srv)
		})
	}
}

func TestPayloadCompression(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	compressed, plain := 0, 0
	decode := func(typ websocket.MessageType, message []byte) ([]byte, error) {
		if typ == websocket.MessageText {
			plain++
			return message, nil
		}
		compressed++
		z, err := zlib.NewReader(bytes.NewReader(message))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z) // no error: each message is a whole stream
	}
	c := hello(t, srv, srv.GatewayURL())
	c.decode = decode
	c.send(`{"op":2,"d":{"token":%q,%s,"intents":1,"compress":true}}`, srv.Token(), properties)
	session := c.ready()
	for _, data := range payloads() {
		dispatch(t, srv, 0, "X", data)
		if p := c.next(); string(p.D) != data {
			t.Errorf("got %d bytes, want %d", len(p.D), len(data))
		}
	}
	if compressed != 4 || plain != 2 { // READY and three large payloads; two small ones
		t.Errorf("%d compressed and %d plain, want 4 and 2", compressed, plain)
	}
	drop(t, srv, c)
	c = hello(t, srv, srv.ResumeURL())
	c.decode = decode
	c.resume(session, 1)
	c.expect("X 2", "X 3")
	if compressed != 5 {
		t.Errorf("%d compressed, want 5: the session keeps its compression", compressed)
	}
	wantIllegal(t, srv)
}

func TestTwoCompressions(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := dial(t, srv, srv.GatewayURL()+plainQuery+"&compress=zlib-stream")
	c.decode = zlibDecoder()
	c.next()
	c.send(`{"op":2,"d":{"token":%q,%s,"intents":1,"compress":true}}`, srv.Token(), properties)
	c.ready()
	wantIllegal(t, srv, "payload compression together with transport compression")
}

// TestBroken sends messages that can't be decoded, in every encoding, instead of
// HELLO and within a session.
func TestBroken(t *testing.T) {
	t.Parallel()
	for _, query := range []string{"", "&compress=zlib-stream", "&compress=zstd-stream"} {
		for name, a := range map[string]discordtest.Action{
			"corrupt": discordtest.Corrupt(), "text": discordtest.TextFrame([]byte(`{"op":11}`)),
		} {
			connect := func(t *testing.T, srv *discordtest.Server) *client {
				t.Helper()
				c := dial(t, srv, srv.GatewayURL()+plainQuery+query)
				switch query {
				case "&compress=zlib-stream":
					c.decode = zlibDecoder()
				case "&compress=zstd-stream":
					c.decode = zstdDecoder(t)
				}
				return c
			}
			t.Run(name+query, func(t *testing.T) {
				t.Parallel()
				srv := start(t, discordtest.Config{})
				srv.Arm(discordtest.AtHello, discordtest.AnyShard, 1, a)
				_, text, err := connect(t, srv).read()
				if fine := query == "" && name == "text"; (err == nil) != fine {
					t.Errorf("instead of HELLO: got %q, %v", text, err)
				}
				c := connect(t, srv)
				c.next()
				c.identify(0, 1)
				c.ready()
				do(t, srv, 0, a)
				_, text, err = c.read()
				if fine := query == "" && name == "text"; (err == nil) != fine {
					t.Errorf("in a session: got %q, %v", text, err)
				}
			})
		}
	}
}
