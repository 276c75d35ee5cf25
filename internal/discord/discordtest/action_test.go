package discordtest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// TestDo performs every action on a live connection.
func TestDo(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		action discordtest.Action
		want   string // the payload received; "" for the end of the connection
		code   int    // the code with which the connection ends; 0 if it stays
		gone   bool   // the session can't be resumed afterwards
	}{
		{"reconnect", discordtest.Reconnect(), "op 7 null", 0, false},
		{"invalidate", discordtest.Invalidate(false), "op 9 false", 0, true},
		{"invalidate resumable", discordtest.Invalidate(true), "op 9 true", 0, false},
		{"request heartbeat", discordtest.RequestHeartbeat(), "op 1 null", 0, false},
		{"send", discordtest.Send([]byte(`{"op":99,"d":{}}`)), "op 99 {}", 0, false},
		{"close 1000", discordtest.Close(1000), "", 1000, false},
		{"close 1005", discordtest.Close(1005), "", 1005, false},
		{"close 1006", discordtest.Close(1006), "", 1006, false},
		{"close 1012", discordtest.Close(1012), "", 1012, false},
		{"close 4000", discordtest.Close(4000), "", 4000, false},
		{"close 4001", discordtest.Close(4001), "", 4001, true},
		{"close 4002", discordtest.Close(4002), "", 4002, false},
		{"close 4003", discordtest.Close(4003), "", 4003, true},
		{"close 4004", discordtest.Close(4004), "", 4004, true},
		{"close 4005", discordtest.Close(4005), "", 4005, true},
		{"close 4006", discordtest.Close(4006), "", 4006, true},
		{"close 4007", discordtest.Close(4007), "", 4007, true},
		{"close 4008", discordtest.Close(4008), "", 4008, false},
		{"close 4009", discordtest.Close(4009), "", 4009, true},
		{"close 4010", discordtest.Close(4010), "", 4010, true},
		{"close 4014", discordtest.Close(4014), "", 4014, true},
		{"close 4999", discordtest.Close(4999), "", 4999, false},
		{"drop", discordtest.Drop(), "", 1006, false},
		{"delay", discordtest.Delay(time.Millisecond), "op 11 null", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, discordtest.Config{})
			c, session := ready(t, srv, 0, 1)
			// Earlier dispatches are sent before the action.
			dispatch(t, srv, 0, "TYPING_START", "{}")
			do(t, srv, 0, tt.action)
			c.expect("TYPING_START 2")
			if tt.code != 0 {
				c.expectClose(tt.code)
				e, err := srv.WaitCount(within(t), discordtest.ServerClosed, 0, 1)
				if err != nil || e.Code != tt.code || e.Session != session {
					t.Errorf("log: %v, %v", e, err)
				}
			} else {
				c.send(`{"op":1,"d":2}`)
				c.expect(tt.want)
			}
			_ = c.ws.CloseNow()
			answer := "RESUMED 3"
			if tt.gone {
				answer = "op 9 false"
			}
			resumed(t, srv, session, 2).expect(answer)
			if n := srv.Count(discordtest.ServerClosed, 0); (n == 1) != (tt.code != 0) {
				t.Errorf("%d connections closed by the server", n)
			}
		})
	}
}

func TestDoWithoutConnection(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	if err := srv.Do(0, discordtest.Reconnect()); !errors.Is(err, discordtest.ErrNotConnected) {
		t.Errorf("got %v, want ErrNotConnected", err)
	}
	c, _ := ready(t, srv, 0, 2)
	if err := srv.Do(1, discordtest.Reconnect()); !errors.Is(err, discordtest.ErrNotConnected) {
		t.Errorf("got %v, want ErrNotConnected", err)
	}
	d, _ := ready(t, srv, 1, 2)
	do(t, srv, discordtest.AnyShard, discordtest.Reconnect())
	c.expect("op 7 null")
	d.expect("op 7 null")
}

// TestReset checks that Reset does not wait for earlier dispatches.
func TestReset(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	do(t, srv, 0, discordtest.Delay(time.Hour))
	dispatch(t, srv, 0, "TYPING_START", "{}")
	do(t, srv, 0, discordtest.Reset())
	if p, _, err := c.read(); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %s, %v; want ECONNRESET", p, err)
	}
	resumed(t, srv, session, 1).expect("TYPING_START 2", "RESUMED 3")
}

