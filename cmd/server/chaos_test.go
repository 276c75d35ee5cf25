package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

const (
	// chaosLength names the variable that says how long the faults last; `make
	// chaos` sets it. shortLength is the default.
	chaosLength = "GATEHOOK_CHAOS"
	shortLength = 18 * time.Second
	// cycleLength is the length of one cycle of a longer run.
	cycleLength = time.Minute
)

// TestChaosOneServer checks that one server loses no event that Discord can
// replay, whatever happens to its connections, its database and itself.
func TestChaosOneServer(t *testing.T) {
	t.Parallel()
	chaos(t, 1)
}

// TestChaosTwoServers is like TestChaosOneServer, with two servers that share the
// shards.
func TestChaosTwoServers(t *testing.T) {
	t.Parallel()
	chaos(t, 2)
}

// TestChaosThreeServers is like TestChaosTwoServers, with three servers on a database with
// a standby, which becomes the primary.
func TestChaosThreeServers(t *testing.T) {
	t.Parallel()
	chaos(t, 3)
}

func chaos(t *testing.T, servers int) {
	t.Helper()
	length, seed := lengthAndSeed(t, chaosLength, shortLength)
	w := startWorld(t, servers, length > cycleLength)
	for cycle := uint64(0); length > 0 && !t.Failed(); cycle++ {
		w.cycle(planFaults(seed, cycle, min(length, cycleLength), servers))
		length -= cycleLength
	}
	w.finish()
}

// lengthAndSeed returns the length of a random test, from the environment variable
// name or by default, and its seed, from the variable name_SEED or random. It logs
// how to repeat the test.
func lengthAndSeed(t *testing.T, name string, byDefault time.Duration) (length time.Duration, seed uint64) {
	t.Helper()
	length, seed = byDefault, rand.Uint64()
	var err error
	if s := os.Getenv(name); s != "" {
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("%s=%q is not a duration such as 10m", name, s)
		}
	}
	if s := os.Getenv(name + "_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s_SEED=%q is not a seed", name, s)
		}
	}
	t.Logf("repeat with: %s=%v %s_SEED=%d go test -count=1 -timeout=%v -run '^%s$' ./cmd/server",
		name, length, name, seed, 10*time.Minute+2*length, t.Name())
	return length, seed
}

// world holds the servers and everything that they depend on.
type world struct {
	t         *testing.T
	discord   *discordtest.Server
	database  *database
	standby   *replicated // nil for none
	servers   []*process
	ledger    *ledger
	callbacks callbacks
	disarm    map[kind]func()
	done      map[kind]int

	mu   sync.Mutex      // guards died
	died map[string]bool // clients that were killed or paused
}

func startWorld(t *testing.T, servers int, long bool) *world {
	t.Helper()
	w := &world{
		t: t, ledger: newLedger(t), died: map[string]bool{},
		disarm: map[kind]func(){}, done: map[kind]int{},
		discord: startDiscordAs(t, discordtest.Config{
			Shards: manyShards, HeartbeatInterval: time.Second, HeartbeatGrace: 2 * time.Second,
			TrimAcked: true, // Discord may do this
		}),
	}
	if servers > 2 {
		w.standby = startReplicated(t, true)
		w.database = &database{Server: w.standby.primary, proxy: w.standby.toPrimary, url: w.standby.url}
	} else {
		w.database = startDatabase(t)
	}
	level := "debug"
	if long {
		level = "info" // a debug log would not fit into memory
	}
	for i := range servers {
		w.servers = append(w.servers, newNamed(t, w.discord, string(rune('a'+i)), "DATABASE_URL="+w.database.url,
			"GATEHOOK_LOG_LEVEL="+level, "GATEHOOK_ATTEMPT_TIMEOUT=5s", "GATEHOOK_RETRY_SCHEDULE=200ms,500ms,1s,1s,2s,2s,2s,5s,5s,5s,10s,10s,10s"))
	}
	w.servers[0].start()
	w.ledger.callbackBehind(w.servers[0], "MESSAGE_CREATE", w.callbacks.front)
	w.ledger.callbackBehind(w.servers[0], "RAW_*", w.callbacks.front)
	w.ledger.recordLosses(w.servers[0], w.callbacks.front)
	for _, p := range w.servers[1:] {
		p.start()
	}
	awaitShards(t, w.discord, manyShards)
	return w
}

