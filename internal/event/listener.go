package event

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/secret"
)

// Format is the shape of a delivery's body.
type Format string

// The formats of a delivery.
const (
	FormatStandard Format = "standard"
	FormatDiscord  Format = "discord"
	FormatChatSDK  Format = "chat-sdk"
)

// Ordering says which deliveries of a listener wait for each other.
type Ordering string

// The orderings of a listener.
const (
	OrderingNone    Ordering = "none"
	OrderingGuild   Ordering = "guild"
	OrderingChannel Ordering = "channel"
)

// OrderKey returns the key by which a listener with this ordering orders an event;
// "" if the listener's deliveries don't wait for each other. An event without the
// ordering's id is ordered by the first of these that it has: guild, channel, user,
// shard.
func OrderKey(o Ordering, e *Event) string {
	switch {
	case o != OrderingGuild && o != OrderingChannel:
		return ""
	case o == OrderingChannel && e.ChannelID != 0:
		return "c" + e.ChannelID.String()
	case e.GuildID != 0:
		return "g" + e.GuildID.String()
	case e.ChannelID != 0:
		return "c" + e.ChannelID.String()
	case e.UserID != 0:
		return "u" + e.UserID.String()
	default:
		return "s" + e.Shard.String()
	}
}

// Filter lets an event pass if each list is empty or contains the event's id. The zero
// value lets every event pass.
type Filter struct {
	GuildIDs, ChannelIDs, UserIDs []Snowflake
}

const listenerPrefix = "lst_"

// ListenerID returns a listener's id as the API shows it.
func ListenerID(id int64) string { return listenerPrefix + strconv.FormatInt(id, 36) }

// ParseListenerID reads an id that ListenerID wrote. It returns false for any other
// text.
func ParseListenerID(s string) (int64, bool) {
	id, err := strconv.ParseInt(strings.TrimPrefix(s, listenerPrefix), 36, 64)
	return id, err == nil && ListenerID(id) == s
}

// Listener is a registration as the program uses it. It is immutable: a change of
// the registration makes a new one.
type Listener struct {
	ID int64
	// Event is a name, its RAW_ form, or a pattern.
	Event  string
	URL    string
	Format Format
	// Secrets sign every delivery, newest first. There are several only while a
	// rotation is under way.
	Secrets     []secret.Value
	Headers     map[string]string
	Filter      Filter
	Ordering    Ordering
	MaxInFlight int
	// MaxAge is how old an event may be when it is delivered; 0 for no limit.
	MaxAge  time.Duration
	Enabled bool
}

// Wants reports whether an event is for the listener, enabled or not.
func (l *Listener) Wants(e *Event) bool {
	pattern, err := ParsePattern(l.Event)
	return err == nil && pattern.Matches(e.Name) &&
		passes(l.Filter.GuildIDs, e.GuildID) && passes(l.Filter.ChannelIDs, e.ChannelID) && passes(l.Filter.UserIDs, e.UserID)
}

func passes(list []Snowflake, id Snowflake) bool { return len(list) == 0 || slices.Contains(list, id) }
