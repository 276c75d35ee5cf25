package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

const (
	shards     = 4
	manyShards = 8
)

func startDiscord(t *testing.T) *discordtest.Server {
	t.Helper()
	return startDiscordAs(t, discordtest.Config{Shards: shards})
}

// startDiscordAs starts a simulated Discord that lets all shards identify at once.
// At the end the server must have broken no rule.
func startDiscordAs(t *testing.T, cfg discordtest.Config) *discordtest.Server {
	t.Helper()
	cfg.SessionStart = discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 16}
	discord, err := discordtest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, e := range discord.Illegal() {
			t.Errorf("broken rule at %s on connection %d of shard %d: %s", e.At.UTC().Format(time.TimeOnly+".000"), e.Conn, e.Shard, e.Detail)
		}
		discord.Close()
	})
	return discord
}

func awaitReady(t *testing.T, discord *discordtest.Server) {
	t.Helper()
	awaitShards(t, discord, shards)
}

func awaitShards(t *testing.T, discord *discordtest.Server, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for shard := range count {
		if _, err := discord.WaitReady(ctx, shard); err != nil {
			t.Fatal(err)
		}
	}
}

// flow sends n events to the shards in turn, a few thousand per second. It calls
// at[i] before event i.
func flow(t *testing.T, discord *discordtest.Server, l *ledger, n int, at map[int]func()) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := range n {
		if do := at[i]; do != nil {
			do()
		}
		shard := event.Shard{ID: i % shards, Count: shards}
		sent, err := discord.Dispatch(shard.ID, "MESSAGE_CREATE", message(i))
		if err != nil {
			t.Fatal(err)
		}
		l.sent(shard, sent)
		if i%80 == 79 {
			<-tick.C
		}
	}
}

// load sends an event per tick, to the shards in turn, until stop is called.
func load(t *testing.T, discord *discordtest.Server, l *ledger, every time.Duration) (stop func()) {
	t.Helper()
	i := -1
	return steadily(t, every, func() {
		i++
		shard := event.Shard{ID: i % manyShards, Count: manyShards}
		s, err := discord.Dispatch(shard.ID, "MESSAGE_CREATE", message(i))
		if err != nil {
			return // the shard has no session now, so nobody can receive the event
		}
		l.sent(shard, s)
	})
}

// steadily calls send once per tick until stop is called.
func steadily(t *testing.T, every time.Duration, send func()) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				send()
			}
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func message(i int) []byte {
	return fmt.Appendf(nil, `{"id":"%d","channel_id":"2","guild_id":"1","author":{"id":"3"},"content":"%s"}`, i+1, strings.Repeat("x", i%500))
}

// eventually calls check a few times per second until it reports done, and fails the
// test if that takes longer than limit. what completes "not … within".
func eventually(t *testing.T, limit time.Duration, what string, check func() (done bool, state string)) {
	t.Helper()
	if state, done := within(limit, check); !done {
		t.Fatalf("not %s within %v: %s", what, limit, state)
	}
}

// within is like eventually, for a test that continues in either case.
func within(limit time.Duration, check func() (done bool, state string)) (state string, done bool) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		begin := time.Now()
		if done, state = check(); done {
			return state, true
		}
		// A slow check must not run all the time: it may hold a lock that blocks
		// progress.
		again := time.NewTimer(max(100*time.Millisecond, 10*time.Since(begin)))
		select {
		case <-again.C:
		case <-deadline.C:
			again.Stop()
			return state, false
		}
	}
}

// moments returns five random event numbers below n, in order, none of them near
// either end.
func moments(t *testing.T, n int) []int {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]int, 5)
	for i := range out {
		out[i] = n/20 + r.IntN(n*9/10)
	}
	slices.Sort(out)
	return out
}

// TestKilledFiveTimes kills the server five times while 20,000 events flow. It
// checks that none is lost: every restart RESUMEs, and delivers the events that
// were stored but not delivered.
func TestKilledFiveTimes(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord) // with its embedded PostgreSQL, which dies with it
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	l.callback(p, "RAW_MESSAGE_CREATE")

	const events = 20000
	at := map[int]func(){}
	kills := 0
	for _, m := range moments(t, events) {
		at[m] = func() {
			p.stop(syscall.SIGKILL)
			kills++
			p.start()
		}
	}
	flow(t, discord, l, events, at)
	l.await(3 * time.Minute)
	for shard := range shards {
		if n := discord.Count(discordtest.Identify, shard); n != 1 {
			t.Errorf("shard %d identified %d times", shard, n)
		}
	}
	t.Logf("%d events to 2 listeners, killed %d times: none lost, %d deliveries came twice; %d RESUMEs, %d IDENTIFYs",
		events, kills, l.twice(), discord.Count(discordtest.Resume, discordtest.AnyShard), discord.Count(discordtest.Identify, discordtest.AnyShard))
	l.noSecrets(p, discord.Token())
}

