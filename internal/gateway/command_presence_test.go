package gateway

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestPresence: a new presence goes out at once on every connection of every
// instance, and later with every IDENTIFY.
func TestPresence(t *testing.T) {
	t.Parallel()
	a := newCaller(t, discordtest.Config{Shards: 2}, postgrestest.New(t))
	b := a.beside()
	a.cfg.Shards, b.cfg.Shards = Shards{First: 0, Last: 0, Count: 2}, Shards{First: 1, Last: 1, Count: 2}
	a.start()
	b.start()
	a.ready(0)
	a.ready(1)
	a.refused(http.MethodGet, "/presence", "", http.StatusNotFound, "no presence was set")
	const body = `{"status":"dnd","activities":[{"name":"a","type":1,"url":"https://www.twitch.tv/a"},{"name":"Custom Status","type":4,"state":"<b>"}],"since":1700000000000,"afk":true}`
	const d = `{"since":1700000000000,"activities":[{"name":"a","type":1,"url":"https://www.twitch.tv/a"},{"name":"Custom Status","state":"\u003cb\u003e","type":4}],"status":"dnd","afk":true}`
	a.want(http.MethodPut, "/presence", body, http.StatusOK, "")
	a.command(0, 1, discord.OpPresence, d)
	a.command(1, 1, discord.OpPresence, d)
	r := b.call(http.MethodGet, "/presence", "")
	var got openapi.BotPresence
	if err := json.Unmarshal(r.body, &got); err != nil || r.status != http.StatusOK || got.UpdatedAt.IsZero() || got.Status != "dnd" || len(got.Activities) != 2 || !got.Afk {
		t.Errorf("%d %s: %v", r.status, r.body, err)
	}
	a.want(http.MethodPut, "/presence", `{"status":"idle"}`, http.StatusOK, "")
	a.command(0, 2, discord.OpPresence, `{"since":null,"activities":[],"status":"idle","afk":false}`)
	a.command(1, 2, discord.OpPresence, `{"since":null,"activities":[],"status":"idle","afk":false}`)
	// A new session carries the presence, even after a restart without other
	// instances.
	a.stop()
	b.stop()
	a.store.do(func() { clear(a.store.rows) })
	again := a.beside()
	again.cfg.Shards = Shards{}
	again.start()
	for shard := range 2 {
		e := a.count(discordtest.Identify, shard, 2)
		var identified struct {
			Presence json.RawMessage `json:"presence"`
		}
		if err := json.Unmarshal(e.Data, &identified); err != nil {
			t.Fatal(err)
		}
		if want := `{"since":null,"activities":[],"status":"idle","afk":false}`; string(identified.Presence) != want {
			t.Errorf("IDENTIFY carries %s, want %s", identified.Presence, want)
		}
	}
	again.wait("both are in service", func() bool { return len(again.inService()) == 2 })
	again.stay(2)
}

// stay lets the instance look for commands once more and stops it. It fails the
// test unless n commands in all arrived from shard 0.
func (c *caller) stay(n int) {
	c.t.Helper()
	closed := c.Count(discordtest.ClientClosed, 0)
	c.polled()
	c.stop()
	c.count(discordtest.ClientClosed, 0, closed+1) // all that was sent has arrived
	if got := c.Count(discordtest.Command, 0); got != n {
		c.t.Errorf("%d commands arrived, want %d", got, n)
	}
	c.legal()
}

// TestPresenceKept: a resumed session still shows its presence, which is not
// sent again.
func TestPresenceKept(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.start()
	c.ready(0)
	c.want(http.MethodPut, "/presence", `{"status":"idle"}`, http.StatusOK, "")
	c.command(0, 1, discord.OpPresence, `{"since":null,"activities":[],"status":"idle","afk":false}`)
	c.do(0, discordtest.Reconnect())
	c.count(discordtest.Resumed, 0, 1)
	c.wait("it is in service again", func() bool { return len(c.inService()) == 1 && c.gateway.Status()[0].Resumes == 1 })
	c.stay(1)
}

// TestPresenceAfterRestart: a session that another process resumes gets the
// presence that was set meanwhile.
func TestPresenceAfterRestart(t *testing.T) {
	t.Parallel()
	a := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	a.start()
	a.ready(0)
	a.stop()
	if _, _, err := a.cfg.Relay.setPresence(a.ctx, 1001, []byte(`{"since":null,"activities":[],"status":"idle","afk":false}`)); err != nil {
		t.Fatal(err)
	}
	a.beside().start()
	a.count(discordtest.Resumed, 0, 1)
	a.command(0, 1, discord.OpPresence, `{"since":null,"activities":[],"status":"idle","afk":false}`)
	a.legal()
}

// TestPresenceLimit: all instances share one limit.
func TestPresenceLimit(t *testing.T) {
	t.Parallel()
	a := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	b := a.beside()
	a.start()
	a.ready(0)
	b.start()
	b.wait("b knows the shards", func() bool { _, n := b.gateway.commandTarget(); return n == 1 })
	for i := range presenceLimit {
		[]*caller{a, b}[i%2].want(http.MethodPut, "/presence", `{"status":"idle"}`, http.StatusOK, "")
		a.command(0, i+1, discord.OpPresence, `{"since":null,"activities":[],"status":"idle","afk":false}`)
	}
	for _, c := range []*caller{a, b} {
		c.refused(http.MethodPut, "/presence", `{"status":"online"}`, http.StatusTooManyRequests, "changed 5 times in 20s").retryable(t)
	}
	// As if 20 s had passed since the first of them.
	if _, err := a.cfg.Relay.pool.Exec(a.ctx, `UPDATE presences SET changes[1] = changes[1] - interval '20 s'`); err != nil {
		t.Fatal(err)
	}
	b.want(http.MethodPut, "/presence", `{"status":"online"}`, http.StatusOK, "")
	b.refused(http.MethodPut, "/presence", `{"status":"dnd"}`, http.StatusTooManyRequests, "changed 5 times")
	// The connection itself has sent five changes already, so it waits.
	a.stay(presenceLimit)
}
