package gateway

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestCommands: a command over HTTP reaches Discord in the documented form, on
// the shard of the guild.
func TestCommands(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{Shards: 2}, postgrestest.New(t))
	c.intents.Store(int64(event.IntentGuilds | event.IntentGuildMembers | event.IntentGuildPresences))
	c.start()
	c.ready(0)
	c.ready(1)
	first, second := guildOn(event.Shard{ID: 0, Count: 2}), guildOn(event.Shard{ID: 1, Count: 2})
	tests := []struct {
		method, path, body, answer string
		shard, op                  int
		d                          string
	}{
		{
			http.MethodPost, fmt.Sprintf("/guilds/%v/members/request", first),
			`{"user_ids":["80351110224678912"],"nonce":"job-7"}`, `{"nonce":"job-7","shard":[0,2]}`,
			0, discord.OpMembers, fmt.Sprintf(`{"guild_id":"%v","user_ids":["80351110224678912"],"nonce":"job-7"}`, first),
		},
		{
			http.MethodPost, fmt.Sprintf("/guilds/%v/members/request", second),
			`{"query":"","limit":0,"presences":true,"nonce":"12345678901234567890123456789012"}`,
			`{"nonce":"12345678901234567890123456789012","shard":[1,2]}`,
			1, discord.OpMembers, fmt.Sprintf(`{"guild_id":"%v","query":"","limit":0,"presences":true,"nonce":"12345678901234567890123456789012"}`, second),
		},
		{
			http.MethodPut, fmt.Sprintf("/guilds/%v/voice-state", first), `{"channel_id":"5","self_deaf":true}`, `{"shard":[0,2]}`,
			0, discord.OpVoiceState, fmt.Sprintf(`{"guild_id":"%v","channel_id":"5","self_mute":false,"self_deaf":true}`, first),
		},
		{
			http.MethodPut, fmt.Sprintf("/guilds/%v/voice-state", second), `{"channel_id":null}`, `{"shard":[1,2]}`,
			1, discord.OpVoiceState, fmt.Sprintf(`{"guild_id":"%v","channel_id":null,"self_mute":false,"self_deaf":false}`, second),
		},
	}
	done := map[int]int{}
	for _, tt := range tests {
		c.want(tt.method, tt.path, tt.body, http.StatusAccepted, tt.answer)
		done[tt.shard]++
		c.command(tt.shard, done[tt.shard], tt.op, tt.d)
	}
	for _, nonce := range []string{"job-7", "12345678901234567890123456789012"} {
		c.store.wait(c.ctx, t, "a chunk with nonce "+nonce, func(events []*event.Event) bool {
			return slices.ContainsFunc(events, func(e *event.Event) bool {
				return e.Name == "GUILD_MEMBERS_CHUNK" && bytes.Contains(e.Data, []byte(`"nonce":"`+nonce+`"`))
			})
		})
	}
	c.named("VOICE_SERVER_UPDATE", 1)
	c.legal()
}

