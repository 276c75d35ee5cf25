package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestNewListenerOnAllServers checks that a listener that was registered at one server gets
// the very next events of another one's shards, and that a server that hangs holds up
// one answer only.
func TestNewListenerOnAllServers(t *testing.T) {
	t.Parallel()
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := "DATABASE_URL=" + postgrestest.URL(t)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", url), b: newNamed(t, discord, "b", url)}
	w.a.start()
	awaitShards(t, discord, manyShards)
	w.b.start()
	w.awaitFair()
	for i := range 20 {
		l := newLedger(t)
		p := [...]*process{w.a, w.b}[i%2]
		l.callback(p, "MESSAGE_CREATE")
		for id := range manyShards {
			sent, err := discord.Dispatch(id, "MESSAGE_CREATE", message(i))
			if err != nil {
				t.Fatal(err)
			}
			l.sent(event.Shard{ID: id, Count: manyShards}, sent)
		}
		l.await(time.Minute)
	}
	w.b.signal(syscall.SIGSTOP)
	discord.Suspend(w.b.client())
	for range 3 {
		newLedger(t).callback(w.a, "MESSAGE_CREATE")
	}
	w.b.signal(syscall.SIGCONT)
	discord.Continue(w.b.client())
	if n := strings.Count(w.a.output(), "did not learn of a change of listeners"); n != 1 {
		t.Errorf("%d warnings of a server that hung during 3 changes; want 1", n)
	}
}
