package main

import (
	"encoding/json"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// pair is two servers on one database, under a load that runs until settle.
type pair struct {
	t       *testing.T
	discord *discordtest.Server
	a, b    *process
	ledger  *ledger
	stop    func()
}

// startPair starts the first server, registers listeners and lets events flow.
// The second one is not started.
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

// shards are the states of the shards as GET /shards tells them.
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

// owned is how many shards a server says are its own. Of all that it does not
// own it says that it stands by.
func (p *process) owned() (own, connected int, err error) {
	states, err := p.shards()
	for _, state := range states {
		if state != "standby" {
			own++
		}
		if state == "connected" {
			connected++
		}
	}
	return own, connected, err
}

// awaitFair waits until both servers own half of the shards, connected, and
// the simulated Discord sees it so.
func (w *pair) awaitFair() {
	w.t.Helper()
	eventually(w.t, 2*time.Minute, "shared half and half", func() (bool, string) {
		ownA, upA, errA := w.a.owned()
		ownB, upB, errB := w.b.owned()
		seen := w.held(w.a, w.b)
		state := fmt.Sprintf("a owns %d (%v), b %d (%v), connected %d and %d, at Discord %v", ownA, errA, ownB, errB, upA, upB, seen)
		half := manyShards / 2
		return ownA == half && ownB == half && upA == half && upB == half && seen[w.a] == half && seen[w.b] == half, state
	})
}

// awaitAll waits until one server has all shards, in Discord's eyes.
func (w *pair) awaitAll(p *process) {
	w.t.Helper()
	eventually(w.t, 2*time.Minute, p.name+" in service for all shards", func() (bool, string) {
		seen := w.held(p)
		return seen[p] == manyShards, fmt.Sprintf("%d of them", seen[p])
	})
}

// held is how many shards' sessions each of the servers is connected with, as
// Discord sees it.
func (w *pair) held(servers ...*process) map[*process]int {
	held := map[*process]int{}
	for shard := range manyShards {
		s, ok := w.discord.Session(shard)
		for _, p := range servers {
			if ok && s.Connected && s.Client == p.client() {
				held[p]++
			}
		}
	}
	return held
}

// bigger is the server that owns more shards, and the other one.
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

// flow lets n more events be sent.
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

// settle ends the load and checks that nothing was lost and no session was
// begun anew.
func (w *pair) settle() {
	w.t.Helper()
	w.flow(400)
	w.stop()
	w.ledger.await(2 * time.Minute)
	w.ledger.oneID()
	if n := w.discord.Count(discordtest.Identify, discordtest.AnyShard); n != manyShards {
		w.t.Errorf("%d IDENTIFYs for %d shards", n, manyShards)
	}
	for _, p := range []*process{w.a, w.b} {
		w.ledger.noSecrets(p, w.discord.Token())
	}
	w.t.Logf("%d events to 2 listeners, none lost, %d came twice; %d RESUMEs", len(w.ledger.expected), w.ledger.twice(),
		w.discord.Count(discordtest.Resume, discordtest.AnyShard))
}

// The server with more shards is killed: the other one resumes all of them.
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

// A server that is stopped for longer than its lease finds that it owns nothing
// any more: it neither stores nor delivers for those shards, and gets its share
// back in turn.
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

// A server that joins takes its share, and one that is told to stop hands its
// own over: nothing is lost, nothing comes twice.
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
