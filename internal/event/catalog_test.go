package event

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCatalog(t *testing.T) {
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
	want := map[Group]int{GroupDispatch: 79, GroupShard: 5, GroupGatehook: 4}
	if diff := cmp.Diff(want, groups); diff != "" {
		t.Errorf("events per group (-want +got):\n%s", diff)
	}
	if union != IntentsAll {
		t.Errorf("the events need %v, Discord has %v", union, IntentsAll)
	}
	if _, ok := Lookup("NOPE"); ok {
		t.Error("NOPE is known")
	}
	if IntentsPrivileged != 33026 || IntentsAll&^IntentsPrivileged != 53575421 {
		t.Error("the masks differ from Discord's")
	}
}

// The table of Discord's documentation (Gateway, List of Intents): for every intent
// the events that come with it.
func TestIntentsOfEvents(t *testing.T) {
	t.Parallel()
	byIntent := map[string]string{
		"GUILDS": "GUILD_CREATE GUILD_UPDATE GUILD_DELETE GUILD_ROLE_CREATE GUILD_ROLE_UPDATE GUILD_ROLE_DELETE " +
			"CHANNEL_CREATE CHANNEL_UPDATE CHANNEL_DELETE CHANNEL_PINS_UPDATE THREAD_CREATE THREAD_UPDATE THREAD_DELETE " +
			"THREAD_LIST_SYNC THREAD_MEMBER_UPDATE THREAD_MEMBERS_UPDATE STAGE_INSTANCE_CREATE STAGE_INSTANCE_UPDATE " +
			"STAGE_INSTANCE_DELETE VOICE_CHANNEL_STATUS_UPDATE VOICE_CHANNEL_START_TIME_UPDATE",
		"GUILD_MEMBERS":      "GUILD_MEMBER_ADD GUILD_MEMBER_UPDATE GUILD_MEMBER_REMOVE THREAD_MEMBERS_UPDATE",
		"GUILD_MODERATION":   "GUILD_AUDIT_LOG_ENTRY_CREATE GUILD_BAN_ADD GUILD_BAN_REMOVE",
		"GUILD_EXPRESSIONS":  "GUILD_EMOJIS_UPDATE GUILD_STICKERS_UPDATE GUILD_SOUNDBOARD_SOUND_CREATE GUILD_SOUNDBOARD_SOUND_UPDATE GUILD_SOUNDBOARD_SOUND_DELETE GUILD_SOUNDBOARD_SOUNDS_UPDATE",
		"GUILD_INTEGRATIONS": "GUILD_INTEGRATIONS_UPDATE INTEGRATION_CREATE INTEGRATION_UPDATE INTEGRATION_DELETE",
		"GUILD_WEBHOOKS":     "WEBHOOKS_UPDATE",
		"GUILD_INVITES":      "INVITE_CREATE INVITE_DELETE",
		"GUILD_VOICE_STATES": "VOICE_STATE_UPDATE VOICE_CHANNEL_EFFECT_SEND",
		"GUILD_PRESENCES":    "PRESENCE_UPDATE",
		"GUILD_MESSAGES":     "MESSAGE_CREATE MESSAGE_UPDATE MESSAGE_DELETE MESSAGE_DELETE_BULK",
		"GUILD_MESSAGE_REACTIONS": "MESSAGE_REACTION_ADD MESSAGE_REACTION_REMOVE MESSAGE_REACTION_REMOVE_ALL " +
			"MESSAGE_REACTION_REMOVE_EMOJI",
		"GUILD_MESSAGE_TYPING": "TYPING_START",
		"DIRECT_MESSAGES":      "MESSAGE_CREATE MESSAGE_UPDATE MESSAGE_DELETE CHANNEL_PINS_UPDATE",
		"DIRECT_MESSAGE_REACTIONS": "MESSAGE_REACTION_ADD MESSAGE_REACTION_REMOVE MESSAGE_REACTION_REMOVE_ALL " +
			"MESSAGE_REACTION_REMOVE_EMOJI",
		"DIRECT_MESSAGE_TYPING": "TYPING_START",
		"GUILD_SCHEDULED_EVENTS": "GUILD_SCHEDULED_EVENT_CREATE GUILD_SCHEDULED_EVENT_UPDATE GUILD_SCHEDULED_EVENT_DELETE " +
			"GUILD_SCHEDULED_EVENT_USER_ADD GUILD_SCHEDULED_EVENT_USER_REMOVE",
		"AUTO_MODERATION_CONFIGURATION": "AUTO_MODERATION_RULE_CREATE AUTO_MODERATION_RULE_UPDATE AUTO_MODERATION_RULE_DELETE",
		"AUTO_MODERATION_EXECUTION":     "AUTO_MODERATION_ACTION_EXECUTION",
		"GUILD_MESSAGE_POLLS":           "MESSAGE_POLL_VOTE_ADD MESSAGE_POLL_VOTE_REMOVE",
		"DIRECT_MESSAGE_POLLS":          "MESSAGE_POLL_VOTE_ADD MESSAGE_POLL_VOTE_REMOVE",
	}
	want := map[string]Intents{}
	for name := range strings.FieldsSeq("READY RESUMED RATE_LIMITED APPLICATION_COMMAND_PERMISSIONS_UPDATE CHANNEL_INFO " +
		"GUILD_MEMBERS_CHUNK SOUNDBOARD_SOUNDS ENTITLEMENT_CREATE ENTITLEMENT_UPDATE ENTITLEMENT_DELETE SUBSCRIPTION_CREATE " +
		"SUBSCRIPTION_UPDATE SUBSCRIPTION_DELETE INTERACTION_CREATE USER_UPDATE VOICE_SERVER_UPDATE") {
		want[name] = 0
	}
	for intent, names := range byIntent {
		i, err := ParseIntents(intent)
		if err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(names) {
			want[name] |= i
		}
	}
	got, content := map[string]Intents{}, []string{}
	for _, e := range Types() {
		if e.Group == GroupDispatch {
			got[e.Name] = e.Intents
		}
		if e.Content {
			content = append(content, e.Name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("intents (-documented +ours):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"AUTO_MODERATION_ACTION_EXECUTION", "MESSAGE_CREATE", "MESSAGE_UPDATE"}, content); diff != "" {
		t.Errorf("events that MESSAGE_CONTENT fills (-documented +ours):\n%s", diff)
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

func TestIsName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"X": true, "GUILD_BAN_ADD": true, "_1": true, strings.Repeat("A", 100): true,
		"": false, strings.Repeat("A", 101): false, "guild": false, "A B": false, "A\n": false, "A\r\nB: c": false, "*": false, "\u00c4": false, "\xff": false, "A\x00": false,
	} {
		if got := IsName([]byte(name)); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
	for _, e := range Types() {
		if !IsName([]byte(e.Name)) {
			t.Errorf("%q is in the catalog", e.Name)
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
			t.Errorf("%q was read as %+v", bad, p)
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