// TestStoppedFiveTimes stops the server five times with SIGTERM. It checks that
// nothing is lost or repeated, and that the exit status is 0.
func TestStoppedFiveTimes(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	l.callback(p, "RAW_*")

	const events = 20000
	at := map[int]func(){}
	for _, m := range moments(t, events) {
		at[m] = func() {
			if code := p.stop(syscall.SIGTERM); code != 0 {
				t.Errorf("exit status %d", code)
			}
			p.start()
		}
	}
	flow(t, discord, l, events, at)
	l.await(3 * time.Minute)
	if n := l.twice(); n != 0 {
		t.Errorf("%d deliveries came twice", n)
	}
	if n := discord.Count(discordtest.Identify, discordtest.AnyShard); n != shards {
		t.Errorf("%d IDENTIFYs for %d shards", n, shards)
	}
	if code := p.stop(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d", code)
	}
	l.noSecrets(p, discord.Token())
}

// TestDatabaseAwayForTenSeconds checks that an outage of PostgreSQL delays events
// but loses none.
func TestDatabaseAwayForTenSeconds(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	pg := postgrestest.Start(t)
	p := newProcess(t, discord, "DATABASE_URL="+pg.URL())
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")

	const events = 8000
	var restarted <-chan time.Time
	flow(t, discord, l, events, map[int]func(){
		2000: func() {
			pg.Stop()
			restarted = time.After(10 * time.Second)
		},
		6000: func() {
			eventually(t, 5*time.Second, "unready", func() (bool, string) { // a heartbeat notices it
				status, body := p.get("/readyz")
				if strings.Contains(body, "user=") {
					t.Errorf("/readyz, which is public: %s", body)
				}
				return status == http.StatusServiceUnavailable && strings.Contains(body, "database does not answer: no connection"), body
			})
			if status, _ := p.get("/healthz"); status != http.StatusOK {
				t.Errorf("/healthz without a database: %d", status)
			}
			<-restarted
			pg.Restart()
		},
	})
	l.await(2 * time.Minute)
	if n := l.twice(); n != 0 {
		t.Logf("%d deliveries came twice", n)
	}
	if n := discord.Count(discordtest.Identify, discordtest.AnyShard); n != shards {
		t.Errorf("%d IDENTIFYs for %d shards", n, shards)
	}
	if status, body := p.get("/readyz"); status != http.StatusOK {
		t.Errorf("/readyz afterwards: %d %s", status, body)
	}
}

// TestHangingCallback checks that a callback that hangs delays neither another
// callback nor the drain, which cuts it off and succeeds.
func TestHangingCallback(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_ATTEMPT_TIMEOUT=60s", "GATEHOOK_SHUTDOWN_TIMEOUT=1s")
	p.start()
	awaitReady(t, discord)
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(release) })
	l := newLedger(t)
	l.register(p, "*", hanging.URL, &receiver{})
	l.callback(p, "MESSAGE_CREATE")
	start := time.Now()
	flow(t, discord, l, 5000, nil)
	sent := time.Since(start)
	l.await(time.Minute)
	t.Logf("5000 events sent in %v, all delivered after %v in spite of a hanging callback", sent, time.Since(start))
	p.finish()
}

// withTraffic starts a server with one listener, and sends 40 events.
func withTraffic(t *testing.T) (*discordtest.Server, *process, *ledger) {
	t.Helper()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	flow(t, discord, l, 40, nil)
	return discord, p, l
}

// TestWhatIsServed checks the shards, the health checks, the metrics and the
// contract.
func TestWhatIsServed(t *testing.T) {
	t.Parallel()
	_, p, l := withTraffic(t)
	l.await(time.Minute)

	var list struct {
		Data []struct {
			ID, Count   int
			State       string
			SeqReceived int `json:"seq_received"`
		}
	}
	if _, body := p.get("/shards"); json.Unmarshal([]byte(body), &list) != nil || len(list.Data) != shards {
		t.Errorf("/shards: %s", body)
	}
	for i, s := range list.Data {
		if s.ID != i || s.Count != shards || s.State != "connected" || s.SeqReceived != 11 {
			t.Errorf("shard %d: %+v", i, s)
		}
	}
	for path, want := range map[string]string{
		"/healthz": `"ok"`, "/readyz": `"ok"`, "/openapi.json": `"/listeners/{id}"`, "/events/types": `"GUILD_BAN_ADD"`,
		"/metrics": `gatehook_journal_events_stored_total 40`,
	} {
		if status, body := p.get(path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d without %s: %.300s", path, status, want, body)
		}
	}
}

