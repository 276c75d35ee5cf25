package discordtest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"
)

// What Discord's documentation says of the commands of a bot.
const (
	presenceLimit  = 5                // Update Presence per presenceWindow (Activity Object)
	presenceWindow = 20 * time.Second // a sliding one here, as with sendWindow
	membersWindow  = 30 * time.Second // between two requests for all members of a guild (Rate Limited)
	nonceLimit     = 32               // bytes (Request Guild Members)
	usersLimit     = 100              // ids (Request Guild Members)
	matchLimit     = 100              // members that a prefix finds (Request Guild Members)
)

// The intents that a Request Guild Members may need.
const (
	intentMembers   = 1 << 1
	intentPresences = 1 << 8
)

// command handles what a bot may send besides (Discord: Send Events). s.mu is
// held.
func (c *conn) command(op int, d json.RawMessage) {
	s := c.srv
	ss := c.session
	if ss == nil {
		c.refuse(closeNotAuth, "op %d before IDENTIFY", op)
		return
	}
	s.note(Entry{Kind: Command, Conn: c.id, Shard: c.shard, Session: ss.id, Op: op, Data: d})
	switch op {
	case opPresence:
		c.presence(d)
	case opVoiceState:
		c.voiceState(ss, d)
	case opMembers:
		c.members(ss, d)
	}
}

// presencePayload is the `d` of op 3.
type presencePayload struct {
	Since      json.RawMessage   `json:"since"`
	Activities []json.RawMessage `json:"activities"`
	Status     string            `json:"status"`
	AFK        *bool             `json:"afk"`
}

// check tells what is wrong with a presence; fatal if it can't be read.
func (p *presencePayload) check() (why string, fatal bool) {
	statuses := []string{"online", "dnd", "idle", "invisible", "offline"}
	if p.Since == nil || p.Activities == nil || p.AFK == nil || !slices.Contains(statuses, p.Status) {
		return "a presence needs since, activities, a status that exists, and afk", true
	}
	for _, raw := range p.Activities {
		var a struct {
			Name  string  `json:"name"`
			Type  *int    `json:"type"`
			State *string `json:"state"`
			URL   *string `json:"url"`
		}
		if json.Unmarshal(raw, &a) != nil || a.Name == "" || a.Type == nil || *a.Type < 0 || *a.Type > 5 {
			return "an activity needs a name and a type that exists", true
		}
		strict := json.NewDecoder(bytes.NewReader(raw))
		strict.DisallowUnknownFields()
		if strict.Decode(&a) != nil {
			return "an activity with more than name, type, state and url, which is all that a bot may set", false
		}
	}
	return "", false
}

// presence handles op 3 (Discord: Update Presence). Nobody is told of it: the
// bot shares no guild with a user. s.mu is held.
func (c *conn) presence(d json.RawMessage) {
	var p presencePayload
	if json.Unmarshal(d, &p) != nil {
		c.refuse(closeOpcode, "op 3 can't be decoded")
		return
	}
	switch why, fatal := p.check(); {
	case fatal:
		c.refuse(closeOpcode, "op 3: %s", why)
		return
	case why != "":
		c.srv.illegal(c, "op 3: %s", why)
	}
	now := time.Now()
	c.presences = slices.DeleteFunc(c.presences, func(t time.Time) bool { return now.Sub(t) >= presenceWindow })
	if c.presences = append(c.presences, now); len(c.presences) > presenceLimit {
		c.srv.illegal(c, "more than %d presences within %v", presenceLimit, presenceWindow)
	}
}

// onShard books a command for a guild that the session is not told of.
func (c *conn) onShard(op int, guild string, ss *session) {
	id, err := strconv.ParseUint(guild, 10, 64)
	if err != nil || ShardOf(id, ss.count) != ss.shard {
		c.srv.illegal(c, "op %d for guild %q, which is not on shard %d of %d", op, guild, ss.shard, ss.count)
	}
}

