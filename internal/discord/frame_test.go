package discord

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
		if f.Op != tt.op || f.Seq != tt.seq || string(f.Name) != tt.name || string(f.Data) != tt.data {
			t.Errorf("%s: op %d, s %d, t %q, d %s", tt.in, f.Op, f.Seq, f.Name, f.Data)
		}
	}
}

// TestParseFrameRefuses: what is no payload is refused, with the members that
// could be read: a payload that is lost still has its place in the session.
func TestParseFrameRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		flaw Flaw
		op   int
		seq  int64
		name string
	}{
		{`[]`, FlawNoEnvelope, -1, 0, ""},
		{`null`, FlawNoEnvelope, -1, 0, ""},
		{`"op"`, FlawNoEnvelope, -1, 0, ""},
		{`{}`, FlawNoEnvelope, -1, 0, ""},
		{`{"s":1}`, FlawNoEnvelope, -1, 1, ""},
		{`{"op":"0"}`, FlawNoEnvelope, -1, 0, ""},
		{`{"op":null}`, FlawNoEnvelope, -1, 0, ""},
		{`{"op":-1}`, FlawNoEnvelope, -1, 0, ""},
		{`{"op":0.5}`, FlawNoEnvelope, -1, 0, ""},
		{`{"op":99999999999}`, FlawNoEnvelope, -1, 0, ""},
		{`{"op":0,"s":"1"}`, FlawNoEnvelope, 0, 0, ""},
		{`{"op":0,"s":-1}`, FlawNoEnvelope, 0, 0, ""},
		{`{"op":0,"s":9223372036854775808}`, FlawNoEnvelope, 0, 0, ""},
		{`{"op":0,"t":1,"s":4}`, FlawNoEnvelope, 0, 4, ""},
		{``, FlawNotJSON, -1, 0, ""},
		{`{`, FlawNotJSON, -1, 0, ""},
		{`{"op":0`, FlawNotJSON, 0, 0, ""},
		{`{"op":0}}`, FlawNotJSON, 0, 0, ""},
		{`{"op":0} {"op":0}`, FlawNotJSON, 0, 0, ""},
		{`{"op":0,}`, FlawNotJSON, 0, 0, ""},
		{`{"op":0,"d":{"a":}}`, FlawNotJSON, 0, 0, ""},
		{`{"op":0,"d":"` + "\x01" + `"}`, FlawNotJSON, 0, 0, ""},
		{`{"t":"X","s":9,"op":0,"d":{"content":"a` + "\n" + `b"}}`, FlawNotJSON, 0, 9, "X"},
		{`{"t":"X","s":9,"op":0,"d":{"content":"`, FlawNotJSON, 0, 9, "X"},
		// What comes after the flaw is not believed.
		{`{"op":0,"d":{"content":"a"b","s":99},"t":"X","s":9}`, FlawNotJSON, 0, 0, ""},
		{`{op:0}`, FlawNotJSON, -1, 0, ""},
	}
	var p frameParser
	for _, tt := range tests {
		f, err := p.parse([]byte(tt.in))
		if !hasFlaw(err, tt.flaw) || f.Op != tt.op || f.Seq != tt.seq || string(f.Name) != tt.name {
			t.Errorf("%s: op %d, s %d, t %q, %v, want %+v", tt.in, f.Op, f.Seq, f.Name, err, tt)
		}
		// One payload must not affect the next.
		if f, err := p.parse([]byte(`{"op":0,"s":3}`)); err != nil || f.Seq != 3 {
			t.Fatalf("after %s: %+v, %v", tt.in, f, err)
		}
	}
}

// FuzzParseFrame compares the parser with encoding/json: both accept the same
// payloads as JSON, and find the same members in them.
func FuzzParseFrame(f *testing.F) {
	f.Add([]byte(`{"t":"MESSAGE_CREATE","s":5,"op":0,"d":{"id":"1", "x":[ {} ]}}`))
	f.Add([]byte(` { "op" : 0 , "t" : "X" , "d" :  { "a" : "\"}" }  , "s" : 30 } `))
	f.Add([]byte(`{"op":9,"d":false}`))
	f.Add([]byte(`{"t":"A\u0042","op":0}`))
	f.Add([]byte(`[{"op":0}]`))
	f.Add([]byte(`{"op":0,"d":{"a":}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !utf8.Valid(b) {
			return // encoding/json replaces invalid UTF-8 in names, and so treats two names as one
		}
		var p frameParser
		got, err := p.parse(b)
		valid := json.Valid(b)
		if valid == hasFlaw(err, FlawNotJSON) {
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
			return // to the parser, an escaped name is a different name
		}
		if !bytes.Equal(got.Data, want["d"]) {
			t.Errorf("%q: d is %q, want %q", b, got.Data, want["d"])
		}
		var op int
		var seq *int64
		var name *string
		if err := errors.Join(json.Unmarshal(want["op"], &op), unmarshal(want["s"], &seq), unmarshal(want["t"], &name)); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if got.Op != op || got.Seq != deref(seq) || string(got.Name) != deref(name) {
			t.Errorf("%q: op %d, s %d, t %q", b, got.Op, got.Seq, got.Name)
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
