package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// stage is how far a connection has come when Discord acts.
type stage int

const (
	// atHello: right before HELLO, on the very first connection.
	atHello stage = iota
	// atIdentify: right before READY.
	atIdentify
	// live: after READY, sequence number 1, and ten messages.
	live
	// atResume: right before the replay, after live and a broken connection.
	atResume
)

func (s stage) String() string {
	return [...]string{"at HELLO", "at IDENTIFY", "live", "at RESUME"}[s]
}

// next is how a client has to go on afterwards.
type next int

const (
	// goesOn: the connection stays.
	goesOn next = iota
	// resumes: RESUME on a new connection to the session's URL, from the last
	// sequence number.
	resumes
	// identifies: IDENTIFY on a new connection to the gateway's URL.
	identifies
	// fails: the client waits until a person has acted.
	fails
)

// contractCase is something that Discord does, with its consequence.
type contractCase struct {
	name string
	at   stage
	act  []discordtest.Action
	next next
	// pause: the client waits as long as op 9 asks for.
	pause bool
	// code is the code in the DISCONNECT event; 0 if there is no such event.
	code int
	// remedy is a part of the problem that people see; only with fails.
	remedy string
	// heartbeats is how many heartbeats the client sends because of it.
	heartbeats int
	// dropped is how many payloads it reports as dropped.
	dropped int
}

func send(payload string) discordtest.Action { return discordtest.Send([]byte(payload)) }

