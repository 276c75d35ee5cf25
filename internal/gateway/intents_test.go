package gateway

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// TestIntentSwitchedOn: a missing intent is reported, costs no session start,
// and is used as soon as a person switches it on.
func TestIntentSwitchedOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: discordtest.NoFlags})
	r.cfg.OnlyEnabled = true
	r.intents.Store(int64(event.IntentGuildMessages | event.IntentGuildMembers))
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.wait("the missing intent is shown", func() bool {
		st := r.gateway.Status()[0]
		return st.State == StateConnected && strings.Contains(st.Problem, "GUILD_MEMBERS (Server Members Intent); switch it on at https://")
	})
	if n := r.Count(discordtest.Identify, 0); n != 1 {
		t.Errorf("%d IDENTIFYs, want 1", n)
	}
	r.SetFlags(1 << 15)
	r.wait("the shard has it", func() bool {
		return r.gateway.Status()[0].Intents == event.IntentGuildMessages|event.IntentGuildMembers
	})
	r.dispatch(0, 10, 10)
	r.messages(20)
	if st := r.gateway.Status()[0]; st.Problem != "" {
		t.Errorf("problem %q", st.Problem)
	}
	r.legal()
}

// TestFixedIntentNotSwitchedOn: no session start is spent on intents that
// Discord would refuse, and the shard goes on once Discord would accept them.
func TestFixedIntentNotSwitchedOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: discordtest.NoFlags})
	r.intents.Store(int64(event.IntentGuilds | event.IntentGuildPresences))
	r.start()
	r.wait("failed", func() bool {
		st := r.gateway.Status()
		return len(st) == 1 && st[0].State == StateFailed && strings.Contains(st[0].Problem, "GUILD_PRESENCES")
	})
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 0 {
		t.Errorf("%d IDENTIFYs, want 0", n)
	}
	r.SetFlags(1 << 12)
	e := r.count(discordtest.Identify, 0, 1)
	var sent struct{ Intents event.Intents }
	if err := json.Unmarshal(e.Data, &sent); err != nil || sent.Intents != event.IntentGuilds|event.IntentGuildPresences {
		t.Errorf("identified with %v, %v", sent.Intents, err)
	}
	r.ready(0)
	r.legal()
}
