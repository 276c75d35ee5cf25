package gateway

import (
	"errors"
	"fmt"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/event"
)

// codeKeep is the close code that this package sends. Anything but 1000 and
// 1001 keeps the session alive for a few minutes (Discord: Initiating a
// Disconnect), and one from the private range can't be mistaken for Discord's.
const codeKeep websocket.StatusCode = 4900

// course is what follows the end of a connection.
type course int

const (
	// courseResume: connect again and RESUME, if there is a session.
	courseResume course = iota
	// courseIdentify: the session is gone, start a new one.
	courseIdentify
	// courseStop: a person has to change something first.
	courseStop
)

// closeCode is what is known about a close code that Discord sends (Discord:
// Gateway Close Event Codes). What is not listed is worth a RESUME.
type closeCode struct {
	course  course
	meaning string
	// remedy tells a person what to do; for courseStop.
	remedy string
}

// codeDisallowed says that an intent is not switched on.
const codeDisallowed = 4014

// codeShardingRequired says that a shard has more guilds than Discord allows.
const codeShardingRequired = 4011

var closeCodes = map[int]closeCode{
	4000: {courseResume, "unknown error", ""},
	// Staff: never resumable. It, 4002, 4003 and 4005 would be our own defect,
	// apart from the 4003 that follows an intent which was switched off.
	4001: {courseIdentify, "unknown opcode", ""},
	4002: {courseResume, "decode error", ""},
	4003: {courseIdentify, "not authenticated, or session invalidated", ""},
	4004: {
		courseStop, "authentication failed",
		"the bot token was refused: put the current one into DISCORD_TOKEN (developer portal, Bot, Reset Token) and restart",
	},
	4005: {courseIdentify, "already authenticated", ""},
	// Not documented. Seen where two connections used one session.
	4006: {courseIdentify, "session no longer valid", ""},
	4007: {courseIdentify, "invalid sequence number", ""},
	4008: {courseResume, "rate limited", ""},
	4009: {courseIdentify, "session timed out", ""},
	4010: {
		courseStop, "invalid shard",
		"Discord does not accept this shard: set GATEHOOK_SHARDS to auto, or to a multiple of the total that Discord assigned to this bot",
	},
	4011: {
		courseStop, "sharding required",
		"the bot is in too many guilds for this number of shards: set GATEHOOK_SHARDS to auto or to a larger total and restart",
	},
	4012: {
		courseStop, "invalid API version",
		"Discord no longer speaks version 10 of its API: upgrade Gatehook",
	},
	4013: {
		courseStop, "invalid intents",
		"Discord does not know some of the intents: check GATEHOOK_INTENTS, or upgrade Gatehook",
	},
	4014: {courseStop, "disallowed intents", ""}, // see remedyFor
}

// courseOf decides what follows a close code; 0 stands for a connection that
// broke without one.
func courseOf(code int) course { return closeCodes[code].course }

// privileged are the intents that have to be switched on for a bot, by the
// names that the developer portal gives them (Discord: Privileged Intents).
var privileged = []struct {
	bit  event.Intents
	name string
}{
	{event.IntentGuildMembers, "GUILD_MEMBERS (Server Members Intent)"},
	{event.IntentGuildPresences, "GUILD_PRESENCES (Presence Intent)"},
	{event.IntentMessageContent, "MESSAGE_CONTENT (Message Content Intent)"},
}

// remedyFor explains to a person what to do about a fatal close code.
func remedyFor(code int, intents event.Intents) string {
	if code != 4014 {
		return closeCodes[code].remedy
	}
	return fmt.Sprintf("the bot is not allowed %s: switch it on in the developer portal, under Bot, Privileged Gateway Intents, or remove the listeners or the GATEHOOK_INTENTS that need it",
		privilegedNames(intents))
}

// liftedByIntents tells whether other intents could cure a fatal close code.
func liftedByIntents(code int) bool { return code == 4013 || code == 4014 }

// concernsAll tells whether a fatal close code says something about the
// application, so that every shard would get it, and not about one shard.
func concernsAll(code int) bool { return code == 4004 || code == 4012 || liftedByIntents(code) }

// refusedError is why an IDENTIFY was not sent: another shard learned with
// which close code Discord answers it.
type refusedError struct{ code int }