// cycle makes the faults of a plan happen under load, and then waits until
// everything has recovered.
func (w *world) cycle(p plan) {
	w.t.Helper()
	// Each session needs a stored event, otherwise its loss can't be reported.
	for id := range manyShards {
		shard := event.Shard{ID: id, Count: manyShards}
		s, err := w.discord.Dispatch(id, "MESSAGE_CREATE", message(id))
		if err != nil {
			w.t.Fatal(err)
		}
		w.ledger.sent(shard, s)
	}
	w.awaitAll()
	stop := load(w.t, w.discord, w.ledger, 3*time.Millisecond)
	begin := time.Now()
	var light sync.WaitGroup
	light.Go(func() {
		for _, f := range p.light {
			<-time.After(time.Until(begin.Add(f.at)))
			w.happen(f)
		}
	})
	for _, f := range p.heavy {
		<-time.After(time.Until(begin.Add(f.at)))
		w.t.Logf("%5.1fs: %v", time.Since(begin).Seconds(), f)
		w.strike(f)
	}
	light.Wait()
	for _, disarm := range w.disarm {
		disarm()
	}
	w.retryShards()
	awaitShards(w.t, w.discord, manyShards)
	stop()
	w.awaitAll()
}

// happen makes a light fault happen, if there is a connection for it.
func (w *world) happen(f fault) {
	shard, found := f.shard, false
	for i := range manyShards {
		shard = (f.shard + i) % manyShards
		if s, ok := w.discord.Session(shard); ok && s.Connected {
			found = true
			break
		}
	}
	if !found {
		return
	}
	any := discordtest.AnyShard
	now := func(a ...discordtest.Action) bool { return w.discord.Do(shard, a...) == nil }
	// arm disarms an earlier fault of this kind: a client that gets too many in
	// a row rightly gives up the session.
	arm := func(at discordtest.Moment, shard, times int, a ...discordtest.Action) {
		if disarm := w.disarm[f.kind]; disarm != nil {
			disarm()
		}
		w.disarm[f.kind] = w.discord.Arm(at, shard, times, a...)
	}
	onResume := func(times int, a ...discordtest.Action) bool {
		arm(discordtest.AtResume, shard, times, a...)
		return now(discordtest.Drop())
	}
	happened := true
	switch f.kind {
	case dropped:
		happened = now(discordtest.Drop())
	case reset:
		happened = now(discordtest.Reset())
	case closed4000:
		happened = now(discordtest.Close(4000))
	case closed1001:
		happened = now(discordtest.Close(1001))
	case closedNoCode:
		happened = now(discordtest.Close(1005))
	case halfOpen:
		happened = now(discordtest.Silence())
	case corrupt:
		happened = now(discordtest.Corrupt())
	case textFrame:
		happened = now(discordtest.TextFrame([]byte(`{"op":11}`)))
	case oddPayload:
		happened = now(discordtest.Send([]byte(`{"op":99,"d":{"a":[]}}`)))
	case reconnect:
		happened = now(discordtest.Reconnect())
	case resumable:
		happened = now(discordtest.Invalidate(true))
	case invalidated:
		happened = now(discordtest.Invalidate(false))
	case closed4009:
		happened = now(discordtest.Close(4009))
	case asked:
		happened = now(discordtest.RequestHeartbeat())
	case noAcks:
		arm(discordtest.AtHeartbeat, shard, 2+f.times, discordtest.Skip())
	case resumeClosed:
		happened = onResume(f.times, discordtest.Close(1005))
	case resumeDropped:
		happened = onResume(f.times, discordtest.Drop())
	case resumeOp7:
		happened = onResume(f.times, discordtest.Reconnect(), discordtest.Skip())
	case resumeTrue:
		happened = onResume(f.times, discordtest.Invalidate(true))
	case resumeFalse:
		happened = onResume(1, discordtest.Invalidate(false))
	case resumeCut:
		happened = onResume(f.times, discordtest.After(3, discordtest.Drop()))
	case identifyCut:
		arm(discordtest.AtIdentify, shard, 1, discordtest.Drop())
		happened = now(discordtest.Invalidate(false))
	case dialReset:
		arm(discordtest.AtResumeConnect, any, f.times, discordtest.Reset())
		happened = now(discordtest.Drop())
	case dialRefused:
		arm(discordtest.AtResumeConnect, any, f.times, discordtest.Status(503))
		happened = now(discordtest.Drop())
	case helloLate:
		arm(discordtest.AtHello, any, f.times, discordtest.Delay(f.lasts))
		happened = now(discordtest.Drop())
	case botLimited:
		arm(discordtest.AtGatewayBot, any, f.times, discordtest.RateLimit(f.lasts))
	case botBroken:
		arm(discordtest.AtGatewayBot, any, f.times, discordtest.Status(500))
	default:
		w.callbacks.fail(f.kind, f.lasts)
	}
	if happened {
		w.done[f.kind]++
	}
}

