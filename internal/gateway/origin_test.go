package gateway

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

func TestOrigins(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 14, 15, 0, 0, 0, time.UTC)
	const create, gone = "GUILD_CREATE", "GUILD_DELETE"
	long, fresh := now.Add(-time.Hour).Format(time.RFC3339), now.Add(-time.Minute).Format(time.RFC3339)
	type step struct {
		name, data string
		want       event.Origin
	}
	for name, tt := range map[string]struct {
		ready string // the guilds of READY; "" if READY was not seen
		steps []step
	}{
		"the start of a session": {`[{"id":"1"},{"id":2},{"id":"x"}]`, []step{
			{create, `{"id":"1"}`, event.OriginStartup},
			{create, `{"id":"2","unavailable":false}`, event.OriginStartup},
			{create, `{"id":"3"}`, event.OriginJoin},
			{create, `{"id":"1"}`, event.OriginJoin},
		}},
		"an outage": {`[{"id":"1"}]`, []step{
			{create, `{"id":"1"}`, event.OriginStartup},
			{gone, `{"unavailable": true ,"id":"1"}`, event.OriginOutage},
			{create, `{"id":"1"}`, event.OriginAvailable},
			{create, `{"id":"1"}`, event.OriginJoin},
		}},
		"an outage at the start": {`[{"id":"1"},{"id":"2"}]`, []step{
			{gone, `{"id":"1","unavailable":true}`, event.OriginOutage},
			{create, `{"id":"1"}`, event.OriginStartup},
			{create, `{"id":"2","unavailable":true}`, event.OriginStartup},
			{create, `{"id":"2"}`, event.OriginAvailable},
		}},
		"a removal": {`[{"id":"1"},{"id":"2"}]`, []step{
			{gone, `{"id":"1"}`, event.OriginRemoved},
			{create, `{"id":"1"}`, event.OriginJoin},
			{gone, `{"id":"2","unavailable":true}`, event.OriginOutage},
			{gone, `{"id":"2","unavailable":false}`, event.OriginRemoved},
			{create, `{"id":"2"}`, event.OriginJoin},
		}},
		"no guilds": {`[]`, []step{{create, `{"id":"1","joined_at":"` + long + `"}`, event.OriginJoin}}},
		"a session that another process began": {"", []step{
			{create, `{"id":"1","joined_at":"` + long + `"}`, event.OriginAvailable},
			{create, `{"id":"2","joined_at":"` + fresh + `"}`, event.OriginJoin},
			{create, `{"id":"3"}`, event.OriginAvailable},
			{create, `{"id":"4","joined_at":null}`, event.OriginAvailable},
			{gone, `{"id":"2","unavailable":true}`, event.OriginOutage},
			{create, `{"id":"2","joined_at":"` + fresh + `"}`, event.OriginAvailable},
			{gone, `{"id":"2"}`, event.OriginRemoved},
		}},
		"other events": {`[{"id":"1"}]`, []step{{"GUILD_UPDATE", `{"id":"1"}`, ""}, {create, `{"id":"1"}`, event.OriginStartup}}},
	} {
		o := newLink(&shard{}, nil, event.Session{}).origins
		if tt.ready != "" {
			var guilds []discord.Guild
			if err := json.Unmarshal([]byte(tt.ready), &guilds); err != nil {
				t.Fatal(err)
			}
			o = newOrigins(guilds)
		}
		for i, s := range tt.steps {
			e := &event.Event{Name: s.name, Data: []byte(s.data), ReceivedAt: now}
			event.FindIDs(e)
			if got := o.of(e); got != s.want {
				t.Errorf("%s, step %d: %s %s is %q, want %q", name, i, s.name, s.data, got, s.want)
			}
		}
	}
}

// TestOriginsOutliveAConnection: the state of a session's guilds outlives its
// connection, and after a restart no other event is mistaken for a join.
func TestOriginsOutliveAConnection(t *testing.T) {
	t.Parallel()
	const first, second, third = 1 << 22, 2 << 22, 3 << 22
	r := newRig(t, discordtest.Config{Shards: 1, Guilds: []uint64{first, second}, HeartbeatInterval: discord.MaxInterval})
	stop := r.start()
	r.ready(0)
	seen := map[string]int{}
	tell := func(name string, guild int, rest string, want event.Origin) {
		t.Helper()
		if _, err := r.Dispatch(0, name, fmt.Appendf(nil, `{"id":"%d"%s}`, guild, rest)); err != nil {
			t.Fatal(err)
		}
		seen[name]++
		if got := r.named(name, seen[name]); got.Origin != want {
			t.Errorf("%s of %d%s is %q, want %q", name, guild>>22, rest, got.Origin, want)
		}
	}
	const old = `,"joined_at":"2020-01-01T00:00:00.000000+00:00"`
	tell("GUILD_CREATE", first, old, event.OriginStartup)
	tell("GUILD_DELETE", first, `,"unavailable":true`, event.OriginOutage)
	r.do(0, discordtest.Drop())
	r.count(discordtest.Resume, 0, 1)
	tell("GUILD_CREATE", first, old, event.OriginAvailable)
	tell("GUILD_CREATE", second, old, event.OriginStartup)
	tell("GUILD_CREATE", third, old, event.OriginJoin)
	stop()
	r.start()
	r.count(discordtest.Resume, 0, 2)
	tell("GUILD_CREATE", first, old, event.OriginAvailable)
	tell("GUILD_DELETE", third, ``, event.OriginRemoved)
	tell("GUILD_CREATE", third, `,"joined_at":"`+time.Now().Format(time.RFC3339)+`"`, event.OriginJoin)
	r.legal()
}
