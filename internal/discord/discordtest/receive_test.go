package discordtest_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

const properties = `"properties":{"os":"linux","browser":"x","device":"x"}`

// TestRefused sends payloads that Discord refuses, right after HELLO.
func TestRefused(t *testing.T) {
	t.Parallel()
	identify := func(members string) string {
		return `{"op":2,"d":{"token":"T",` + members + `}}`
	}
	tests := []struct {
		name, send string
		want       int
		illegal    string
	}{
		{"no JSON", `{"op":`, 4002, "a payload that is not JSON"},
		{"no op", `{"d":1}`, 4002, "a payload that is not JSON"},
		{"too long", `{"op":1,"d":null,"x":"` + strings.Repeat("x", 4096) + `"}`, 4002, "a payload of 4120 bytes"},
		{"unknown op", `{"op":5,"d":null}`, 4001, "op 5"},
		{"a server's op", `{"op":10,"d":null}`, 4001, "op 10"},
		{"heartbeat of text", `{"op":1,"d":"7"}`, 4001, "a heartbeat with"},
		{"heartbeat without d", `{"op":1}`, 4001, "a heartbeat with"},
		{"op 3 before IDENTIFY", `{"op":3,"d":{}}`, 4003, "op 3 before IDENTIFY"},
		{"op 8 before IDENTIFY", `{"op":8,"d":{}}`, 4003, "op 8 before IDENTIFY"},
		{"wrong token", `{"op":2,"d":{"token":"other",` + properties + `,"intents":1}}`, 4004, "IDENTIFY with a wrong token"},
		{"prefixed token", `{"op":2,"d":{"token":"Bot T",` + properties + `,"intents":1}}`, 4004, `IDENTIFY with a wrong token: it begins with "Bot "`},
		{"no properties", identify(`"intents":1`), 4001, "IDENTIFY without properties"},
		{"large_threshold", identify(properties + `,"intents":1,"large_threshold":251`), 4001, "IDENTIFY with large_threshold 251"},
		{"d of another type", `{"op":2,"d":[]}`, 4001, "IDENTIFY can't be decoded"},
		{"shard too large", identify(properties + `,"intents":1,"shard":[2,2]`), 4010, "IDENTIFY with shard [2 2]"},
		{"shard negative", identify(properties + `,"intents":1,"shard":[-1,2]`), 4010, "IDENTIFY with shard [-1 2]"},
		{"shard of three", identify(properties + `,"intents":1,"shard":[0,1,2]`), 4010, "IDENTIFY with shard [0 1 2]"},
		{"no intents", identify(properties), 4013, "IDENTIFY without intents"},
		{"intent 17", identify(properties + `,"intents":131072`), 4013, "IDENTIFY without intents"},
		{"intent 19", identify(properties + `,"intents":524288`), 4013, "IDENTIFY without intents"},
		{"intent 22", identify(properties + `,"intents":4194304`), 4013, "IDENTIFY without intents"},
		{"intent 26", identify(properties + `,"intents":67108864`), 4013, "IDENTIFY without intents"},
		{"intents negative", identify(properties + `,"intents":-1`), 4013, "IDENTIFY without intents"},
		{"GUILD_PRESENCES", identify(properties + `,"intents":256`), 4014, "IDENTIFY with the privileged intent 256"},
		{"MESSAGE_CONTENT", identify(properties + `,"intents":32769`), 4014, "IDENTIFY with the privileged intent 32768"},
		{"RESUME without seq", `{"op":6,"d":{"token":"T","session_id":"x","seq":null}}`, 4001, "RESUME without a sequence number"},
		{"RESUME with a prefixed token", `{"op":6,"d":{"token":"Bot T","session_id":"x","seq":1}}`, 4006, "RESUME with a wrong token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// GUILD_MEMBERS is enabled, by the flag for small bots.
			srv := start(t, discordtest.Config{Token: "T", Flags: 1 << 15})
			c := hello(t, srv, srv.GatewayURL())
			c.send("%s", tt.send)
			c.send(`{"op":1,"d":null}`) // ignored: the connection is being closed
			c.expectClose(tt.want)
			wantIllegal(t, srv, tt.illegal)
			closed, err := srv.WaitCount(within(t), discordtest.ServerClosed, discordtest.AnyShard, 1)
			if err != nil || closed.Code != tt.want {
				t.Errorf("log: %v, %v; want code %d", closed, err, tt.want)
			}
			if strings.Contains(fmt.Sprint(srv.Log()), `"T"`) {
				t.Error("the log shows a token")
			}
		})
	}
}

