package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// TestMoreIntents: a session with more intents takes over without a gap, and
// nothing is delivered twice.
func TestMoreIntents(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Guilds: []uint64{5, 6}, HeartbeatInterval: discord.MaxInterval})
	r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	// Both sessions get these; the new one is not complete without its guilds.
	r.dispatch(0, 10, 10)
	if _, err := r.Dispatch(0, "GUILD_CREATE", []byte(`{"id":"5"}`)); err != nil {
		t.Fatal(err)
	}
	r.dispatch(0, 20, 10)
	r.messages(30)
	for n := range 2 { // enough time for the first connection to end, if it were to
		r.do(0, discordtest.RequestHeartbeat())
		r.count(discordtest.Heartbeat, 0, 2*(n+1))
	}
	if n := r.Count(discordtest.ClientClosed, 0); n != 0 {
		t.Error("the new session took over before its guilds came")
	}
	if _, err := r.Dispatch(0, "GUILD_DELETE", []byte(`{"id":"6","unavailable":true}`)); err != nil {
		t.Fatal(err)
	}
	if e := r.count(discordtest.ClientClosed, 0, 1); e.Code != int(discord.CodeKeepSession) || e.Session != old.ID {
		t.Errorf("%+v", e)
	}
	r.wait("the new session", func() bool { return r.store.session(shard0).ID != old.ID })
	r.dispatch(0, 30, 20)
	r.messages(50)
	want := []string{
		"SHARD_CONNECT", "CONNECT", "READY", "GUILD_CREATE", "SHARD_DISCONNECT", "DISCONNECT",
		"SHARD_CONNECT", "CONNECT", "RESUMED", "SHARD_RESUME", "SHARD_DISCONNECT", "DISCONNECT",
		"SHARD_CONNECT", "CONNECT", "READY",
	}
	delivered := r.withoutMessages()
	// GUILD_DELETE may come before the first connection ends, or with the RESUME.
	at := slices.Index(delivered, "GUILD_DELETE")
	if at < 0 {
		t.Fatal("GUILD_DELETE was not delivered")
	}
	if diff := cmp.Diff(want, slices.Delete(delivered, at, at+1)); diff != "" {
		t.Error(diff)
	}
	now := r.ready(0)
	r.wait("the status shows it", func() bool { return r.gateway.Status()[0].Received == now.Seq })
	st := r.gateway.Status()[0]
	if now.Intents != r.intents.Load() || int64(st.Intents) != now.Intents || st.State != StateConnected {
		t.Errorf("session %+v, status %+v", now, st)
	}
	// The new session is resumed like any other.
	r.do(0, discordtest.Drop())
	r.dispatch(0, 50, 10)
	r.messages(60)
	r.legal()
}

// TestMoreIntentsBehind: a session that is far behind is still read to its end.
// Discord may acknowledge a heartbeat before it has sent everything that it
// dispatched earlier.
func TestMoreIntentsBehind(t *testing.T) {
	t.Parallel()
	const events, size = 2000, 512 // more than the sockets between the two can buffer
	r := newRig(t, discordtest.Config{HeartbeatInterval: discord.MaxInterval, Listen: func() (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		return smallSockets{l}, err
	}})
	r.cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c, c.(*net.TCPConn).SetReadBuffer(8 << 10)
	}
	r.start()
	r.ready(0)
	r.wait("the status shows it", func() bool { return r.gateway.Status()[0].State == StateConnected })
	r.store.setBusy(true)
	for i := range events {
		data := fmt.Appendf(nil, `{"id":"%d","content":"%s","guild_id":"7","channel_id":"8","author":{"id":"9"}}`, i+1, strings.Repeat("x", size))
		if _, err := r.Dispatch(0, "MESSAGE_CREATE", data); err != nil {
			t.Fatal(err)
		}
	}
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	r.store.setBusy(false)
	r.named("READY", 2)
	delivered := slices.DeleteFunc(r.store.all(), func(e *event.Event) bool { return e.Name != "MESSAGE_CREATE" })
	if n := len(delivered); n != events {
		t.Errorf("%d messages of %d were delivered", n, events)
	}
	r.legal()
}

// smallSockets make sockets with a small write buffer.
type smallSockets struct{ net.Listener }

func (s smallSockets) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetWriteBuffer(8 << 10)
}