// TestCommandsRefused: a command that Discord would ignore, or close the
// connection for, never reaches it.
func TestCommandsRefused(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.start()
	c.ready(0)
	ids := strings.Repeat(`"1",`, 101)
	ids = "[" + ids[:len(ids)-1] + "]"
	activity := func(s string) string { return `{"status":"online","activities":[` + s + `]}` }
	many := strings.Repeat(`{"name":"`+strings.Repeat("<", 128)+`","type":0},`, 10)
	const members, voice = "/guilds/7/members/request", "/guilds/7/voice-state"
	tests := []struct {
		name, method, path, body, field, detail string
	}{
		{"neither query nor user_ids", "POST", members, `{}`, "query", "give query or user_ids"},
		{"both", "POST", members, `{"query":"a","limit":1,"user_ids":["1"]}`, "user_ids", "not both"},
		{"no limit", "POST", members, `{"query":"a"}`, "limit", "required with query"},
		{"all members of a prefix", "POST", members, `{"query":"a","limit":0}`, "limit", "all members"},
		{"limit too high", "POST", members, `{"query":"a","limit":101}`, "limit", "101 is too many"},
		{"limit below zero", "POST", members, `{"query":"a","limit":-1}`, "limit", "minimum: got -1, want 0"},
		{"101 ids", "POST", members, `{"user_ids":` + ids + `}`, "user_ids", "101 ids are too many"},
		{"no ids", "POST", members, `{"user_ids":[]}`, "user_ids", "minItems: got 0, want 1"},
		{"an id that is not valid", "POST", members, `{"user_ids":["1","0"]}`, "user_ids.1", "not a Discord id"},
		{"nonce of 33 bytes, 17 characters", "POST", members, `{"user_ids":["1"],"nonce":"1` + strings.Repeat("é", 16) + `"}`, "nonce", "33 bytes"},
		{"too large", "POST", members, `{"query":"` + strings.Repeat("a", 4096) + `","limit":1}`, "body", "at most 4096"},
		{"unknown field", "POST", members, `{"users":["1"]}`, "users", "no such field"},
		{"guild id that is not valid", "POST", "/guilds/0/members/request", `{"user_ids":["1"]}`, "id", "not a Discord id"},
		{"guild id that is not a number", "POST", "/guilds/x/members/request", `{"user_ids":["1"]}`, "id", "does not match pattern"},
		{"voice without a channel", "PUT", voice, `{"self_mute":true}`, "channel_id", "required"},
		{"voice with a channel id that is not valid", "PUT", voice, `{"channel_id":"0"}`, "channel_id", "not a Discord id"},
		{"voice with a number", "PUT", voice, `{"channel_id":5}`, "channel_id", "got number"},
		{"presence without a status", "PUT", "/presence", `{}`, "status", "missing"},
		{"status unknown", "PUT", "/presence", `{"status":"busy"}`, "status", "allowed values"},
		{"activity without a name", "PUT", "/presence", activity(`{"type":0}`), "activities.0.name", "missing"},
		{"activity type unknown", "PUT", "/presence", activity(`{"name":"a","type":6}`), "activities.0.type", "at most 5"},
		{"a field that bots may not set", "PUT", "/presence", activity(`{"name":"a","type":0,"details":"b"}`), "activities.0.details", "unsupported"},
		{"URL without a stream", "PUT", "/presence", activity(`{"name":"a","type":0,"url":"https://twitch.tv/a"}`), "activities.0.url", "streaming"},
		{"URL elsewhere", "PUT", "/presence", activity(`{"name":"a","type":1,"url":"https://twitch.tv.example/a"}`), "activities.0.url", "shows no other"},
		{"URL without TLS", "PUT", "/presence", activity(`{"name":"a","type":1,"url":"http://twitch.tv/a"}`), "activities.0.url", "shows no other"},
		{"custom without a state", "PUT", "/presence", activity(`{"name":"a","type":4}`), "activities.0.state", "give one"},
		{"too large for an IDENTIFY", "PUT", "/presence", activity(many[:len(many)-1]), "activities", "at most 3584"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := c.call(tt.method, tt.path, tt.body)
			if r.status != http.StatusBadRequest {
				t.Fatalf("%d %s", r.status, r.body)
			}
			if detail, field := r.problem(t); field != tt.field || !strings.Contains(detail, tt.detail) {
				t.Errorf("field %q: %q; want field %q and %q", field, detail, tt.field, tt.detail)
			}
		})
	}
	if n := c.Count(discordtest.Command, discordtest.AnyShard); n != 0 {
		t.Errorf("%d commands reached Discord, want 0", n)
	}
	c.legal()
}

// TestIntentsMissing: a request that the session's intents don't allow is
// refused, and the answer names the missing ones.
func TestIntentsMissing(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.start()
	c.ready(0)
	c.refused(http.MethodPost, "/guilds/7/members/request", `{"query":"","limit":0}`, http.StatusConflict, "lacks the intent GUILD_MEMBERS:")
	c.refused(http.MethodPost, "/guilds/7/members/request", `{"user_ids":["1"],"presences":true}`, http.StatusConflict, "lacks the intent GUILD_PRESENCES:")
	c.want(http.MethodPost, "/guilds/7/members/request", `{"query":"","limit":1,"nonce":"n"}`, http.StatusAccepted, "")
	c.legal()
}

