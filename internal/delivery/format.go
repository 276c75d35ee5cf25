package delivery

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// deliveredName is the name that a delivery to this listener carries: RAW_X
// for a listener of raw events, X otherwise.
func deliveredName(l *event.Listener, e *event.Event) string {
	if isRaw(l) {
		return event.RawPrefix + e.Name
	}
	return e.Name
}

// isRaw tells whether a listener wants payloads as Discord sent them.
func isRaw(l *event.Listener) bool { return strings.HasPrefix(l.Event, event.RawPrefix) }

// parsed is the model of an event, made when the first delivery needs it and
// shared by all.
type parsed struct {
	once  sync.Once
	model []byte
	err   error
}

// of returns the model of e, which is the event that p was made for.
func (p *parsed) of(e *event.Event) ([]byte, error) {
	p.once.Do(func() { p.model, p.err = event.Parse(make([]byte, 0, len(e.Data)+len(e.Data)/2), e.Name, e.Data) })
	return p.model, p.err
}

// data is what a delivery tells of the event: the payload itself for a
// listener of raw events, its model for others. The error is an
// *event.ParseError.
func (j *job) data(l *event.Listener) ([]byte, error) {
	e := &j.stored.Event
	if isRaw(l) {
		return e.Data, nil
	}
	return j.parsed.of(e)
}

// appendBody appends the body in the listener's format. Whatever the format,
// the bytes of data are copied as they are, never encoded again. The format
// discord is that of Discord's own webhook events (Discord: Webhook Events),
// and names the application.
func appendBody(dst []byte, l *event.Listener, name string, e *event.Event, data []byte, application event.Snowflake) []byte {
	switch l.Format {
	case event.FormatDiscord:
		dst = append(dst, `{"version":1,"application_id":"`...)
		dst = append(dst, application.String()...)
		dst = append(dst, `","type":1,"event":{"type":`...)
		dst = appendString(dst, name)
		dst = append(dst, `,"timestamp":"`...)
		dst = e.ReceivedAt.UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, `","data":`...)
		dst = appendData(dst, data)
		return append(dst, "}}"...)
	case event.FormatChatSDK:
		dst = append(dst, `{"type":`...)
		dst = appendString(dst, "GATEWAY_"+name)
		dst = append(dst, `,"timestamp":`...)
		dst = strconv.AppendInt(dst, e.ReceivedAt.UnixMilli(), 10)
		dst = append(dst, `,"data":`...)
		dst = appendData(dst, data)
		return append(dst, '}')
	default:
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
		dst = append(dst, `,"data":`...)
		dst = appendData(dst, data)
		return append(dst, '}')
	}
}

// appendData appends the payload or its model; null stands for none.
func appendData(dst, data []byte) []byte {
	if len(data) == 0 {
		return append(dst, "null"...)
	}
	return append(dst, data...)
}

// appendString appends a JSON string. Event names are plain; the escaping is
// for one that is not.
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
