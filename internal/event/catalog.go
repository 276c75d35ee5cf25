package event

import (
	"cmp"
	"slices"
	"sort"
	"strings"
)

// Group says who sends an event.
type Group string

// The groups of events.
const (
	GroupDispatch Group = "dispatch" // Discord
	GroupShard    Group = "shard"    // a shard of ours
	GroupGatehook Group = "gatehook" // the program itself
)

// Type describes the events of one name.
type Type struct {
	// Name without RAW_.
	Name  string
	Group Group
	// Intents are alternatives: a session with any of them receives the event. 0 means
	// that every session does (Discord: Gateway, List of Intents).
	Intents Intents
	// Content means that the event has empty content without MESSAGE_CONTENT.
	Content bool
	// Model is the name of the schema in api/openapi.yaml for the model that Parse
	// makes from the payload; "" if there is none.
	Model string
	// Own says what the payload's "id" identifies. Such a payload may lack the id of
	// the guild, channel or user under its usual name.
	Own Own
	// About is a sentence that says when Discord or Gatehook sends the event.
	About string
}

// Own says what a payload's own id identifies.
type Own string

// The things that a payload's own id may identify and that filters and ordering use.
const (
	OwnNone    Own = ""
	OwnGuild   Own = "guild"
	OwnChannel Own = "channel"
	OwnUser    Own = "user"
)

// Needs returns the intents with which Discord sends all variants of the event, with
// their content.
func (t Type) Needs() Intents {
	if t.Content {
		return t.Intents | IntentMessageContent
	}
	return t.Intents
}

// Privileged reports whether Discord sends the event only with an intent that must be
// enabled in the developer portal.
func (t Type) Privileged() bool { return t.Intents != 0 && t.Intents&^IntentsPrivileged == 0 }

// Types returns the catalog, sorted by name: all events that Discord documents for
// its gateway (Discord: Receive Events), shard events, and Gatehook's own.
func Types() []Type { return slices.Clone(catalog) }

// Lookup returns the type with a name (without RAW_).
func Lookup(name string) (Type, bool) {
	i, ok := slices.BinarySearchFunc(catalog, name, func(t Type, name string) int { return cmp.Compare(t.Name, name) })
	if !ok {
		return Type{}, false
	}
	return catalog[i], true
}

// Nearest returns up to n known names that are most similar to an unknown one, in
// the same form (raw or not), the most similar first.
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

