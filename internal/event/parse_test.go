package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, data, want string }{
		// Missing fields come after the present ones, in the document's order.
		{"MESSAGE_DELETE", `{"id":"1","channel_id":"2"}`, `{"id":"1","channel_id":"2","guild_id":null}`},
		{"MESSAGE_DELETE", ` { "channel_id" : 2 , "id" : "1" } `, ` { "channel_id" : "2" , "id" : "1" ,"guild_id":null} `},
		{"MESSAGE_DELETE", `{"new":{"id":1},"id":"1","channel_id":"2","guild_id":"3"}`, `{"new":{"id":1},"id":"1","channel_id":"2","guild_id":"3"}`},
		// The name of a field may be escaped.
		{"MESSAGE_DELETE", `{"\u0069d":1,"channel_id":"2","guild_id":null}`, `{"\u0069d":"1","channel_id":"2","guild_id":null}`},
		// A null is replaced if the field can't be null; a value of another type stays.
		{"MESSAGE_DELETE_BULK", `{"ids":null,"channel_id":"2","guild_id":"x"}`, `{"ids":[],"channel_id":"2","guild_id":"x"}`},
		{"MESSAGE_DELETE_BULK", `{"ids":[1,"2",null,-3],"channel_id":"2","guild_id":[]}`, `{"ids":["1","2",null,-3],"channel_id":"2","guild_id":[]}`},
		{"GUILD_DELETE", `{"id":"1"}`, `{"id":"1","unavailable":false}`},
		{"GUILD_DELETE", `{"id":"1","unavailable":null}`, `{"id":"1","unavailable":false}`},
		{"GUILD_CREATE", `{"id":"1","unavailable":true}`, `{"id":"1","unavailable":true}`},
		{"THREAD_DELETE", `{"id":"1","guild_id":"2","parent_id":"3","type":11}`, `{"id":"1","guild_id":"2","parent_id":"3","type":11}`},
		{"THREAD_LIST_SYNC", `{"guild_id":"1"}`, `{"guild_id":"1","channel_ids":null,"threads":[],"members":[]}`},
		{"PRESENCE_UPDATE", `{"user":{"id":"1","username":5}}`, `{"user":{"id":"1","username":5,"discriminator":null,"global_name":null,"avatar":null,"bot":null,` +
			`"system":null,"banner":null,"accent_color":null,"public_flags":null,"avatar_decoration_data":null,"collectibles":null,"primary_guild":null},` +
			`"guild_id":null,"status":null,"activities":[],"client_status":null}`},
		{"RESUMED", ``, `{"_trace":[]}`},
		{"RESUMED", ` null `, `{"_trace":[]}`},
		{"RESUMED", `{ }`, `{ "_trace":[]}`},
		{
			"VOICE_CHANNEL_EFFECT_SEND", `{"channel_id":"1","guild_id":"2","user_id":"3","emoji":null,"animation_type":7,"animation_id":0,"sound_id":1,"sound_volume":1e0}`,
			`{"channel_id":"1","guild_id":"2","user_id":"3","emoji":null,"animation_type":7,"animation_id":0,"sound_id":"1","sound_volume":1e0}`,
		},
		{"SHARD_CONNECT", `{"shard_id":0}`, `{"shard_id":0}`},
		{"SOMETHING_NEW", `[broken`, `[broken`},
	}
	for _, tt := range tests {
		got, err := Parse([]byte("before "), tt.name, []byte(tt.data))
		if err != nil || string(got) != "before "+tt.want {
			t.Errorf("%s %s\n got %s, %v\nwant before %s", tt.name, tt.data, got, err, tt.want)
		}
	}
}

// A tag of a role is true if it is present and null (Discord: Role Tags Structure).
func TestParseFlags(t *testing.T) {
	t.Parallel()
	got, err := Parse(nil, "GUILD_ROLE_UPDATE", []byte(`{"guild_id":"1","role":{"id":"2","tags":{"premium_subscriber":null,"bot_id":3}}}`))
	want := `"tags":{"premium_subscriber":true,"bot_id":"3","integration_id":null,"subscription_listing_id":null,"available_for_purchase":false,"guild_connections":false}`
	if err != nil || !strings.Contains(string(got), want) {
		t.Errorf("got %s, %v\nwant it to contain %s", got, err, want)
	}
}