func TestSilence(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{HeartbeatInterval: 50 * time.Millisecond, HeartbeatGrace: 50 * time.Millisecond})
	c, session := ready(t, srv, 0, 1)
	do(t, srv, 0, discordtest.Silence())
	if _, err := srv.WaitCount(within(t), discordtest.Silenced, 0, 1); err != nil {
		t.Fatal(err)
	}
	dispatch(t, srv, 0, "TYPING_START", "{}")
	c.send(`{"op":1,"d":1}`)
	// After several missed heartbeats the socket is still open.
	quiet, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	pong := make(chan error, 1)
	go func() { pong <- c.ws.Ping(quiet) }()
	if _, message, err := c.ws.Read(quiet); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %q, %v; want silence", message, err)
	}
	if <-pong == nil {
		t.Error("a ping was answered")
	}
	c = resumed(t, srv, session, 1)
	c.expect("TYPING_START 2", "RESUMED 3")
	wantIllegal(t, srv)
}

func TestSilencedCloseIsNoted(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	do(t, srv, 0, discordtest.Silence())
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = c.ws.Close(1000, "") // waits in vain for an answer
	}()
	e, err := srv.WaitCount(within(t), discordtest.ClientClosed, 0, 1)
	if err != nil || e.Code != 1000 {
		t.Errorf("log: %v, %v", e, err)
	}
	<-closed
	resumed(t, srv, session, 1).expect("RESUMED 2") // Discord did not hear the 1000
}

// TestWaitReadyIsThePresent checks that a connection that was sent away does not
// count as ready.
func TestWaitReadyIsThePresent(t *testing.T) {
	t.Parallel()
	for _, a := range []discordtest.Action{
		discordtest.Reconnect(), discordtest.Invalidate(false), discordtest.Invalidate(true), discordtest.Close(4000),
		discordtest.Drop(), discordtest.Reset(), discordtest.Silence(), discordtest.Corrupt(),
	} {
		srv := start(t, discordtest.Config{})
		ready(t, srv, 0, 1)
		do(t, srv, 0, a)
		now, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("no time"))
		if s, err := srv.WaitReady(now, 0); err == nil {
			t.Errorf("after %+v: %+v still counts as in service", a, s)
		}
		ready(t, srv, 0, 1)
		if _, err := srv.WaitReady(within(t), 0); err != nil {
			t.Error(err)
		}
	}
}

func TestArmHello(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	// Faults of one moment happen in the order in which they were armed.
	srv.Arm(discordtest.AtHello, discordtest.AnyShard, 1, discordtest.Reconnect())
	srv.Arm(discordtest.AtHello, discordtest.AnyShard, 2, discordtest.Reconnect(), discordtest.Close(4000))
	srv.Arm(discordtest.AtHello, discordtest.AnyShard, 1, discordtest.Silence())
	c := dial(t, srv, srv.GatewayURL()+plainQuery)
	c.expect("op 7 null")
	if p := c.next(); p.Op != 10 {
		t.Errorf("got %s, want HELLO", p)
	}
	for range 2 {
		c := dial(t, srv, srv.GatewayURL()+plainQuery)
		c.expect("op 7 null")
		c.expectClose(4000)
	}
	c = dial(t, srv, srv.GatewayURL()+plainQuery)
	quiet, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, message, err := c.ws.Read(quiet); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %q, %v; want silence", message, err)
	}
	hello(t, srv, srv.GatewayURL())
}

func TestArmIdentify(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	srv.Arm(discordtest.AtIdentify, 1, 1, discordtest.Close(4011))
	srv.Arm(discordtest.AtIdentify, 1, 1, discordtest.Invalidate(false))
	srv.Arm(discordtest.AtIdentify, 1, 1, discordtest.Reconnect())
	srv.Arm(discordtest.AtIdentify, 1, 1, discordtest.Skip())
	ready(t, srv, 0, 2)
	c := hello(t, srv, srv.GatewayURL())
	c.identify(1, 2)
	c.expectClose(4011)
	c = hello(t, srv, srv.GatewayURL())
	c.identify(1, 2)
	c.expect("op 9 false")
	c.send(`{"op":1,"d":null}`)
	c.expect("op 11 null")
	if n := srv.Count(discordtest.Ready, 1); n != 0 {
		t.Errorf("%d sessions began", n)
	}
	c = hello(t, srv, srv.GatewayURL())
	c.identify(1, 2)
	c.expect("op 7 null", "READY 1")
	c = hello(t, srv, srv.GatewayURL())
	c.identify(1, 2)
	c.send(`{"op":1,"d":null}`)
	c.expect("op 11 null")
}

