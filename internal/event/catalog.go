package event

import (
	"cmp"
	"slices"
	"sort"
	"strings"
)

// Group says who makes an event.
type Group string

// The groups of events.
const (
	GroupDispatch Group = "dispatch" // Discord
	GroupShard    Group = "shard"    // a connection of ours
	GroupGatehook Group = "gatehook" // the program itself
)

// Type is what is known of an event's name.
type Type struct {
	// Name without RAW_.
	Name  string
	Group Group
	// Intents: the event comes if the session has any of these; 0 if it comes
	// to every session (Discord: Gateway, List of Intents).
	Intents Intents
	// Content: without MESSAGE_CONTENT it comes with empty content.
	Content bool
}

// Needs are the intents with which all of the event's variants come, content
// included.
func (t Type) Needs() Intents {
	if t.Content {
		return t.Intents | IntentMessageContent
	}
	return t.Intents
}

// Privileged tells whether the event comes only with an intent that has to be
// switched on in the developer portal.
func (t Type) Privileged() bool { return t.Intents != 0 && t.Intents&^IntentsPrivileged == 0 }

// Types returns the catalog, sorted by name: all that Discord documents for
// its gateway (Discord: Receive Events), and what is not Discord's.
func Types() []Type { return slices.Clone(catalog) }

// Lookup finds a name, without RAW_.
func Lookup(name string) (Type, bool) {
	i, ok := slices.BinarySearchFunc(catalog, name, func(t Type, name string) int { return cmp.Compare(t.Name, name) })
	if !ok {
		return Type{}, false
	}
	return catalog[i], true
}

// Nearest returns up to n known names that look most like one that is not
// known, in the same form (raw or not), the best first.
func Nearest(name string, n int) []string {
	bare, raw := strings.CutPrefix(name, RawPrefix)
	type scored struct {
		name  string
		score int
	}
	all := make([]scored, 0, len(catalog))
	for _, t := range catalog {
		all = append(all, scored{t.Name, distance(bare, t.Name)})
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].score < all[j].score })
	out := make([]string, 0, n)
	for _, s := range all[:min(n, len(all))] {
		if raw {
			s.name = RawPrefix + s.name
		}
		out = append(out, s.name)
	}
	return out
}

// distance counts the letters to insert, delete or replace (Levenshtein), with
// the words in any order: ADD_BAN is near BAN_ADD.
func distance(a, b string) int {
	return min(levenshtein(a, b), 1+levenshtein(sortWords(a), sortWords(b)))
}

func sortWords(s string) string {
	words := strings.Split(s, "_")
	slices.Sort(words)
	return strings.Join(words, "_")
}

func levenshtein(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			above := row[j]
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(row[j]+1, row[j-1]+1, diagonal+cost)
			diagonal = above
		}
	}
	return row[len(b)]
}

