package discordtest

import "time"

// SessionStart is Discord's session start limit object. The zero value means
// 1000 of 1000 left, reset after 24 h, one IDENTIFY at a time. Once Total is
// set, Remaining and ResetAfter are taken as they are, and MaxConcurrency is at
// least 1.
type SessionStart struct {
	Total, Remaining int
	// ResetAfter is counted from Start or SetSessionStart. After it, and every
	// 24 h from then on, Remaining is Total again. If it is negative, there is no
	// reset, and reset_after is 0.
	ResetAfter     time.Duration
	MaxConcurrency int
}

const day = 24 * time.Hour

func (l SessionStart) withDefaults() SessionStart {
	if l.Total == 0 {
		l.Total, l.Remaining, l.ResetAfter = 1000, 1000, day
	}
	l.MaxConcurrency = max(l.MaxConcurrency, 1)
	return l
}

// SetSessionStart changes the session start limit.
func (s *Server) SetSessionStart(l SessionStart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts = l.withDefaults()
	s.resetAt = time.Now().Add(s.starts.ResetAfter)
}

// sessionStartLocked resets the limit if that is due, and returns it.
func (s *Server) sessionStartLocked() SessionStart {
	if s.starts.ResetAfter < 0 {
		l := s.starts
		l.ResetAfter = 0
		return l
	}
	if now := time.Now(); !now.Before(s.resetAt) {
		s.starts.Remaining = s.starts.Total
		s.resetAt = now.Add(day)
	}
	l := s.starts
	l.ResetAfter = time.Until(s.resetAt)
	return l
}

// spendLocked takes an IDENTIFY off the daily budget. A client that exceeds it
// loses all sessions and its token (Discord: Gateway, Identifying).
func (s *Server) spendLocked(c *conn) bool {
	if s.sessionStartLocked(); s.starts.Remaining > 0 {
		s.starts.Remaining--
		return true
	}
	s.token = newSessionID()
	for other := range s.conns {
		if other != c && other.session != nil {
			other.deaf = true
			other.enqueueNowLocked(Close(closeAuthFailed))
		}
	}
	c.refuseLocked(closeAuthFailed, "IDENTIFY after the session start limit was used up: the token is reset")
	return false
}

// takeBucketLocked takes the shard's rate limit key for one window (Discord:
// Gateway, Max Concurrency). It returns false if the key is taken.
func (s *Server) takeBucketLocked(shard int) bool {
	key, now := shard%s.starts.MaxConcurrency, time.Now()
	if last, ok := s.buckets[key]; ok && now.Sub(last) < s.cfg.IdentifyWindow {
		return false
	}
	s.buckets[key] = now
	return true
}
