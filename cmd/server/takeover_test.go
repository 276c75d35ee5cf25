package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// pair holds two servers on one database, under a load that runs until settle.
type pair struct {
	t       *testing.T
	discord *discordtest.Server
	a, b    *process
	ledger  *ledger
	stop    func()
	// renumbers: the database has lost commits, so what was delivered from them comes
	// again under another number.
	renumbers bool
}

// startPair starts the first server, registers listeners and starts the load. It
// does not start the second server.
func startPair(t *testing.T) *pair {
	t.Helper()
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := "DATABASE_URL=" + postgrestest.URL(t)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", url), b: newNamed(t, discord, "b", url), ledger: newLedger(t)}
	w.a.start()
	awaitShards(t, discord, manyShards)
	for _, name := range []string{"MESSAGE_CREATE", "RAW_MESSAGE_CREATE"} {
		w.ledger.callback(w.a, name)
	}
	w.stop = load(t, discord, w.ledger, 5*time.Millisecond)
	return w
}

// shards returns the states of the shards in GET /shards.
func (p *process) shards() (map[int]string, error) {
	_, body, err := p.ask("/shards")
	if err != nil {
		return nil, err
	}
	var list struct {
		Data []struct {
			ID    int
			State string
		}
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return nil, fmt.Errorf("GET /shards: %w: %s", err, body)
	}
	states := make(map[int]string, len(list.Data))
	for _, s := range list.Data {
		states[s.ID] = s.State
	}
	return states, nil
}

// owned returns how many shards a server owns, and how many of them are connected.
// The server shows the shards that it does not own as "standby".
func (p *process) owned() (total, connected int, err error) {
	states, err := p.shards()
	for _, state := range states {
		if state != "standby" {
			total++
		}
		if state == "connected" {
			connected++
		}
	}
	return total, connected, err
}

// awaitFair waits until each server owns half of the shards, and both the servers
// and the simulated Discord report them as connected.
func (w *pair) awaitFair() {
	w.t.Helper()
	eventually(w.t, 2*time.Minute, "shared half and half", func() (bool, string) {
		ownA, upA, errA := w.a.owned()
		ownB, upB, errB := w.b.owned()
		seen := w.connected(w.a, w.b)
		state := fmt.Sprintf("a owns %d (%v), b %d (%v), connected %d and %d, at Discord %v", ownA, errA, ownB, errB, upA, upB, seen)
		half := manyShards / 2
		return ownA == half && ownB == half && upA == half && upB == half && seen[w.a] == half && seen[w.b] == half, state
	})
}

// awaitAll waits until the simulated Discord has connections from one server for
// all shards.
func (w *pair) awaitAll(p *process) {
	w.t.Helper()
	eventually(w.t, 2*time.Minute, p.name+" in service for all shards", func() (bool, string) {
		seen := w.connected(p)
		return seen[p] == manyShards, fmt.Sprintf("%d connected", seen[p])
	})
}

// connected returns how many shards each server has connected to the simulated
// Discord.
func (w *pair) connected(servers ...*process) map[*process]int {
	connected := map[*process]int{}
	for shard := range manyShards {
		s, ok := w.discord.Session(shard)
		for _, p := range servers {
			if ok && s.Connected && s.Client == p.client() {
				connected[p]++
			}
		}
	}
	return connected
}

// bigger returns the server that owns more shards, and the other one.
func (w *pair) bigger() (big, small *process) {
	w.t.Helper()
	ownA, _, errA := w.a.owned()
	ownB, _, errB := w.b.owned()
	if errA != nil || errB != nil {
		w.t.Fatal(errA, errB)
	}
	w.t.Logf("a owns %d shards, b %d", ownA, ownB)
	if ownB > ownA {
		return w.b, w.a
	}
	return w.a, w.b
}

// flow waits until n more events are sent.
func (w *pair) flow(n int) {
	w.t.Helper()
	begin := w.ledger.sentSoFar()
	eventually(w.t, time.Minute, "flowing", func() (bool, string) {
		sent := w.ledger.sentSoFar() - begin
		return sent >= n, fmt.Sprintf("%d events sent", sent)
	})
}

func (l *ledger) sentSoFar() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.expected)
}

// settle ends the load, and checks that nothing was lost and that no session was
// started again.
func (w *pair) settle() {
	w.t.Helper()
	w.flow(400)
	w.stop()
	w.ledger.await(2 * time.Minute)
	if !w.renumbers {
		w.ledger.oneID()
	}
	if n := w.discord.Count(discordtest.Identify, discordtest.AnyShard); n != manyShards {
		w.t.Errorf("%d IDENTIFYs for %d shards", n, manyShards)
	}
	for _, p := range []*process{w.a, w.b} {
		w.ledger.noSecrets(p, w.discord.Token())
	}
	w.t.Logf("%d events to 2 listeners, none lost, %d came twice; %d RESUMEs", len(w.ledger.expected), w.ledger.twice(),
		w.discord.Count(discordtest.Resume, discordtest.AnyShard))
}