// distance counts the letters to insert, delete or replace (Levenshtein). The order
// of the words hardly matters: ADD_BAN is near BAN_ADD.
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
	{
		Name: "APPLICATION_COMMAND_PERMISSIONS_UPDATE", Group: GroupDispatch,
		Model: "ApplicationCommandPermissions", About: "The permissions of an application's commands changed.",
	},
	{
		Name: "AUTO_MODERATION_ACTION_EXECUTION", Group: GroupDispatch, Intents: IntentAutoModerationExecution, Content: true,
		Model: "AutoModerationActionExecution", About: "An auto moderation rule performed an action.",
	},
	{
		Name: "AUTO_MODERATION_RULE_CREATE", Group: GroupDispatch, Intents: IntentAutoModerationConfiguration,
		Model: "AutoModerationRule", About: "An auto moderation rule was created.",
	},
	{
		Name: "AUTO_MODERATION_RULE_DELETE", Group: GroupDispatch, Intents: IntentAutoModerationConfiguration,
		Model: "AutoModerationRule", About: "An auto moderation rule was deleted.",
	},
	{
		Name: "AUTO_MODERATION_RULE_UPDATE", Group: GroupDispatch, Intents: IntentAutoModerationConfiguration,
		Model: "AutoModerationRule", About: "An auto moderation rule was changed.",
	},
	{
		Name: "CHANNEL_CREATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "Channel", Own: OwnChannel, About: "A channel was created.",
	},
	{
		Name: "CHANNEL_DELETE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "Channel", Own: OwnChannel, About: "A channel was deleted.",
	},
	{
		Name: "CHANNEL_INFO", Group: GroupDispatch,
		Model: "ChannelInfo", About: "Discord replied to a request for information on voice channels.",
	},
	{
		Name: "CHANNEL_PINS_UPDATE", Group: GroupDispatch, Intents: IntentGuilds | IntentDirectMessages,
		Model: "ChannelPinsUpdate", About: "A message was pinned or unpinned.",
	},
	{
		Name: "CHANNEL_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "Channel", Own: OwnChannel, About: "A channel was changed.",
	},
	{
		Name: "CONNECT", Group: GroupShard,
		Model: "ShardEvent", About: "A shard's connection was opened.",
	},
	{
		Name: "DISCONNECT", Group: GroupShard,
		Model: "ShardDisconnect", About: "A shard's connection ended.",
	},
	{
		Name: "ENTITLEMENT_CREATE", Group: GroupDispatch,
		Model: "Entitlement", About: "An entitlement was created.",
	},
	{
		Name: "ENTITLEMENT_DELETE", Group: GroupDispatch,
		Model: "Entitlement", About: "An entitlement was deleted.",
	},
	{
		Name: "ENTITLEMENT_UPDATE", Group: GroupDispatch,
		Model: "Entitlement", About: "An entitlement was changed, usually because its subscription ended.",
	},
	{
		Name: "GATEHOOK_DELIVERY_EXHAUSTED", Group: GroupGatehook,
		Model: "DeliveryExhausted", About: "All attempts of a delivery failed.",
	},
	{
		Name: "GATEHOOK_LISTENER_DISABLED", Group: GroupGatehook,
		Model: "ListenerDisabled", About: "A listener was disabled because its callback is gone or has failed for days.",
	},
	{
		Name: "GATEHOOK_PAYLOAD_DROPPED", Group: GroupGatehook,
		Model: "PayloadDropped", About: "A payload from Discord could not be read: an event is missing.",
	},
	{
		Name: "GATEHOOK_SESSION_LOST", Group: GroupGatehook,
		Model: "SessionLost", About: "A session could not be resumed, so events are missing.",
	},
	{
		Name: "GUILD_AUDIT_LOG_ENTRY_CREATE", Group: GroupDispatch, Intents: IntentGuildModeration,
		Model: "GuildAuditLogEntry", About: "An entry was added to a guild's audit log.",
	},
	{
		Name: "GUILD_BAN_ADD", Group: GroupDispatch, Intents: IntentGuildModeration,
		Model: "GuildBanAdd", About: "A user was banned.",
	},
	{
		Name: "GUILD_BAN_REMOVE", Group: GroupDispatch, Intents: IntentGuildModeration,
		Model: "GuildBanRemove", About: "A user's ban was lifted.",
	},
	{
		Name: "GUILD_CREATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "GuildCreate", Own: OwnGuild, About: "A guild was loaded, became available, or was joined.",
	},
	{
		Name: "GUILD_DELETE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "UnavailableGuild", Own: OwnGuild, About: "A guild became unavailable, or the bot was removed from it.",
	},
	{
		Name: "GUILD_EMOJIS_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions,
		Model: "GuildEmojisUpdate", About: "A guild's emojis changed.",
	},
	{
		Name: "GUILD_INTEGRATIONS_UPDATE", Group: GroupDispatch, Intents: IntentGuildIntegrations,
		Model: "GuildIntegrationsUpdate", About: "A guild's integrations changed.",
	},
	{
		Name: "GUILD_MEMBERS_CHUNK", Group: GroupDispatch,
		Model: "GuildMembersChunk", About: "Discord sent part of the reply to a request for members.",
	},
	{
		Name: "GUILD_MEMBER_ADD", Group: GroupDispatch, Intents: IntentGuildMembers,
		Model: "Member", About: "A user joined a guild.",
	},
	{
		Name: "GUILD_MEMBER_REMOVE", Group: GroupDispatch, Intents: IntentGuildMembers,
		Model: "GuildMemberRemove", About: "A user left a guild or was removed from it.",
	},
	{
		Name: "GUILD_MEMBER_UPDATE", Group: GroupDispatch, Intents: IntentGuildMembers,
		Model: "GuildMemberUpdate", About: "A guild member was changed.",
	},
	{
		Name: "GUILD_ROLE_CREATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "GuildRoleCreate", About: "A role was created.",
	},
	{
		Name: "GUILD_ROLE_DELETE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "GuildRoleDelete", About: "A role was deleted.",
	},
	{
		Name: "GUILD_ROLE_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "GuildRoleUpdate", About: "A role was changed.",
	},
	{
		Name: "GUILD_SCHEDULED_EVENT_CREATE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents,
		Model: "GuildScheduledEvent", About: "An event was scheduled.",
	},
	{
		Name: "GUILD_SCHEDULED_EVENT_DELETE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents,
		Model: "GuildScheduledEvent", About: "A scheduled event was deleted.",
	},
	{
		Name: "GUILD_SCHEDULED_EVENT_UPDATE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents,
		Model: "GuildScheduledEvent", About: "A scheduled event was changed, began or ended.",
	},
	{
		Name: "GUILD_SCHEDULED_EVENT_USER_ADD", Group: GroupDispatch, Intents: IntentGuildScheduledEvents,
		Model: "GuildScheduledEventUser", About: "A user became interested in a scheduled event.",
	},
	{
		Name: "GUILD_SCHEDULED_EVENT_USER_REMOVE", Group: GroupDispatch, Intents: IntentGuildScheduledEvents,
		Model: "GuildScheduledEventUser", About: "A user is no longer interested in a scheduled event.",
	},
	{
		Name: "GUILD_SOUNDBOARD_SOUNDS_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions,
		Model: "SoundboardSounds", About: "Several sounds of a guild's soundboard changed.",
	},
	{
		Name: "GUILD_SOUNDBOARD_SOUND_CREATE", Group: GroupDispatch, Intents: IntentGuildExpressions,
		Model: "SoundboardSound", About: "A sound was added to a soundboard.",
	},
	{
		Name: "GUILD_SOUNDBOARD_SOUND_DELETE", Group: GroupDispatch, Intents: IntentGuildExpressions,
		Model: "GuildSoundboardSoundDelete", About: "A sound was removed from a soundboard.",
	},
	{
		Name: "GUILD_SOUNDBOARD_SOUND_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions,
		Model: "SoundboardSound", About: "A soundboard sound was changed.",
	},
	{
		Name: "GUILD_STICKERS_UPDATE", Group: GroupDispatch, Intents: IntentGuildExpressions,
		Model: "GuildStickersUpdate", About: "A guild's stickers changed.",
	},
	{
		Name: "GUILD_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "GuildUpdate", Own: OwnGuild, About: "A guild was changed.",
	},
	{
		Name: "INTEGRATION_CREATE", Group: GroupDispatch, Intents: IntentGuildIntegrations,
		Model: "Integration", About: "An integration was added to a guild.",
	},
	{
		Name: "INTEGRATION_DELETE", Group: GroupDispatch, Intents: IntentGuildIntegrations,
		Model: "IntegrationDelete", About: "An integration was removed from a guild.",
	},
	{
		Name: "INTEGRATION_UPDATE", Group: GroupDispatch, Intents: IntentGuildIntegrations,
		Model: "Integration", About: "An integration of a guild was changed.",
	},
	{
		Name: "INTERACTION_CREATE", Group: GroupDispatch,
		Model: "Interaction", About: "A user used a command or a component, or submitted a modal.",
	},
	{
		Name: "INVITE_CREATE", Group: GroupDispatch, Intents: IntentGuildInvites,
		Model: "Invite", About: "An invitation was created.",
	},
	{
		Name: "INVITE_DELETE", Group: GroupDispatch, Intents: IntentGuildInvites,
		Model: "InviteDelete", About: "An invitation was removed.",
	},
	{
		Name: "MESSAGE_CREATE", Group: GroupDispatch, Intents: IntentGuildMessages | IntentDirectMessages, Content: true,
		Model: "Message", About: "A message was sent.",
	},
	{
		Name: "MESSAGE_DELETE", Group: GroupDispatch, Intents: IntentGuildMessages | IntentDirectMessages,
		Model: "MessageDelete", About: "A message was deleted.",
	},
	{
		Name: "MESSAGE_DELETE_BULK", Group: GroupDispatch, Intents: IntentGuildMessages,
		Model: "MessageDeleteBulk", About: "Several messages were deleted at once.",
	},
	{
		Name: "MESSAGE_POLL_VOTE_ADD", Group: GroupDispatch, Intents: IntentGuildMessagePolls | IntentDirectMessagePolls,
		Model: "MessagePollVote", About: "A user voted in a poll.",
	},
	{
		Name: "MESSAGE_POLL_VOTE_REMOVE", Group: GroupDispatch, Intents: IntentGuildMessagePolls | IntentDirectMessagePolls,
		Model: "MessagePollVote", About: "A user removed a vote from a poll.",
	},
	{
		Name: "MESSAGE_REACTION_ADD", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions,
		Model: "Reaction", About: "A user reacted to a message.",
	},
	{
		Name: "MESSAGE_REACTION_REMOVE", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions,
		Model: "Reaction", About: "A user's reaction was removed from a message.",
	},
	{
		Name: "MESSAGE_REACTION_REMOVE_ALL", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions,
		Model: "ReactionRemoveAll", About: "All reactions were removed from a message.",
	},
	{
		Name: "MESSAGE_REACTION_REMOVE_EMOJI", Group: GroupDispatch, Intents: IntentGuildMessageReactions | IntentDirectMessageReactions,
		Model: "ReactionRemoveEmoji", About: "All reactions with one emoji were removed from a message.",
	},
	{
		Name: "MESSAGE_UPDATE", Group: GroupDispatch, Intents: IntentGuildMessages | IntentDirectMessages, Content: true,
		Model: "Message", About: "A message was changed.",
	},
	{
		Name: "PRESENCE_UPDATE", Group: GroupDispatch, Intents: IntentGuildPresences,
		Model: "PresenceUpdate", About: "A user's status or activities changed.",
	},
	{
		Name: "RATE_LIMITED", Group: GroupDispatch,
		Model: "RateLimited", About: "A gateway request was refused because of a rate limit.",
	},
	{
		Name: "READY", Group: GroupDispatch,
		Model: "Ready", About: "A session began.",
	},
	{
		Name: "RESUMED", Group: GroupDispatch,
		Model: "Resumed", About: "A session was resumed. All missed events have been replayed.",
	},
	{
		Name: "SHARD_CONNECT", Group: GroupShard,
		Model: "ShardEvent", About: "A shard's connection was opened.",
	},
	{
		Name: "SHARD_DISCONNECT", Group: GroupShard,
		Model: "ShardDisconnect", About: "A shard's connection ended.",
	},
	{
		Name: "SHARD_RESUME", Group: GroupShard,
		Model: "ShardEvent", About: "A shard resumed its session.",
	},
	{
		Name: "SOUNDBOARD_SOUNDS", Group: GroupDispatch,
		Model: "SoundboardSounds", About: "Discord replied to a request for a guild's soundboard.",
	},
	{
		Name: "STAGE_INSTANCE_CREATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "StageInstance", About: "A stage went live.",
	},
	{
		Name: "STAGE_INSTANCE_DELETE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "StageInstance", About: "A live stage ended.",
	},
	{
		Name: "STAGE_INSTANCE_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "StageInstance", About: "A live stage was changed.",
	},
	{
		Name: "SUBSCRIPTION_CREATE", Group: GroupDispatch,
		Model: "Subscription", About: "A subscription was created. It may not be paid for yet.",
	},
	{
		Name: "SUBSCRIPTION_DELETE", Group: GroupDispatch,
		Model: "Subscription", About: "A subscription was deleted.",
	},
	{
		Name: "SUBSCRIPTION_UPDATE", Group: GroupDispatch,
		Model: "Subscription", About: "A subscription was changed.",
	},
	{
		Name: "THREAD_CREATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "Thread", Own: OwnChannel, About: "A thread was created, or the bot was added to one.",
	},
	{
		Name: "THREAD_DELETE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "ThreadDelete", Own: OwnChannel, About: "A thread was deleted.",
	},
	{
		Name: "THREAD_LIST_SYNC", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "ThreadListSync", About: "The bot gained access to channels. The event lists their active threads.",
	},
	{
		Name: "THREAD_MEMBERS_UPDATE", Group: GroupDispatch, Intents: IntentGuilds | IntentGuildMembers,
		Model: "ThreadMembersUpdate", Own: OwnChannel, About: "Users were added to a thread or removed from it.",
	},
	{
		Name: "THREAD_MEMBER_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "ThreadMemberUpdate", Own: OwnChannel, About: "The bot's own membership in a thread changed.",
	},
	{
		Name: "THREAD_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "Thread", Own: OwnChannel, About: "A thread was changed.",
	},
	{
		Name: "TYPING_START", Group: GroupDispatch, Intents: IntentGuildMessageTyping | IntentDirectMessageTyping,
		Model: "TypingStart", About: "A user started to type.",
	},
	{
		Name: "USER_UPDATE", Group: GroupDispatch,
		Model: "User", Own: OwnUser, About: "The bot's own account was changed.",
	},
	{
		Name: "VOICE_CHANNEL_EFFECT_SEND", Group: GroupDispatch, Intents: IntentGuildVoiceStates,
		Model: "VoiceChannelEffect", About: "A user sent an effect in a voice channel that the bot is in.",
	},
	{
		Name: "VOICE_CHANNEL_START_TIME_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "VoiceChannelStartTimeUpdate", Own: OwnChannel, About: "The start time of a voice channel's use changed.",
	},
	{
		Name: "VOICE_CHANNEL_STATUS_UPDATE", Group: GroupDispatch, Intents: IntentGuilds,
		Model: "VoiceChannelStatusUpdate", Own: OwnChannel, About: "A voice channel's status text changed.",
	},
	{
		Name: "VOICE_SERVER_UPDATE", Group: GroupDispatch,
		Model: "VoiceServerUpdate", About: "The bot asked for a guild's voice server, or the voice server changed.",
	},
	{
		Name: "VOICE_STATE_UPDATE", Group: GroupDispatch, Intents: IntentGuildVoiceStates,
		Model: "VoiceStateUpdate", About: "A user's voice state changed.",
	},
	{
		Name: "WEBHOOKS_UPDATE", Group: GroupDispatch, Intents: IntentGuildWebhooks,
		Model: "WebhooksUpdate", About: "A channel's webhooks changed.",
	},
}