// opCases has a row for every opcode, and for payloads without a known one.
var opCases = []contractCase{
	{name: "op 0 once more", at: live, act: acts(send(`{"op":0,"t":"MESSAGE_CREATE","s":5,"d":{}}`))},
	{name: "op 0 without t", at: live, act: acts(send(`{"op":0,"t":null,"s":3,"d":{}}`), send(`{"op":0,"d":{}}`)), dropped: 1},
	{name: "op 0 without s", at: live, act: acts(send(`{"op":0,"t":"X","s":null,"d":{}}`)), dropped: 1},
	{name: "op 0 before READY", at: atIdentify, act: acts(send(`{"op":0,"t":"X","s":1,"d":{}}`)), dropped: 1},
	{name: "op 1", at: live, act: acts(discordtest.RequestHeartbeat()), heartbeats: 1},
	{name: "op 1 before HELLO", at: atHello, act: acts(discordtest.RequestHeartbeat()), heartbeats: 1},
	{name: "op 7", at: live, act: acts(discordtest.Reconnect()), next: resumes, code: 4900},
	{name: "op 7 before HELLO", at: atHello, act: acts(discordtest.Reconnect()), next: identifies},
	{name: "op 7 instead of HELLO", at: atHello, act: acts(discordtest.Reconnect(), discordtest.Skip()), next: identifies},
	{name: "op 7 instead of READY", at: atIdentify, act: acts(discordtest.Reconnect(), discordtest.Skip()), next: identifies, code: 4900},
	{name: "op 7 instead of the replay", at: atResume, act: acts(discordtest.Reconnect(), discordtest.Skip()), next: resumes, code: 4900},
	{name: "op 9 true", at: live, act: acts(discordtest.Invalidate(true)), next: resumes, pause: true, code: 4900},
	{name: "op 9 true", at: atIdentify, act: acts(discordtest.Invalidate(true)), next: identifies, pause: true, code: 4900},
	{name: "op 9 true", at: atResume, act: acts(discordtest.Invalidate(true)), next: resumes, pause: true, code: 4900},
	{name: "op 9 false", at: live, act: acts(discordtest.Invalidate(false)), next: identifies, pause: true, code: 4900},
	{name: "op 9 false", at: atIdentify, act: acts(discordtest.Invalidate(false)), next: identifies, pause: true, code: 4900},
	{name: "op 9 false", at: atResume, act: acts(discordtest.Invalidate(false)), next: identifies, pause: true, code: 4900},
	{name: "op 9 null", at: live, act: acts(send(`{"op":9,"d":null}`)), next: identifies, pause: true, code: 4900},
	{name: "op 10 once more", at: live, act: acts(send(`{"op":10,"d":{"heartbeat_interval":1}}`))},
	{name: "op 10 twice", at: atIdentify, act: acts(send(`{"op":10,"d":{"heartbeat_interval":1}}`))},
	{name: "op 10 without d", at: atHello, act: acts(send(`{"op":10}`), discordtest.Skip())},
	{name: "op 10 of wrong types", at: atHello, act: acts(send(`{"op":10,"d":{"heartbeat_interval":"soon"}}`), discordtest.Skip())},
	{name: "op 10 with an endless interval", at: atHello, act: acts(send(`{"op":10,"d":{"heartbeat_interval":1e300}}`), discordtest.Skip())},
	{name: "op 10 with a negative interval", at: atHello, act: acts(send(`{"op":10,"d":{"heartbeat_interval":-1}}`), discordtest.Skip())},
	{name: "op 11 unasked", at: live, act: acts(send(`{"op":11}`), discordtest.TextFrame([]byte(`{"op":11}`)))},
	{name: "op 11 before HELLO", at: atHello, act: acts(send(`{"op":11,"d":null}`))},
	{name: "ops that only clients send", at: live, act: acts(
		send(`{"op":2,"d":{}}`), send(`{"op":3,"d":{}}`), send(`{"op":4,"d":{}}`), send(`{"op":6,"d":{}}`), send(`{"op":8,"d":{}}`),
		send(`{"op":31,"d":{}}`), send(`{"op":43,"d":{}}`))},
	{name: "ops that are not assigned", at: live, act: acts(send(`{"op":5,"d":{}}`), send(`{"op":99}`), send(`{"op":2147483647}`))},
	{name: "no op", at: live, act: acts(send(`{}`), send(`[]`), send(`null`), send(`{"op":"0"}`), send(`{"op":-1}`), send(`{"op":0.5}`)), dropped: 6},
	{name: "no JSON", at: live, act: acts(send(`{"op":`), send("\x00"), send(``)), dropped: 3},
	{name: "a command that is no JSON", at: live, act: acts(send(`{"op":9,"d":tru}`)), next: resumes, code: 4900},
	{name: "no JSON at all", at: atIdentify, act: acts(send(``)), next: identifies, code: 4900},
	{name: "a message that can't be inflated", at: live, act: acts(discordtest.Corrupt()), next: resumes, code: 4900},
	{name: "a message that can't be inflated", at: atResume, act: acts(discordtest.Corrupt(), discordtest.Skip()), next: resumes, code: 4900},
}

func acts(a ...discordtest.Action) []discordtest.Action { return a }

