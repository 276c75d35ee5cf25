package delivery

import (
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// deliveredName is the name that a delivery to this listener carries: RAW_X
// for a listener of raw events, X otherwise.
func deliveredName(l *event.Listener, e *event.Event) string {
	if strings.HasPrefix(l.Event, event.RawPrefix) {
		return event.RawPrefix + e.Name
	}
	return e.Name
}

// appendBody appends the body in the listener's format. Whatever the format,
// the payload's bytes are copied as they are, never encoded again. The format
// discord is that of Discord's own webhook events (Discord: Webhook Events),
// and names the application.
func appendBody(dst []byte, l *event.Listener, name string, e *event.Event, application event.Snowflake) []byte {
	switch l.Format {
	case event.FormatDiscord:
		dst = append(dst, `{"version":1,"application_id":"`...)
		dst = append(dst, application.String()...)
		dst = append(dst, `","type":1,"event":{"type":`...)
		dst = appendString(dst, name)
		dst = append(dst, `,"timestamp":"`...)
		dst = e.ReceivedAt.UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, `","data":`...)
		dst = appendData(dst, e)
		return append(dst, "}}"...)
	case event.FormatChatSDK:
		dst = append(dst, `{"type":`...)
		dst = appendString(dst, "GATEWAY_"+name)
		dst = append(dst, `,"timestamp":`...)
		dst = strconv.AppendInt(dst, e.ReceivedAt.UnixMilli(), 10)
		dst = append(dst, `,"data":`...)
		dst = appendData(dst, e)
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
		dst = append(dst, `,"data":`...)
		dst = appendData(dst, e)
		return append(dst, '}')
	}
}

// appendData appends the payload: as it came, for parsed names too as long as
// their model is not built.
func appendData(dst []byte, e *event.Event) []byte {
	if len(e.Data) == 0 {
		return append(dst, "null"...)
	}
	return append(dst, e.Data...)
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