// A channel's type decides which fields it has, wherever in the object the type is.
func TestParseChannels(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]struct{ has, hasNot string }{
		`{"id":"1","type":0}`:              {"topic", "bitrate"},
		`{"type":5,"id":"1"}`:              {"topic", "bitrate"},
		`{"id":"1","type":2}`:              {"bitrate", "available_tags"},
		`{"id":"1","type":13}`:             {"bitrate", "available_tags"},
		`{"id":"1","type":4}`:              {"nsfw", "topic"},
		`{"id":"1","type":12}`:             {"thread_metadata", "nsfw"},
		`{"id":"1","type":16}`:             {"available_tags", "bitrate"},
		`{"id":"1","type":3}`:              {"recipients", "guild_id"},
		`{"id":"1","type":99}`:             {"permission_overwrites", "topic"},
		`{"id":"1"}`:                       {"permission_overwrites", "topic"},
		`{"id":"1","type":99,"topic":"a"}`: {"topic", "bitrate"},
	} {
		for _, event := range [][2]string{
			{"CHANNEL_UPDATE", data},
			{"GUILD_CREATE", `{"id":"1","owner_id":"2","channels":[` + data + `]}`},
		} {
			parsed, err := Parse(nil, event[0], []byte(event[1]))
			if err != nil {
				t.Fatal(event, err)
			}
			var guild struct{ Channels []map[string]any }
			var channel map[string]any
			if event[0] == "GUILD_CREATE" {
				err = json.Unmarshal(parsed, &guild)
				channel = guild.Channels[0]
			} else {
				err = json.Unmarshal(parsed, &channel)
			}
			_, has := channel[want.has]
			_, hasNot := channel[want.hasNot]
			if err != nil || !has || hasNot {
				t.Errorf("%v: %s is present: %v, %s is present: %v; %v", event, want.has, has, want.hasNot, hasNot, err)
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(`[`, 200) + strings.Repeat(`]`, 200)
	tests := []struct{ name, data, want string }{
		{"MESSAGE_CREATE", `{"channel_id":"1","author":{"id":"2"}}`, "id is missing"},
		{"MESSAGE_CREATE", `{"id":"1","channel_id":"1","author":{}}`, "author.id is missing"},
		{"MESSAGE_CREATE", `{"id":"1","channel_id":"1","author":null}`, "author is null"},
		{"MESSAGE_CREATE", `{"id":"1","channel_id":"1","author":7}`, "author is not an object"},
		{"MESSAGE_CREATE", `{"id":"one","channel_id":"1"}`, "id is not a Discord id"},
		{"MESSAGE_CREATE", `{"id":-1,"channel_id":"1"}`, "id is not a Discord id"},
		{"MESSAGE_CREATE", `{"id":"","channel_id":"1"}`, "id is not a Discord id"},
		{"MESSAGE_CREATE", `{"id":null}`, "id is null"},
		{"MESSAGE_CREATE", ``, "id is missing"},
		{"MESSAGE_CREATE", `null`, "id is missing"},
		{"GUILD_CREATE", `{"id":"1","owner_id":"2","members":[{},{"user":{"id":"3"}},{"user":{}}]}`, "members[2].user.id is missing"},
		{"INTERACTION_CREATE", `{"id":"1","application_id":"2","data":{"resolved":{"users":{"7":{}}}}}`, "data.resolved.users.7.id is missing"},
		{"GUILD_CREATE", `[]`, "the payload is not an object"},
		{"GUILD_CREATE", `"x"`, "the payload is not an object"},
		{"GUILD_DELETE", `{"id":"1"`, "the payload is not JSON at byte 9 of 9"},
		{"GUILD_DELETE", `{"id":"1"}}`, "the payload is not JSON at byte 10 of 11"},
		{"GUILD_DELETE", `{"id":"1",}`, "the payload is not JSON at byte 10 of 11"},
		{"GUILD_DELETE", `{"id":"1","x":01}`, "the payload is not JSON at byte 15 of 17"},
		{"GUILD_DELETE", `{"id":"1","x":tru}`, "the payload is not JSON at byte 14 of 18"},
		{"GUILD_DELETE", `{"id":"1","unavailable":"\x"}`, "unavailable is not JSON at byte 25 of 29"},
		{"GUILD_DELETE", "{\"id\":\"1\",\"x\":\"\n\"}", "the payload is not JSON at byte 15 of 18"},
		{"GUILD_DELETE", `{"id":"1","x":` + deep + `}`, "the payload is nested deeper than 100"},
		{"MESSAGE_CREATE", strings.Repeat(`{"id":"1","channel_id":"1","author":{"id":"1"},"referenced_message":`, 150), "is nested deeper than 100"},
	}
	for _, tt := range tests {
		got, err := Parse([]byte("before"), tt.name, []byte(tt.data))
		var parseErr *ParseError
		if !errors.As(err, &parseErr) || !strings.HasSuffix(err.Error(), tt.want) || string(got) != "before" {
			t.Errorf("%s %.200s\n got %v, %s\nwant %s", tt.name, tt.data, err, got, tt.want)
		}
	}
}

// TestParseMakesUTF8: a model is JSON that every receiver can read, whether there
// is a model for the event or not, and wherever the bytes are.
func TestParseMakesUTF8(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"\xff", "\xf0\x9f", "a\xed\xa0\xbdb", "\xc0\xaf"} {
		for name, data := range map[string]string{
			"MESSAGE_CREATE": `{"id":"1","channel_id":"1","author":{"id":"2","username":"` + bad + `"},"` + bad + `":"` + bad + `"}`,
			"NOT_KNOWN":      `{"` + bad + `":1}`,
		} {
			parsed, err := Parse(nil, name, []byte(data))
			if err != nil || !utf8.Valid(parsed) || !json.Valid(parsed) || !bytes.ContainsRune(parsed, '\uFFFD') {
				t.Errorf("%s %q: %v: %q", name, data, err, parsed)
			}
			if again, err := Parse(nil, name, parsed); err != nil || !bytes.Equal(again, parsed) {
				t.Errorf("%s %q: its model is %q: %v", name, parsed, again, err)
			}
		}
	}
}

// All samples are JSON, and a sample's model keeps all of its values.
func TestSamples(t *testing.T) {
	t.Parallel()
	for _, e := range Types() {
		sample, ok := Sample(e.Name)
		if !ok {
			continue
		}
		parsed, err := Parse(nil, e.Name, sample)
		if err != nil || !json.Valid(parsed) || bytes.ContainsAny(sample, "\n") {
			t.Errorf("%s: %v: %s", e.Name, err, parsed)
		}
		before, after := unmarshal(t, sample), unmarshal(t, parsed)
		if !keeps(before, after) {
			t.Errorf("%s: the model lacks values of the sample\n%s\n%s", e.Name, sample, parsed)
		}
	}
}

func unmarshal(t *testing.T, b []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return v
}

// keeps reports whether after has all values of before, unchanged or as a model spells
// them.
func keeps(before, after any) bool {
	switch b := before.(type) {
	case map[string]any:
		a, ok := after.(map[string]any)
		for name, v := range b {
			now, there := a[name]
			ok = ok && there && keeps(v, now)
		}
		return ok
	case []any:
		a, ok := after.([]any)
		if ok = ok && len(a) == len(b); !ok {
			return false
		}
		for i := range b {
			ok = ok && keeps(b[i], a[i])
		}
		return ok
	case json.Number:
		return after == before || after == string(b) // an id
	case nil:
		switch a := after.(type) {
		case nil, bool:
			return true
		case []any:
			return len(a) == 0
		case map[string]any:
			return len(a) == 0
		}
		return false
	default:
		return reflect.DeepEqual(before, after)
	}
}

// The model of any payload is JSON, keeps all of its values, and is its own model.
func FuzzParse(f *testing.F) {
	names := make([]string, 0, len(catalog))
	for i, e := range catalog {
		names = append(names, e.Name)
		if sample, ok := Sample(e.Name); ok {
			f.Add(uint8(i), sample)
		}
	}
	f.Add(uint8(0), []byte(`{"id":1,"id":{},"\u0069d":[],"a":"\ud800","b":-0.0e-7,"permissions":[{"id":1}]}`))
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		name := names[int(n)%len(names)]
		if e, _ := Lookup(name); e.Model == "" {
			return
		}
		once, err := Parse(nil, name, data)
		if err != nil {
			return
		}
		if !json.Valid(once) {
			t.Fatalf("%s: %q became %q, which is not JSON", name, data, once)
		}
		twice, err := Parse(nil, name, once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s: %q became %q, and that %q: %v", name, data, once, twice, err)
		}
		if len(bytes.TrimSpace(data)) > 0 && !keeps(unmarshal(t, data), unmarshal(t, once)) && string(bytes.TrimSpace(data)) != "null" {
			t.Fatalf("%s: %q became %q", name, data, once)
		}
	})
}