// closeCases has a row for every close code at every stage (Discord: Gateway
// Close Event Codes).
func closeCases() (cases []contractCase) {
	ends := []struct {
		name   string
		act    discordtest.Action
		code   int
		next   next // of a session
		remedy string
	}{
		{"TCP drop", discordtest.Drop(), 1006, resumes, ""},
		{"TCP reset", discordtest.Reset(), 1006, resumes, ""},
		{"close without a code", discordtest.Close(1005), 1006, resumes, ""},
		{"close 1000", discordtest.Close(1000), 1000, resumes, ""},
		{"close 1001", discordtest.Close(1001), 1001, resumes, ""},
		{"close 1011", discordtest.Close(1011), 1011, resumes, ""},
		{"close 4000", discordtest.Close(4000), 4000, resumes, ""},
		{"close 4001", discordtest.Close(4001), 4001, identifies, ""},
		{"close 4002", discordtest.Close(4002), 4002, resumes, ""},
		{"close 4003", discordtest.Close(4003), 4003, identifies, ""},
		{"close 4004", discordtest.Close(4004), 4004, fails, "DISCORD_TOKEN"},
		{"close 4005", discordtest.Close(4005), 4005, identifies, ""},
		{"close 4006", discordtest.Close(4006), 4006, identifies, ""},
		{"close 4007", discordtest.Close(4007), 4007, identifies, ""},
		{"close 4008", discordtest.Close(4008), 4008, resumes, ""},
		{"close 4009", discordtest.Close(4009), 4009, identifies, ""},
		{"close 4010", discordtest.Close(4010), 4010, fails, "GATEHOOK_SHARDS"},
		{"close 4011", discordtest.Close(4011), 4011, fails, "GATEHOOK_SHARDS"},
		{"close 4012", discordtest.Close(4012), 4012, fails, "upgrade Gatehook"},
		{"close 4013", discordtest.Close(4013), 4013, fails, "GATEHOOK_INTENTS"},
		{"close 4014", discordtest.Close(4014), 4014, fails, "MESSAGE_CONTENT (Message Content Intent): switch it on"},
		{"close 4998", discordtest.Close(4998), 4998, resumes, ""},
		{"close 4321", discordtest.Close(4321), 4321, resumes, ""},
	}
	for _, e := range ends {
		for _, at := range []stage{atHello, atIdentify, live, atResume} {
			c := contractCase{name: e.name, at: at, act: acts(e.act), next: e.next, code: e.code, remedy: e.remedy}
			if at < live && e.next == resumes {
				c.next = identifies // there is nothing to resume
			}
			cases = append(cases, c)
		}
	}
	return cases
}

