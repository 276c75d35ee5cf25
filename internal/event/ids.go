package event

import "time"

// FindIDs sets GuildID, ChannelID and UserID from the payload. It reads only
// what it needs of the outermost object and tolerates everything: an id that
// is missing, null or malformed stays 0, and a payload that is not an object
// has none.
//
// Where an id is not under its usual name, the catalog says whose the object's
// own id is (Discord: Receive Events): the guild's in GUILD_CREATE, the
// channel's in CHANNEL_UPDATE.
func FindIDs(e *Event) {
	e.GuildID, e.ChannelID, e.UserID = 0, 0, 0
	s := scanner{b: e.Data}
	var own, author, user, member Snowflake
	s.object(func(key []byte) {
		switch string(key) {
		case "id":
			own = s.snowflake()
		case "guild_id":
			e.GuildID = s.snowflake()
		case "channel_id":
			e.ChannelID = s.snowflake()
		case "user_id":
			e.UserID = s.snowflake()
		case "user":
			user = s.idOf()
		case "author":
			author = s.idOf()
		case "member":
			s.object(func(key []byte) {
				if string(key) == "user" {
					member = s.idOf()
				} else {
					s.skip()
				}
			})
		default:
			s.skip()
		}
	})
	for _, id := range []Snowflake{user, author, member} {
		if e.UserID == 0 {
			e.UserID = id
		}
	}
	t, _ := Lookup(e.Name)
	switch {
	case own == 0:
	case t.Own == OwnGuild:
		e.GuildID = own
	case t.Own == OwnUser:
		e.UserID = own
	case t.Own == OwnChannel && e.ChannelID == 0:
		e.ChannelID = own
	}
}

// GuildState reads of a guild's payload whether it is unavailable, and when the
// bot joined it; zero if that is not told.
func GuildState(data []byte) (unavailable bool, joinedAt time.Time) {
	s := scanner{b: data}
	s.object(func(key []byte) {
		switch string(key) {
		case "unavailable":
			s.space()
			start := s.i
			s.skip()
			unavailable = string(s.b[start:s.i]) == "true"
		case "joined_at":
			if s.space() != '"' {
				s.skip()
				return
			}
			if at, err := time.Parse(time.RFC3339, string(s.str())); err == nil {
				joinedAt = at
			}
		default:
			s.skip()
		}
	})
	return unavailable, joinedAt
}

// OrderKey returns what the event is ordered by for a listener that asked for
// ordering o: "" where deliveries don't wait for each other. An event that
// lacks the id falls back to the next wider thing it belongs to, so that it
// still has a place in an order.
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

// scanner walks JSON without decoding it. On anything malformed it stops at
// the end of the input: a caller sees missing members, never a panic.
type scanner struct {
	b []byte
	i int
}

// object calls member for every member of the object at the cursor; member
// must consume the value. Any other value is skipped.
func (s *scanner) object(member func(key []byte)) {
	if s.space() != '{' {
		s.skip()
		return
	}
	s.i++
	for {
		switch s.space() {
		case '"':
			key := s.str()
			if s.space() != ':' {
				s.i = len(s.b)
				return
			}
			s.i++
			member(key)
		case ',':
			s.i++
		case '}':
			s.i++
			return
		default:
			s.i = len(s.b)
			return
		}
	}
}

// idOf returns the id member of the object at the cursor.
func (s *scanner) idOf() (id Snowflake) {
	s.object(func(key []byte) {
		if string(key) == "id" {
			id = s.snowflake()
		} else {
			s.skip()
		}
	})
	return id
}

// snowflake reads the id at the cursor: a string, or a bare number as Discord
// sends where it was given a malformed id (Discord: ID Serialization).
func (s *scanner) snowflake() Snowflake {
	if s.space() == '"' {
		return snowflakeOf(s.str())
	}
	start := s.i
	s.skip()
	return snowflakeOf(s.b[start:s.i])
}

func snowflakeOf(digits []byte) Snowflake {
	if len(digits) == 0 || len(digits) > 19 {
		return 0
	}
	var n uint64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	if n > 1<<63-1 {
		return 0
	}
	return Snowflake(n)
}

// space moves to the next byte that is not white space and returns it, or 0
// at the end.
func (s *scanner) space() byte {
	for ; s.i < len(s.b); s.i++ {
		if c := s.b[s.i]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// str returns the inside of the string at the cursor, escapes as they are, and
// moves behind it.
func (s *scanner) str() []byte {
	s.i++
	start := s.i
	for s.i < len(s.b) {
		if s.i = unplain(s.b, s.i); s.i == len(s.b) {
			break
		}
		switch s.b[s.i] {
		case '\\':
			s.i += 2
		case '"':
			s.i++
			return s.b[start : s.i-1]
		default:
			s.i++
		}
	}
	s.i = len(s.b)
	return nil
}

// skip moves behind the value at the cursor.
func (s *scanner) skip() {
	switch s.space() {
	case '"':
		s.str()
		return
	case '{', '[':
	default:
		for s.i < len(s.b) {
			switch s.b[s.i] {
			case ',', '}', ']', ' ', '\t', '\n', '\r':
				return
			}
			s.i++
		}
		return
	}
	for depth := 0; s.i < len(s.b); {
		switch s.b[s.i] {
		case '"':
			s.str()
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		s.i++
		if depth == 0 {
			return
		}
	}
}
