package event

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/quick"

	"github.com/google/uuid"
)

func TestFindIDs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, data           string
		guild, channel, user Snowflake
	}{
		{"MESSAGE_CREATE", `{"id":"9","channel_id":"2","author":{"bot":false,"id":"3"},"guild_id":"1","member":{"user":{"id":"8"}}}`, 1, 2, 3},
		{"MESSAGE_REACTION_ADD", `{"user_id":"3","member":{"roles":["7"],"user":{"id":"8"}},"guild_id":"1","channel_id":"2"}`, 1, 2, 3},
		{"INTERACTION_CREATE", `{"member":{"deaf":false,"user":{"username":"a\"b","id":"3"}},"id":"5"}`, 0, 0, 3},
		{"GUILD_BAN_ADD", ` { "guild_id" : "1" , "user" : { "x":[{}], "id" : "3" } } `, 1, 0, 3},
		{"GUILD_CREATE", `{"channels":[{"id":"77","guild_id":"88"}],"id":"1","members":[{"user":{"id":"4"}}]}`, 1, 0, 0},
		{"GUILD_DELETE", `{"id":"1","unavailable":true}`, 1, 0, 0},
		{"CHANNEL_UPDATE", `{"id":"2","guild_id":"1"}`, 1, 2, 0},
		{"CHANNEL_PINS_UPDATE", `{"guild_id":null,"channel_id":"2"}`, 0, 2, 0},
		{"THREAD_CREATE", `{"id":"2","guild_id":"1","owner_id":"3","member":{"user_id":"3"}}`, 1, 2, 0},
		{"VOICE_CHANNEL_STATUS_UPDATE", `{"id":"2","guild_id":"1"}`, 1, 2, 0},
		{"VOICE_CHANNEL_EFFECT_SEND", `{"id":"9","channel_id":"2","guild_id":"1","user_id":"3"}`, 1, 2, 3},
		{"THREAD_LIST_SYNC", `{"guild_id":"1","id":"9"}`, 1, 0, 0},
		{"USER_UPDATE", `{"id":"3"}`, 0, 0, 3},
		{"SHARD_CONNECT", `{"shard_id":0}`, 0, 0, 0},
		{"RESUMED", `null`, 0, 0, 0},
		{"X", `{"guild_id":12,"channel_id":"12x","user_id":"99999999999999999999"}`, 12, 0, 0},
		{"X", `{"guild_id":"9223372036854775808","channel_id":"9223372036854775807"}`, 0, 1<<63 - 1, 0},
		{"X", `[{"guild_id":"1"}]`, 0, 0, 0},
		{"X", `{"guild_id":"1"`, 1, 0, 0},
		{"X", `{"a":"\"guild_id\":\"7\"","guild_id":"1"}`, 1, 0, 0},
		{"X", ``, 0, 0, 0},
	}
	for _, tt := range tests {
		e := Event{Name: tt.name, Data: []byte(tt.data)}
		FindIDs(&e)
		if e.GuildID != tt.guild || e.ChannelID != tt.channel || e.UserID != tt.user {
			t.Errorf("%s %s: guild %v, channel %v, user %v; want %v, %v, %v", tt.name, tt.data,
				e.GuildID, e.ChannelID, e.UserID, tt.guild, tt.channel, tt.user)
		}
	}
}

func TestDispatchID(t *testing.T) {
	t.Parallel()
	base := DispatchID(1, "s", Shard{0, 1}, 7)
	if base != DispatchID(1, "s", Shard{0, 1}, 7) {
		t.Error("a replay has another id")
	}
	if base.Version() != 8 || base.Variant() != uuid.RFC4122 {
		t.Errorf("%v is not a UUID of version 8", base)
	}
	for _, other := range []uuid.UUID{
		DispatchID(2, "s", Shard{0, 1}, 7), DispatchID(1, "t", Shard{0, 1}, 7),
		DispatchID(1, "s", Shard{1, 2}, 7), DispatchID(1, "s", Shard{0, 1}, 8),
	} {
		if other == base {
			t.Error("two dispatches share an id")
		}
	}
	neighbors := func(seq uint32) bool {
		a, b := DispatchID(1, "s", Shard{0, 1}, int64(seq)), DispatchID(1, "s", Shard{0, 1}, int64(seq)+1)
		return a != b && [8]byte(a[:8]) == [8]byte(b[:8]) && string(a[:]) < string(b[:])
	}
	if err := quick.Check(neighbors, nil); err != nil {
		t.Error(err)
	}
}

// FuzzFindIDs compares FindIDs with encoding/json on all input that the latter accepts.
func FuzzFindIDs(f *testing.F) {
	f.Add([]byte(`{"guild_id":"1","user":{"id":"3"},"x":[1,{"y":"\\\""}]}`))
	f.Add([]byte(`{"member":{"user":{"id":"1"}},"channel_id":2}`))
	f.Add([]byte(`{"a`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e := Event{Name: "X", Data: data}
		FindIDs(&e)
		var members map[string]json.RawMessage
		if json.Unmarshal(data, &members) != nil {
			return
		}
		var want string
		if json.Unmarshal(members["guild_id"], &want) != nil {
			return
		}
		id, err := ParseSnowflake(want)
		if err == nil && want == id.String() && countKeys(data, "guild_id") == 1 && e.GuildID != id {
			t.Errorf("guild %v, want %v in %s", e.GuildID, id, data)
		}
	})
}

// countKeys counts how often the text of a key occurs: encoding/json keeps the last
// duplicate and folds case and escapes; the scanner does not.
func countKeys(data []byte, key string) (n int) {
	for i := 0; i+len(key) <= len(data); i++ {
		if string(data[i:i+len(key)]) == key {
			n++
		}
	}
	return n
}

func BenchmarkFindIDs(b *testing.B) {
	filler := `"embeds":[{"title":"some text that is skipped, with \"quotes\" in it","fields":[{"name":"a","value":"b"}]}],`
	data := []byte(`{"id":"1574344433229399253","channel_id":"1574343070961401933",` + strings.Repeat(filler, 16) + `"author":{"id":"1574343067228471333"},"guild_id":"1574343070927847498"}`)
	e := Event{Name: "MESSAGE_CREATE", Data: data}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		FindIDs(&e)
	}
}
