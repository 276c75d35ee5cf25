package event

import "time"

// FindIDs sets GuildID, ChannelID and UserID from the payload. It decodes only the
// fields that it needs and accepts any payload: an id that is missing, null or
// malformed stays 0, and a payload that is not an object has no ids.
//
// In some events one of these ids is not under its usual name but under "id". In
// GUILD_CREATE, for example, "id" is the guild's, and in CHANNEL_UPDATE the channel's.
// The catalog lists these events (Discord: Receive Events).
func FindIDs(e *Event) {
	e.GuildID, e.ChannelID, e.UserID = 0, 0, 0
	s := scanner{b: e.Data}
	var object, author, user, member Snowflake
	s.object(func(key []byte) {
		switch string(key) {
		case "id":
			object = s.snowflake()
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
	case object == 0:
	case t.Own == OwnGuild:
		e.GuildID = object
	case t.Own == OwnUser:
		e.UserID = object
	case t.Own == OwnChannel && e.ChannelID == 0:
		e.ChannelID = object
	}
}

// GuildState reports whether a guild is unavailable according to its payload, and
// when the bot joined it; zero if the payload does not say.
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
