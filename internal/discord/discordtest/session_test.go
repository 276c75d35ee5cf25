package discordtest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

func TestDispatchDropResume(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	sent := dispatch(t, srv, 0, "MESSAGE_CREATE", `{"id" : "1"}`)
	if want := (discordtest.Sent{Session: session, Seq: 2}); sent != want {
		t.Fatalf("sent %v, want %v", sent, want)
	}
	p, text, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"t":"MESSAGE_CREATE","s":2,"op":0,"d":{"id" : "1"}}`; string(text) != want {
		t.Fatalf("%v: got %s, want %s", p, text, want)
	}
	do(t, srv, 0, discordtest.Drop())
	dispatch(t, srv, 0, "MESSAGE_UPDATE", `{}`)
	dispatch(t, srv, 0, "MESSAGE_DELETE", `{}`)
	c.expectClose(1006)

	c = resumed(t, srv, session, 2)
	c.expect("MESSAGE_UPDATE 3", "MESSAGE_DELETE 4", "RESUMED 5")
	dispatch(t, srv, 0, "TYPING_START", `{}`)
	c.expect("TYPING_START 6")
	_ = c.ws.Close(websocket.StatusNormalClosure, "")
	wantIllegal(t, srv)
}

func TestResumeRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		cfg     discordtest.Config
		script  func(t *testing.T, srv *discordtest.Server, c *client)
		seq     int64
		want    string // the answer, or a close code
		illegal []string
	}{
		{
			name: "1000", seq: 1, want: "op 9 false",
			script:  func(_ *testing.T, _ *discordtest.Server, c *client) { _ = c.ws.Close(1000, "") },
			illegal: []string{"RESUME of a session that the client knows is gone: the client closed with 1000"},
		},
		{
			name: "1001", seq: 1, want: "op 9 false",
			script:  func(_ *testing.T, _ *discordtest.Server, c *client) { _ = c.ws.Close(1001, "") },
			illegal: []string{"RESUME of a session that the client knows is gone: the client closed with 1001"},
		},
		{
			name: "4900", seq: 1, want: "RESUMED 2",
			script: func(_ *testing.T, _ *discordtest.Server, c *client) { _ = c.ws.Close(4900, "") },
		},
		{
			name: "no close frame", seq: 1, want: "RESUMED 2",
			script: func(_ *testing.T, _ *discordtest.Server, c *client) { _ = c.ws.CloseNow() },
		},
		{
			name: "too late", seq: 1, want: "op 9 false", cfg: discordtest.Config{SessionLifetime: time.Nanosecond},
			script: func(_ *testing.T, _ *discordtest.Server, c *client) { _ = c.ws.CloseNow() },
		},
		{
			name: "from the future", seq: 2, want: "4007",
			script:  func(_ *testing.T, _ *discordtest.Server, c *client) { _ = c.ws.CloseNow() },
			illegal: []string{"RESUME from 2, but the last dispatch is 1"},
		},
		{
			name: "after op 9", seq: 1, want: "op 9 false",
			script: func(t *testing.T, srv *discordtest.Server, c *client) {
				t.Helper()
				do(t, srv, 0, discordtest.Invalidate(false))
				c.expect("op 9 false")
				_ = c.ws.CloseNow()
			},
			illegal: []string{"RESUME of a session that the client knows is gone: it was invalidated"},
		},
		{
			name: "after a resumable op 9", seq: 1, want: "RESUMED 2",
			script: func(t *testing.T, srv *discordtest.Server, c *client) {
				t.Helper()
				do(t, srv, 0, discordtest.Invalidate(true))
				c.expect("op 9 true")
				_ = c.ws.CloseNow()
			},
		},
		{
			name: "from before the kept dispatches", seq: 1, want: "op 9 false", cfg: discordtest.Config{ReplayLimit: 3},
			script: func(t *testing.T, srv *discordtest.Server, c *client) {
				t.Helper()
				drop(t, srv, c)
				for range 4 {
					dispatch(t, srv, 0, "TYPING_START", "{}")
				}
			},
		},
		{
			name: "from the first kept dispatch", seq: 2, want: "TYPING_START 3", cfg: discordtest.Config{ReplayLimit: 3},
			script: func(t *testing.T, srv *discordtest.Server, c *client) {
				t.Helper()
				drop(t, srv, c)
				for range 4 {
					dispatch(t, srv, 0, "TYPING_START", "{}")
				}
			},
		},
		{
			name: "from before an acknowledged dispatch", seq: 1, want: "op 9 false", cfg: discordtest.Config{TrimAcked: true},
			script: acknowledgeTwo,
		},
		{
			name: "from an acknowledged dispatch", seq: 2, want: "TYPING_START 3", cfg: discordtest.Config{TrimAcked: true},
			script: acknowledgeTwo,
		},
		{
			name: "untrimmed", seq: 1, want: "TYPING_START 2",
			script: acknowledgeTwo,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, tt.cfg)
			c, session := ready(t, srv, 0, 1)
			tt.script(t, srv, c)
			// The server must have seen the close before the RESUME.
			if srv.Count(discordtest.ServerClosed, discordtest.AnyShard) == 0 {
				if _, err := srv.WaitCount(within(t), discordtest.ClientClosed, discordtest.AnyShard, 1); err != nil {
					t.Fatal(err)
				}
			}
			c = resumed(t, srv, session, tt.seq)
			if tt.want == "4007" {
				c.expectClose(4007)
			} else {
				c.expect(tt.want)
			}
			wantIllegal(t, srv, tt.illegal...)
			if e, err := srv.WaitResume(within(t), 0, 1); err != nil || e.Seq != tt.seq || e.Session != session {
				t.Errorf("log: %v, %v", e, err)
			}
		})
	}
}

// drop drops the client's connection and waits until the client has noticed.
func drop(t *testing.T, srv *discordtest.Server, c *client) {
	t.Helper()
	do(t, srv, 0, discordtest.Drop())
	c.expectClose(1006)
}

func acknowledgeTwo(t *testing.T, srv *discordtest.Server, c *client) {
	t.Helper()
	dispatch(t, srv, 0, "TYPING_START", "{}")
	dispatch(t, srv, 0, "TYPING_START", "{}")
	c.expect("TYPING_START 2", "TYPING_START 3")
	c.send(`{"op":1,"d":2}`)
	c.expect("op 11 null")
	drop(t, srv, c)
}

func TestUnknownSession(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := resumed(t, srv, "deadbeef", 7)
	c.expect("op 9 false")
	wantIllegal(t, srv)
	c.identify(0, 1)
	c.ready()
	wantIllegal(t, srv, "IDENTIFY on the resume URL")
}

func TestWrongURLs(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	drop(t, srv, c)
	c = hello(t, srv, srv.GatewayURL())
	c.resume(session, 1)
	c.expect("RESUMED 2")
	drop(t, srv, c)
	c = dial(t, srv, srv.ResumeURL()+"/?v=9&encoding=json")
	c.next()
	c.resume(session, 2)
	c.expect("RESUMED 3")
	wantIllegal(t, srv, "RESUME on the gateway's URL, although the session's own answers", "RESUME with another query")
}

func TestTwoConnectionsOnOneSession(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	old, session := ready(t, srv, 0, 1)
	c := resumed(t, srv, session, 1)
	c.expect("RESUMED 2")
	old.expectClose(4006)
	wantIllegal(t, srv, "two connections on one session")
	dispatch(t, srv, 0, "TYPING_START", "{}")
	c.expect("TYPING_START 3")
	drop(t, srv, c)
	resumed(t, srv, session, 3).expect("RESUMED 4") // 4006 ended the old connection only
}

// TestReconnectAtOnce resumes before the server has noticed that the previous
// connection is gone.
func TestReconnectAtOnce(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	for seq := int64(1); seq < 50; seq++ {
		_ = c.ws.CloseNow()
		c = resumed(t, srv, session, seq)
		c.expect(fmt.Sprintf("RESUMED %d", seq+1))
	}
	wantIllegal(t, srv)
}

func TestInterruptedReplay(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	drop(t, srv, c)
	for range 5 {
		dispatch(t, srv, 0, "TYPING_START", "{}")
	}
	srv.Arm(discordtest.AtResume, 0, 1, discordtest.After(2, discordtest.Drop()))
	c = resumed(t, srv, session, 1)
	c.expect("TYPING_START 2", "TYPING_START 3")
	c.expectClose(1006)
	c = resumed(t, srv, session, 3)
	c.expect("TYPING_START 4", "TYPING_START 5", "TYPING_START 6", "RESUMED 7", "RESUMED 8")
}

func TestHandoverOfAShard(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	old, first := ready(t, srv, 0, 1)
	c, second := ready(t, srv, 0, 2)
	if sent := dispatch(t, srv, 0, "TYPING_START", "{}"); sent.Session != second {
		t.Errorf("sent %v, want the newer session %s", sent, second)
	}
	old.expect("TYPING_START 2")
	c.expect("TYPING_START 2")
	_ = c.ws.Close(1000, "")
	if _, err := srv.WaitCount(within(t), discordtest.ClientClosed, 0, 1); err != nil {
		t.Fatal(err)
	}
	if sent := dispatch(t, srv, 0, "TYPING_START", "{}"); sent.Session != first {
		t.Errorf("sent %v, want the older session %s", sent, first)
	}
	wantIllegal(t, srv)
}

// TestResumeOnTheSameSocket resumes from before dispatches that were already
// sent. Actions that were due stay due.
func TestResumeOnTheSameSocket(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	dispatch(t, srv, 0, "X", "")
	dispatch(t, srv, 0, "X", "")
	c.expect("X 2", "X 3")
	srv.Arm(discordtest.AtResume, 0, 1, discordtest.Send([]byte(`{"op":98,"d":{}}`)))
	do(t, srv, 0, discordtest.Invalidate(true), discordtest.Delay(50*time.Millisecond), discordtest.Send([]byte(`{"op":99,"d":{}}`)))
	c.expect("op 9 true")
	c.resume(session, 1)
	c.expect("op 99 {}", "op 98 {}", "X 2", "X 3", "RESUMED 4")
	if _, err := srv.WaitReady(within(t), 0); err != nil {
		t.Error(err)
	}
}
