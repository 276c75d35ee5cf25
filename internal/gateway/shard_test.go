package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// TestRestartTooEarly: a restart that was asked for before the shard failed
// does not make it try again.
func TestRestartTooEarly(t *testing.T) {
	t.Parallel()
	s := &shard{retryAsked: make(chan struct{}, 1), intents: func() event.Intents { return 0 }, log: quiet, turns: identify.NewTurns(identify.Config{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // which of two channels is read is random
		s.retryAsked <- struct{}{}
		if s.fail(ctx, &tenure{leave: make(chan struct{})}, 4004, 0) {
			t.Fatal("the shard tries again")
		}
	}
}

// TestFatalIntentsLifted: when the listeners no longer need the refused
// intent, the shard connects.
func TestFatalIntentsLifted(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: discordtest.NoFlags})
	r.intents.Store(int64(event.IntentGuilds | event.IntentMessageContent))
	r.start()
	r.wait("the shard failed", func() bool {
		st := r.gateway.Status()
		return len(st) == 1 && st[0].State == StateFailed && strings.Contains(st[0].Problem, "MESSAGE_CONTENT")
	})
	r.intents.Store(int64(event.IntentGuilds))
	r.changed <- struct{}{}
	r.ready(0)
}

// TestFatalForAll: when Discord refuses one shard for a reason that concerns
// all, the others send no IDENTIFY until the intents change.
func TestFatalForAll(t *testing.T) {
	t.Parallel()
	const shards = 4
	r := newRig(t, discordtest.Config{Shards: shards})
	r.slots = pacedBuckets(t, 20*time.Millisecond)
	r.intents.Store(int64(event.IntentGuilds | event.IntentMessageContent))
	r.Arm(discordtest.AtIdentify, discordtest.AnyShard, 1, discordtest.Close(4014)) // as if it was switched off just now
	r.start()
	for _, st := range r.failed(shards) {
		if !strings.Contains(st.Problem, "MESSAGE_CONTENT") {
			t.Errorf("status %+v", st)
		}
	}
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 1 {
		t.Errorf("%d IDENTIFYs, want 1", n)
	}
	r.intents.Store(int64(event.IntentGuilds))
	r.changed <- struct{}{}
	for shard := range shards {
		r.ready(shard)
	}
}

// TestRetry: every failed shard tries again when a person asks it to. A session
// that goes on is not affected by a refused token.
func TestRetry(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Shards: 2, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 2}})
	r.start()
	r.named("READY", 2)
	r.Arm(discordtest.AtIdentify, 0, 1, discordtest.Close(4004))
	r.do(0, discordtest.Invalidate(false))
	r.failed(1)
	r.do(1, discordtest.Drop())
	r.count(discordtest.Resumed, 1, 1)
	r.do(1, discordtest.Invalidate(false))
	if st := r.failed(2)[1]; !strings.Contains(st.Problem, "DISCORD_TOKEN") {
		t.Errorf("status %+v", st)
	}
	if n := r.Count(discordtest.Identify, 1); n != 1 {
		t.Errorf("%d IDENTIFYs of the shard that is known to be refused, want 1", n)
	}
	for shard := range 2 {
		r.gateway.mu.Lock()
		s := r.gateway.shards[event.Shard{ID: shard, Count: 2}]
		r.gateway.mu.Unlock()
		s.retry()
		s.retry() // asked twice, tried once
		r.ready(shard)
	}
	r.legal()
}
