// Package event is the vocabulary that the rest of the program shares: what
// Discord sent (Event), where a session stands (Session), what was stored
// (Batch), who wants it (Listener), and the catalog of event names with
// their intents. It imports nothing of the program, does no I/O and keeps no
// state.
package event

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// RawPrefix marks the name of an event whose payload is passed on untouched.
const RawPrefix = "RAW_"

// Shard says which part of a bot's guilds a connection carries: Discord's
// [shard_id, num_shards].
type Shard struct {
	ID    int
	Count int
}

// String returns "id/count", as the gatehook-shard header shows it.
func (s Shard) String() string { return strconv.Itoa(s.ID) + "/" + strconv.Itoa(s.Count) }

// Event is one thing that happened, as received. Discord's dispatches, shard
// events and Gatehook's own events all are Events. An Event is not changed
// once it was handed to the journal.
type Event struct {
	// ID is the public id: the same for every listener, and for a dispatch
	// the same when Discord replays it (see DispatchID).
	ID uuid.UUID
	// Name is the name without RAW_, as Discord's `t` spells it.
	Name string
	// Shard is where it came from.
	Shard Shard
	// Seq is the sequence number within the session; 0 for what Discord did
	// not number (shard events, Gatehook's own).
	Seq int64
	// ReceivedAt is when the frame had been read.
	ReceivedAt time.Time
	// GuildID, ChannelID and UserID are what filters and ordering look at; 0
	// where the payload has none. Set by FindIDs.
	GuildID, ChannelID, UserID Snowflake
	// Origin is why a guild came or went; OriginNone for every other event.
	Origin Origin
	// Data is the payload: the bytes of the frame's `d`, exactly as sent.
	Data []byte
}

// Origin tells apart what Discord sends under one name: a GUILD_CREATE is no
// join if the session just begins, a GUILD_DELETE no removal in an outage
// (Discord: Guild Create, Guild Delete).
type Origin string

// Why a guild came or went.
const (
	OriginNone Origin = ""
	// OriginStartup: the session began, and READY listed the guild.
	OriginStartup Origin = "startup"
	// OriginAvailable: it was there before, and unavailable.
	OriginAvailable Origin = "available"
	// OriginJoin: the bot was added to it.
	OriginJoin Origin = "join"
	// OriginOutage: it is unavailable.
	OriginOutage Origin = "outage"
	// OriginRemoved: the bot is not in it any more.
	OriginRemoved Origin = "removed"
)

// DispatchID derives the public id of a dispatch. It depends only on what
// Discord says, so that a replay of the same dispatch can't make a second id.
// Ids of one session share their first half and count up in the second, which
// keeps an index on them dense.
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

// Session is what a shard needs in order to RESUME. The zero value means that
// there is nothing to resume.
type Session struct {
	ID        string
	ResumeURL string
	// Seq is the sequence number of the last dispatch.
	Seq int64
	// Intents are those the session was identified with; a resume keeps them.
	Intents Intents
}

// Key is where a stored event lives: the batch that it was committed with, and
// its place in it. Batch numbers grow with time.
type Key struct {
	Batch   int64
	Ordinal int32
}

// Stored is an event in the journal, with the listeners that it is for.
type Stored struct {
	Event
	Key       Key
	Listeners []int64
}

// Batch is what one transaction of the journal stored. Its events are in the
// order in which they were received, shard by shard.
type Batch struct {
	ID int64
	// Owner is the number of the instance that dispatches it.
	Owner  int64
	Events []Stored
}
