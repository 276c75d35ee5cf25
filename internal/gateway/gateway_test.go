package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

func TestEventsInOrder(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		compression discord.Compression
		split       int
	}{{discord.ZstdStream, 0}, {discord.ZlibStream, 0}, {discord.ZlibStream, 100}, {discord.NoCompression, 0}, {"", 0}} {
		t.Run(fmt.Sprintf("%s split %d", tt.compression, tt.split), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, discordtest.Config{SplitEvery: tt.split, ApplicationID: 77})
			r.cfg.Compression = tt.compression
			r.start()
			session := r.ready(0)
			r.dispatch(0, 0, 1000)
			if _, err := r.Dispatch(0, "SOMETHING_NEW", bytes.Repeat([]byte(`[1,{"x":"y"}] `), 30000)[:14]); err != nil {
				t.Fatal(err)
			}
			r.named("SOMETHING_NEW", 1)
			events := r.messages(1000)
			if got, want := names(events)[:4], []string{"SHARD_CONNECT", "CONNECT", "READY", "MESSAGE_CREATE"}; !slices.Equal(got, want) {
				t.Errorf("first %v, want %v", got, want)
			}
			seq := int64(0)
			for _, e := range events {
				if e.Shard != shard0 || e.ReceivedAt.IsZero() {
					t.Fatalf("%+v", e)
				}
				if e.Seq == 0 {
					continue
				}
				seq++
				if e.Seq != seq || e.ID != event.DispatchID(77, session.ID, shard0, seq) {
					t.Fatalf("event %d: sequence number %d, id %v", seq, e.Seq, e.ID)
				}
				if e.Name == "MESSAGE_CREATE" && (e.GuildID != 7 || e.ChannelID != 8 || e.UserID != 9) {
					t.Fatalf("ids %v %v %v", e.GuildID, e.ChannelID, e.UserID)
				}
			}
			want := event.Session{ID: session.ID, ResumeURL: r.ResumeURL() + "?compress=" + string(cmp.Or(tt.compression, discord.ZlibStream)), Seq: 1002, Intents: event.Intents(r.intents.Load())}
			if got := r.store.session(shard0); got != want {
				t.Errorf("session %+v, want %+v", got, want)
			}
			st := r.gateway.Status()[0]
			if st.State != StateConnected || st.Received != 1002 || st.Stored != 1002 || st.SessionSince.IsZero() || st.Identifies != 1 {
				t.Errorf("status %+v", st)
			}
			if reasons := r.gateway.Unready(); reasons != nil {
				t.Errorf("unready: %v", reasons)
			}
			r.legal()
		})
	}
}

// TestRestart: after a drain the next process resumes the sessions.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Shards: 3, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 3}})
	stop := r.start()
	r.named("READY", 3)
	r.dispatch(0, 0, 50)
	r.messages(50)
	start := time.Now()
	stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the drain took %v", took)
	}
	for shard := range 3 {
		if e := r.count(discordtest.ClientClosed, shard, 1); e.Code != int(discord.CodeKeepSession) {
			t.Errorf("shard %d was closed with %d, want %d", shard, e.Code, discord.CodeKeepSession)
		}
	}
	r.dispatch(0, 50, 50)
	r.start()
	for shard := range 3 {
		r.count(discordtest.Resumed, shard, 1)
	}
	r.messages(100)
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 3 {
		t.Errorf("%d IDENTIFYs, want 3", n)
	}
	r.legal()
}

// TestRestartTooLate: the RESUME of a session that expired meanwhile fails, and
// a notice says which events are lost.
func TestRestartTooLate(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{SessionLifetime: time.Nanosecond})
	stop := r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 5)
	r.messages(5)
	stop()
	r.count(discordtest.ClientClosed, 0, 1)
	r.start()
	lost := r.named("GATEHOOK_SESSION_LOST", 1)
	var got lostData
	if err := json.Unmarshal(lost.Data, &got); err != nil || got.SessionID != old.ID || got.AfterSeq != 6 || got.NextSessionID == "" {
		t.Errorf("%s, %v", lost.Data, err)
	}
	if n := r.Count(discordtest.Resume, 0); n != 1 {
		t.Errorf("%d RESUMEs, want 1", n)
	}
	r.legal()
}

// TestJournalBusy: while the journal takes nothing, the connection is kept
// alive and does not count as dead, and nothing is lost.
func TestJournalBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 400 * time.Millisecond, HeartbeatGrace: 10 * time.Second})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.store.setBusy(true)
	r.dispatch(0, 10, 500)
	r.count(discordtest.Heartbeat, 0, r.Count(discordtest.Heartbeat, 0)+4)
	r.store.setBusy(false)
	r.messages(510)
	r.count(discordtest.Heartbeat, 0, r.Count(discordtest.Heartbeat, 0)+2)
	if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 1 {
		t.Errorf("%d connections; last close %+v", n, r.gateway.Status()[0].LastClose)
	}
	r.legal()
}

