package gatewaytest

import (
	"bytes"

	"github.com/coder/websocket"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// compressFrom is the size from which payload compression compresses a
// dispatch. Discord compresses only some payloads and does not say which, so
// a client has to tell by the type of the message.
const compressFrom = 256

// suffix ends what a Z_SYNC_FLUSH wrote.
var suffix = []byte{0x00, 0x00, 0xff, 0xff}

// encoder makes WebSocket messages of payloads, for one connection (Discord:
// Gateway, Encoding and Compression). Only the connection's writer uses it.
type encoder struct {
	mode  string // the query's compress
	split int
	// payloads turns payload compression on; the writer sets it with the
	// session.
	payloads bool
	buf      bytes.Buffer
	zlib     *zlib.Writer
	zstd     *zstd.Encoder
	messages [][]byte
}

func newEncoder(mode string, split int) *encoder { return &encoder{mode: mode, split: split} }

// close frees what the stream holds, without ending it on the wire.
func (e *encoder) close() {
	if e.zstd != nil {
		e.zstd.Reset(nil)
		_ = e.zstd.Close() // writes nothing after Reset(nil)
	}
}

// encode returns the messages that carry the payload. They are valid until the
// next call.
func (e *encoder) encode(payload []byte, dispatch bool) (websocket.MessageType, [][]byte, error) {
	e.messages = e.messages[:0]
	return websocket.MessageText, append(e.messages, payload), nil
}

// corrupt returns a message that can't be decoded.
func (e *encoder) corrupt() (websocket.MessageType, []byte) {
	return websocket.MessageText, []byte(`{"t":"MESSAGE_CREATE","s":`)
}