func TestBinaryRefused(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := hello(t, srv, srv.GatewayURL())
	if err := c.ws.Write(c.ctx, websocket.MessageBinary, []byte(`{"op":1,"d":null}`)); err != nil {
		t.Fatal(err)
	}
	c.expectClose(4002)
}

func TestQueryRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		query string
		want  int
	}{
		{"/", 4012},
		{"/?v=8&encoding=json", 4012},
		{"/?v=11&encoding=json", 4012},
		{"/?v=10", 4002},
		{"/?v=10&encoding=etf", 4002},
		{"/?v=10&encoding=json&compress=gzip", 4002},
	} {
		srv := start(t, discordtest.Config{})
		c := dial(t, srv, srv.GatewayURL()+tt.query)
		c.expectClose(tt.want)
		if len(srv.Illegal()) != 1 {
			t.Errorf("%s: illegal: %v", tt.query, srv.Illegal())
		}
	}
}

// TestRefusedInSession sends payloads that Discord refuses within a session.
func TestRefusedInSession(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, send string
		want       int
		resumable  bool
	}{
		{"second IDENTIFY", `{"op":2,"d":{}}`, 4005, false},
		{"RESUME", `{"op":6,"d":{}}`, 4005, false},
		{"unknown op", `{"op":99,"d":{}}`, 4001, false},
		{"no JSON", `x`, 4002, true},
		{"op 8 without query", `{"op":8,"d":{"guild_id":"1"}}`, 4001, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := start(t, discordtest.Config{})
			c, session := ready(t, srv, 0, 1)
			c.send("%s", tt.send)
			c.expectClose(tt.want)
			c = resumed(t, srv, session, 1)
			if tt.resumable {
				c.expect("RESUMED 2")
			} else {
				c.expect("op 9 false")
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1) // IDENTIFY is one of the 120
	for range 119 {
		c.send(`{"op":31,"d":{}}`)
		c.send(`{"op":1,"d":1}`) // heartbeats don't count
	}
	for range 119 {
		c.expect("op 11 null")
	}
	if n := srv.Count(discordtest.Command, 0); n != 119 {
		t.Fatalf("%d commands logged, want 119", n)
	}
	c.send(`{"op":31,"d":{}}`)
	c.expectClose(4008)
	wantIllegal(t, srv, "more than 120 payloads")
	resumed(t, srv, session, 1).expect("RESUMED 2")
}

func TestReady(t *testing.T) {
	t.Parallel()
	guilds := []uint64{1 << 22, 2 << 22, 3 << 22}
	srv := start(t, discordtest.Config{ApplicationID: 5, UserID: 6, Flags: 1 << 14, Guilds: guilds})
	c := hello(t, srv, srv.GatewayURL())
	c.identify(1, 2)
	p := c.next()
	var d struct {
		V         int    `json:"v"`
		SessionID string `json:"session_id"`
		ResumeURL string `json:"resume_gateway_url"`
		Shard     [2]int `json:"shard"`
		User      struct {
			ID  string `json:"id"`
			Bot bool   `json:"bot"`
		} `json:"user"`
		Application struct {
			ID    string `json:"id"`
			Flags int64  `json:"flags"`
		} `json:"application"`
		Guilds []struct {
			ID          string `json:"id"`
			Unavailable bool   `json:"unavailable"`
		} `json:"guilds"`
	}
	if err := json.Unmarshal(p.D, &d); err != nil {
		t.Fatal(err)
	}
	if p.String() != "READY 1" || d.V != 10 || len(d.SessionID) != 32 || d.ResumeURL != srv.ResumeURL() || d.ResumeURL == srv.GatewayURL() ||
		d.Shard != [2]int{1, 2} || d.User.ID != "6" || !d.User.Bot || d.Application.ID != "5" || d.Application.Flags != 1<<14 {
		t.Errorf("%s %s", p, p.D)
	}
	if len(d.Guilds) != 2 || d.Guilds[0].ID != fmt.Sprint(1<<22) || d.Guilds[1].ID != fmt.Sprint(3<<22) || !d.Guilds[0].Unavailable {
		t.Errorf("guilds of shard 1: %v", d.Guilds)
	}
	s, err := srv.WaitReady(within(t), 1)
	if want := (discordtest.Session{ID: d.SessionID, Shard: 1, Count: 2, Intents: 513, Seq: 1, Connected: true}); err != nil || s != want {
		t.Errorf("session %+v, %v; want %+v", s, err, want)
	}
	if e, err := srv.WaitIdentify(within(t), 1, 1); err != nil || !strings.Contains(string(e.Data), "[redacted]") || strings.Contains(string(e.Data), srv.Token()) {
		t.Errorf("%v: %s", err, e.Data)
	}
}

// TestIdentifyWithoutShard identifies as a bot with one shard may.
func TestIdentifyWithoutShard(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{Flags: discordtest.NoFlags})
	c := hello(t, srv, srv.GatewayURL())
	c.send(`{"op":2,"d":{"token":%q,%s,"intents":0,"presence":{"since":null,"activities":[],"status":"dnd","afk":false}}}`, srv.Token(), properties)
	c.ready()
	if s, ok := srv.Session(0); !ok || s.Count != 1 {
		t.Errorf("session %+v, %t", s, ok)
	}
}