// TestKilledServerIsTakenOver kills the server with more shards. The other one must
// resume all of them.
func TestKilledServerIsTakenOver(t *testing.T) {
	t.Parallel()
	w := startPair(t)
	w.b.start()
	w.awaitFair()
	big, small := w.bigger()
	before := time.Now()
	big.stop(syscall.SIGKILL)
	w.awaitAll(small)
	t.Logf("all shards resumed by the other server %v after the kill", time.Since(before).Round(time.Millisecond))
	w.settle()
}

// TestPausedServerIsTakenOver pauses a server for longer than its lease. When it
// continues it must neither store nor deliver events of its old shards, and must
// get its share of shards back.
func TestPausedServerIsTakenOver(t *testing.T) {
	t.Parallel()
	w := startPair(t)
	w.b.start()
	w.awaitFair()
	big, small := w.bigger()
	big.signal(syscall.SIGSTOP)
	w.discord.Suspend(big.client())
	before := time.Now()
	w.awaitAll(small)
	t.Logf("all shards resumed by the other server %v after the pause began", time.Since(before).Round(time.Millisecond))
	w.discord.Continue(big.client())
	big.signal(syscall.SIGCONT)
	w.awaitFair()
	w.settle()
}

// TestPausedServerResumesWhatItsHeirHad pauses a server until another one has its
// shards, and then gives all shards back to it. Discord has told it that its sessions
// are no longer valid, because the other server resumed them: they must still be
// resumed when they come back.
func TestPausedServerResumesWhatItsHeirHad(t *testing.T) {
	t.Parallel()
	w := startPair(t)
	w.b.start()
	w.awaitFair()
	w.a.signal(syscall.SIGSTOP)
	w.discord.Suspend(w.a.client())
	w.awaitAll(w.b)
	w.discord.Continue(w.a.client())
	w.a.signal(syscall.SIGCONT)
	w.awaitFair()
	w.flow(200)
	w.b.drain()
	w.awaitAll(w.a)
	w.settle()
}

// TestServerFrozenInACommit stops a server in the middle of a commit: PostgreSQL waits
// for the rest of its events. The two others must keep their leases and take over.
func TestServerFrozenInACommit(t *testing.T) {
	t.Parallel()
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := postgrestest.URL(t)
	proxy, slow := behindProxy(t, url)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", "DATABASE_URL="+slow), b: newNamed(t, discord, "b", "DATABASE_URL="+url), ledger: newLedger(t)}
	c := newNamed(t, discord, "c", "DATABASE_URL="+url)
	w.a.start()
	awaitShards(t, discord, manyShards)
	w.ledger.callback(w.a, "MESSAGE_CREATE")
	w.stop = load(t, discord, w.ledger, 5*time.Millisecond)
	w.b.start()
	c.start()
	eventually(t, 2*time.Minute, "shared by three", func() (bool, string) {
		seen := w.connected(w.a, w.b, c)
		return seen[w.a] > 1 && seen[w.b] > 1 && seen[c] > 1 && seen[w.a]+seen[w.b]+seen[c] == manyShards, fmt.Sprint(seen)
	})
	// Many events at once go by COPY.
	frozen := proxy.stallAfter(`copy "events"`)
	eventually(t, time.Minute, "frozen in a commit", func() (bool, string) {
		for i := range 100 * manyShards {
			shard := event.Shard{ID: i % manyShards, Count: manyShards}
			if s, err := discord.Dispatch(shard.ID, "MESSAGE_CREATE", message(i)); err == nil {
				w.ledger.sent(shard, s)
			}
		}
		select {
		case <-frozen:
			return true, ""
		default:
			return false, "no COPY"
		}
	})
	w.a.signal(syscall.SIGSTOP)
	w.discord.Suspend(w.a.client())
	before := time.Now()
	eventually(t, time.Minute, "taken over", func() (bool, string) {
		seen := w.connected(w.b, c)
		return seen[w.b]+seen[c] == manyShards, fmt.Sprint(seen)
	})
	t.Logf("all shards resumed by the other servers %v after the freeze", time.Since(before).Round(time.Millisecond))
	w.flow(int(30 * time.Second / (5 * time.Millisecond)))
	for _, p := range []*process{w.b, c} {
		if out := p.output(); strings.Contains(out, "heartbeat failed") || strings.Contains(out, "under a new number") {
			t.Errorf("%s was harmed", p.name)
		}
	}
	proxy.stall(false)
	w.discord.Continue(w.a.client())
	w.a.signal(syscall.SIGCONT)
	eventually(t, time.Minute, "three again", func() (bool, string) {
		seen := w.connected(w.a, w.b, c)
		return seen[w.a] > 1 && seen[w.b] > 1 && seen[c] > 1, fmt.Sprint(seen)
	})
	w.settle()
}