// TestSendLimit: a caller that sends more than Discord takes gets a 429, and
// the connection stays open.
func TestSendLimit(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.start()
	c.ready(0)
	var sent, limited int
	for range 2 * discord.SendLimit {
		r := c.call(http.MethodPut, "/guilds/7/voice-state", `{"channel_id":"5"}`)
		switch r.status {
		case http.StatusAccepted:
			sent++
		case http.StatusTooManyRequests:
			limited++
			r.retryable(t)
			if detail, _ := r.problem(t); !strings.Contains(detail, "120 sends that Discord takes in 1m0s") {
				t.Fatalf("%q", detail)
			}
		default:
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	// IDENTIFY was one send, and there may have been a heartbeat.
	if most := discord.SendLimit - discord.SendRoom - 1; sent > most || sent < most-1 || limited == 0 {
		t.Errorf("%d were sent and %d refused, want %d sent or one less, and some refused", sent, limited, most)
	}
	c.count(discordtest.Command, 0, sent)
	if n := c.Count(discordtest.ServerClosed, 0); n != 0 {
		t.Errorf("Discord closed %d connections", n)
	}
	c.legal()
}

// TestOtherInstance: another instance performs the commands for its shards, and
// the caller sees no difference.
func TestOtherInstance(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ranges", "shares"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newCaller(t, discordtest.Config{Shards: 2}, postgrestest.New(t))
			a.intents.Store(int64(event.IntentGuilds | event.IntentGuildMembers))
			b := a.beside()
			if name == "ranges" {
				a.cfg.Shards, b.cfg.Shards = Shards{First: 0, Last: 0, Count: 2}, Shards{First: 1, Last: 1, Count: 2}
				b.start()
			}
			a.start()
			a.ready(0)
			a.ready(1)
			from, owner, to := a, b, event.Shard{ID: 1, Count: 2}
			if name == "shares" {
				b.start()
				a.wait("each has its share", func() bool { return len(a.inService()) == 1 && len(b.inService()) == 1 })
				if a.inService()[0] == to {
					from, owner = b, a
				}
			}
			path := fmt.Sprintf("/guilds/%v/members/request", guildOn(to))
			from.want(http.MethodPost, path, `{"query":"","limit":0,"nonce":"n"}`, http.StatusAccepted, `{"nonce":"n","shard":[1,2]}`)
			a.command(1, 1, discord.OpMembers, fmt.Sprintf(`{"guild_id":"%v","query":"","limit":0,"nonce":"n"}`, guildOn(to)))
			a.named("GUILD_MEMBERS_CHUNK", 1)
			from.refused(http.MethodPost, path, `{"user_ids":["1"],"presences":true}`, http.StatusConflict, "shard 1/2 lacks the intent GUILD_PRESENCES")
			voice := fmt.Sprintf("/guilds/%v/voice-state", guildOn(to))
			// The other instance uses up its limit, and this one reports that.
			for range discord.SendLimit {
				owner.call(http.MethodPut, voice, `{"channel_id":null}`)
			}
			from.refused(http.MethodPut, voice, `{"channel_id":null}`, http.StatusTooManyRequests, "shard 1/2: the 120 sends").retryable(t)
			a.legal()
		})
	}
}

// TestOwnShardNeedsNoDatabase: a command to a shard of this instance works
// without the database.
func TestOwnShardNeedsNoDatabase(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	c := newCaller(t, discordtest.Config{}, pool)
	c.start()
	c.ready(0)
	pool.Close()
	c.want(http.MethodPut, "/guilds/7/voice-state", `{"channel_id":null}`, http.StatusAccepted, `{"shard":[0,1]}`)
	c.command(0, 1, discord.OpVoiceState, `{"guild_id":"7","channel_id":null,"self_mute":false,"self_deaf":false}`)
}

// TestNobodyHasTheShard: if no instance has the shard, the answer says so, and
// no instance performs the command later.
func TestNobodyHasTheShard(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	c := newCaller(t, discordtest.Config{Shards: 2}, pool)
	c.cfg.Shards = Shards{First: 0, Last: 0, Count: 2}
	c.cfg.Relay.timeout = 300 * time.Millisecond
	c.start()
	c.ready(0)
	c.refused(http.MethodPut, fmt.Sprintf("/guilds/%v/voice-state", guildOn(event.Shard{ID: 1, Count: 2})), `{"channel_id":null}`,
		http.StatusServiceUnavailable, "no server has shard 1/2 at the moment, so the command was not sent").retryable(t)
	var left int
	if err := pool.QueryRow(c.ctx, `SELECT count(*) FROM shard_commands`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d commands are left: %v", left, err)
	}
}