// Error implements error.
func (e refusedError) Error() string {
	return fmt.Sprintf("no IDENTIFY was sent: another shard was closed with %d, %s", e.code, closeCodes[e.code].meaning)
}

// Why a connection ends, besides what the network and Discord's close frame
// say. Each is the cause that the connection's context is canceled with.
var (
	errReconnect = errors.New("a reconnect was asked for (op 7)")
	errInvalid   = errors.New("the session was invalidated (op 9)")
	errTryResume = errors.New("a resume of the session was asked for (op 9)")
	errZombie    = errors.New("no heartbeat was acknowledged") // Discord: Heartbeat Interval
	errNoHello   = errors.New("no HELLO came in time")
	errDefect    = errors.New("what arrived could not be understood")
	errLeaseLost = errors.New("the lease on the shard ran out, or another instance has it")
	// errLeaving ends the last but one connection of a session: the last one
	// fetches what it still has, and ends with errReplaced.
	errLeaving  = errors.New("another session takes over")
	errReplaced = errors.New("another session took over")
	errShared   = errors.New("another instance gets its share of the shards")
	errRestart  = errors.New("a restart of the shard was asked for")
	errDrain    = errors.New("this server is shutting down")
	// Heartbeats are acknowledged and nothing else comes.
	errUnanswered = errors.New("a RESUME was not answered")
)

// ownCauses are the causes for which this side closes the connection, with
// their label in metrics.
var ownCauses = []struct {
	err   error
	label string
}{
	{errReconnect, "op7"},
	{errInvalid, "op9"},
	{errTryResume, "op9"},
	{errZombie, "zombie"},
	{errNoHello, "no_hello"},
	{errUnanswered, "unanswered"},
	{errDefect, "defect"},
	{errLeaseLost, "lease_lost"},
	{errLeaving, "leaving"},
	{errReplaced, "replaced"},
	{errShared, "shared"},
	{errRestart, "restart"},
	{errDrain, "shutdown"},
}

// ending tells how a connection ended.
type ending struct {
	cause error
	// session: there is one to resume. opened: the socket opened. progress:
	// READY, RESUMED or a dispatch that did not come before arrived. The last
	// of them is not in the rule to count RESUMED only, but a replay that gets
	// further comes to its end, and is too valuable to be given up for the
	// third network fault; one that breaks at the same place does not count.
	// unreachable: the session's URL could not be dialed many times, while
	// Discord's API answers.
	session, opened, progress, unreachable bool
}

// code is the close code that Discord sent, here or to another shard that
// spoke for all; 0 for none.
func (e ending) code() int {
	if r, ok := errors.AsType[refusedError](e.cause); ok {
		return r.code
	}
	if c, ok := errors.AsType[websocket.CloseError](e.cause); ok && c.Code != websocket.StatusNoStatusRcvd {
		return int(c.Code)
	}
	return 0
}

const (
	// maxFailedResumes is how often a RESUME is tried in a row: some dead
	// sessions are never answered with op 9, only with a broken connection.
	maxFailedResumes = 3
	// maxFailedDials is how often a session's URL is dialed in vain before it
	// is asked whether it is the network that is down: about a quarter of a
	// minute.
	maxFailedDials = 6
)

// decide says what follows, given how many resumes failed in a row before. It
// returns how many that are now.
func decide(e ending, failed int) (course, int) {
	if !e.session {
		if courseOf(e.code()) == courseStop {
			return courseStop, 0
		}
		return courseIdentify, 0
	}
	switch {
	case e.progress:
		failed = 0
	case e.opened:
		failed++
	}
	// A connection that never opened says nothing about the session.
	switch c := courseOf(e.code()); {
	case c != courseResume:
		return c, 0
	case errors.Is(e.cause, errInvalid), e.unreachable, failed >= maxFailedResumes:
		return courseIdentify, 0
	default:
		return courseResume, failed
	}
}

// invalidWait is the pause that op 9 asks for: from least to five times that,
// so that many shards don't come back at once. r is uniform in [0, 1).
func invalidWait(cause error, least time.Duration, r float64) time.Duration {
	if !errors.Is(cause, errInvalid) && !errors.Is(cause, errTryResume) {
		return 0
	}
	return least + time.Duration(r*float64(4*least))
}