func TestArmResume(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		actions []discordtest.Action
		want    string
		code    int
		then    string // the answer to a second RESUME
	}{
		{"close 1005", []discordtest.Action{discordtest.Close(1005)}, "", 1005, "RESUMED 2"},
		{"close 1006", []discordtest.Action{discordtest.Close(1006)}, "", 1006, "RESUMED 2"},
		{"close 4009", []discordtest.Action{discordtest.Close(4009)}, "", 4009, "op 9 false"},
		{"invalidate", []discordtest.Action{discordtest.Invalidate(false)}, "op 9 false", 0, "op 9 false"},
		{"invalidate resumable", []discordtest.Action{discordtest.Invalidate(true)}, "op 9 true", 0, "RESUMED 2"},
		{"delay", []discordtest.Action{discordtest.Delay(time.Millisecond)}, "RESUMED 2", 0, "RESUMED 2"},
		{"reconnect", []discordtest.Action{discordtest.Reconnect()}, "op 7 null", 0, "RESUMED 2"},
		{"drop later", []discordtest.Action{discordtest.After(1, discordtest.Drop())}, "RESUMED 2", 0, "RESUMED 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, discordtest.Config{})
			c, session := ready(t, srv, 0, 1)
			drop(t, srv, c)
			srv.Arm(discordtest.AtResume, 0, 1, tt.actions...)
			c = resumed(t, srv, session, 1)
			if tt.code != 0 {
				c.expectClose(tt.code)
			} else {
				c.expect(tt.want)
			}
			_ = c.ws.CloseNow()
			resumed(t, srv, session, 1).expect(tt.then)
			if tt.name == "invalidate" {
				wantIllegal(t, srv, "RESUME of a session that the client knows is gone")
			}
		})
	}
}

func TestArmHeartbeat(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, _ := ready(t, srv, 0, 1)
	disarm := srv.Arm(discordtest.AtHeartbeat, 0, discordtest.Always, discordtest.Skip())
	for range 3 {
		c.send(`{"op":1,"d":1}`)
	}
	if _, err := srv.WaitCount(within(t), discordtest.Heartbeat, 0, 3); err != nil {
		t.Fatal(err)
	}
	disarm()
	c.send(`{"op":1,"d":1}`)
	dispatch(t, srv, 0, "TYPING_START", "{}")
	if a, b := c.next().String(), c.next().String(); a+b != "op 11 nullTYPING_START 2" && b+a != "op 11 nullTYPING_START 2" {
		t.Errorf("got %s, %s", a, b)
	}
}

func TestArmConnect(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	drop(t, srv, c)
	// net/http repeats a request whose kept-alive connection breaks.
	once := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	refused := func(base string) int {
		t.Helper()
		ws, res, err := websocket.Dial(within(t), base+plainQuery, &websocket.DialOptions{HTTPClient: once})
		if err == nil {
			_ = ws.CloseNow()
			return 0
		}
		if res == nil {
			return -1
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	srv.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, 1, discordtest.Status(503))
	srv.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, 1, discordtest.Drop())
	srv.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, 1, discordtest.Reset())
	srv.Arm(discordtest.AtConnect, discordtest.AnyShard, 1, discordtest.Status(429))
	for i, want := range []int{503, -1, -1, 0} {
		if got := refused(srv.ResumeURL()); got != want {
			t.Errorf("dial %d: got %d, want %d", i, got, want)
		}
	}
	if got := refused(srv.GatewayURL()); got != 429 {
		t.Errorf("got %d, want 429", got)
	}
	resumed(t, srv, session, 1).expect("RESUMED 2")

	srv.Arm(discordtest.AtConnect, discordtest.AnyShard, 1, discordtest.Silence())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := websocket.Dial(ctx, srv.GatewayURL()+plainQuery, nil) //nolint:bodyclose // there is no response
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want silence", err)
	}
}

