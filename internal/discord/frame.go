package discord

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gatehook/gatehook/internal/event"
)

// The opcodes (Discord: Gateway Opcodes).
const (
	OpDispatch       = 0
	OpHeartbeat      = 1
	OpIdentify       = 2
	OpPresence       = 3
	OpVoiceState     = 4
	OpResume         = 6
	OpReconnect      = 7
	OpMembers        = 8
	OpInvalidSession = 9
	OpHello          = 10
	OpHeartbeatACK   = 11
)

// Frame is the envelope of a payload that Discord sent (Discord: Payload
// Structure). Name and Data share memory with the connection: they are valid
// until its next Read.
type Frame struct {
	Op   int    // -1 if it could not be read
	Seq  int64  // s; 0 if there is none
	Name []byte // t; nil if there is none
	Data []byte // the bytes of d exactly as sent; nil if there is none
}

var noFrame = Frame{Op: -1}

// frameParser finds the members of an envelope, in any order, without decoding
// d. It is for one goroutine.
type frameParser struct {
	buf bytes.Buffer
	dec jsontext.Decoder
}

// parse checks that b is one JSON value and finds the envelope's members in
// it. The frame is valid as long as b is. With a *PayloadError it has the members
// that could be read.
func (p *frameParser) parse(b []byte) (Frame, error) {
	// Given a bytes.Buffer, the decoder reads its bytes in place. Of duplicate
	// names the last one counts, as everywhere in Go. Whether strings are valid
	// UTF-8 matters only to the code that decodes d.
	p.buf = *bytes.NewBuffer(b)
	p.dec.Reset(&p.buf, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	f, odd, err := p.members(b)
	if err == nil {
		err = p.end()
	}
	switch {
	case err != nil:
		return f, &PayloadError{FlawNotJSON, fmt.Errorf("parse payload: %w", err)}
	case odd != "":
		return f, &PayloadError{FlawNoEnvelope, errors.New("parse payload: " + odd)}
	}
	return f, nil
}

// members reads the outermost object to its end. odd says why a valid JSON
// value is not an envelope.
func (p *frameParser) members(b []byte) (f Frame, odd string, err error) {
	f = noFrame
	if p.dec.PeekKind() != '{' {
		return f, "it is not an object", p.dec.SkipValue()
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return f, "", err
	}
	for p.dec.PeekKind() == '"' {
		name, err := p.dec.ReadValue()
		if err != nil {
			return f, "", err
		}
		// Use the name before the value is read: it lies in the decoder's memory.
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
	if f.Op < 0 && odd == "" {
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

// set stores a member; in is its value within the frame's own bytes. It returns
// false if the value has the wrong type. The member is unknown then.
func (f *Frame) set(m member, value jsontext.Value, in []byte) bool {
	null := value.Kind() == 'n'
	switch m {
	case 'o':
		n, err := strconv.ParseUint(string(value), 10, 31)
		if f.Op = int(n); err != nil {
			f.Op = -1
		}
		return err == nil
	case 's':
		f.Seq = 0
		if null {
			return true
		}
		n, err := strconv.ParseUint(string(value), 10, 63)
		if err == nil {
			f.Seq = int64(n)
		}
		return err == nil
	case 't':
		f.Name = nil
		if null {
			return true
		}
		if value.Kind() != '"' {
			return false
		}
		f.Name = in[1 : len(in)-1]
		if bytes.IndexByte(f.Name, '\\') < 0 {
			return true
		}
		unquoted, err := jsontext.AppendUnquote(nil, in)
		f.Name = unquoted
		return err == nil
	case 'd':
		f.Data = in
	}
	return true
}

// The types below are decoded as far as possible: encoding/json goes on after a
// member of the wrong type, and the caller uses the members that were decoded.
// One odd member must not cost the connection.

// Hello is the d of OpHello (Discord: Hello Event).
type Hello struct {
	HeartbeatInterval float64 `json:"heartbeat_interval"` // milliseconds
}

const (
	// UsualInterval is the heartbeat interval that Discord usually asks for. It
	// replaces an unusable one, because heartbeats may come early.
	UsualInterval = 41250 * time.Millisecond
	// MaxInterval is the longest interval that is accepted, far above the 41 to
	// 45 s that Discord asks for.
	MaxInterval = 10 * time.Minute
)

// Interval returns the time from one heartbeat to the next. usable reports
// whether HELLO's interval could be used. Otherwise d is UsualInterval.
func (h Hello) Interval() (d time.Duration, usable bool) {
	ms := h.HeartbeatInterval
	if ms < 1 || ms > float64(MaxInterval.Milliseconds()) {
		return UsualInterval, false
	}
	return time.Duration(ms * float64(time.Millisecond)), true
}

// Ready is the part of READY's d that is needed (Discord: Ready).
type Ready struct {
	SessionID string  `json:"session_id"`
	ResumeURL string  `json:"resume_gateway_url"`
	Guilds    []Guild `json:"guilds"`
}

// Guild is a guild that READY lists (Discord: Unavailable Guild Object). ID is
// not decoded yet, so that one of the wrong type costs nothing else of READY.
type Guild struct {
	ID json.RawMessage `json:"id"`
}

// Snowflake returns the guild's id, or false if ID is not an id.
func (g Guild) Snowflake() (event.Snowflake, bool) {
	id, err := event.ParseSnowflake(strings.Trim(string(g.ID), `"`))
	return id, err == nil
}