// strike makes a heavy fault happen and returns when it is over.
func (w *world) strike(f fault) {
	w.t.Helper()
	p := w.servers[f.server]
	p.alive()
	over := time.After(f.lasts)
	defer w.keepLeases(p, f.kind, time.Now())
	switch f.kind {
	case killed, killedLong:
		w.dies(p)
		p.stop(syscall.SIGKILL)
		<-over
		p.start()
	case killedSlow:
		w.database.proxy.slow(20 * time.Millisecond)
		<-over
		w.dies(p)
		p.stop(syscall.SIGKILL)
		p.start()
		w.database.proxy.slow(0)
	case stopped:
		p.drain()
		<-over
		p.start()
	case paused, pausedLong:
		w.dies(p)
		p.signal(syscall.SIGSTOP)
		w.discord.Suspend(p.client())
		<-over
		w.discord.Continue(p.client())
		p.signal(syscall.SIGCONT)
	case databaseSlow:
		w.database.proxy.slow(50 * time.Millisecond)
		<-over
		w.database.proxy.slow(0)
	case databaseHeld:
		w.database.proxy.stall(true)
		<-over
		w.database.proxy.stall(false)
	case databaseCut:
		w.database.proxy.away(true)
		<-over
		w.database.proxy.away(false)
	case promoted:
		w.standby.fail()
		w.database.Server, w.database.proxy = w.standby.standby, w.standby.toStandby
		<-over
	case databaseDown, databaseLong:
		w.database.Stop()
		<-over
		w.database.Restart()
	default:
		w.t.Fatalf("no such fault: %v", f)
	}
}

// keepLeases checks that a fault of one server, which began at a time, has cost no other
// one its lease. Right at the beginning, they may still recover from the fault before.
func (w *world) keepLeases(faulty *process, k kind, began time.Time) {
	w.t.Helper()
	switch k {
	case killed, killedLong, stopped, paused, pausedLong:
	default:
		return // it is one of the database, which is everybody's
	}
	for _, p := range w.servers {
		if p == faulty {
			continue
		}
		for line := range strings.Lines(p.output()) {
			var l struct {
				Time time.Time
				Held *bool `json:"lease_held"`
			}
			if !strings.Contains(line, `"lease_held":false`) || json.Unmarshal([]byte(line), &l) != nil || l.Time.Before(began.Add(5*time.Second)) {
				continue
			}
			w.t.Errorf("%s had no lease during %q of %s: %s", p.name, k, faulty.name, line)
		}
	}
}