func TestArmPanics(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	for name, arm := range map[string]func(){
		"a shard before it is known": func() { srv.Arm(discordtest.AtHello, 0, 1, discordtest.Drop()) },
		"op 7 over HTTP":             func() { srv.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.Reconnect()) },
		"a status in a WebSocket":    func() { srv.Arm(discordtest.AtIdentify, 0, 1, discordtest.Status(500)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			arm()
		}()
	}
}

func TestREST(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{ApplicationID: 5, Flags: 1 << 18, Shards: 3})
	auth := "Bot " + srv.Token()
	tests := []struct {
		path, auth string
		status     int
		want       string
	}{
		{"/gateway", "", 200, fmt.Sprintf("map[url:%s]", srv.GatewayURL())},
		{"/gateway/bot", "", 401, "map[code:0 message:401: Unauthorized]"},
		{"/gateway/bot", srv.Token(), 401, "map[code:0 message:401: Unauthorized]"},
		{"/gateway/bot", "Bearer " + srv.Token(), 401, "map[code:0 message:401: Unauthorized]"},
		{"/applications/@me", "Bot other", 401, "map[code:0 message:401: Unauthorized]"},
		{"/applications/@you", auth, 404, "map[code:0 message:404: Not Found]"},
	}
	for _, tt := range tests {
		got := get(t, srv.APIURL()+tt.path, tt.auth)
		if got.status != tt.status || fmt.Sprint(got.body) != tt.want {
			t.Errorf("%s with %q: %d %v; want %d %s", tt.path, tt.auth, got.status, got.body, tt.status, tt.want)
		}
	}
	body := get(t, srv.APIURL()+"/gateway/bot", auth).body
	limit := body["session_start_limit"].(map[string]any)
	if body["url"] != srv.GatewayURL() || body["shards"] != 3.0 || limit["total"] != 1000.0 || limit["remaining"] != 1000.0 ||
		limit["max_concurrency"] != 1.0 || limit["reset_after"].(float64) < 86_000_000 {
		t.Errorf("gateway/bot: %v", body)
	}
	srv.SetShards(4)
	srv.SetSessionStart(discordtest.SessionStart{Total: 50, Remaining: 0, ResetAfter: time.Hour, MaxConcurrency: 16})
	body = get(t, srv.APIURL()+"/gateway/bot", auth).body
	limit = body["session_start_limit"].(map[string]any)
	if body["shards"] != 4.0 || limit["total"] != 50.0 || limit["remaining"] != 0.0 || limit["max_concurrency"] != 16.0 || limit["reset_after"].(float64) > 3_600_000 {
		t.Errorf("gateway/bot: %v", body)
	}
	if body = get(t, srv.APIURL()+"/applications/@me", auth).body; body["id"] != "5" || body["flags"] != float64(1<<18) {
		t.Errorf("application: %v", body)
	}
}

func TestArmREST(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	auth := "Bot " + srv.Token()
	srv.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.Status(500))
	srv.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.RateLimit(1500*time.Millisecond))
	srv.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.Delay(30*time.Millisecond))
	srv.Arm(discordtest.AtApplication, discordtest.AnyShard, 1, discordtest.Drop())
	if got := get(t, srv.APIURL()+"/gateway/bot", auth); got.status != 500 {
		t.Errorf("got %d, want 500", got.status)
	}
	got := get(t, srv.APIURL()+"/gateway/bot", auth)
	if got.status != 429 || got.header.Get("Retry-After") != "1.5" || got.body["retry_after"] != 1.5 {
		t.Errorf("got %+v, want a 429", got)
	}
	began := time.Now()
	if got := get(t, srv.APIURL()+"/gateway/bot", auth); got.status != 200 || time.Since(began) < 30*time.Millisecond {
		t.Errorf("got %d after %v", got.status, time.Since(began))
	}
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, srv.APIURL()+"/applications/@me", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req); err == nil {
		_ = res.Body.Close()
		t.Errorf("got %s, want a broken connection", res.Status)
	}
	if got := get(t, srv.APIURL()+"/applications/@me", auth); got.status != 200 {
		t.Errorf("got %d, want 200", got.status)
	}
}
