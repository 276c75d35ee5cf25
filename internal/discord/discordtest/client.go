package discordtest

import (
	"strings"
)

// Processes that share a bot use one token, so Discord can't distinguish them. A
// script has to, for two reasons: Discord's messages to one process are unknown to
// the others, and other processes may take over the sessions of a stopped one.

// TokenOf returns a token that is accepted like Token and names the client that
// uses it. Give every process its own, and a new one after a restart.
func (s *Server) TokenOf(client string) string { return s.cfg.Token + "." + client }

// Suspend records that a client was stopped (SIGSTOP) with its connections
// open. From then on another client may resume their sessions without breaking
// a rule: the older connection is closed with 4006, as at Discord. Call it
// after the client has stopped.
func (s *Server) Suspend(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspended[client] = true
	for c := range s.conns {
		if c.client == client {
			c.suspended = true
		}
	}
}

// Continue records that a suspended client is about to run again (SIGCONT). The
// sessions of its old connections may still be taken over; the client has to
// notice that by itself. The sessions of connections that it opens from then on
// may not be taken over.
func (s *Server) Continue(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.suspended, client)
}

// clientOfLocked returns the client that a token names ("" for the plain one),
// and whether the token is accepted.
func (s *Server) clientOfLocked(token string) (client string, ok bool) {
	if token == s.token {
		return "", true
	}
	return strings.CutPrefix(token, s.token+".")
}

// authenticateLocked sets the connection's client, if the token is accepted. The
// client may be suspended by now: its message may arrive after it was stopped.
func (c *conn) authenticateLocked(token string) (ok bool) {
	if c.client, ok = c.srv.clientOfLocked(token); ok {
		c.suspended = c.srv.suspended[c.client]
	}
	return ok
}

// markAware records that a client was told that the session is dead.
func (ss *session) markAware(client string) { ss.aware = append(ss.aware, client) }

// knows reports whether a client must know that the session is dead. A named client is one
// of several servers, and may be told twice: it can lose the shard, and what it was told
// with it, and its close can cross the op 9.
func (ss *session) knows(client string) bool {
	told := 0
	for _, c := range ss.aware {
		if c == client {
			told++
		}
	}
	return told > 1 || told == 1 && client == ""
}
