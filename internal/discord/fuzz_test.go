package discord

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// FuzzEnvelope decodes arbitrary payloads as a connection's reader does: HELLO
// always gives a usable interval, and READY never causes a panic.
func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"t":null,"s":null,"op":10,"d":{"heartbeat_interval":41250,"_trace":["x"]}}`))
	f.Add([]byte(`{"t":"READY","s":1,"op":0,"d":{"session_id":"a","resume_gateway_url":"wss://r","guilds":[{"id":"1","unavailable":true}]}}`))
	f.Add([]byte(`{"t":"READY","s":1,"op":0,"d":{"session_id":1,"guilds":{"id":[]}}}`))
	f.Add([]byte(`{"op":10,"d":{"heartbeat_interval":1e308}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p frameParser
		frame, err := p.parse(b)
		if err != nil {
			return
		}
		if len(frame.Data) > 0 && (!json.Valid(frame.Data) || !bytes.Contains(b, frame.Data)) {
			t.Fatalf("%q: d is %q", b, frame.Data)
		}
		var h Hello
		_ = json.Unmarshal(frame.Data, &h) // as far as possible
		if d, _ := h.Interval(); d < time.Millisecond || d > MaxInterval {
			t.Fatalf("%q: an interval of %v", b, d)
		}
		var r Ready
		_ = json.Unmarshal(frame.Data, &r) // as far as possible
		for _, g := range r.Guilds {
			_, _ = g.Snowflake()
		}
	})
}
