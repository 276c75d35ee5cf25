// Package event defines the types that the rest of the program shares (Event,
// Session, Batch, Listener, Plan and others), and the catalog of event names with
// their intents. It finds the ids in payloads (FindIDs) and converts payloads to
// models (Parse). Of the program's packages it imports only secret. It does no I/O
// and keeps no state.
package event

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// RawPrefix marks the name of an event whose payload is passed on unchanged.
const RawPrefix = "RAW_"

// Shard identifies the part of a bot's guilds that a connection carries: Discord's
// [shard_id, num_shards].
type Shard struct {
	ID    int
	Count int
}

// String returns "id/count", as the gatehook-shard header shows it.
func (s Shard) String() string { return strconv.Itoa(s.ID) + "/" + strconv.Itoa(s.Count) }

// Event is a dispatch from Discord, a shard event or one of Gatehook's own events.
// Nobody changes an Event after it was handed to the journal.
type Event struct {
	// ID is the public id. It is the same for every listener, and stays the
	// same when Discord replays a dispatch (see DispatchID).
	ID uuid.UUID
	// Name is the name without RAW_, as Discord's `t` spells it.
	Name string
	// Shard is the shard that received it.
	Shard Shard
	// Seq is the sequence number within the session; 0 for events that Discord
	// did not number (shard events, Gatehook's own).
	Seq int64
	// ReceivedAt is when the frame was read.
	ReceivedAt time.Time
	// Late means that Discord may have sent it long before ReceivedAt: it came in a
	// replay, or nothing was read for a while. It is not stored.
	Late bool
	// GuildID, ChannelID and UserID are the ids that filters and ordering use;
	// 0 where the payload has none. FindIDs sets them.
	GuildID, ChannelID, UserID Snowflake
	// Origin says why a guild came or went; OriginNone for every other event.
	Origin Origin
	// Data is the payload: the bytes of the frame's `d`, exactly as sent.
	Data []byte
}

// Origin distinguishes events that Discord sends under one name: a GUILD_CREATE at
// the start of a session is no join, and a GUILD_DELETE in an outage is no removal
// (Discord: Guild Create, Guild Delete).
type Origin string

// Why a guild came or went.
const (
	OriginNone Origin = ""
	// OriginStartup: the session began, and READY listed the guild.
	OriginStartup Origin = "startup"
	// OriginAvailable: the bot was in the guild before: the guild is available
	// again, or is only told again.
	OriginAvailable Origin = "available"
	// OriginJoin: the bot was added to the guild.
	OriginJoin Origin = "join"
	// OriginOutage: the guild is unavailable, be it that it was until now or that
	// the bot was added to it meanwhile.
	OriginOutage Origin = "outage"
	// OriginRemoved: the bot is no longer in the guild.
	OriginRemoved Origin = "removed"
)

// DispatchID derives the public id of a dispatch. The id depends only on Discord's
// own data, so a replay of the same dispatch has the same id. The ids of a session
// share their first half and count up in the second, which keeps an index on them
// dense.
func DispatchID(applicationID Snowflake, sessionID string, shard Shard, seq int64) uuid.UUID {
	h := sha256.New()
	h.Write([]byte(applicationID.String()))
	h.Write([]byte{0})
	h.Write([]byte(sessionID))
	h.Write([]byte{0})
	h.Write([]byte(shard.String()))
	var id uuid.UUID
	copy(id[:8], h.Sum(nil))
	binary.BigEndian.PutUint64(id[8:], uint64(seq))
	// RFC 9562, section 5.8: version 8 leaves all other bits to us.
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Session holds the values that a shard needs for a RESUME. The zero value means
// that there is nothing to resume.
type Session struct {
	ID        string
	ResumeURL string
	// Seq is the sequence number of the last dispatch.
	Seq int64
	// Intents are the intents that the session identified with; a resume keeps them.
	Intents Intents
}

// Key locates a stored event: the number of its batch and its place in the batch.
// Batch numbers grow with time.
type Key struct {
	Batch   int64
	Ordinal int32
}

// Stored is an event in the journal, with the ids of the listeners that it is for.
type Stored struct {
	Event
	Key       Key
	Listeners []int64
}

// Batch holds the events that one transaction of the journal stored. The events of
// each shard are in the order in which they were received.
type Batch struct {
	ID int64
	// Owner is the number of the instance that dispatches the batch.
	Owner  int64
	Events []Stored
}