// TestUnplain compares unplain with its definition, for every byte in every place.
func TestUnplain(t *testing.T) {
	t.Parallel()
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				b := bytes.Repeat([]byte{'x'}, length)
				b[at] = byte(c)
				if at+1 < length {
					b[at+1] = byte(c) + 1
				}
				for from := range length {
					want := length
					if i := bytes.IndexFunc(b[from:], func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }); i >= 0 {
						want = from + i
					}
					if got := unplain(b, from); got != want {
						t.Fatalf("%q from %d: %d, want %d", b, from, got, want)
					}
				}
			}
		}
	}
}

// typical is a MESSAGE_CREATE of 2 KB, as an active guild sends.
func typical(b *testing.B) []byte {
	b.Helper()
	sample, _ := Sample("MESSAGE_CREATE")
	var m map[string]json.RawMessage
	if err := json.Unmarshal(sample, &m); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{
		"thread", "components", "stickers", "poll", "resolved", "message_snapshots", "interaction_metadata", "interaction",
		"embeds", "role_subscription_data", "call", "shared_client_theme", "activity", "application", "attachments", "referenced_message",
	} {
		delete(m, name)
	}
	m["components"], m["embeds"], m["attachments"] = json.RawMessage("[]"), json.RawMessage("[]"), json.RawMessage("[]")
	short, err := json.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(strings.Repeat("The weft is what goes across. ", max(0, 2048-len(short))/30+1))
	if err != nil {
		b.Fatal(err)
	}
	m["content"] = text
	data, err := json.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

// Parse should take less than twice the time of Valid for the same bytes.
func BenchmarkParse(b *testing.B) {
	guild, _ := Sample("GUILD_CREATE")
	text := fmt.Appendf(nil, `{"id":"1","channel_id":"2","author":{"id":"3","username":"a"},"content":%q}`, strings.Repeat("text ", 3200))
	for _, bb := range []struct {
		name, event string
		data        []byte
	}{{"message", "MESSAGE_CREATE", typical(b)}, {"guild", "GUILD_CREATE", guild}, {"text", "MESSAGE_CREATE", text}} {
		b.Run(bb.name+"/Parse", func(b *testing.B) {
			b.SetBytes(int64(len(bb.data)))
			b.ReportAllocs()
			var dst []byte
			for b.Loop() {
				var err error
				if dst, err = Parse(dst[:0], bb.event, bb.data); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bb.name+"/Valid", func(b *testing.B) {
			b.SetBytes(int64(len(bb.data)))
			for b.Loop() {
				if !json.Valid(bb.data) {
					b.Fatal("not valid")
				}
			}
		})
	}
}
