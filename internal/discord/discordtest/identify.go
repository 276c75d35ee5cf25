package discordtest

import (
	"encoding/json"
	"fmt"
	"strings"
)

// privileged maps the bit of a privileged intent to the application flags that
// allow it: enabled, or enabled for a bot in few servers.
var privileged = map[int64]int64{
	1 << 1:  1<<14 | 1<<15,
	1 << 8:  1<<12 | 1<<13,
	1 << 15: 1<<18 | 1<<19,
}

// identification holds the members of IDENTIFY's `d` that are checked.
type identification struct {
	Token      string            `json:"token"`
	Properties map[string]string `json:"properties"`
	Compress   bool              `json:"compress"`
	Threshold  *int              `json:"large_threshold"`
	Shard      []int             `json:"shard"`
	Intents    *int64            `json:"intents"`
	Presence   *presencePayload  `json:"presence"`
}

// check returns the close code with which Discord refuses an IDENTIFY, given
// the application's flags, and the reason. The code is 0 if the IDENTIFY is
// valid.
func (p *identification) check(flags int64) (code int, why string) {
	switch {
	case p.Properties == nil:
		return closeOpcode, "IDENTIFY without properties"
	case p.Threshold != nil && (*p.Threshold < 50 || *p.Threshold > 250):
		return closeOpcode, fmt.Sprintf("IDENTIFY with large_threshold %d: 50 to 250 are accepted", *p.Threshold)
	case p.Shard != nil && (len(p.Shard) != 2 || p.Shard[0] < 0 || p.Shard[0] >= p.Shard[1]):
		return closeShard, fmt.Sprintf("IDENTIFY with shard %v", p.Shard)
	case p.Intents == nil || *p.Intents&^AllIntents != 0:
		return closeIntents, "IDENTIFY without intents, or with bits that don't exist"
	}
	if p.Presence != nil {
		if why, _ := p.Presence.check(); why != "" {
			return closeOpcode, "IDENTIFY with a presence: " + why
		}
	}
	for bit, enabling := range privileged {
		if *p.Intents&bit != 0 && flags&enabling == 0 {
			return closeDisallowed, fmt.Sprintf("IDENTIFY with the privileged intent %d, which is not enabled", bit)
		}
	}
	return 0, ""
}

// identifyLocked handles op 2 (Discord: Gateway, Identifying).
func (c *conn) identifyLocked(d json.RawMessage) {
	s := c.srv
	var p identification
	err := json.Unmarshal(d, &p)
	ss := &session{count: 1, compress: p.Compress && c.query.compress == "", query: c.query}
	if len(p.Shard) == 2 {
		ss.shard, ss.count = p.Shard[0], p.Shard[1]
	}
	if c.session == nil {
		c.shard = ss.shard
	}
	s.noteLocked(Entry{Kind: Identify, Conn: c.id, Shard: c.shard, Data: redact(d, p.Token)})
	switch {
	case c.session != nil:
		c.refuseLocked(closeAlreadyAuth, "a second IDENTIFY on one connection")
		return
	case err != nil:
		c.refuseLocked(closeOpcode, "IDENTIFY can't be decoded: %v", err)
		return
	case !c.authenticateLocked(p.Token):
		c.refuseLocked(closeAuthFailed, "IDENTIFY with a wrong token%s", hint(p.Token))
		return
	}
	if c.resume {
		s.illegalLocked(c, "IDENTIFY on the resume URL")
	}
	if !s.spendLocked(c) {
		return
	}
	if code, why := p.check(s.cfg.Flags); code != 0 {
		c.refuseLocked(code, "%s", why)
		return
	}
	if p.Compress && !ss.compress {
		s.illegalLocked(c, "payload compression together with transport compression")
	}
	if !s.takeBucketLocked(ss.shard) {
		s.illegalLocked(c, "IDENTIFY within %v of the last one in its bucket", s.cfg.IdentifyWindow)
		c.rejectLocked("too many IDENTIFYs at once")
		return
	}
	ss.intents = *p.Intents
	c.rewindLocked(0)
	actions := s.fireLocked(AtIdentify, ss.shard)
	c.enqueueNowLocked(actions...)
	if !skipsStep(actions) {
		s.beginLocked(c, ss)
	}
}

// redact removes the token from a payload that the log keeps.
func redact(d json.RawMessage, token string) []byte {
	if token == "" {
		return d
	}
	return []byte(strings.ReplaceAll(string(d), token, "[redacted]"))
}

func hint(token string) string {
	if strings.HasPrefix(token, "Bot ") {
		return `: it begins with "Bot ", which belongs in HTTP headers only`
	}
	return ""
}

// rejectLocked answers IDENTIFY or RESUME with op 9, not resumable.
func (c *conn) rejectLocked(why string) {
	c.srv.noteLocked(Entry{Kind: Refused, Conn: c.id, Shard: c.shard, Detail: why})
	c.enqueueNowLocked(Invalidate(false))
}
