package discordtest

import (
	"bytes"

	"github.com/coder/websocket"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// The transport compressions, as the query names them.
const (
	zlibStream = "zlib-stream"
	zstdStream = "zstd-stream"
)

const (
	// minCompressed is the size in bytes from which payload compression
	// compresses a dispatch. Discord compresses only some payloads and does not
	// say which, so a client has to go by the type of the message.
	minCompressed = 256
	// zstdWindow bounds the memory of a connection's encoder.
	zstdWindow = 256 << 10
)

// suffix is the end of every Z_SYNC_FLUSH.
var suffix = []byte{0x00, 0x00, 0xff, 0xff}

// encoder turns payloads into WebSocket messages, for one connection (Discord:
// Gateway, Encoding and Compression). Only the connection's writer uses it.
type encoder struct {
	mode  string // the query's compress
	split int
	// payloads turns payload compression on; it belongs to the session.
	payloads bool
	buf      bytes.Buffer
	zlib     *zlib.Writer
	zstd     *zstd.Encoder
	messages [][]byte
}

// encode returns the messages that carry the payload. They are valid until the
// next call of encode.
func (e *encoder) encode(payload []byte, dispatch bool) (websocket.MessageType, [][]byte, error) {
	e.messages = e.messages[:0]
	e.buf.Reset()
	var err error
	switch {
	case e.mode == zlibStream:
		err = e.deflate(payload)
		e.cut(e.buf.Bytes())
	case e.mode == zstdStream:
		err = e.zstandard(payload)
		e.messages = append(e.messages, e.buf.Bytes())
	case e.payloads && dispatch && len(payload) >= minCompressed:
		err = e.deflateAlone(payload)
		e.messages = append(e.messages, e.buf.Bytes())
	default:
		e.messages = append(e.messages, payload)
		return websocket.MessageText, e.messages, nil
	}
	return websocket.MessageBinary, e.messages, err
}

// deflate appends the payload to the connection's one zlib stream.
func (e *encoder) deflate(payload []byte) error {
	if err := e.openZlib(); err != nil {
		return err
	}
	if _, err := e.zlib.Write(payload); err != nil {
		return err
	}
	return e.zlib.Flush()
}

// deflateAlone compresses the payload as a separate zlib stream.
func (e *encoder) deflateAlone(payload []byte) error {
	if err := e.openZlib(); err != nil {
		return err
	}
	e.zlib.Reset(&e.buf)
	if _, err := e.zlib.Write(payload); err != nil {
		return err
	}
	return e.zlib.Close()
}

func (e *encoder) openZlib() (err error) {
	if e.zlib == nil {
		e.zlib, err = zlib.NewWriterLevel(&e.buf, zlib.BestSpeed)
	}
	return err
}

// zstandard appends the payload to the connection's one zstd frame, which never
// ends.
func (e *encoder) zstandard(payload []byte) (err error) {
	if e.zstd == nil {
		// With a concurrency of 1 the encoder starts no goroutine and need not
		// be closed.
		e.zstd, err = zstd.NewWriter(&e.buf, zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(zstdWindow))
		if err != nil {
			return err
		}
	}
	if _, err = e.zstd.Write(payload); err != nil {
		return err
	}
	return e.zstd.Flush()
}

// cut splits a flushed payload into several messages if Config.SplitEvery says
// so. Only the last message ends with the suffix, and contains all of it: that
// is how a client finds the end of a payload (Discord: Gateway, zlib-stream).
func (e *encoder) cut(b []byte) {
	for e.split > 0 && len(b) > max(e.split, len(suffix)) {
		n := min(e.split, len(b)-len(suffix))
		if bytes.HasSuffix(b[:n], suffix) {
			n-- // this message must not look like the end
		}
		e.messages = append(e.messages, b[:n])
		b = b[n:]
	}
	if len(b) > 0 {
		e.messages = append(e.messages, b)
	}
}

// corrupt returns a message that can't be decoded: JSON that ends too early, or
// a block of a type that zlib and zstd reserve.
func (e *encoder) corrupt() (websocket.MessageType, []byte) {
	if e.mode != "" {
		return websocket.MessageBinary, append([]byte{0xde, 0xad, 0xbe, 0xef}, suffix...)
	}
	return websocket.MessageText, []byte(`{"t":"MESSAGE_CREATE","s":`)
}