// TestServerCutOffFromTheDatabase checks that a server that can't reach the database
// leaves its sessions before another one resumes them: Discord forbids two connections on
// one session.
func TestServerCutOffFromTheDatabase(t *testing.T) {
	t.Parallel()
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := postgrestest.URL(t)
	proxy, alone := behindProxy(t, url)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", "DATABASE_URL="+alone), b: newNamed(t, discord, "b", "DATABASE_URL="+url), ledger: newLedger(t)}
	w.a.start()
	awaitShards(t, discord, manyShards)
	w.ledger.callback(w.a, "MESSAGE_CREATE")
	w.stop = load(t, discord, w.ledger, 20*time.Millisecond)
	w.b.start()
	w.awaitFair()
	before := time.Now()
	proxy.stall(true)
	w.awaitAll(w.b)
	t.Logf("all shards resumed by the other server %v after the database stalled for one", time.Since(before).Round(time.Millisecond))
	proxy.stall(false)
	w.awaitFair()
	w.settle()
}

// TestStoppedServerThatWasAlone checks that a server that was stopped (SIGSTOP) does not
// rely on what it knew before: it was alone, but while it was stopped another one started,
// and has its sessions. It can't learn that at once: the database is away when it wakes up.
func TestStoppedServerThatWasAlone(t *testing.T) {
	t.Parallel()
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := postgrestest.URL(t)
	proxy, alone := behindProxy(t, url)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", "DATABASE_URL="+alone), b: newNamed(t, discord, "b", "DATABASE_URL="+url), ledger: newLedger(t)}
	w.a.start()
	awaitShards(t, discord, manyShards)
	w.ledger.callback(w.a, "MESSAGE_CREATE")
	w.stop = load(t, discord, w.ledger, 20*time.Millisecond)
	w.flow(50)
	w.a.signal(syscall.SIGSTOP)
	discord.Suspend(w.a.client())
	for shard := range manyShards {
		if err := discord.Do(shard, discordtest.Drop()); err != nil { // otherwise 4006 says who has the session
			t.Fatal(err)
		}
	}
	w.b.start()
	w.awaitAll(w.b)
	proxy.away(true)
	discord.Continue(w.a.client())
	w.a.signal(syscall.SIGCONT)
	w.flow(int(10 * time.Second / (20 * time.Millisecond)))
	if seen := w.connected(w.a, w.b); seen[w.b] != manyShards {
		t.Errorf("connected: %d to the server that was stopped, %d to the other", seen[w.a], seen[w.b])
	}
	proxy.away(false)
	w.awaitFair()
	w.settle()
}

// TestSlowDatabase checks that a server whose database answers after seconds keeps its
// lease, its shards and its events.
func TestSlowDatabase(t *testing.T) {
	t.Parallel()
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := postgrestest.URL(t)
	proxy, slow := behindProxy(t, url)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", "DATABASE_URL="+slow), b: newNamed(t, discord, "b", "DATABASE_URL="+url), ledger: newLedger(t)}
	w.a.start()
	awaitShards(t, discord, manyShards)
	w.ledger.callback(w.a, "MESSAGE_CREATE")
	w.stop = load(t, discord, w.ledger, 20*time.Millisecond)
	w.b.start()
	w.awaitFair()
	proxy.slow(1250 * time.Millisecond) // 2.5 s there and back
	w.flow(int(20 * time.Second / (20 * time.Millisecond)))
	for _, p := range []*process{w.a, w.b} {
		if out := p.output(); strings.Contains(out, "heartbeat failed") || strings.Contains(out, "under a new number") || strings.Contains(out, "took over from a dead instance") {
			t.Errorf("%s was harmed: %s", p.name, warnings(out))
		}
	}
	seen := w.connected(w.a, w.b)
	if seen[w.a] == 0 || seen[w.a]+seen[w.b] != manyShards {
		t.Errorf("connected: %v", seen)
	}
	proxy.slow(0)
	w.settle()
}

// warnings returns the lines of a server's output that are warnings.
func warnings(out string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return !strings.Contains(line, `"WARN"`) }), "\n")
}

// TestServerJoinsAndLeaves checks that a server that joins takes its share, and that
// one that stops hands its share over: nothing is lost or repeated.
func TestServerJoinsAndLeaves(t *testing.T) {
	t.Parallel()
	w := startPair(t)
	w.b.start()
	w.awaitFair()
	w.flow(400)
	if code := w.b.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	w.awaitAll(w.a)
	w.settle()
	if n := w.ledger.twice(); n != 0 {
		t.Errorf("%d deliveries came twice", n)
	}
}
