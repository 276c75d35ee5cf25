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

// TestOrigins: what a GUILD_CREATE says decides what it is. What is remembered only
// tells apart what payloads do not.
func TestOrigins(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 14, 15, 0, 0, 0, time.UTC)
	times := map[string]time.Time{"recent": now.Add(-time.Minute), "old": now.Add(-5 * 365 * 24 * time.Hour), "soon": now.Add(time.Minute)}
	create := func(joined string) *event.Event {
		data := `{"id":"1"}`
		if at, ok := times[joined]; ok {
			data = fmt.Sprintf(`{"id":"1","joined_at":%q}`, at.Format("2006-01-02T15:04:05.000000-07:00"))
		}
		return guildEvent("GUILD_CREATE", data)
	}
	gone := guildEvent("GUILD_CREATE", `{"id":"1","unavailable":true}`)
	for _, restarted := range []bool{false, true} {
		for _, listed := range []bool{false, true} {
			for _, seen := range []string{"", "recent", "old", "missing"} {
				for _, outage := range []string{"", "GUILD_DELETE", "GUILD_CREATE"} {
					for _, joined := range []string{"recent", "old", "missing", "soon"} {
						if restarted && listed {
							continue // READY went to another process
						}
						var o *origins
						if listed {
							o = newOrigins([]discord.Guild{{ID: json.RawMessage(`"1"`)}})
						} else {
							o = newOrigins(nil)
						}
						began := now.Add(-30 * time.Second)
						if seen != "" {
							o.note(create(seen), began)
						}
						if outage != "" {
							o.note(guildEvent(outage, `{"id":"1","unavailable":true}`), now)
						}
						// The bot was in the guild if READY listed it, or it was there.
						was := listed || seen != "" || outage == "GUILD_DELETE"
						var want event.Origin
						switch {
						case listed && seen == "" && outage != "GUILD_CREATE":
							want = event.OriginStartup
						case joined == "missing" && was:
							want = event.OriginAvailable
						case joined == "missing":
							want = event.OriginJoin
						case was && outage != "" && joined != "soon":
							want = event.OriginAvailable // joined before the outage
						case joined == "old", outage == "" && joined == seen:
							want = event.OriginAvailable
						default:
							want = event.OriginJoin
						}
						what := fmt.Sprintf("restarted %t, listed %t, seen before %q, outage by %q, joined_at %s", restarted, listed, seen, outage, joined)
						e := create(joined)
						if got := o.of(e, now); got != want {
							t.Errorf("%s: %q, want %q", what, got, want)
						}
						if again := o.of(e, now); again != want {
							t.Errorf("%s: %q although nothing was noted since", what, again)
						}
						o.note(e, now)
						if got := o.of(e, now.Add(time.Second)); got != event.OriginAvailable {
							t.Errorf("%s: sent again it is %q", what, got)
						}
						if got := o.of(gone, now.Add(time.Second)); got != event.OriginOutage {
							t.Errorf("%s: then unavailable it is %q", what, got)
						}
					}
				}
			}
		}
	}
}

func guildEvent(name, data string) *event.Event {
	e := &event.Event{Name: name, Data: []byte(data)}
	event.FindIDs(e)
	return e
}

// TestOriginsOfASession tells whole stories.
func TestOriginsOfASession(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 3, 14, 15, 0, 0, 0, time.UTC)
	const create, gone = "GUILD_CREATE", "GUILD_DELETE"
	at := func(after time.Duration) string {
		return `,"joined_at":"` + start.Add(after).Format(time.RFC3339) + `"`
	}
	type step struct {
		after      time.Duration
		name, rest string
		want       event.Origin
	}
	for name, tt := range map[string]struct {
		ready string
		steps []step
	}{
		"a guild that is unavailable at the start": {`[{"id":"1"}]`, []step{
			{0, gone, `,"unavailable":true`, event.OriginOutage},
			{0, create, at(-time.Minute), event.OriginStartup},
			{1, create, `,"unavailable":true`, event.OriginOutage},
			{2, create, at(-time.Minute), event.OriginAvailable},
		}},
		"a guild that READY and GUILD_CREATE say is unavailable": {`[{"id":1}]`, []step{
			{0, create, `,"unavailable":true`, event.OriginStartup},
			{time.Hour, create, at(-time.Minute), event.OriginAvailable},
		}},
		"a join in a long outage": {`[]`, []step{
			{0, create, `,"unavailable":true`, event.OriginOutage},
			{3 * time.Hour, create, `,"unavailable":true`, event.OriginOutage},
			{9 * time.Hour, create, at(-5 * time.Second), event.OriginJoin},
			{9*time.Hour + 1, create, at(-5 * time.Second), event.OriginAvailable},
		}},
		"an old guild that comes as unavailable after a restart": {``, []step{
			{0, create, `,"unavailable":true`, event.OriginOutage},
			{time.Hour, create, at(-9000 * time.Hour), event.OriginAvailable},
		}},
		"a removal in an outage, and a join": {`[{"id":"1"}]`, []step{
			{0, create, at(-9000 * time.Hour), event.OriginStartup},
			{1, gone, `,"unavailable":true`, event.OriginOutage},
			{time.Hour, create, at(30 * time.Minute), event.OriginJoin},
		}},
		"a removal and a join": {`[{"id":"1"}]`, []step{
			{0, create, at(-time.Minute), event.OriginStartup},
			{1, gone, ``, event.OriginRemoved},
			{time.Minute, create, at(time.Minute), event.OriginJoin},
			{2 * time.Minute, gone, `,"unavailable":false`, event.OriginRemoved},
			{3 * time.Minute, create, ``, event.OriginJoin},
		}},
		"a removal that was not seen, and a join": {``, []step{
			{0, create, at(-9000 * time.Hour), event.OriginAvailable},
			{time.Hour, create, at(time.Hour - time.Second), event.OriginJoin},
		}},
		"an outage of which nothing was seen": {``, []step{
			{0, create, at(-9000 * time.Hour), event.OriginAvailable},
			{time.Hour, create, at(-9000 * time.Hour), event.OriginAvailable},
		}},
		"other events": {`[{"id":"1"}]`, []step{{0, "GUILD_UPDATE", ``, ""}, {0, create, ``, event.OriginStartup}}},
	} {
		var guilds []discord.Guild
		if tt.ready != "" {
			if err := json.Unmarshal([]byte(tt.ready), &guilds); err != nil {
				t.Fatal(err)
			}
		}
		o := newOrigins(guilds)
		for i, s := range tt.steps {
			e := guildEvent(s.name, `{"id":"1"`+s.rest+`}`)
			if got := o.of(e, start.Add(s.after)); got != s.want {
				t.Errorf("%s, step %d: %s %s is %q, want %q", name, i, s.name, s.rest, got, s.want)
			}
			o.note(e, start.Add(s.after))
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
	tell("GUILD_CREATE", third, old, event.OriginAvailable)
	tell("GUILD_CREATE", first, old, event.OriginAvailable)
	stop()
	r.start()
	r.count(discordtest.Resume, 0, 2)
	tell("GUILD_CREATE", first, old, event.OriginAvailable)
	tell("GUILD_DELETE", third, ``, event.OriginRemoved)
	tell("GUILD_CREATE", third, `,"joined_at":"`+time.Now().Format(time.RFC3339)+`"`, event.OriginJoin)
	tell("GUILD_CREATE", second, `,"unavailable":true`, event.OriginOutage)
	r.legal()
}