// TestJournalBusyAtDrain: a drain does not wait for a journal that takes
// nothing. Discord replays the events that the journal did not take.
func TestJournalBusyAtDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	stop := r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.store.setBusy(true)
	r.dispatch(0, 10, 10)
	stop()
	r.store.setBusy(false)
	r.start()
	r.count(discordtest.Resumed, 0, 1)
	r.messages(20)
	r.legal()
}

// TestStoredSequence: heartbeats and RESUMEs carry the stored sequence number,
// not the received one, and replays of received events are dropped.
func TestStoredSequence(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 50 * time.Millisecond, TrimAcked: true})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	if err := r.WaitAcked(r.ctx, 0, 11); err != nil {
		t.Fatal(err)
	}
	r.store.setFrozen(true)
	r.dispatch(0, 10, 10)
	r.messages(20)
	if e := r.count(discordtest.Heartbeat, 0, r.Count(discordtest.Heartbeat, 0)+2); e.Seq != 11 {
		t.Errorf("a heartbeat with sequence number %d, want 11", e.Seq)
	}
	r.do(0, discordtest.Drop())
	if e := r.count(discordtest.Resume, 0, 1); e.Seq != 11 {
		t.Errorf("RESUME from %d, want 11", e.Seq)
	}
	r.store.setFrozen(false)
	r.dispatch(0, 20, 10)
	r.messages(30)
	r.legal()
}

// TestBucketsOfShards: many shards keep to max_concurrency, because the
// database makes them wait.
func TestBucketsOfShards(t *testing.T) {
	t.Parallel()
	const shards, window = 6, 100 * time.Millisecond
	r := newRig(t, discordtest.Config{
		Shards: shards, IdentifyWindow: window,
		SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 2},
	})
	r.slots = pacedBuckets(t, 3*window)
	r.start()
	for shard := range shards {
		r.ready(shard)
	}
	var order [2][]int
	for _, e := range r.Log() {
		if e.Kind == discordtest.Identify {
			order[e.Shard%2] = append(order[e.Shard%2], e.Shard)
		}
	}
	for _, bucket := range order {
		// The first shard in the queue does not wait for one with a lower id.
		if len(bucket) != shards/2 || !slices.IsSorted(bucket[1:]) {
			t.Errorf("IDENTIFYs in the order %v", order)
		}
	}
	r.legal()
}

// TestStartsUsedUp: when the day's session starts are used up, no IDENTIFY is
// sent: Discord would reset the token.
func TestStartsUsedUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{SessionStart: discordtest.SessionStart{Total: 1000, ResetAfter: 500 * time.Millisecond}})
	r.start()
	r.ready(0)
	log := r.Log()
	i := slices.IndexFunc(log, func(e discordtest.Entry) bool { return e.Kind == discordtest.Identify })
	if waited := log[i].At.Sub(log[0].At); waited < 300*time.Millisecond {
		t.Errorf("IDENTIFY %v after the connection", waited)
	}
	r.legal()
}

// TestAPIDown: the gateway waits for Discord's API and says why.
func TestAPIDown(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.Arm(discordtest.AtApplication, discordtest.AnyShard, 1, discordtest.Status(500))
	r.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.RateLimit(10*time.Millisecond))
	r.start()
	r.wait("the reason is shown", func() bool {
		reasons := r.gateway.Unready()
		return len(reasons) == 1 && strings.Contains(reasons[0], "HTTP 500")
	})
	r.ready(0)
}

func TestWrongToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.cfg.Token = secret.New("wrong")
	g := New(r.cfg, r.store.join(), r.slots, quiet, prometheus.NewRegistry())
	err := g.Run(r.ctx)
	if !errors.Is(err, discord.ErrUnauthorized) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %v", err)
	}
}

// TestClaimLost: when another instance takes the shard, the connection is
// closed and nothing more is delivered. When the shard is free again, the
// session goes on.
func TestClaimLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	delivered := len(r.messages(10))
	r.store.steal(shard0)
	if e := r.count(discordtest.ClientClosed, 0, 1); e.Code != int(discord.CodeKeepSession) {
		t.Errorf("closed with %d", e.Code)
	}
	r.wait("standby", func() bool { return r.gateway.Status()[0].State == StateStandby })
	if got := names(r.store.all()[delivered:]); len(got) != 0 {
		t.Errorf("delivered %v after the claim was lost", got)
	}
	if reasons := r.gateway.Unready(); reasons != nil {
		t.Errorf("unready because of another instance's shard: %v", reasons)
	}
	r.dispatch(0, 10, 10)
	r.store.free(shard0)
	r.count(discordtest.Resumed, 0, 1)
	r.messages(20)
	r.legal()
}