func TestPrivilegedIntents(t *testing.T) {
	t.Parallel()
	for flag := range 24 {
		srv := start(t, discordtest.Config{Flags: 1 << flag})
		for bit, flags := range map[int]int{1: 1<<14 | 1<<15, 8: 1<<12 | 1<<13, 15: 1<<18 | 1<<19} {
			c := hello(t, srv, srv.GatewayURL())
			c.send(`{"op":2,"d":{"token":%q,%s,"intents":%d}}`, srv.Token(), properties, 1<<bit)
			if flags&(1<<flag) != 0 {
				c.ready()
			} else {
				c.expectClose(4014)
			}
			_ = c.ws.CloseNow()
		}
	}
	srv := start(t, discordtest.Config{Flags: discordtest.NoFlags})
	srv.SetFlags(discordtest.FlagsAll)
	c := hello(t, srv, srv.GatewayURL())
	c.send(`{"op":2,"d":{"token":%q,%s,"intents":%d}}`, srv.Token(), properties, discordtest.AllIntents)
	c.ready()
	wantIllegal(t, srv)
}

// TestBuckets starts shards with max_concurrency 2, where 0 and 2 share a
// bucket.
func TestBuckets(t *testing.T) {
	t.Parallel()
	const window = 400 * time.Millisecond
	srv := start(t, discordtest.Config{
		IdentifyWindow: window,
		SessionStart:   discordtest.SessionStart{Total: 9, Remaining: 9, MaxConcurrency: 2},
	})
	began := time.Now()
	ready(t, srv, 0, 4)
	ready(t, srv, 1, 4)
	c := hello(t, srv, srv.GatewayURL())
	c.identify(2, 4)
	c.expect("op 9 false")
	if time.Since(began) >= window {
		t.Fatal("the machine is too slow for this test")
	}
	wantIllegal(t, srv, "IDENTIFY within 400ms")
	if n := srv.Count(discordtest.Refused, 2); n != 1 {
		t.Errorf("%d refused, want 1", n)
	}

	<-time.After(time.Until(began.Add(window)) + 50*time.Millisecond)
	c.identify(2, 4) // on the same connection
	c.ready()
	if s, err := srv.WaitReady(within(t), 2); err != nil || !s.Connected {
		t.Errorf("session %+v, %v", s, err)
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{SessionStart: discordtest.SessionStart{Total: 10, Remaining: 2, ResetAfter: time.Hour}})
	remaining := func(want float64) {
		t.Helper()
		body := get(t, srv.APIURL()+"/gateway/bot", "Bot "+srv.Token()).body
		if got := body["session_start_limit"].(map[string]any)["remaining"]; got != want {
			t.Fatalf("remaining %v, want %v", got, want)
		}
	}
	a, session := ready(t, srv, 0, 2)
	remaining(1)
	b, _ := ready(t, srv, 1, 2)
	remaining(0)
	_ = b.ws.CloseNow()
	resumed(t, srv, session, 1).expect("RESUMED 2") // a RESUME costs nothing
	a.expectClose(4006)

	c := hello(t, srv, srv.GatewayURL())
	c.identify(1, 2)
	c.expectClose(4004)
	if got := get(t, srv.APIURL()+"/gateway/bot", "Bot "+srv.Token()); got.status != 401 {
		t.Errorf("the token is still accepted: %d", got.status)
	}
	resumed(t, srv, session, 1).expectClose(4006)
	wantIllegal(t, srv, "two connections on one session", "IDENTIFY after the session start limit", "RESUME with a wrong token")
}

