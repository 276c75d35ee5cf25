package discordtest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"time"
)

// The limits of a bot's commands, with the page of Discord's documentation.
const (
	maxPresences   = 5                // Update Presence per presenceWindow (Activity Object)
	presenceWindow = 20 * time.Second // a sliding window here, as sendWindow is
	membersWindow  = 30 * time.Second // between two requests for all members of a guild (Rate Limited)
	maxNonce       = 32               // bytes (Request Guild Members)
	maxUserIDs     = 100              // ids (Request Guild Members)
	maxMatches     = 100              // members that a prefix finds (Request Guild Members)
)

// The intents that a Request Guild Members may need.
const (
	intentMembers   = 1 << 1
	intentPresences = 1 << 8
)

// commandLocked handles every op but IDENTIFY, RESUME and heartbeats (Discord:
// Send Events).
func (c *conn) commandLocked(op int, d json.RawMessage) {
	s := c.srv
	ss := c.session
	if ss == nil {
		c.refuseLocked(closeNotAuth, "op %d before IDENTIFY", op)
		return
	}
	s.noteLocked(Entry{Kind: Command, Conn: c.id, Shard: c.shard, Session: ss.id, Op: op, Data: d})
	switch op {
	case opPresence:
		c.presenceLocked(d)
	case opVoiceState:
		c.voiceStateLocked(ss, d)
	case opMembers:
		c.membersLocked(ss, d)
	}
}

// presencePayload is the `d` of op 3.
type presencePayload struct {
	Since      json.RawMessage   `json:"since"`
	Activities []json.RawMessage `json:"activities"`
	Status     string            `json:"status"`
	AFK        *bool             `json:"afk"`
}

// check returns why Discord would not accept a presence, or "". It is fatal if
// Discord can't read the presence at all.
func (p *presencePayload) check() (why string, fatal bool) {
	statuses := []string{"online", "dnd", "idle", "invisible", "offline"}
	if p.Since == nil || p.Activities == nil || p.AFK == nil || !slices.Contains(statuses, p.Status) {
		return "a presence needs since, activities, a known status, and afk", true
	}
	for _, raw := range p.Activities {
		var a struct {
			Name  string  `json:"name"`
			Type  *int    `json:"type"`
			State *string `json:"state"`
			URL   *string `json:"url"`
		}
		if json.Unmarshal(raw, &a) != nil || a.Name == "" || a.Type == nil || *a.Type < 0 || *a.Type > 5 {
			return "an activity needs a name and a known type", true
		}
		strict := json.NewDecoder(bytes.NewReader(raw))
		strict.DisallowUnknownFields()
		if strict.Decode(&a) != nil {
			return "an activity has more than name, type, state and url, which are all that a bot may set", false
		}
	}
	return "", false
}

// presenceLocked handles op 3 (Discord: Update Presence). It sends no
// PRESENCE_UPDATE, since the bot shares no guild with a user.
func (c *conn) presenceLocked(d json.RawMessage) {
	var p presencePayload
	if json.Unmarshal(d, &p) != nil {
		c.refuseLocked(closeOpcode, "op 3 can't be decoded")
		return
	}
	switch why, fatal := p.check(); {
	case fatal:
		c.refuseLocked(closeOpcode, "op 3: %s", why)
		return
	case why != "":
		c.srv.illegalLocked(c, "op 3: %s", why)
	}
	now := time.Now()
	c.presences = slices.DeleteFunc(c.presences, func(t time.Time) bool { return now.Sub(t) >= presenceWindow })
	if c.presences = append(c.presences, now); len(c.presences) > maxPresences {
		c.srv.illegalLocked(c, "more than %d presences within %v", maxPresences, presenceWindow)
	}
}

// onShardLocked records a broken rule if the guild of a command belongs to
// another shard.
func (c *conn) onShardLocked(op int, guild string, ss *session) {
	id, err := strconv.ParseUint(guild, 10, 64)
	if err != nil || ShardOf(id, ss.count) != ss.shard {
		c.srv.illegalLocked(c, "op %d for guild %q, which is not on shard %d of %d", op, guild, ss.shard, ss.count)
	}
}

