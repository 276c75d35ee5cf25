package discordtest_test

import (
	"net/http"
	"testing"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// as makes the connection use the token of the named client.
func as(c *client, name string) *client {
	c.token = c.srv.TokenOf(name)
	return c
}

// TestAwarePerClient checks that the server records for each client whether it
// knows that a session is dead.
func TestAwarePerClient(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := as(hello(t, srv, srv.GatewayURL()), "a")
	c.identify(0, 1)
	session := c.ready()
	do(t, srv, 0, discordtest.Invalidate(false))
	c.expect("op 9 false")
	for _, illegal := range [][]string{nil, nil, {"RESUME of a session that the client knows is gone"}} {
		other := as(hello(t, srv, srv.ResumeURL()), "b")
		other.resume(session, 1)
		other.expect("op 9 false")
		wantIllegal(t, srv, illegal...)
	}
	for token, want := range map[string]int{srv.TokenOf("a"): http.StatusOK, srv.Token() + "x": http.StatusUnauthorized} {
		if a := get(t, srv.APIURL()+"/gateway/bot", "Bot "+token); a.status != want {
			t.Errorf("GET /gateway/bot: %d, want %d", a.status, want)
		}
	}
}

// TestSuspend takes over the session of a suspended client, which may not take
// it back once it continues.
func TestSuspend(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	a := as(hello(t, srv, srv.GatewayURL()), "a")
	a.identify(0, 1)
	session := a.ready()
	late := as(hello(t, srv, srv.ResumeURL()), "a")
	srv.Suspend("a")
	b := as(hello(t, srv, srv.ResumeURL()), "b")
	b.resume(session, 1)
	b.expect("RESUMED 2")
	a.expectClose(4006)
	wantIllegal(t, srv)
	if s, ok := srv.Session(0); !ok || s.ID != session || s.Client != "b" {
		t.Errorf("session: %+v, %t", s, ok)
	}
	srv.Continue("a")
	late.resume(session, 1)
	late.expect("RESUMED 2", "RESUMED 3")
	b.expectClose(4006)
	wantIllegal(t, srv, "two connections on one session")
}

// TestSessions checks whether and why each session ended, and who ended it.
func TestSessions(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, invalidated := ready(t, srv, 0, 4)
	do(t, srv, 0, discordtest.Invalidate(false))
	c.expect("op 9 false")
	c, closed := ready(t, srv, 1, 4)
	do(t, srv, 1, discordtest.Close(4009))
	c.expectClose(4009)
	c, left := ready(t, srv, 2, 4)
	_ = c.ws.Close(1000, "")
	if _, err := srv.WaitCount(within(t), discordtest.ClientClosed, 2, 1); err != nil {
		t.Fatal(err)
	}
	c, refused := ready(t, srv, 3, 4)
	c.send(`{"op":99}`)
	c.expectClose(4001)
	_, alive := ready(t, srv, 3, 4)
	type end struct {
		id, why  string
		byClient bool
	}
	want := []end{
		{invalidated, "it was invalidated with op 9", false},
		{closed, "the connection was closed with 4009", false},
		{left, "the client closed with 1000", true},
		{refused, "the connection was closed with 4001", true},
		{alive, "", false},
	}
	got := srv.Sessions()
	if len(got) != len(want) {
		t.Fatalf("%d sessions: %+v", len(got), got)
	}
	for i, s := range got {
		if (end{s.ID, s.Ended, s.ByClient}) != want[i] {
			t.Errorf("session %d: %+v, want %+v", i, s, want[i])
		}
	}
}