func TestBudgetResets(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	srv.SetSessionStart(discordtest.SessionStart{Total: 10, Remaining: 0, ResetAfter: time.Millisecond})
	<-time.After(2 * time.Millisecond)
	ready(t, srv, 0, 1)
	wantIllegal(t, srv)
}

func TestHeartbeats(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := hello(t, srv, srv.GatewayURL())
	c.send(`{"op":1,"d":null}`)
	c.expect("op 11 null")
	c.identify(0, 1)
	c.ready()
	c.send(`{"op":1,"d":1}`)
	c.expect("op 11 null")
	if err := srv.WaitAcked(within(t), 0, 1); err != nil {
		t.Error(err)
	}
	var got []int64
	for _, e := range srv.Log() {
		if e.Kind == discordtest.Heartbeat {
			got = append(got, e.Seq)
		}
	}
	if len(got) != 2 || got[0] != -1 || got[1] != 1 {
		t.Errorf("heartbeats %v, want [-1 1]", got)
	}
	wantIllegal(t, srv)
	c.send(`{"op":1,"d":2}`)
	c.expect("op 11 null")
	wantIllegal(t, srv, "a heartbeat acknowledges 2, but the last dispatch sent is 1")
	if s, _ := srv.Session(0); s.Acked != 1 {
		t.Errorf("acked %d, want 1", s.Acked)
	}
}

func TestMissedHeartbeat(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{HeartbeatInterval: 200 * time.Millisecond, HeartbeatGrace: 100 * time.Millisecond})
	c, session := ready(t, srv, 0, 1)
	began := time.Now()
	last := began
	for time.Since(began) < 500*time.Millisecond { // longer than an interval and its grace
		last = time.Now()
		c.send(`{"op":1,"d":1}`)
		c.expect("op 11 null")
	}
	c.expectClose(4000)
	if d := time.Since(last); d < 300*time.Millisecond {
		t.Errorf("closed %v after a heartbeat", d)
	}
	if srv.Count(discordtest.Missed, 0) != 1 {
		t.Error("no missed heartbeat was logged")
	}
	wantIllegal(t, srv)
	resumed(t, srv, session, 1).expect("RESUMED 2")
}

func TestCommands(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, session := ready(t, srv, 0, 1)
	ops := []int{31, 43}
	for _, op := range ops {
		c.send(`{"op":%d,"d":{"n":%d}}`, op, op)
	}
	for i, op := range ops {
		e, err := srv.WaitCount(within(t), discordtest.Command, 0, i+1)
		if err != nil || e.Op != op || string(e.Data) != fmt.Sprintf(`{"n":%d}`, op) || e.Session != session {
			t.Errorf("command %+v, %v; want op %d", e, err, op)
		}
	}
	c.send(`{"op":8,"d":{"guild_id":"7","query":"a","limit":1,"nonce":"n"}}`)
	p := c.next()
	if want := `{"chunk_count":1,"chunk_index":0,"guild_id":"7","members":[],"nonce":"n"}`; p.String() != "GUILD_MEMBERS_CHUNK 2" || string(p.D) != want {
		t.Errorf("%s %s, want %s", p, p.D, want)
	}
	wantIllegal(t, srv)
}

func TestChunks(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{Chunks: func(request []byte) [][]byte {
		return [][]byte{request, []byte(`{"chunk_index":1}`)}
	}})
	c, _ := ready(t, srv, 0, 1)
	c.send(`{"op":8,"d":{"guild_id":"7","user_ids":["1"]}}`)
	if p := c.next(); string(p.D) != `{"guild_id":"7","user_ids":["1"]}` {
		t.Errorf("%s %s", p, p.D)
	}
	c.expect("GUILD_MEMBERS_CHUNK 3")
}

// TestFlood keeps sending heartbeats without reading an ACK.
func TestFlood(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c := hello(t, srv, srv.GatewayURL())
	srv.Arm(discordtest.AtHeartbeat, discordtest.AnyShard, 1, discordtest.Delay(time.Hour))
	for {
		if err := c.ws.Write(c.ctx, websocket.MessageText, []byte(`{"op":1,"d":null}`)); err != nil {
			break
		}
	}
	wantIllegal(t, srv, "the client sends heartbeats")
}
