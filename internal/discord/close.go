package discord

import (
	"fmt"
	"strings"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/event"
)

// CloseCode is the code of a WebSocket close frame; 0 stands for a connection
// that ended without one.
type CloseCode int

// The close codes that have a name.
const (
	// CodeInvalidShard: Discord does not accept this number of shards.
	CodeInvalidShard CloseCode = 4010
	// CodeSessionTaken: among others, another connection has resumed the session.
	CodeSessionTaken CloseCode = 4006
	// CodeShardingRequired: the shard has more guilds than Discord allows.
	CodeShardingRequired CloseCode = 4011
	// CodeInvalidIntents: Discord does not know one of the intents.
	CodeInvalidIntents CloseCode = 4013
	// CodeDisallowedIntents: a privileged intent is not switched on for the
	// application.
	CodeDisallowedIntents CloseCode = 4014
	// CodeKeepSession closes a connection whose session will be resumed. Discord
	// keeps the session for a few minutes after any code except 1000 and 1001
	// (Discord: Initiating a Disconnect). This code is from the private range, so
	// it cannot be mistaken for one of Discord's.
	CodeKeepSession CloseCode = 4900

	codeAuthenticationFailed CloseCode = 4004
	codeInvalidVersion       CloseCode = 4012
)

// CloseCodeOf returns the close code that the other side sent, if err is or
// wraps the error of a read that a close frame ended; otherwise 0.
func CloseCodeOf(err error) CloseCode {
	if code := websocket.CloseStatus(err); code > 0 && code != websocket.StatusNoStatusRcvd {
		return CloseCode(code)
	}
	return 0
}

// Course is what to do after a connection has ended.
type Course int

// The courses. The zero value is CourseResume.
const (
	// CourseResume: connect again and RESUME, if there is a session.
	CourseResume Course = iota
	// CourseIdentify: the session is gone, begin a new one.
	CourseIdentify
	// CourseStop: a person has to change something first.
	CourseStop
)

// closeCode describes a close code.
type closeCode struct {
	course  Course
	meaning string
	remedy  string // for CourseStop
}

// closeCodes are the codes that Discord sends (Discord: Gateway Close Event
// Codes). A code that is not listed is worth a RESUME.
var closeCodes = map[CloseCode]closeCode{
	4000: {CourseResume, "unknown error", ""},
	// According to Discord's staff, a session can never be resumed after a 4001.
	// A 4001, 4002, 4003 or 4005 would mean a defect of this program, except for
	// a 4003 after an intent was switched off.
	4001: {CourseIdentify, "unknown opcode", ""},
	4002: {CourseResume, "decode error", ""},
	4003: {CourseIdentify, "not authenticated, or session invalidated", ""},
	codeAuthenticationFailed: {
		CourseStop, "authentication failed",
		"the bot token was refused: put the current one into DISCORD_TOKEN (developer portal, Bot, Reset Token) and restart",
	},
	4005: {CourseIdentify, "already authenticated", ""},
	// Not documented. Seen where two connections used one session.
	CodeSessionTaken: {CourseIdentify, "session no longer valid", ""},
	4007:             {CourseIdentify, "invalid sequence number", ""},
	4008:             {CourseResume, "rate limited", ""},
	4009:             {CourseIdentify, "session timed out", ""},
	CodeInvalidShard: {
		CourseStop, "invalid shard",
		"Discord does not accept this shard: set GATEHOOK_SHARDS to auto, or to a multiple of the total that Discord assigned to this bot",
	},
	CodeShardingRequired: {
		CourseStop, "sharding required",
		"the bot is in too many guilds for this number of shards: set GATEHOOK_SHARDS to auto or to a larger total and restart",
	},
	codeInvalidVersion: {
		CourseStop, "invalid API version",
		"Discord no longer speaks version 10 of its API: upgrade Gatehook",
	},
	CodeInvalidIntents: {
		CourseStop, "invalid intents",
		"Discord does not know some of the intents: check GATEHOOK_INTENTS, or upgrade Gatehook",
	},
	CodeDisallowedIntents: {CourseStop, "disallowed intents", ""}, // see Remedy
}

// Course returns what to do after a connection has ended with this code.
func (c CloseCode) Course() Course { return closeCodes[c].course }

// Meaning returns what Discord means by the code, in a few words, or "" for a
// code that Discord does not document.
func (c CloseCode) Meaning() string { return closeCodes[c].meaning }

// Remedy returns, in one line for people, what to do about a code of
// CourseStop; "" for any other. intents are those that the connection asked
// for, or those of them that are known to be switched off.
func (c CloseCode) Remedy(intents event.Intents) string {
	if c != CodeDisallowedIntents {
		return closeCodes[c].remedy
	}
	return fmt.Sprintf("the bot is not allowed %s: switch it on in the developer portal, under Bot, Privileged Gateway Intents, or remove the listeners that need it, or take it out of GATEHOOK_INTENTS",
		PrivilegedNames(intents))
}

// LiftedByIntents reports whether other intents can cure a code of CourseStop.
func (c CloseCode) LiftedByIntents() bool {
	return c == CodeInvalidIntents || c == CodeDisallowedIntents
}

// LiftedByCount reports whether another number of shards can cure a code of
// CourseStop.
func (c CloseCode) LiftedByCount() bool {
	return c == CodeInvalidShard || c == CodeShardingRequired
}

// ConcernsAll reports whether a code of CourseStop is about the application,
// so that every shard of the same set would get it, and not about one shard.
func (c CloseCode) ConcernsAll() bool {
	return c == codeAuthenticationFailed || c == codeInvalidVersion || c == CodeInvalidShard || c.LiftedByIntents()
}

// privileged are the intents that have to be switched on for a bot, with the
// names that the developer portal gives them (Discord: Privileged Intents).
var privileged = []struct {
	bit  event.Intents
	name string
}{
	{event.IntentGuildMembers, "GUILD_MEMBERS (Server Members Intent)"},
	{event.IntentGuildPresences, "GUILD_PRESENCES (Presence Intent)"},
	{event.IntentMessageContent, "MESSAGE_CONTENT (Message Content Intent)"},
}

// PrivilegedNames returns the names of the privileged ones among the intents,
// each with the name that the developer portal gives it, separated by commas.
func PrivilegedNames(intents event.Intents) string {
	var names []string
	for _, p := range privileged {
		if intents&p.bit != 0 {
			names = append(names, p.name)
		}
	}
	return strings.Join(names, ", ")
}
