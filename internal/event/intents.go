package event

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Intents is Discord's bit set of the events that a session wants to receive.
type Intents int64

// The intents (Discord: Gateway, List of Intents). The bits in the gaps are not
// assigned: if a session identifies with one, Discord closes its connection with
// 4013.
const (
	IntentGuilds Intents = 1 << iota
	IntentGuildMembers
	IntentGuildModeration
	IntentGuildExpressions
	IntentGuildIntegrations
	IntentGuildWebhooks
	IntentGuildInvites
	IntentGuildVoiceStates
	IntentGuildPresences
	IntentGuildMessages
	IntentGuildMessageReactions
	IntentGuildMessageTyping
	IntentDirectMessages
	IntentDirectMessageReactions
	IntentDirectMessageTyping
	IntentMessageContent
	IntentGuildScheduledEvents

	IntentAutoModerationConfiguration Intents = 1 << 20
	IntentAutoModerationExecution     Intents = 1 << 21
	IntentGuildMessagePolls           Intents = 1 << 24
	IntentDirectMessagePolls          Intents = 1 << 25
)

const (
	// IntentsPrivileged are the intents that must be enabled in the developer portal.
	IntentsPrivileged = IntentGuildMembers | IntentGuildPresences | IntentMessageContent
	// IntentsAll are all intents that Discord has assigned.
	IntentsAll Intents = 53608447
)

// intentNames are Discord's names, by bit.
var intentNames = map[int]string{
	0: "GUILDS", 1: "GUILD_MEMBERS", 2: "GUILD_MODERATION", 3: "GUILD_EXPRESSIONS", 4: "GUILD_INTEGRATIONS",
	5: "GUILD_WEBHOOKS", 6: "GUILD_INVITES", 7: "GUILD_VOICE_STATES", 8: "GUILD_PRESENCES", 9: "GUILD_MESSAGES",
	10: "GUILD_MESSAGE_REACTIONS", 11: "GUILD_MESSAGE_TYPING", 12: "DIRECT_MESSAGES", 13: "DIRECT_MESSAGE_REACTIONS",
	14: "DIRECT_MESSAGE_TYPING", 15: "MESSAGE_CONTENT", 16: "GUILD_SCHEDULED_EVENTS",
	20: "AUTO_MODERATION_CONFIGURATION", 21: "AUTO_MODERATION_EXECUTION",
	24: "GUILD_MESSAGE_POLLS", 25: "DIRECT_MESSAGE_POLLS",
}

// Names returns Discord's names of the intents, the lowest bit first.
func (i Intents) Names() []string {
	names := make([]string, 0, bits.OnesCount64(uint64(i)))
	for rest := uint64(i); rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		name, ok := intentNames[bit]
		if !ok {
			name = "1<<" + strconv.Itoa(bit)
		}
		names = append(names, name)
	}
	return names
}

// String returns the names joined with commas.
func (i Intents) String() string { return strings.Join(i.Names(), ",") }

// ParseIntents reads a number, or names joined with commas. It refuses bits that
// Discord has not assigned, because Discord would refuse the connection.
func ParseIntents(s string) (Intents, error) {
	if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); err == nil {
		if i := Intents(n); i < 0 || i&^IntentsAll != 0 {
			return 0, fmt.Errorf("%d has bits that Discord has not assigned: %v", n, i&^IntentsAll)
		}
		return Intents(n), nil
	}
	var out Intents
	for part := range strings.SplitSeq(s, ",") {
		name := strings.ToUpper(strings.TrimSpace(part))
		found := false
		for bit, known := range intentNames {
			if known == name {
				out |= 1 << bit
				found = true
			}
		}
		if !found {
			return 0, fmt.Errorf("%q is not the name of an intent", part)
		}
	}
	return out, nil
}
