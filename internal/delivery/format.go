package delivery

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// deliveredName returns the name that a delivery to this listener carries: RAW_X for a
// listener of raw events, X otherwise.
func deliveredName(l *event.Listener, e *event.Event) string {
	if isRaw(l) {
		return event.RawPrefix + e.Name
	}
	return e.Name
}

// isRaw reports whether a listener wants payloads exactly as Discord sent them.
func isRaw(l *event.Listener) bool { return strings.HasPrefix(l.Event, event.RawPrefix) }

// bodies are the bodies of one event, shared by all its deliveries. Each is made when
// the first delivery needs it. The zero value is ready for use.
type bodies struct {
	parsedOnce sync.Once
	parsed     []byte // in the standard format
	model      []byte // a part of parsed
	err        error

	rawOnce sync.Once
	raw     []byte // in the standard format
}

// ofParsed returns the body in the standard format, and the event's model, which is a part
// of it.
func (s *bodies) ofParsed(e *event.Event) (body, model []byte, err error) {
	s.parsedOnce.Do(func() {
		// The model is made in its place in the body, without a copy.
		body := appendHead(make([]byte, 0, headRoom+len(e.Data)+len(e.Data)/4), e.Name, e)
		head := len(body)
		if body, s.err = event.Parse(body, e.Name, e.Data); s.err != nil {
			return
		}
		s.model = body[head:]
		if len(s.model) == 0 {
			body = appendData(body, nil)
		}
		s.parsed = append(body, '}')
	})
	return s.parsed, s.model, s.err
}

// ofRaw returns the body in the standard format with the payload itself.
func (s *bodies) ofRaw(e *event.Event) []byte {
	s.rawOnce.Do(func() {
		body := appendHead(make([]byte, 0, headRoom+len(e.Data)), event.RawPrefix+e.Name, e)
		s.raw = append(appendData(body, e.Data), '}')
	})
	return s.raw
}

// headRoom is enough bytes for a body in the standard format without its data.
const headRoom = 320

// body returns the body of a delivery in the listener's format. It contains the payload
// itself for a listener of raw events, and the model for any other. The format discord
// also names the application. Deliveries share the body, so nobody may change it. The
// error is an *event.ParseError.
func (j *job) body(l *event.Listener, application event.Snowflake) ([]byte, error) {
	e := &j.stored.Event
	whole, data := []byte(nil), e.Data
	if !isRaw(l) {
		var err error
		if whole, data, err = j.bodies.ofParsed(e); err != nil {
			return nil, err
		}
	}
	if write := formats[l.Format]; write != nil {
		return write(make([]byte, 0, headRoom+len(data)), deliveredName(l, e), e, data, application), nil
	}
	if isRaw(l) {
		return j.bodies.ofRaw(e), nil
	}
	return whole, nil
}

// formats holds the function that appends a body, for each format except for the
// standard one, whose bodies are shared. Every format copies the bytes of data without
// encoding them again.
var formats = map[event.Format]func(dst []byte, name string, e *event.Event, data []byte, application event.Snowflake) []byte{
	event.FormatDiscord: appendDiscord,
	event.FormatChatSDK: appendChatSDK,
}

// appendDiscord appends the body of Discord's own webhook events (Discord: Webhook
// Events).
func appendDiscord(dst []byte, name string, e *event.Event, data []byte, application event.Snowflake) []byte {
	dst = append(dst, `{"version":1,"application_id":"`...)
	dst = append(dst, application.String()...)
	dst = append(dst, `","type":1,"event":{"type":`...)
	dst = appendString(dst, name)
	dst = append(dst, `,"timestamp":"`...)
	dst = e.ReceivedAt.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","data":`...)
	dst = appendData(dst, data)
	return append(dst, "}}"...)
}

// appendChatSDK appends the body that the Chat SDK's Discord adapter reads.
func appendChatSDK(dst []byte, name string, e *event.Event, data []byte, _ event.Snowflake) []byte {
	dst = append(dst, `{"type":`...)
	dst = appendString(dst, "GATEWAY_"+name)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, e.ReceivedAt.UnixMilli(), 10)
	dst = append(dst, `,"data":`...)
	dst = appendData(dst, data)
	return append(dst, '}')
}

// appendHead appends the part of a body in the standard format that comes before its data.
func appendHead(dst []byte, name string, e *event.Event) []byte {
	dst = append(dst, `{"type":`...)
	dst = appendString(dst, name)
	dst = append(dst, `,"timestamp":"`...)
	dst = e.ReceivedAt.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","id":"`...)
	dst = append(dst, e.ID.String()...)
	dst = append(dst, `","shard":[`...)
	dst = strconv.AppendInt(dst, int64(e.Shard.ID), 10)
	dst = append(dst, ',')
	dst = strconv.AppendInt(dst, int64(e.Shard.Count), 10)
	dst = append(dst, `],"seq":`...)
	dst = strconv.AppendInt(dst, e.Seq, 10)
	if e.Origin != event.OriginNone {
		dst = append(dst, `,"origin":`...)
		dst = appendString(dst, string(e.Origin))
	}
	return append(dst, `,"data":`...)
}

// appendData appends the payload or its model, or null if there is none.
func appendData(dst, data []byte) []byte {
	if len(data) == 0 {
		return append(dst, "null"...)
	}
	return append(dst, data...)
}

// appendString appends a JSON string. It escapes characters, although no known event
// name needs that.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20:
			dst = append(dst, `\u00`...)
			dst = append(dst, "0123456789abcdef"[r>>4], "0123456789abcdef"[r&0xf])
		default:
			dst = append(dst, string(r)...)
		}
	}
	return append(dst, '"')
}
