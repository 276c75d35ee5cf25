package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The opcodes that this package knows (Discord: Gateway Opcodes).
const (
	opDispatch       = 0
	opHeartbeat      = 1
	opIdentify       = 2
	opPresence       = 3
	opVoiceState     = 4
	opResume         = 6
	opReconnect      = 7
	opMembers        = 8
	opInvalidSession = 9
	opHello          = 10
	opHeartbeatACK   = 11
)

// frame is the envelope of a payload (Discord: Payload Structure). name and
// data are parts of the bytes that were parsed.
type frame struct {
	op   int
	seq  int64 // 0 where there is none
	name []byte
	data []byte // the bytes of d exactly as sent; nil where there is none
}

// errOddFrame marks a payload that is proper JSON and yet no envelope. Only
// that one payload is lost, so the connection need not end.
var errOddFrame = errors.New("not a gateway payload")

// frameParser finds the members of an envelope, in any order, without decoding
// d. It is for one goroutine.
type frameParser struct {
	buf bytes.Buffer
	dec jsontext.Decoder
}

// parse checks that b is one JSON value and finds the envelope's members in
// it. The error is errOddFrame if only the latter failed. What it returns is
// valid as long as b is.
func (p *frameParser) parse(b []byte) (frame, error) {
	// Given a bytes.Buffer the decoder reads its bytes in place. Of duplicate
	// names the last one counts, as everywhere in Go; whether strings are
	// proper UTF-8 is for whoever decodes d.
	p.buf = *bytes.NewBuffer(b)
	p.dec.Reset(&p.buf, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	f, odd, err := p.members(b)
	if err == nil {
		err = p.end()
	}
	if err != nil {
		return frame{}, fmt.Errorf("parse payload: %w", err)
	}
	if odd != "" {
		return frame{}, fmt.Errorf("parse payload: %s: %w", odd, errOddFrame)
	}
	return f, nil
}

// members reads the outermost object to its end. odd says what makes a proper
// JSON value no envelope.
func (p *frameParser) members(b []byte) (f frame, odd string, err error) {
	if p.dec.PeekKind() != '{' {
		return f, "it is no object", p.dec.SkipValue()
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return f, "", err
	}
	f.op = -1
	for p.dec.PeekKind() == '"' {
		name, err := p.dec.ReadValue()
		if err != nil {
			return f, "", err
		}
		// Read the name before the value: it lies in the decoder's memory.
		member := memberOf(name)
		value, err := p.dec.ReadValue()
		if err != nil {
			return f, "", err
		}
		end := int(p.dec.InputOffset())
		if !f.set(member, value, b[end-len(value):end]) {
			odd = "its " + string(member) + " is of the wrong type"
		}
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return f, "", err
	}
	if f.op < 0 && odd == "" {
		odd = "it has no op"
	}
	return f, odd, nil
}

func (p *frameParser) end() error {
	switch _, err := p.dec.ReadToken(); {
	case err == nil:
		return errors.New("more than one value")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// member is the name of an envelope's member, 0 for any other name.
type member byte

func memberOf(name jsontext.Value) member {
	switch string(name) {
	case `"op"`:
		return 'o'
	case `"s"`, `"t"`, `"d"`:
		return member(name[1])
	default:
		return 0
	}
}

// set stores a member; in is where its value stands in the frame's own bytes.
func (f *frame) set(m member, value jsontext.Value, in []byte) bool {
	null := value.Kind() == 'n'
	switch m {
	case 'o':
		n, err := strconv.ParseInt(string(value), 10, 32)
		f.op = int(n)
		return err == nil && n >= 0
	case 's':
		f.seq = 0
		if null {
			return true
		}
		n, err := strconv.ParseInt(string(value), 10, 64)
		f.seq = n
		return err == nil && n >= 0
	case 't':
		f.name = nil
		if null {
			return true
		}
		if value.Kind() != '"' {
			return false
		}
		f.name = in[1 : len(in)-1]
		if bytes.IndexByte(f.name, '\\') < 0 {
			return true
		}
		unquoted, err := jsontext.AppendUnquote(nil, in)
		f.name = unquoted
		return err == nil
	case 'd':
		f.data = in
	}
	return true
}

// What follows is decoded as far as possible: encoding/json goes on after a
// member of the wrong type, and what was understood is used. The rest of a
// payload must not cost the connection.

// hello is the d of op 10.
type hello struct {
	HeartbeatInterval float64 `json:"heartbeat_interval"` // milliseconds
}

// usualInterval is Discord's, for a HELLO without one that can be used: early
// heartbeats are allowed.
const usualInterval = 41250 * time.Millisecond

// interval is how far apart heartbeats are to be; usable tells whether that is
// what HELLO said.
func (h hello) interval() (d time.Duration, usable bool) {
	ms := h.HeartbeatInterval
	if ms < 1 || ms > float64(maxInterval.Milliseconds()) {
		return usualInterval, false
	}
	return time.Duration(ms * float64(time.Millisecond)), true
}

// ready is what is needed of READY's d.
type ready struct {
	SessionID string    `json:"session_id"`
	ResumeURL string    `json:"resume_gateway_url"`
	Guilds    []guildID `json:"guilds"`
}

// guildID is a guild's id: a string, but nothing else in READY should fail for
// one that is not.
type guildID struct {
	ID json.RawMessage `json:"id"`
}

// command is a payload that is sent.
type command struct {
	Op int `json:"op"`
	D  any `json:"d"`
}

type identifyCommand struct {
	Token      string             `json:"token"`
	Properties identifyProperties `json:"properties"`
	Shard      [2]int             `json:"shard"`
	Intents    int64              `json:"intents"`
	Presence   json.RawMessage    `json:"presence,omitempty"`
}

type identifyProperties struct {
	OS      string `json:"os"`
	Browser string `json:"browser"`
	Device  string `json:"device"`
}

type resumeCommand struct {
	Token     string `json:"token"`
	SessionID string `json:"session_id"`
	Seq       int64  `json:"seq"`
}

// encode never fails: a command holds nothing but strings, numbers and what
// was JSON before.
func (c command) encode() ([]byte, error) { return json.Marshal(c) }
