package gateway

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// TestJudge: the intents that a session may have decide which events of the
// catalog can't come.
func TestJudge(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		can            event.Intents
		never, partial []string // nil: not checked
	}{
		{"all", event.IntentsAll, []string{}, []string{}},
		{
			"nothing switched on", event.IntentsAll &^ event.IntentsPrivileged,
			[]string{"GUILD_MEMBER_ADD", "GUILD_MEMBER_REMOVE", "PRESENCE_UPDATE"},
			[]string{"AUTO_MODERATION_ACTION_EXECUTION", "GUILD_MEMBER_UPDATE", "MESSAGE_CREATE", "MESSAGE_UPDATE"},
		},
		{"guilds only", event.IntentGuilds, nil, []string{"GUILD_MEMBER_UPDATE"}},
		{"no intents", 0, nil, []string{"GUILD_MEMBER_UPDATE"}},
	}
	for _, tt := range tests {
		got := map[verdict][]string{never: {}, partial: {}}
		for _, typ := range event.Types() {
			v := judge(typ, tt.can)
			got[v] = append(got[v], typ.Name)
			if v != comes && typ.Intents == 0 {
				t.Errorf("%s: %s needs no intent, but does not come", tt.name, typ.Name)
			}
		}
		if tt.never != nil && !slices.Equal(got[never], tt.never) || !slices.Equal(got[partial], tt.partial) {
			t.Errorf("%s: never %v, partial %v", tt.name, got[never], got[partial])
		}
	}
}

func pattern(t *testing.T, s string) event.Pattern {
	t.Helper()
	p, err := event.ParsePattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAdviseAuto: with GATEHOOK_INTENTS=auto, an event whose intent is switched
// off is refused, with the address where a person can switch it on.
func TestAdviseAuto(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Flags: discordtest.NoFlags, Shards: 3})
	r.cfg.OnlyEnabled = true
	if refusal, notes := New(r.cfg, r.store.join(), r.slots, r.log, prometheus.NewRegistry()).Advise(r.ctx, pattern(t, "PRESENCE_UPDATE"), 0); refusal != "" || len(notes) != 1 {
		t.Errorf("before Discord has answered: %q, %q", refusal, notes)
	}
	r.start()
	r.ready(0)
	r.connected(&instance{Gateway: r.gateway})
	before := event.IntentGuilds | event.IntentGuildMessages
	tests := []struct {
		pattern string
		refusal string
		notes   []string // a part of each
	}{
		{"PRESENCE_UPDATE", "GUILD_PRESENCES (Presence Intent); switch it on at https://discord.com/developers/applications/1001/bot", nil},
		{"RAW_GUILD_MEMBER_ADD", "GUILD_MEMBERS (Server Members Intent)", nil},
		{"GUILD_MEMBER_UPDATE", "", []string{"own member only"}},
		{"THREAD_MEMBERS_UPDATE", "", nil},
		{"INTERACTION_CREATE", "", nil},
		{"GUILD_CREATE", "", nil},
		{"GUILD_BAN_ADD", "", []string{"The shards (3) identify again with GUILD_MODERATION"}},
		{"MESSAGE_CREATE", "", []string{"MESSAGE_CREATE comes without its content", "DIRECT_MESSAGES"}},
		{"GUILD_MEMBER_*", "", []string{"GUILD_MEMBER_ADD does not come", "GUILD_MEMBER_REMOVE does not come", "GUILD_MEMBER_UPDATE comes for"}},
		{"SOMETHING_NEW", "", nil},
	}
	for _, tt := range tests {
		refusal, notes := r.gateway.Advise(r.ctx, pattern(t, tt.pattern), before)
		if (tt.refusal == "") != (refusal == "") || !strings.Contains(refusal, tt.refusal) || strings.Contains(refusal, "\n") {
			t.Errorf("%s: refusal %q", tt.pattern, refusal)
		}
		if len(notes) != len(tt.notes) {
			t.Errorf("%s: notes %q", tt.pattern, notes)
			continue
		}
		for i, part := range tt.notes {
			if !strings.Contains(notes[i], part) {
				t.Errorf("%s: note %q, want %q in it", tt.pattern, notes[i], part)
			}
		}
	}
}

// TestAdviseFixed: an event that can't come with the fixed intents is refused.
func TestAdviseFixed(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.intents.Store(int64(event.IntentGuilds | event.IntentGuildMessages))
	r.start()
	r.ready(0)
	for name, want := range map[string]string{
		"GUILD_BAN_ADD": "GATEHOOK_INTENTS is GUILDS,GUILD_MESSAGES; add GUILD_MODERATION to it", "GUILD_CREATE": "", "READY": "", "*": "",
	} {
		refusal, _ := r.gateway.Advise(r.ctx, pattern(t, name), 0)
		if (want == "") != (refusal == "") || !strings.Contains(refusal, want) {
			t.Errorf("%s: %q", name, refusal)
		}
	}
	if _, notes := r.gateway.Advise(r.ctx, pattern(t, "MESSAGE_CREATE"), 0); len(notes) != 1 || !strings.Contains(notes[0], "GATEHOOK_INTENTS does not include MESSAGE_CONTENT") {
		t.Errorf("notes %q", notes)
	}
}