// TestSettingsOfTheDatabase checks that the server does not depend on what a database or
// a role sets for everybody: another schema, other isolation, time limits.
func TestSettingsOfTheDatabase(t *testing.T) {
	t.Parallel()
	url := postgrestest.EmptyURL(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	name := conn.Config().Database
	for _, s := range []string{
		`CREATE SCHEMA of_its_own`, `DROP SCHEMA public`,
		`ALTER DATABASE ` + name + ` SET search_path = of_its_own`,
		`ALTER DATABASE ` + name + ` SET default_transaction_isolation = 'serializable'`,
		`ALTER DATABASE ` + name + ` SET statement_timeout = '100ms'`,
		`ALTER DATABASE ` + name + ` SET lock_timeout = '1ms'`,
		`ALTER DATABASE ` + name + ` SET idle_session_timeout = '500ms'`,
		`ALTER DATABASE ` + name + ` SET idle_in_transaction_session_timeout = '10ms'`,
		`ALTER DATABASE ` + name + ` SET TimeZone = 'Asia/Kathmandu'`,
		`ALTER DATABASE ` + name + ` SET DateStyle = 'German, DMY'`,
		`ALTER DATABASE ` + name + ` SET default_transaction_read_only = on`, // until it is promoted
	} {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+url)
	promoted := make(chan error, 1)
	go func() {
		for !strings.Contains(p.output(), "the database takes no changes, waiting") {
			if t.Context().Err() != nil {
				promoted <- t.Context().Err()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		_, err := conn.Exec(t.Context(), `ALTER DATABASE `+name+` SET default_transaction_read_only = off`)
		promoted <- err
	}()
	p.start()
	if err := <-promoted; err != nil {
		t.Fatal(err)
	}
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	flow(t, discord, l, 400, nil)
	l.await(time.Minute)
	for line := range strings.SplitSeq(p.output(), "\n") {
		if strings.Contains(line, "SQLSTATE") {
			t.Errorf("an error of the database: %s", line)
		}
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRoleThatOwnsNothing checks that a server needs only the rights that the README
// grants, once the owner has migrated.
func TestRoleThatOwnsNothing(t *testing.T) {
	t.Parallel()
	owner := postgrestest.URL(t)
	conn, err := pgx.Connect(t.Context(), owner)
	if err != nil {
		t.Fatal(err)
	}
	role := "serves_" + conn.Config().Database
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, grants, _ := strings.Cut(string(readme), "-- As the owner, after `server migrate`:\n")
	grants, _, ok := strings.Cut(grants, "```")
	if !ok {
		t.Fatal("the README has no grants")
	}
	for _, s := range []string{`CREATE ROLE ` + role + ` LOGIN`, strings.ReplaceAll(grants, "gatehook_server", role)} {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := conn.Exec(ctx, `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
		if err := conn.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+strings.Replace(owner, "user="+conn.Config().User, "user="+role, 1))
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	flow(t, discord, l, 400, nil)
	l.await(time.Minute)
	p.drain()
	for line := range strings.SplitSeq(p.output(), "\n") {
		if strings.Contains(line, "SQLSTATE") {
			t.Errorf("an error of the database: %s", line)
		}
	}
	var foreign int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relowner = $1::regrole`, role).Scan(&foreign); err != nil || foreign != 0 {
		t.Errorf("the role owns %d tables, %v", foreign, err)
	}
	for _, s := range []string{`SELECT make_partition('listeners', 'listeners_20260101t00', '1', '2')`, `SELECT drop_partition('events', 'listeners')`, `SELECT drop_partition('events', 'events')`} {
		if _, err := conn.Exec(t.Context(), s); err == nil {
			t.Errorf("%s is done", s)
		}
	}
}

// TestNewListenerGetsTheVeryNextEvent checks that a new listener receives the next
// event, although the shards have to identify again for it: until they have, the
// old session delivers.
func TestNewListenerGetsTheVeryNextEvent(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_INTENTS=auto")
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	flow(t, discord, l, 400, nil)
	l.await(time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for shard := range shards {
		e, err := discord.WaitIdentify(ctx, shard, 2)
		if err != nil {
			t.Fatal(err)
		}
		var identify struct{ Intents event.Intents }
		want := event.IntentGuildMessages | event.IntentDirectMessages | event.IntentMessageContent
		if err := json.Unmarshal(e.Data, &identify); err != nil || identify.Intents != want {
			t.Errorf("identified with %v, %v; want %v", identify.Intents, err, want)
		}
	}
	awaitReady(t, discord)
	if n := l.twice(); n != 0 {
		t.Errorf("%d deliveries came twice", n)
	}
}