// TestMoreIntentsAfterRestart: a stored session with too few intents is first
// resumed, so that nothing is lost, and then replaced.
func TestMoreIntentsAfterRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	stop := r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	stop()
	r.dispatch(0, 10, 10)
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.start()
	r.count(discordtest.Resumed, 0, 1)
	r.count(discordtest.Ready, 0, 2)
	r.wait("the new session", func() bool {
		st := r.gateway.Status()[0]
		return st.Intents == event.Intents(r.intents.Load())
	})
	r.dispatch(0, 20, 10)
	r.messages(30)
	if got := names(r.store.all()); slices.Contains(got, "GATEHOOK_SESSION_LOST") {
		t.Error("a session was lost")
	}
	r.legal()
}

// TestMoreIntentsRefused: the current session goes on, and its status says
// which intent is missing.
func TestMoreIntentsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.Arm(discordtest.AtIdentify, 0, 1, discordtest.Close(4014))
	r.intents.Store(r.intents.Load() | int64(event.IntentMessageContent))
	r.changed <- struct{}{}
	r.wait("the problem is shown", func() bool { return strings.Contains(r.gateway.Status()[0].Problem, "MESSAGE_CONTENT") })
	r.dispatch(0, 10, 10)
	r.messages(20)
	if st := r.gateway.Status()[0]; st.State != StateConnected || r.gateway.Unready() != nil {
		t.Errorf("status %+v", st)
	}
	if diff := cmp.Diff([]string{"SHARD_CONNECT", "CONNECT", "READY"}, r.withoutMessages()); diff != "" {
		t.Error(diff)
	}
	if n := r.Count(discordtest.Identify, 0); n != 2 {
		t.Errorf("%d IDENTIFYs, want 2", n)
	}
}

// TestMoreIntentsInterrupted: when the first connection breaks before the
// second could take over, its session is resumed: otherwise there would be a
// gap.
func TestMoreIntentsInterrupted(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Guilds: []uint64{5}})
	r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	r.do(discordtest.AnyShard, discordtest.Drop())
	r.dispatch(0, 10, 10)
	if e := r.count(discordtest.Resumed, 0, 1); e.Session != old.ID {
		t.Errorf("resumed %q, want %q", e.Session, old.ID)
	}
	r.messages(20)
	r.legal()
}

// TestMoreIntentsAfterRefusedResume: a complete session with more intents takes over
// although Discord refuses the last RESUME of the old one: it has received everything
// since.
func TestMoreIntentsAfterRefusedResume(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Guilds: []uint64{5}, HeartbeatInterval: discord.MaxInterval})
	r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.Arm(discordtest.AtResume, 0, 1, discordtest.Invalidate(false))
	r.intents.Store(r.intents.Load() | int64(event.IntentGuildMembers))
	r.changed <- struct{}{}
	r.count(discordtest.Ready, 0, 2)
	r.dispatch(0, 10, 10)
	r.messages(20)
	if _, err := r.Dispatch(0, "GUILD_CREATE", []byte(`{"id":"5"}`)); err != nil {
		t.Fatal(err)
	}
	r.count(discordtest.ClientClosed, 0, 1)
	r.dispatch(0, 20, 10)
	r.messages(30)
	r.wait("the new session", func() bool { return r.store.session(shard0).ID != old.ID })
	if n := r.Count(discordtest.Identify, 0); n != 2 {
		t.Errorf("%d IDENTIFYs, want 2", n)
	}
	if got := names(r.store.all()); slices.Contains(got, "GATEHOOK_SESSION_LOST") {
		t.Error("a session was lost")
	}
	r.legal()
}

func TestUpgrades(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	const gather = 5 * time.Second
	var u upgrades
	if got := u.wait(1, now, gather); got != gather {
		t.Errorf("gathers intents for %v, want %v", got, gather)
	}
	now = now.Add(3 * time.Second)
	if got := u.wait(3, now, gather); got != 2*time.Second {
		t.Errorf("with other intents 3 s later it waits %v, want 2s", got)
	}
	now = now.Add(2 * time.Second)
	if u.wait(3, now, gather) != 0 {
		t.Error("the gathering does not end")
	}
	u.begin()
	u.failed(3, now, errors.New("x"), 1)
	if got := u.wait(3, now, gather); got != 30*time.Second {
		t.Errorf("waits %v after the first failure, want 30s", got)
	}
	if got := u.wait(7, now, gather); got != gather {
		t.Errorf("other intents wait %v, want %v", got, gather)
	}
	for range 20 {
		u.failed(3, now, closed(4014), 1<<15)
	}
	if got := u.wait(3, now, gather); got != time.Hour {
		t.Errorf("waits %v after many failures, want 1h", got)
	}
	if want := "events are missing: " + discord.CodeDisallowedIntents.Remedy(1<<15); u.problem != want {
		t.Errorf("problem %q, want %q", u.problem, want)
	}
}