// TestContract: whatever Discord does, the client goes on as it has to, loses
// nothing that Discord can still send, and delivers nothing twice.
func TestContract(t *testing.T) {
	t.Parallel()
	for _, c := range slices.Concat(opCases, closeCases()) {
		t.Run(fmt.Sprintf("%s %v", c.name, c.at), func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

func (c contractCase) run(t *testing.T) {
	t.Helper()
	// There are no heartbeats other than those that Discord asks for.
	r := newRig(t, discordtest.Config{HeartbeatInterval: discord.MaxInterval, HeartbeatGrace: time.Hour})
	r.timing.invalid = 50 * time.Millisecond
	r.intents.Store(int64(event.IntentGuilds | event.IntentGuildMessages | event.IntentMessageContent))
	moments := map[stage]discordtest.Moment{
		atHello: discordtest.AtHello, atIdentify: discordtest.AtIdentify, atResume: discordtest.AtResume,
	}
	if m, ok := moments[c.at]; ok {
		r.Arm(m, discordtest.AnyShard, 1, c.act...)
	}
	begin := time.Now()
	stop := r.start()
	var old discordtest.Session
	if c.at >= live {
		old = r.ready(0)
		r.named("READY", 1) // a reset may overtake it
		r.dispatch(0, 0, 10)
		r.messages(10)
		begin = time.Now()
	}
	connections := 1 // up to and including the one on which Discord acts
	switch c.at {
	case live:
		r.do(0, c.act...)
	case atResume:
		connections = 2
		r.do(0, discordtest.Drop())
	case atHello, atIdentify:
	}
	switch c.next {
	case goesOn:
		r.ready(0)
	case resumes:
		c.resumed(r, connections)
	case identifies:
		c.identified(r, old, connections)
	case fails:
		c.failed(r)
	}
	if c.pause {
		if e := r.count(discordtest.Connected, discordtest.AnyShard, connections+1); e.At.Sub(begin) < r.timing.invalid {
			t.Errorf("connected again after %v, want at least %v", e.At.Sub(begin), r.timing.invalid)
		}
	}
	if c.next != fails {
		n := len(slices.DeleteFunc(names(r.store.all()), func(name string) bool { return name != "MESSAGE_CREATE" }))
		r.dispatch(0, n, 10)
		r.messages(n + 10)
		r.legal() // not with fails, where the simulated Discord may find something illegal
	}
	if c.heartbeats > 0 {
		r.count(discordtest.Heartbeat, discordtest.AnyShard, c.heartbeats)
	}
	stop()
	if c.next != goesOn && c.next != fails {
		connections++
	}
	if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != connections {
		t.Errorf("%d connections, want %d", n, connections)
	}
	if n := r.Count(discordtest.Heartbeat, discordtest.AnyShard); n != c.heartbeats {
		t.Errorf("%d heartbeats, want %d", n, c.heartbeats)
	}
	c.checkEvents(r)
}

// resumed checks that the session goes on where it stopped, with everything
// that was dispatched meanwhile.
func (c contractCase) resumed(r *rig, connections int) {
	r.t.Helper()
	r.count(discordtest.Connected, discordtest.AnyShard, connections+1)
	r.dispatch(0, 10, 10)
	// A failed RESUME counts too, if it was sent.
	if e := r.count(discordtest.Resume, 0, connections); e.Seq != 11 {
		r.t.Errorf("RESUME from %d, want 11", e.Seq)
	}
	r.count(discordtest.Resumed, 0, 1)
	r.messages(20)
	r.named("SHARD_RESUME", 1)
	if n := r.Count(discordtest.Identify, 0); n != 1 {
		r.t.Errorf("%d IDENTIFYs, want 1", n)
	}
}

// identified checks that a new session begins, and that a notice says which one
// was lost, if any.
func (c contractCase) identified(r *rig, old discordtest.Session, connections int) {
	r.t.Helper()
	ready := 1
	if old.ID != "" {
		ready = 2
	}
	r.count(discordtest.Ready, 0, ready)
	r.named("READY", ready)
	now := r.ready(0)
	if old.ID != "" {
		var got lostData
		lost := r.named("GATEHOOK_SESSION_LOST", 1)
		want := lostData{0, old.ID, 11, now.ID, 1, errInvalid.Error()}
		if c.code != int(discord.CodeKeepSession) {
			want.Reason = discord.CloseCode(c.code).Meaning()
		}
		if err := json.Unmarshal(lost.Data, &got); err != nil || got != want {
			r.t.Errorf("%+v, want %+v (%v)", got, want, err)
		}
	}
	if n := r.Count(discordtest.Resume, 0); n != connections-1 {
		r.t.Errorf("%d RESUMEs, want %d", n, connections-1)
	}
}

// failed checks that the shard waits for a person and shows why.
func (c contractCase) failed(r *rig) {
	r.t.Helper()
	st := r.failed(1)[0]
	if !strings.Contains(st.Problem, c.remedy) || strings.Contains(st.Problem, "\n") || st.LastClose.Code != c.code {
		r.t.Errorf("status %+v, want %q", st, c.remedy)
	}
	if reasons := r.gateway.Unready(); len(reasons) != 1 || !strings.Contains(reasons[0], st.Problem) {
		r.t.Errorf("unready: %v", reasons)
	}
}

// checkEvents compares the events about connections that callbacks get.
func (c contractCase) checkEvents(r *rig) {
	r.t.Helper()
	connect, end := []string{"SHARD_CONNECT", "CONNECT"}, []string{"SHARD_DISCONNECT", "DISCONNECT"}
	want := []string{}
	switch c.at {
	case atHello:
		if c.next == goesOn {
			want = connect
		}
	case atIdentify:
		want = connect
	case live:
		want = slices.Concat(connect, []string{"READY"})
	case atResume:
		want = slices.Concat(connect, []string{"READY"}, end, connect)
	}
	if c.at != atHello && c.next != goesOn {
		want = slices.Concat(want, end)
	}
	switch {
	case c.next == resumes:
		want = slices.Concat(want, connect, []string{"RESUMED", "SHARD_RESUME"})
	case c.next == identifies && c.at < live:
		want = slices.Concat(want, connect, []string{"READY"})
	case c.next == identifies:
		want = slices.Concat(want, connect, []string{"GATEHOOK_SESSION_LOST", "READY"})
	}
	want = append(want, slices.Repeat([]string{"GATEHOOK_PAYLOAD_DROPPED"}, c.dropped)...)
	if c.next == goesOn && c.at < live {
		want = append(want, "READY")
	}
	if c.next != fails {
		want = slices.Concat(want, end) // the drain
	}
	if diff := cmp.Diff(want, r.withoutMessages()); diff != "" {
		r.t.Error(diff)
	}
	if c.next == goesOn || c.at == atHello {
		return
	}
	n := 1
	if c.at == atResume {
		n = 2
	}
	var got disconnectData
	if e := r.named("DISCONNECT", n); json.Unmarshal(e.Data, &got) != nil || got.Code != c.code || got.Reason == "" {
		r.t.Errorf("DISCONNECT %s, want code %d", e.Data, c.code)
	}
}

// TestDispatchOfAnyType: a dispatch is delivered whatever the type of d.
// Discord's documentation itself says that the types in a PRESENCE_UPDATE are
// not checked.
func TestDispatchOfAnyType(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	datas := []string{`null`, `5`, `"x"`, `[]`, `{"id":{},"guild_id":7,"author":[]}`, `{"id":"x","user":null}`, "{\"content\":\"\xff\"}", `true`}
	for _, data := range datas {
		for _, name := range []string{"MESSAGE_CREATE", "GUILD_CREATE", "GUILD_DELETE", "PRESENCE_UPDATE", "RESUMED", "NOT_KNOWN"} {
			if _, err := r.Dispatch(0, name, []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.named("NOT_KNOWN", len(datas))
	for i, data := range datas {
		if e := r.named("MESSAGE_CREATE", i+1); string(e.Data) != data {
			t.Errorf("%q was delivered as %q", data, e.Data)
		}
	}
	if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	r.legal()
}

// TestReadyOfAnyType: a session that can't be resumed is still used for its
// events. When it ends, a notice says which events are lost.
func TestReadyOfAnyType(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		`null`, `[]`, `{}`, `{"session_id":5,"guilds":7}`, `{"session_id":"","resume_gateway_url":[],"guilds":[{"id":1},5,null,{"id":"x"}]}`,
	} {
		t.Run(data, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, discordtest.Config{})
			r.Arm(discordtest.AtIdentify, 0, 1, send(`{"op":0,"t":"READY","s":1,"d":`+data+`}`),
				send(`{"op":0,"t":"GUILD_CREATE","s":2,"d":{"id":"5"}}`), discordtest.Drop())
			r.start()
			if e := r.named("READY", 1); string(e.Data) != data {
				t.Errorf("READY %s", e.Data)
			}
			r.named("GUILD_CREATE", 1)
			now := r.ready(0)
			var got lostData
			lost := r.named("GATEHOOK_SESSION_LOST", 1)
			if err := json.Unmarshal(lost.Data, &got); err != nil || got.AfterSeq != 2 || got.NextSessionID != now.ID || got.SessionID == "" {
				t.Errorf("%s, %v", lost.Data, err)
			}
			if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 3 { // the second one sends a RESUME that fails
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestReadyKeepsItsSession: a field of READY with a wrong type costs only that
// field.
func TestReadyKeepsItsSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	ready := fmt.Sprintf(`{"v":"ten","guilds":{"id":5},"session_id":"kept","resume_gateway_url":%q}`, r.ResumeURL())
	r.Arm(discordtest.AtIdentify, 0, 1, send(`{"op":0,"t":"READY","s":1,"d":`+ready+`}`), discordtest.Drop())
	r.start()
	if e := r.count(discordtest.Resume, discordtest.AnyShard, 1); e.Session != "kept" || e.Seq != 1 {
		t.Errorf("RESUME of %q from %d", e.Session, e.Seq)
	}
	if e := r.named("READY", 1); !bytes.Equal(e.Data, []byte(ready)) {
		t.Errorf("READY %s", e.Data)
	}
	r.legal()
}
