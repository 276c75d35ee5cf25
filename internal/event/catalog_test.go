package event

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCatalogue(t *testing.T) {
	t.Parallel()
	groups := map[Group]int{}
	var union Intents
	for i, e := range Types() {
		groups[e.Group]++
		union |= e.Needs()
		if i > 0 && catalog[i-1].Name >= e.Name {
			t.Errorf("%s does not come after %s", e.Name, catalog[i-1].Name)
		}
		if got, ok := Lookup(e.Name); !ok || got != e {
			t.Errorf("Lookup(%q) = %+v, %v", e.Name, got, ok)
		}
	}
	want := map[Group]int{GroupDispatch: 79, GroupShard: 5, GroupGatehook: 3}
	if diff := cmp.Diff(want, groups); diff != "" {
		t.Errorf("events a group (-want +got):\n%s", diff)
	}
	if union != IntentsAll {
		t.Errorf("the events need %v, Discord has %v", union, IntentsAll)
	}
	if _, ok := Lookup("NOPE"); ok {
		t.Error("NOPE is known")
	}
	if IntentsPrivileged != 33026 || IntentsAll&^IntentsPrivileged != 53575421 {
		t.Error("the masks are not Discord's")
	}
}

func TestPrivileged(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"GUILD_MEMBER_ADD": true, "PRESENCE_UPDATE": true, "MESSAGE_CREATE": false, "THREAD_MEMBERS_UPDATE": false, "READY": false,
	} {
		if e, _ := Lookup(name); e.Privileged() != want {
			t.Errorf("%s: privileged is %v", name, !want)
		}
	}
}

func TestPattern(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern  string
		matches  string
		misses   string
		raw      bool
		known    bool
		includes Intents
	}{
		{"GUILD_BAN_ADD", "GUILD_BAN_ADD", "GUILD_BAN_ADDED", false, true, IntentGuildModeration},
		{"RAW_GUILD_BAN_ADD", "GUILD_BAN_ADD", "GUILD_BAN", true, true, IntentGuildModeration},
		{"*", "ANYTHING", "", false, true, IntentsAll},
		{"RAW_*", "ANYTHING", "", true, true, IntentsAll},
		{"GUILD_*", "GUILD_BAN_ADD", "MESSAGE_CREATE", false, true, IntentGuildMembers},
		{"RAW_MESSAGE_*", "MESSAGE_CREATE", "GUILD_CREATE", true, true, IntentMessageContent},
		{"NEW_THING", "NEW_THING", "OTHER", false, false, 0},
		{"READY", "READY", "RESUMED", false, true, 0},
	}
	for _, tt := range tests {
		p, err := ParsePattern(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		if !p.Matches(tt.matches) || tt.misses != "" && p.Matches(tt.misses) || p.Raw != tt.raw || p.Known() != tt.known ||
			p.Needs()&tt.includes != tt.includes {
			t.Errorf("%s: %+v, known %v, needs %v", tt.pattern, p, p.Known(), p.Needs())
		}
	}
	for _, bad := range []string{"", "RAW_", "guild_ban_add", "GUILD *", "A*B", "**", "GUILD-BAN", "É"} {
		if p, err := ParsePattern(bad); err == nil {
			t.Errorf("%q was taken for %+v", bad, p)
		}
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"GUILD_BAN_AD": "GUILD_BAN_ADD", "BAN_ADD": "GUILD_BAN_ADD", "MESSAGE_CREAT": "MESSAGE_CREATE",
		"RAW_TYPING": "RAW_TYPING_START", "GUILD_ADD_BAN": "GUILD_BAN_ADD", "MEMBER_ADD": "GUILD_MEMBER_ADD",
	} {
		if got := Nearest(name, 3); len(got) != 3 || !slices.Contains(got, want) {
			t.Errorf("Nearest(%q) = %v, want %s among them", name, got, want)
		}
	}
}

func TestIntents(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Intents{
		"513": 513, "0": 0, "guilds, GUILD_MESSAGES": 513, "DIRECT_MESSAGE_POLLS": 1 << 25, "53608447": IntentsAll,
	} {
		if got, err := ParseIntents(s); err != nil || got != want {
			t.Errorf("ParseIntents(%q) = %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "131072", "-1", "GUILD", "GUILDS,,GUILD_MESSAGES"} {
		if got, err := ParseIntents(bad); err == nil {
			t.Errorf("ParseIntents(%q) = %v", bad, got)
		}
	}
	if got, err := ParseIntents(IntentsAll.String()); err != nil || got != IntentsAll {
		t.Errorf("the names read back as %v, %v", got, err)
	}
	if got := Intents(1 << 18).String(); !strings.Contains(got, "18") {
		t.Errorf("an unassigned bit prints as %q", got)
	}
}