// voiceStateLocked answers op 4 (Discord: Update Voice State).
func (c *conn) voiceStateLocked(ss *session, d json.RawMessage) {
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
		c.refuseLocked(closeOpcode, "op 4 needs a guild_id, a channel_id that may be null, self_mute and self_deaf")
		return
	}
	c.onShardLocked(opVoiceState, p.Guild, ss)
	s.pushLocked(ss, frame{name: "VOICE_STATE_UPDATE", data: mustJSON(map[string]any{
		"guild_id": p.Guild, "channel_id": channel, "user_id": strconv.FormatUint(s.cfg.UserID, 10), "session_id": ss.id,
		"self_mute": *p.Mute, "self_deaf": *p.Deaf, "mute": false, "deaf": false, "self_video": false, "suppress": false,
		"request_to_speak_timestamp": nil,
	})}, 0)
	if channel != nil {
		s.pushLocked(ss, frame{name: "VOICE_SERVER_UPDATE", data: mustJSON(map[string]any{
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

// all reports whether the request is for all members of the guild.
func (p *membersPayload) all() bool { return p.Query != nil && *p.Query == "" && *p.Limit == 0 }

// check returns the part of the request that Discord would ignore or cut short,
// although it answers; "" if there is none.
func (p *membersPayload) check(intents int64) string {
	var users []string
	list := json.Unmarshal(p.Users, &users) == nil // user_ids may also be a single id
	switch {
	case len(p.Nonce) > maxNonce:
		return "a nonce of more than 32 bytes, which is ignored"
	case list && len(users) > maxUserIDs:
		return "more than 100 user_ids"
	case p.Query != nil && *p.Query != "" && (*p.Limit < 1 || *p.Limit > maxMatches):
		return "a limit outside 1 to 100, which a prefix can't have"
	case p.Presences && intents&intentPresences == 0:
		return "presences without the intent GUILD_PRESENCES"
	case p.all() && intents&intentMembers == 0:
		return "all members without the intent GUILD_MEMBERS"
	default:
		return ""
	}
}

// membersLocked answers op 8 (Discord: Request Guild Members).
func (c *conn) membersLocked(ss *session, d json.RawMessage) {
	s := c.srv
	var p membersPayload
	if json.Unmarshal(d, &p) != nil || p.Guild == "" || (p.Query == nil) == (p.Users == nil) || p.Query != nil && p.Limit == nil {
		c.refuseLocked(closeOpcode, "op 8 needs a guild_id, and either query with limit or user_ids")
		return
	}
	c.onShardLocked(opMembers, p.Guild, ss)
	if why := p.check(ss.intents); why != "" {
		s.illegalLocked(c, "op 8 with %s", why)
	}
	if p.all() && !s.takeMembersLocked(ss, &p) {
		return
	}
	if s.cfg.Chunks != nil {
		for _, chunk := range s.cfg.Chunks(d) {
			s.pushLocked(ss, frame{name: "GUILD_MEMBERS_CHUNK", data: chunk}, 0)
		}
		return
	}
	chunk := map[string]any{"guild_id": p.Guild, "members": []any{}, "chunk_index": 0, "chunk_count": 1}
	if p.Nonce != "" && len(p.Nonce) <= maxNonce {
		chunk["nonce"] = p.Nonce
	}
	s.pushLocked(ss, frame{name: "GUILD_MEMBERS_CHUNK", data: mustJSON(chunk)}, 0)
}

// takeMembersLocked reports whether all members of a guild may be requested now.
// If not, it sends the client RATE_LIMITED (Discord: Rate Limited).
func (s *Server) takeMembersLocked(ss *session, p *membersPayload) bool {
	now := time.Now()
	last, ok := s.membersAsked[p.Guild]
	if !ok || now.Sub(last) >= membersWindow {
		s.membersAsked[p.Guild] = now
		return true
	}
	meta := map[string]any{"guild_id": p.Guild}
	if p.Nonce != "" {
		meta["nonce"] = p.Nonce
	}
	s.pushLocked(ss, frame{name: "RATE_LIMITED", data: mustJSON(map[string]any{
		"opcode": opMembers, "retry_after": (membersWindow - now.Sub(last)).Seconds(), "meta": meta,
	})}, 0)
	return false
}
