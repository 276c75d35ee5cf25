package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseFrame(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in         string
		op         int
		seq        int64
		name, data string
	}{
		{`{"t":"MESSAGE_CREATE","s":5,"op":0,"d":{"id":"1", "x":[ {} ]}}`, 0, 5, "MESSAGE_CREATE", `{"id":"1", "x":[ {} ]}`},
		{` { "op" : 0 , "t" : "X" , "d" :  { "a" : "\"}" }  , "s" : 30 } `, 0, 30, "X", `{ "a" : "\"}" }`},
		{`{"op":10,"d":{"heartbeat_interval":41250,"_trace":["x"]},"s":null,"t":null}`, 10, 0, "", `{"heartbeat_interval":41250,"_trace":["x"]}`},
		{`{"op":9,"d":false}`, 9, 0, "", `false`},
		{`{"op":11}`, 11, 0, "", ``},
		{`{"op":7,"d":null}`, 7, 0, "", `null`},
		{`{"d":1,"op":0,"d":2,"s":1,"s":2,"t":"A","t":"B"}`, 0, 2, "B", `2`},
		{`{"t":"A\u0042","op":0,"s":9223372036854775807,"d":""}`, 0, math.MaxInt64, "AB", `""`},
		{`{"OP":1,"op":2,"D":[]}`, 2, 0, "", ``},
	}
	var p frameParser
	for _, tt := range tests {
		f, err := p.parse([]byte(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if f.op != tt.op || f.seq != tt.seq || string(f.name) != tt.name || string(f.data) != tt.data {
			t.Errorf("%s: op %d, s %d, t %q, d %s", tt.in, f.op, f.seq, f.name, f.data)
		}
	}
}

func TestParseFrameRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in  string
		odd bool
	}{
		{`[]`, true},
		{`null`, true},
		{`"op"`, true},
		{`{}`, true},
		{`{"s":1}`, true},
		{`{"op":"0"}`, true},
		{`{"op":null}`, true},
		{`{"op":-1}`, true},
		{`{"op":0.5}`, true},
		{`{"op":99999999999}`, true},
		{`{"op":0,"s":"1"}`, true},
		{`{"op":0,"s":-1}`, true},
		{`{"op":0,"s":9223372036854775808}`, true},
		{`{"op":0,"t":1}`, true},
		{``, false},
		{`{`, false},
		{`{"op":0`, false},
		{`{"op":0}}`, false},
		{`{"op":0} {"op":0}`, false},
		{`{"op":0,}`, false},
		{`{"op":0,"d":{"a":}}`, false},
		{`{"op":0,"d":"` + "\x01" + `"}`, false},
		{`{op:0}`, false},
	}
	var p frameParser
	for _, tt := range tests {
		_, err := p.parse([]byte(tt.in))
		if err == nil || errors.Is(err, errOddFrame) != tt.odd {
			t.Errorf("%s: %v, want an error, odd: %t", tt.in, err, tt.odd)
		}
		// What one payload did must not touch the next.
		if f, err := p.parse([]byte(`{"op":0,"s":3}`)); err != nil || f.seq != 3 {
			t.Fatalf("after %s: %+v, %v", tt.in, f, err)
		}
	}
}

// FuzzParseFrame compares with encoding/json: the same payloads are proper
// JSON, and the same members are found in them.
func FuzzParseFrame(f *testing.F) {
	f.Add([]byte(`{"t":"MESSAGE_CREATE","s":5,"op":0,"d":{"id":"1", "x":[ {} ]}}`))
	f.Add([]byte(` { "op" : 0 , "t" : "X" , "d" :  { "a" : "\"}" }  , "s" : 30 } `))
	f.Add([]byte(`{"op":9,"d":false}`))
	f.Add([]byte(`{"t":"A\u0042","op":0}`))
	f.Add([]byte(`[{"op":0}]`))
	f.Add([]byte(`{"op":0,"d":{"a":}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !utf8.Valid(b) {
			return // encoding/json replaces it in names, and so mistakes one for another
		}
		var p frameParser
		got, err := p.parse(b)
		valid := json.Valid(b)
		if valid != (err == nil || errors.Is(err, errOddFrame)) {
			t.Fatalf("%q: %v; proper JSON: %t", b, err, valid)
		}
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if strings.Contains(string(b), `\u`) {
			return // an escaped name is another name to the parser
		}
		if !bytes.Equal(got.data, want["d"]) {
			t.Errorf("%q: d is %q, want %q", b, got.data, want["d"])
		}
		var op int
		var seq *int64
		var name *string
		if err := errors.Join(json.Unmarshal(want["op"], &op), unmarshal(want["s"], &seq), unmarshal(want["t"], &name)); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if got.op != op || got.seq != deref(seq) || string(got.name) != deref(name) {
			t.Errorf("%q: op %d, s %d, t %q", b, got.op, got.seq, got.name)
		}
	})
}

func unmarshal(b []byte, into any) error {
	if b == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// messageCreate has the size and the shape of a usual dispatch.
var messageCreate = []byte(`{"t":"MESSAGE_CREATE","s":42,"op":0,"d":{"type":0,"tts":false,"timestamp":"2026-11-23T08:42:48.006000+00:00",` +
	`"pinned":false,"nonce":"1574344433229399253","mentions":[],"mention_roles":[],"mention_everyone":false,` +
	`"member":{"roles":["1574343070927847499","1574343070927847500"],"premium_since":null,"pending":false,"nick":null,` +
	`"mute":false,"joined_at":"2026-01-23T08:37:17.107000+00:00","flags":0,"deaf":false,"communication_disabled_until":null,` +
	`"banner":null,"avatar":null},"id":"1574344433229399253","flags":0,"embeds":[{"type":"rich","title":"A title with \"quotes\"",` +
	`"description":"Some text that goes on for a while, as text in embeds does.","fields":[{"name":"a","value":"b","inline":true}]}],` +
	`"edited_timestamp":null,"content":"Hello there, this is a message of the usual length \u2764","components":[],` +
	`"channel_type":0,"channel_id":"1574343070961401933","author":{"username":"someone","public_flags":0,"primary_guild":null,` +
	`"id":"1574343067228471333","global_name":"Someone","display_name_styles":null,"discriminator":"0","collectibles":null,` +
	`"clan":null,"avatar_decoration_data":null,"avatar":"0123456789abcdef0123456789abcdef"},"attachments":[],` +
	`"guild_id":"1574343070927847498"}}`)

func BenchmarkParseFrame(b *testing.B) {
	var p frameParser
	b.SetBytes(int64(len(messageCreate)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.parse(messageCreate); err != nil {
			b.Fatal(err)
		}
	}
}
