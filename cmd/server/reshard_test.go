package main

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestReshardedUnderLoad starts the server again with another number of shards, so
// that it brings up the new set beside the old one. It checks that events that both
// sets receive are delivered once, and that none is missing.
func TestReshardedUnderLoad(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_SHARDS=4")
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	raw, parsed := l.messages(p, "RAW_MESSAGE_CREATE"), l.messages(p, "MESSAGE_CREATE")
	sent := 0
	send := func(n int) {
		for range n {
			guild := uint64(sent) << 22
			if _, err := discord.DispatchGuild(guild, "MESSAGE_CREATE",
				fmt.Appendf(nil, `{"id":"%d","channel_id":"2","guild_id":"%d","author":{"id":"3"},"content":"x"}`, sent+1, guild)); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	send(400)
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	send(100)
	p.env = append(p.env, "GATEHOOK_SHARDS=6")
	p.start()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	roles := map[string]bool{}
	for p.shardCounts(roles)[4] > 0 || p.shardCounts(roles)[6] < 6 {
		send(5)
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the shards are %v", p.shardCounts(roles))
		}
	}
	send(200)
	for _, m := range []*messages{raw, parsed} {
		m.await(t, sent)
	}
	if n := discord.Count(discordtest.Identify, discordtest.AnyShard); n != 4+6 {
		t.Errorf("%d IDENTIFYs, want 4 and 6", n)
	}
	if !roles["warming"] || !roles["holding"] || !roles["delivering"] {
		t.Errorf("/shards showed the roles %v", roles)
	}
	t.Logf("%d events while 4 shards became 6: each delivered once to 2 listeners", sent)
}

// shardCounts returns how many connected shards of each set /shards shows, and
// adds their roles to roles.
func (p *process) shardCounts(roles map[string]bool) map[int]int {
	p.t.Helper()
	var list struct {
		Data []struct {
			Count                 int
			State, Role, Instance string
		}
	}
	if _, body := p.get("/shards"); json.Unmarshal([]byte(body), &list) != nil {
		p.t.Fatalf("/shards: %s", body)
	}
	counts := map[int]int{}
	for _, s := range list.Data {
		if s.State == "connected" {
			counts[s.Count]++
			if roles[s.Role] = true; s.Instance == "" && s.Role != "leaving" {
				p.t.Errorf("/shards does not say which server has a shard: %+v", s)
			}
		}
	}
	return counts
}

// messages counts the messages that one callback received, by the messages' own
// ids: the two sets of shards give an event different ids.
type messages struct {
	mu      sync.Mutex // guards arrived
	arrived map[string]int
	changed chan struct{}
}

// messages registers a callback that counts messages.
func (l *ledger) messages(p *process, eventName string) *messages {
	l.t.Helper()
	m := &messages{arrived: map[string]int{}, changed: make(chan struct{}, 1)}
	r := &receiver{on: func(r received) {
		var message struct{ ID string }
		if err := json.Unmarshal(r.data, &message); err != nil {
			l.t.Error(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.arrived[message.ID]++
		select {
		case m.changed <- struct{}{}:
		default:
		}
	}}
	srv := httptest.NewServer(r)
	l.t.Cleanup(srv.Close)
	l.register(p, eventName, srv.URL, r)
	return m
}

// await waits until n messages have arrived, and checks that each arrived once.
func (m *messages) await(t *testing.T, n int) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		m.mu.Lock()
		have := len(m.arrived)
		m.mu.Unlock()
		if have >= n {
			break
		}
		select {
		case <-m.changed:
		case <-deadline:
			t.Fatalf("%d of %d messages arrived", have, n)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, times := range m.arrived {
		if times != 1 {
			t.Errorf("message %s arrived %d times", id, times)
		}
	}
}
