package gateway

import (
	"net/http"
	"testing"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestRestartFailed: a restart makes a failed shard try again.
func TestRestartFailed(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.Arm(discordtest.AtIdentify, 0, 2, discordtest.Close(4014))
	c.start()
	for n := 1; n <= 2; n++ {
		c.count(discordtest.ServerClosed, 0, n)
		c.wait("the shard failed", func() bool {
			s := c.gateway.Status()
			return len(s) == 1 && s[0].State == StateFailed && s[0].Identifies == int64(n)
		})
		c.want(http.MethodPost, "/shards/0/restart", "", http.StatusAccepted, `{"shard":[0,1]}`)
	}
	c.ready(0)
	c.refused(http.MethodPost, "/shards/1/restart", "", http.StatusNotFound, "there is no shard 1")
	c.legal()
}

// TestRestartWorking: a restart makes a working shard close with 4900 and
// resume, without losing an event.
func TestRestartWorking(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.start()
	session := c.ready(0)
	c.dispatch(0, 0, 10)
	c.want(http.MethodPost, "/shards/0/restart", "", http.StatusAccepted, `{"shard":[0,1]}`)
	if e := c.count(discordtest.ClientClosed, 0, 1); e.Code != int(discord.CodeKeepSession) {
		t.Errorf("closed with %d", e.Code)
	}
	c.dispatch(0, 10, 10)
	c.count(discordtest.Resumed, 0, 1)
	if again := c.ready(0); again.ID != session.ID {
		t.Errorf("session %s became %s", session.ID, again.ID)
	}
	c.messages(20)
	c.legal()
}

// TestRestartElsewhere: a restart reaches the shard of another instance.
func TestRestartElsewhere(t *testing.T) {
	t.Parallel()
	a := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	b := a.beside()
	a.start()
	a.ready(0)
	b.start()
	b.wait("b knows the shards", func() bool { _, n := b.gateway.commandTarget(); return n == 1 })
	b.want(http.MethodPost, "/shards/0/restart", "", http.StatusAccepted, `{"shard":[0,1]}`)
	a.count(discordtest.Resumed, 0, 1)
	a.legal()
}
