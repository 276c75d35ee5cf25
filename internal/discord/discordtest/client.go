package discordtest

import (
	"slices"
	"strings"
)

// Processes that share a bot have one token, by which Discord can't tell them
// apart. A script needs to: what one of them was told the others don't know,
// and the connections of one that is stopped may be taken over.

// TokenOf is a token that is accepted like Token and names who uses it. Give
// every process another one, and a restarted process too.
func (s *Server) TokenOf(client string) string { return s.cfg.Token + "." + client }

// Suspend says that a client was stopped (SIGSTOP) with its connections open.
// That another client resumes their sessions is no theft from then on: the
// older connection is closed with 4006, as Discord does. Call it once the
// client does not run any more.
func (s *Server) Suspend(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped[client] = true
	for c := range s.conns {
		if c.client == client {
			c.stopped = true
		}
	}
}

// Continue says that a suspended client is about to run again (SIGCONT). The
// connections that it had may still be taken over: whether they were, it finds
// out by itself. Those that it makes from then on may not.
func (s *Server) Continue(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stopped, client)
}

// clientOf tells whose token it is. s.mu is held.
func (s *Server) clientOf(token string) (client string, ok bool) {
	if token == s.token {
		return "", true
	}
	return strings.CutPrefix(token, s.token+".")
}

// authenticate notes whose connection it is. What a stopped client has sent
// before may arrive after. s.mu is held.
func (c *conn) authenticate(token string) (ok bool) {
	if c.client, ok = c.srv.clientOf(token); ok {
		c.stopped = c.srv.stopped[c.client]
	}
	return ok
}

// tell notes that a client knows that the session is gone. s.mu is held.
func (ss *session) tell(client string) {
	if !slices.Contains(ss.told, client) {
		ss.told = append(ss.told, client)
	}
}