// catalog is sorted by name.
var catalog = []Type{
	{Name: "APPLICATION_COMMAND_PERMISSIONS_UPDATE", Group: GroupDispatch},
	{Name: "AUTO_MODERATION_ACTION_EXECUTION", Group: GroupDispatch, Intents: IntentAutoModerationExecution, Content: true},
	{Name: "AUTO_MODERATION_RULE_CREATE", Group: GroupDispatch, Intents: IntentAutoModerationConfiguration},
	{Name: "AUTO_MODERATION_RULE_DELETE", Group: GroupDispatch, Intents: IntentAutoModerationConfiguration},
	{Name: "AUTO_MODERATION_RULE_UPDATE", Group: GroupDispatch, Intents: IntentAutoModerationConfiguration},
	{Name: "CHANNEL_CREATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "CHANNEL_DELETE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "CHANNEL_INFO", Group: GroupDispatch},
	{Name: "CHANNEL_PINS_UPDATE", Group: GroupDispatch, Intents: IntentGuilds | IntentDirectMessages},
	{Name: "CHANNEL_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "CONNECT", Group: GroupShard},
	{Name: "DISCONNECT", Group: GroupShard},
	{Name: "ENTITLEMENT_CREATE", Group: GroupDispatch},
	{Name: "ENTITLEMENT_DELETE", Group: GroupDispatch},
	{Name: "ENTITLEMENT_UPDATE", Group: GroupDispatch},
	{Name: "GATEHOOK_DELIVERY_EXHAUSTED", Group: GroupGatehook},
	{Name: "GATEHOOK_LISTENER_DISABLED", Group: GroupGatehook},
	{Name: "GATEHOOK_SESSION_LOST", Group: GroupGatehook},
	{Name: "GUILD_AUDIT_LOG_ENTRY_CREATE", Group: GroupDispatch, Intents: IntentGuildModeration},
	{Name: "GUILD_BAN_ADD", Group: GroupDispatch, Intents: IntentGuildModeration},
	{Name: "GUILD_BAN_REMOVE", Group: GroupDispatch, Intents: IntentGuildModeration},
	{Name: "GUILD_CREATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "GUILD_DELETE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "GUILD_EMOJIS_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions},
	{Name: "GUILD_INTEGRATIONS_UPDATE", Group: GroupDispatch, Intents: IntentGuildIntegrations},
	{Name: "GUILD_MEMBERS_CHUNK", Group: GroupDispatch},
	{Name: "GUILD_MEMBER_ADD", Group: GroupDispatch, Intents: IntentGuildMembers},
	{Name: "GUILD_MEMBER_REMOVE", Group: GroupDispatch, Intents: IntentGuildMembers},
	{Name: "GUILD_MEMBER_UPDATE", Group: GroupDispatch, Intents: IntentGuildMembers},
	{Name: "GUILD_ROLE_CREATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "GUILD_ROLE_DELETE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "GUILD_ROLE_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "GUILD_SCHEDULED_EVENT_CREATE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents},
	{Name: "GUILD_SCHEDULED_EVENT_DELETE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents},
	{Name: "GUILD_SCHEDULED_EVENT_UPDATE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents},
	{Name: "GUILD_SCHEDULED_EVENT_USER_ADD", Group: GroupDispatch, Intents: IntentGuildScheduledEvents},
	{Name: "GUILD_SCHEDULED_EVENT_USER_REMOVE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents},
	{Name: "GUILD_SOUNDBOARD_SOUNDS_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions},
	{Name: "GUILD_SOUNDBOARD_SOUND_CREATE", Group: GroupDispatch, Intents: IntentGuildExpressions},
	{Name: "GUILD_SOUNDBOARD_SOUND_DELETE", Group: GroupDispatch, Intents: IntentGuildExpressions},
	{Name: "GUILD_SOUNDBOARD_SOUND_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions},
	{Name: "GUILD_STICKERS_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions},
	{Name: "GUILD_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "INTEGRATION_CREATE", Group: GroupDispatch, Intents: IntentGuildIntegrations},
	{Name: "INTEGRATION_DELETE", Group: GroupDispatch, Intents: IntentGuildIntegrations},
	{Name: "INTEGRATION_UPDATE", Group: GroupDispatch, Intents: IntentGuildIntegrations},
	{Name: "INTERACTION_CREATE", Group: GroupDispatch},
	{Name: "INVITE_CREATE", Group: GroupDispatch, Intents: IntentGuildInvites},
	{Name: "INVITE_DELETE", Group: GroupDispatch, Intents: IntentGuildInvites},
	{Name: "MESSAGE_CREATE", Group: GroupDispatch, Intents: IntentGuildMessages | IntentDirectMessages, Content: true},
	{Name: "MESSAGE_DELETE", Group: GroupDispatch, Intents: IntentGuildMessages | IntentDirectMessages},
	{Name: "MESSAGE_DELETE_BULK", Group: GroupDispatch, Intents: IntentGuildMessages},
	{Name: "MESSAGE_POLL_VOTE_ADD", Group: GroupDispatch, Intents: IntentGuildMessagePolls | IntentDirectMessagePolls},
	{Name: "MESSAGE_POLL_VOTE_REMOVE", Group: GroupDispatch, Intents: IntentGuildMessagePolls | IntentDirectMessagePolls},
	{Name: "MESSAGE_REACTION_ADD", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions},
	{Name: "MESSAGE_REACTION_REMOVE", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions},
	{Name: "MESSAGE_REACTION_REMOVE_ALL", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions},
	{Name: "MESSAGE_REACTION_REMOVE_EMOJI", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions},
	{Name: "MESSAGE_UPDATE", Group: GroupDispatch, Intents: IntentGuildMessages | IntentDirectMessages, Content: true},
	{Name: "PRESENCE_UPDATE", Group: GroupDispatch, Intents: IntentGuildPresences},
	{Name: "RATE_LIMITED", Group: GroupDispatch},
	{Name: "READY", Group: GroupDispatch},
	{Name: "RESUMED", Group: GroupDispatch},
	{Name: "SHARD_CONNECT", Group: GroupShard},
	{Name: "SHARD_DISCONNECT", Group: GroupShard},
	{Name: "SHARD_RESUME", Group: GroupShard},
	{Name: "SOUNDBOARD_SOUNDS", Group: GroupDispatch},
	{Name: "STAGE_INSTANCE_CREATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "STAGE_INSTANCE_DELETE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "STAGE_INSTANCE_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "SUBSCRIPTION_CREATE", Group: GroupDispatch},
	{Name: "SUBSCRIPTION_DELETE", Group: GroupDispatch},
	{Name: "SUBSCRIPTION_UPDATE", Group: GroupDispatch},
	{Name: "THREAD_CREATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "THREAD_DELETE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "THREAD_LIST_SYNC", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "THREAD_MEMBERS_UPDATE", Group: GroupDispatch, Intents: IntentGuilds | IntentGuildMembers},
	{Name: "THREAD_MEMBER_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "THREAD_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "TYPING_START", Group: GroupDispatch, Intents: IntentGuildMessageTyping | IntentDirectMessageTyping},
	{Name: "USER_UPDATE", Group: GroupDispatch},
	{Name: "VOICE_CHANNEL_EFFECT_SEND", Group: GroupDispatch, Intents: IntentGuildVoiceStates},
	{Name: "VOICE_CHANNEL_START_TIME_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "VOICE_CHANNEL_STATUS_UPDATE", Group: GroupDispatch, Intents: IntentGuilds},
	{Name: "VOICE_SERVER_UPDATE", Group: GroupDispatch},
	{Name: "VOICE_STATE_UPDATE", Group: GroupDispatch, Intents: IntentGuildVoiceStates},
	{Name: "WEBHOOKS_UPDATE", Group: GroupDispatch, Intents: IntentGuildWebhooks},
}