// voiceState answers op 4 (Discord: Update Voice State). s.mu is held.
func (c *conn) voiceState(ss *session, d json.RawMessage) {
	s := c.srv
	var p struct {
		Guild   string          `json:"guild_id"`
		Channel json.RawMessage `json:"channel_id"`
		Mute    *bool           `json:"self_mute"`
		Deaf    *bool           `json:"self_deaf"`
	}
	var channel *string
	if json.Unmarshal(d, &p) != nil || p.Guild == "" || p.Channel == nil || json.Unmarshal(p.Channel, &channel) != nil ||
		p.Mute == nil || p.Deaf == nil {
		c.refuse(closeOpcode, "op 4 needs a guild_id, a channel_id that may be null, self_mute and self_deaf")
		return
	}
	c.onShard(opVoiceState, p.Guild, ss)
	s.push(ss, "VOICE_STATE_UPDATE", frame{name: "VOICE_STATE_UPDATE", data: mustJSON(map[string]any{
		"guild_id": p.Guild, "channel_id": channel, "user_id": strconv.FormatUint(s.cfg.UserID, 10), "session_id": ss.id,
		"self_mute": *p.Mute, "self_deaf": *p.Deaf, "mute": false, "deaf": false, "self_video": false, "suppress": false,
		"request_to_speak_timestamp": nil,
	})}, 0)
	if channel != nil {
		s.push(ss, "VOICE_SERVER_UPDATE", frame{name: "VOICE_SERVER_UPDATE", data: mustJSON(map[string]any{
			"guild_id": p.Guild, "token": "voice", "endpoint": "voice.example:443",
		})}, 0)
	}
}

// membersPayload is the `d` of op 8.
type membersPayload struct {
	Guild     string          `json:"guild_id"`
	Query     *string         `json:"query"`
	Limit     *int            `json:"limit"`
	Users     json.RawMessage `json:"user_ids"`
	Presences bool            `json:"presences"`
	Nonce     string          `json:"nonce"`
}

// all tells whether all members of the guild are asked for.
func (p *membersPayload) all() bool { return p.Query != nil && *p.Query == "" && *p.Limit == 0 }

// check tells what Discord would not do of what is asked for, although it
// answers.
func (p *membersPayload) check(intents int64) string {
	var users []string
	many := json.Unmarshal(p.Users, &users) == nil // it may be one id as well
	switch {
	case len(p.Nonce) > nonceLimit:
		return "a nonce of more than 32 bytes, which is ignored"
	case many && len(users) > usersLimit:
		return "more than 100 user_ids"
	case p.Query != nil && *p.Query != "" && (*p.Limit < 1 || *p.Limit > matchLimit):
		return "a limit that a prefix can't have"
	case p.Presences && intents&intentPresences == 0:
		return "presences without the intent GUILD_PRESENCES"
	case p.all() && intents&intentMembers == 0:
		return "all members without the intent GUILD_MEMBERS"
	default:
		return ""
	}
}

// members answers op 8 (Discord: Request Guild Members). s.mu is held.
func (c *conn) members(ss *session, d json.RawMessage) {
	s := c.srv
	var p membersPayload
	if json.Unmarshal(d, &p) != nil || p.Guild == "" || (p.Query == nil) == (p.Users == nil) || p.Query != nil && p.Limit == nil {
		c.refuse(closeOpcode, "op 8 needs a guild_id, and one of query with limit and user_ids")
		return
	}
	c.onShard(opMembers, p.Guild, ss)
	if why := p.check(ss.intents); why != "" {
		s.illegal(c, "op 8 with %s", why)
	}
	if p.all() && !s.takeMembers(ss, &p) {
		return
	}
	if s.cfg.Chunks != nil {
		for _, chunk := range s.cfg.Chunks(d) {
			s.push(ss, "GUILD_MEMBERS_CHUNK", frame{name: "GUILD_MEMBERS_CHUNK", data: chunk}, 0)
		}
		return
	}
	chunk := map[string]any{"guild_id": p.Guild, "members": []any{}, "chunk_index": 0, "chunk_count": 1}
	if p.Nonce != "" && len(p.Nonce) <= nonceLimit {
		chunk["nonce"] = p.Nonce
	}
	s.push(ss, "GUILD_MEMBERS_CHUNK", frame{name: "GUILD_MEMBERS_CHUNK", data: mustJSON(chunk)}, 0)
}

// takeMembers tells whether all members of a guild may be asked for, and tells
// the client if not (Discord: Rate Limited). s.mu is held.
func (s *Server) takeMembers(ss *session, p *membersPayload) bool {
	now := time.Now()
	last, ok := s.asked[p.Guild]
	if !ok || now.Sub(last) >= membersWindow {
		s.asked[p.Guild] = now
		return true
	}
	meta := map[string]any{"guild_id": p.Guild}
	if p.Nonce != "" {
		meta["nonce"] = p.Nonce
	}
	s.push(ss, "RATE_LIMITED", frame{name: "RATE_LIMITED", data: mustJSON(map[string]any{
		"opcode": opMembers, "retry_after": (membersWindow - now.Sub(last)).Seconds(), "meta": meta,
	})}, 0)
	return false
}