// TestNotConnected: the answer names the state of a shard that has no
// connection.
func TestNotConnected(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	const path, body = "/guilds/7/voice-state", `{"channel_id":null}`
	c.Arm(discordtest.AtIdentify, 0, 1, discordtest.Close(4014))
	c.start()
	c.wait("the shard failed", func() bool {
		s := c.gateway.Status()
		return len(s) == 1 && s[0].State == StateFailed
	})
	c.refused(http.MethodPut, path, body, http.StatusServiceUnavailable, "shard 0/1 has failed: the bot is not allowed").retryable(t)
	c.Arm(discordtest.AtHello, discordtest.AnyShard, 1, discordtest.Skip())
	c.want(http.MethodPost, "/shards/0/restart", "", http.StatusAccepted, `{"shard":[0,1]}`)
	c.count(discordtest.Connected, discordtest.AnyShard, 2)
	c.refused(http.MethodPut, path, body, http.StatusServiceUnavailable, "shard 0/1 is connecting, not connected").retryable(t)
	c.legal()
}

// TestNotKnown: before Discord has answered, calls say that the shards are not
// known.
func TestNotKnown(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.Arm(discordtest.AtApplication, discordtest.AnyShard, discordtest.Always, discordtest.Status(http.StatusInternalServerError))
	c.start()
	for _, call := range [][3]string{
		{http.MethodPut, "/presence", `{"status":"idle"}`},
		{http.MethodGet, "/presence", ""},
		{http.MethodPut, "/guilds/7/voice-state", `{"channel_id":null}`},
		{http.MethodPost, "/guilds/7/members/request", `{"user_ids":["1"]}`},
		{http.MethodPost, "/shards/0/restart", ""},
	} {
		c.refused(call[0], call[1], call[2], http.StatusServiceUnavailable, "the shards are not known yet").retryable(t)
	}
}

// TestCommandsWhileResharding: while one set of shards takes over from another,
// Discord's answer to every command that got a 202 is delivered.
func TestCommandsWhileResharding(t *testing.T) {
	t.Parallel()
	a := newCaller(t, discordtest.Config{Shards: 2, HeartbeatInterval: discord.MaxInterval, Guilds: []uint64{1 << 22, 2 << 22, 3 << 22}}, postgrestest.New(t))
	a.timing.load = 200 * time.Millisecond // the new set is connected and drops what it receives
	a.cfg.Shards = Shards{Last: 1, Count: 2}
	a.start()
	a.ready(0)
	a.ready(1)
	b := a.beside()
	b.cfg.Shards = Shards{Last: 4, Count: 5}
	b.start()
	var nonces []string
	done := func() bool {
		_, count := a.gateway.commandTarget()
		return count == 5 && len(a.inService())+len(b.inService()) == 5 && len(nonces) >= 20
	}
	var asked time.Time
	a.wait("the new set", func() bool {
		if time.Since(asked) < 10*time.Millisecond { // to stay within the limit of a connection
			return false
		}
		asked = time.Now()
		path := fmt.Sprintf("/guilds/%v/members/request", event.Snowflake(len(nonces)+1)<<22)
		nonce := fmt.Sprintf("nonce-%03d", len(nonces))
		r := []*caller{a, b}[len(nonces)%2].call(http.MethodPost, path, `{"user_ids":["1"],"nonce":"`+nonce+`"}`)
		switch r.status {
		case http.StatusAccepted:
			nonces = append(nonces, nonce)
		case http.StatusServiceUnavailable, http.StatusTooManyRequests:
			r.retryable(t)
		default:
			t.Fatalf("%d %s", r.status, r.body)
		}
		return done()
	})
	for _, nonce := range nonces {
		a.store.wait(a.ctx, t, "the answer to "+nonce, func(events []*event.Event) bool {
			n := 0
			for _, e := range events {
				if e.Name == "GUILD_MEMBERS_CHUNK" && bytes.Contains(e.Data, []byte(nonce)) {
					n++
				}
			}
			return n == 1
		})
	}
	a.legal()
}