// retryShards asks every shard that waits before its next session start to try at
// once: after so many lost sessions the wait may be minutes.
func (w *world) retryShards() {
	w.t.Helper()
	for _, p := range w.servers {
		var list struct {
			Data []struct {
				ID      int
				Problem string
			}
		}
		if status, body := p.get("/shards"); status != http.StatusOK || json.Unmarshal([]byte(body), &list) != nil {
			w.t.Fatalf("/shards: %d %s", status, body)
		}
		for _, s := range list.Data {
			if strings.Contains(s.Problem, "the next try is at") {
				p.call(http.MethodPost, fmt.Sprintf("/shards/%d/restart", s.ID), "")
			}
		}
	}
}

// dies records that events in the server's memory may be lost.
func (w *world) dies(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.died[p.client()] = true
}

func (w *world) hasDied(client string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.died[client]
}

// awaitAll waits until every event has arrived or is reported as lost.
func (w *world) awaitAll() {
	w.t.Helper()
	eventually(w.t, 2*time.Minute, "complete", func() (bool, string) {
		v := judge(w.ledger, w.discord.Sessions(), w.hasDied)
		return v.open == 0, fmt.Sprintf("%d deliveries are missing: %v\nreported losses: %+v", v.open, v.sessions, w.ledger.reportedLosses())
	})
}

// finish stops the servers and checks the result.
func (w *world) finish() {
	w.t.Helper()
	for _, p := range w.servers {
		p.finish()
		w.ledger.noSecrets(p, w.discord.Token())
	}
	for _, e := range w.discord.Illegal() {
		w.t.Error(e)
	}
	sessions := w.discord.Sessions()
	v := judge(w.ledger, sessions, w.hasDied)
	for _, wrong := range v.wrong {
		w.t.Error(wrong)
	}
	if v.open > 0 {
		w.t.Errorf("%d deliveries are missing: %v", v.open, v.sessions)
	}
	newest := map[int]string{}
	for _, s := range sessions {
		newest[s.Shard] = s.ID
	}
	ended := 0
	for _, s := range sessions {
		if s.Ended != "" {
			ended++
		}
		if s.Ended == "" && newest[s.Shard] != s.ID && !w.hasDied(s.Client) {
			w.t.Errorf("shard %d: session %s of %s was abandoned, although it could be resumed", s.Shard, s.ID, s.Client)
		}
	}
	w.ledger.oneID()
	w.t.Logf("%d events to 2 listeners; Discord ended %d of %d sessions, so %d deliveries were lost and reported; %d came twice; %d RESUMEs, %d IDENTIFYs; faults: %v",
		len(w.ledger.expected), ended, len(sessions), v.lost, w.ledger.twice(),
		w.discord.Count(discordtest.Resume, discordtest.AnyShard), w.discord.Count(discordtest.Identify, discordtest.AnyShard), w.done)
}

// callbacks stands in front of the receivers and makes them fail.
type callbacks struct {
	mu    sync.Mutex // guards the fields below
	kind  kind
	until time.Time
}

// fail makes all callbacks fail for a while.
func (c *callbacks) fail(k kind, lasts time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kind, c.until = k, time.Now().Add(lasts)
}

func (c *callbacks) now() kind {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().After(c.until) {
		return ""
	}
	return c.kind
}

func (c *callbacks) front(receiver http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch c.now() {
		case callback500:
			http.Error(w, "broken", http.StatusInternalServerError)
		case callback503:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case callbackCut:
			panic(http.ErrAbortHandler) // closes the connection without an answer
		case callbackLost:
			receiver.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler) // as above
		default:
			receiver.ServeHTTP(w, r)
		}
		_, _ = io.Copy(io.Discard, r.Body) // the server repeats a POST that is cut off
	})
}
