package discordtest_test

import (
	"strings"
	"testing"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// TestCommandRefused sends commands that Discord can't read and closes for.
func TestCommandRefused(t *testing.T) {
	t.Parallel()
	presence := func(members string) string { return `{"op":3,"d":{` + members + `}}` }
	const rest = `"since":null,"afk":false,"status":"online"`
	for _, tt := range []struct{ name, send, illegal string }{
		{"presence without since", presence(`"activities":[],"status":"online","afk":false`), "op 3: a presence needs since"},
		{"presence with activities null", presence(rest + `,"activities":null`), "op 3: a presence needs since, activities"},
		{"presence with another status", presence(`"since":null,"activities":[],"status":"busy","afk":false`), "op 3: a presence needs"},
		{"presence that is a list", `{"op":3,"d":[]}`, "op 3 can't be decoded"},
		{"activity without a name", presence(rest + `,"activities":[{"type":0}]`), "op 3: an activity needs a name"},
		{"activity of another type", presence(rest + `,"activities":[{"name":"a","type":6}]`), "op 3: an activity needs a name"},
		{"voice without a channel", `{"op":4,"d":{"guild_id":"7","self_mute":false,"self_deaf":false}}`, "op 4 needs"},
		{"voice without self_deaf", `{"op":4,"d":{"guild_id":"7","channel_id":null,"self_mute":false}}`, "op 4 needs"},
		{"voice with a number", `{"op":4,"d":{"guild_id":"7","channel_id":8,"self_mute":false,"self_deaf":false}}`, "op 4 needs"},
		{"members without a limit", `{"op":8,"d":{"guild_id":"7","query":"a"}}`, "op 8 needs"},
		{"members with query and ids", `{"op":8,"d":{"guild_id":"7","query":"a","limit":1,"user_ids":["1"]}}`, "op 8 needs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, discordtest.Config{})
			c, _ := ready(t, srv, 0, 1)
			c.send("%s", tt.send)
			c.expectClose(4001)
			wantIllegal(t, srv, tt.illegal)
		})
	}
}

// TestCommandIllegal sends commands that Discord answers, but not in full.
func TestCommandIllegal(t *testing.T) {
	t.Parallel()
	ids := strings.TrimSuffix(strings.Repeat(`"1",`, 101), ",")
	for _, tt := range []struct{ name, send, answer, illegal string }{
		{"a long nonce", `{"op":8,"d":{"guild_id":"7","user_ids":["1"],"nonce":"123456789012345678901234567890123"}}`, "GUILD_MEMBERS_CHUNK 2", "op 8 with a nonce"},
		{"101 ids", `{"op":8,"d":{"guild_id":"7","user_ids":[` + ids + `]}}`, "GUILD_MEMBERS_CHUNK 2", "op 8 with more than 100"},
		{"all of a prefix", `{"op":8,"d":{"guild_id":"7","query":"a","limit":0}}`, "GUILD_MEMBERS_CHUNK 2", "op 8 with a limit"},
		{"all without the intent", `{"op":8,"d":{"guild_id":"7","query":"","limit":0}}`, "GUILD_MEMBERS_CHUNK 2", "op 8 with all members without"},
		{"presences without the intent", `{"op":8,"d":{"guild_id":"7","user_ids":["1"],"presences":true}}`, "GUILD_MEMBERS_CHUNK 2", "op 8 with presences without"},
		{"a guild of another shard", `{"op":8,"d":{"guild_id":"4194304","user_ids":["1"]}}`, "GUILD_MEMBERS_CHUNK 2", `op 8 for guild "4194304"`},
		{"a voice channel of another shard", `{"op":4,"d":{"guild_id":"4194304","channel_id":null,"self_mute":false,"self_deaf":false}}`, "VOICE_STATE_UPDATE 2", `op 4 for guild "4194304"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, discordtest.Config{})
			c, _ := ready(t, srv, 0, 2)
			c.send("%s", tt.send)
			c.expect(tt.answer)
			wantIllegal(t, srv, tt.illegal)
		})
	}
}

func TestVoiceState(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	c.send(`{"op":4,"d":{"guild_id":"7","channel_id":"8","self_mute":false,"self_deaf":true}}`)
	p := c.next()
	if want := `{"channel_id":"8","deaf":false,"guild_id":"7","mute":false,"request_to_speak_timestamp":null,"self_deaf":true,` +
		`"self_mute":false,"self_video":false,"session_id":"` + session + `","suppress":false,"user_id":"1002"}`; p.String() != "VOICE_STATE_UPDATE 2" || string(p.D) != want {
		t.Errorf("%s %s, want %s", p, p.D, want)
	}
	c.expect("VOICE_SERVER_UPDATE 3")
	c.send(`{"op":4,"d":{"guild_id":"7","channel_id":null,"self_mute":false,"self_deaf":false}}`)
	c.expect("VOICE_STATE_UPDATE 4")
	c.send(`{"op":8,"d":{"guild_id":"7","user_ids":"1"}}`)
	c.expect("GUILD_MEMBERS_CHUNK 5") // no VOICE_SERVER_UPDATE in between
	wantIllegal(t, srv)
}

func TestPresence(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, _ := ready(t, srv, 0, 1)
	const presence = `{"op":3,"d":{"since":null,"activities":[{"name":"a","type":1,"url":"https://twitch.tv/a"}],"status":"online","afk":false}}`
	for range 6 {
		c.send(presence)
	}
	c.send(`{"op":3,"d":{"since":1,"activities":[{"name":"a","type":0,"details":"b"}],"status":"idle","afk":true}}`)
	if _, err := srv.WaitCount(within(t), discordtest.Illegal, 0, 3); err != nil {
		t.Fatal(err)
	}
	wantIllegal(t, srv, "more than 5 presences", "op 3: an activity has more", "more than 5 presences")
	c = hello(t, srv, srv.GatewayURL())
	c.send(`{"op":2,"d":{"token":%q,"properties":{"os":"x"},"intents":1,"presence":{"status":"online"}}}`, srv.Token())
	c.expectClose(4001)
}

// TestAllMembersLimit requests all members of a guild twice within 30 s.
func TestAllMembersLimit(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := hello(t, srv, srv.GatewayURL())
	c.send(`{"op":2,"d":{"token":%q,"properties":{"os":"x"},"intents":2}}`, srv.Token())
	c.expect("READY 1")
	c.send(`{"op":8,"d":{"guild_id":"7","query":"","limit":0}}`)
	c.expect("GUILD_MEMBERS_CHUNK 2")
	c.send(`{"op":8,"d":{"guild_id":"7","query":"","limit":0,"nonce":"n"}}`)
	if p := c.next(); p.String() != "RATE_LIMITED 3" || !strings.HasPrefix(string(p.D), `{"meta":{"guild_id":"7","nonce":"n"},"opcode":8,"retry_after":`) {
		t.Errorf("%s %s", p, p.D)
	}
	c.send(`{"op":8,"d":{"guild_id":"8","query":"","limit":0}}`)
	c.expect("GUILD_MEMBERS_CHUNK 4")
	wantIllegal(t, srv)
}