// TestInterruptedPut: an event that the journal had not taken when the
// connection ended comes again.
func TestInterruptedPut(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: discord.MaxInterval})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 1)
	r.messages(1)
	r.store.setBusy(true)
	r.dispatch(0, 1, 1)
	r.wait("the event waits", func() bool {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		return r.store.waiting > 0
	})
	r.gateway.find(shard0).restart()
	r.count(discordtest.Resumed, 0, 1)
	r.store.setBusy(false)
	r.messages(2)
	r.legal()
}

// TestRepeatedRESUMED: Discord does not say which sequence number RESUMED has.
// A RESUMED with the number of the previous event is still delivered.
func TestRepeatedRESUMED(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 3)
	r.messages(3)
	r.do(0, discordtest.Send([]byte(`{"op":0,"t":"RESUMED","s":4,"d":{"_trace":[]}}`)))
	r.named("SHARD_RESUME", 1)
	if e := r.named("RESUMED", 1); e.Seq != 0 || string(e.Data) != `{"_trace":[]}` {
		t.Errorf("%+v", e)
	}
	if got := r.store.session(shard0).Seq; got != 4 {
		t.Errorf("the session is at %d, want 4", got)
	}
	r.legal()
}

// TestLogsTellNoSecrets: the log contains neither the token nor a session's id,
// which together would let anybody take over the session.
func TestLogsTellNoSecrets(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{HeartbeatInterval: 50 * time.Millisecond})
	var logs bytes.Buffer
	r.log = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	stop := r.start()
	session := r.ready(0)
	for n, act := range []discordtest.Action{
		discordtest.Drop(), discordtest.Reconnect(), discordtest.Corrupt(), discordtest.Close(4000),
	} {
		r.do(0, act)
		r.count(discordtest.Resumed, 0, n+1)
		r.ready(0)
	}
	r.do(0, discordtest.Send([]byte(`{"op":99}`)), discordtest.Invalidate(false))
	r.named("GATEHOOK_SESSION_LOST", 1)
	second := r.ready(0)
	stop()
	for _, secret := range []string{r.Token(), session.ID, second.ID} {
		if strings.Contains(logs.String(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, &logs)
		}
	}
	for _, want := range []string{"session in service", "disconnected", "session lost", "shard=0/1"} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("%q is not in the log:\n%s", want, &logs)
		}
	}
}

// TestOnlyEnabledIntents: a listener for everything must not cost a bot its
// connection because a privileged intent is switched off.
func TestOnlyEnabledIntents(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: 1 << 15}) // GUILD_MEMBERS, of a small bot
	r.intents.Store(int64(event.IntentsAll))
	r.cfg.OnlyEnabled = true
	r.start()
	r.ready(0)
	var sent struct{ Intents event.Intents }
	for _, e := range r.Log() {
		if e.Kind == discordtest.Identify {
			if err := json.Unmarshal(e.Data, &sent); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := event.IntentsAll &^ (event.IntentGuildPresences | event.IntentMessageContent); sent.Intents != want {
		t.Errorf("identified with %v, want %v", sent.Intents, want)
	}
	r.legal()
}

// TestCompressionOfASession: a RESUME has the query of the IDENTIFY, even if the
// setting was changed in between, and if the RESUME is sent to the gateway's URL
// (Discord: Preparing to Resume).
func TestCompressionOfASession(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]bool{"own URL": true, "gateway's URL": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, discordtest.Config{})
			if !answers {
				r.Arm(discordtest.AtResumeConnect, discordtest.AnyShard, discordtest.Always, discordtest.Status(503))
			}
			resumes := 0
			for _, c := range []discord.Compression{discord.ZstdStream, discord.ZlibStream, discord.NoCompression, ""} {
				r.cfg.Compression = c
				stop := r.start()
				if resumes > 0 {
					r.named("SHARD_RESUME", resumes)
				}
				r.ready(0)
				r.dispatch(0, 5*resumes, 5)
				resumes++
				r.messages(5 * resumes)
				stop()
			}
			if n := r.Count(discordtest.Identify, 0); n != 1 {
				t.Errorf("%d IDENTIFYs, want 1", n)
			}
			r.legal() // a RESUME with another query is not
		})
	}
}
