package discordtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What Start and the methods of Server return.
var (
	ErrClosed       = errors.New("discordtest: the server is closed")
	ErrNoSession    = errors.New("discordtest: no session to dispatch to")
	ErrNotConnected = errors.New("discordtest: no connection with a session")
)

// Kind is what an Entry of the log tells.
type Kind int

// The kinds of log entries. Who did it comes first: a client or Discord.
const (
	Connected    Kind = iota // a client opened a WebSocket
	Identify                 // a client sent IDENTIFY
	Resume                   // a client sent RESUME; Seq is what it said
	Ready                    // Discord began a session
	Resumed                  // Discord accepted a RESUME; Seq is where the replay begins
	Refused                  // Discord answered IDENTIFY or RESUME with op 9
	Heartbeat                // a client sent a heartbeat; Seq is its `d`, -1 for null
	Missed                   // a client's heartbeat did not come in time
	Command                  // a client sent op 3, 4, 8, 31 or 43
	ClientClosed             // a client ended its connection; Code is its close code
	ServerClosed             // Discord ended a connection; Code is the close code
	Silenced                 // Discord left a connection half-open
	Illegal                  // a client did what it must not do
	kinds
)

var kindNames = [kinds]string{
	"connected", "identify", "resume", "ready", "resumed", "refused", "heartbeat", "missed heartbeat",
	"command", "client closed", "server closed", "silenced", "illegal",
}

// String returns the kind in words.
func (k Kind) String() string { return kindNames[k] }

// Entry is something that happened at the gateway.
type Entry struct {
	At   time.Time
	Kind Kind
	// Conn numbers the connections from 1 on; 0 for a plain HTTP request.
	Conn int
	// Shard is AnyShard until the connection has told it.
	Shard   int
	Session string
	Seq     int64
	// Op is the op code of a Command.
	Op int
	// Code is a close code: 1005 for a close frame without a code, 1006 for
	// a connection that ended without a close frame.
	Code int
	// Data is the payload of Identify and Command: its `d`.
	Data []byte
	// Detail says more, in words. Of an Illegal entry it is the reason.
	Detail string
}

// String describes the entry on one line, without the token.
func (e Entry) String() string {
	s := fmt.Sprintf("%s conn %d shard %d", e.Kind, e.Conn, e.Shard)
	switch e.Kind {
	case Resume, Resumed, Heartbeat:
		s += fmt.Sprintf(" seq %d", e.Seq)
	case ClientClosed, ServerClosed:
		s += fmt.Sprintf(" code %d", e.Code)
	case Command:
		s += fmt.Sprintf(" op %d", e.Op)
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// logLimit is how many entries are kept at most; the older half is forgotten
// when they are more, and Count goes on counting.
const logLimit = 1 << 16

// journal is the log and its counts. Server.mu guards it.
type journal struct {
	entries []Entry
	illegal []Entry
	counts  map[counted]int
	changed chan struct{} // closed and replaced when something was noted, if anybody waits
	waiting bool
}

type counted struct {
	kind  Kind
	shard int
}

func keepHalf(entries []Entry) []Entry {
	if len(entries) < logLimit {
		return entries
	}
	return slices.Delete(entries, 0, logLimit/2)
}

// note adds to the log. s.mu is held.
func (s *Server) note(e Entry) {
	e.At = time.Now()
	s.log.entries = append(keepHalf(s.log.entries), e)
	s.log.counts[counted{e.Kind, e.Shard}]++
	if e.Kind == Illegal {
		s.log.illegal = append(keepHalf(s.log.illegal), e)
	}
	s.signal()
}

// signal wakes those who wait for something to happen. s.mu is held.
func (s *Server) signal() {
	if s.log.waiting {
		close(s.log.changed)
		s.log.changed = make(chan struct{})
		s.log.waiting = false
	}
}

// Log returns what happened so far.
func (s *Server) Log() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log.entries)
}

// Illegal returns what clients did that they must not do, whether or not
// Discord would have punished it.
func (s *Server) Illegal() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log.illegal)
}

// Count returns how often something happened to a shard, or to AnyShard.
// Connected has no shard.
func (s *Server) Count(k Kind, shard int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count(k, shard)
}

func (s *Server) count(k Kind, shard int) (n int) {
	if shard != AnyShard {
		return s.log.counts[counted{k, shard}]
	}
	for c, m := range s.log.counts {
		if c.kind == k {
			n += m
		}
	}
	return n
}

// Session returns the newest session of the shard that is not gone.
func (s *Server) Session(shard int) (Session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ss := s.newest(shard); ss != nil {
		return ss.snapshot(), true
	}
	return Session{}, false
}

// Sessions returns all sessions, those that are gone too, in the order in which
// they began. Of very many only the newest are remembered.
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(s.order...)
	list := make([]Session, len(s.order))
	for i, ss := range s.order {
		list[i] = ss.snapshot()
	}
	return list
}

// WaitReady waits until the newest session of the shard is in service (see
// Session.Connected) and returns it. It is not the history that counts, but
// the present: after Do(shard, Drop()) it waits for the client to come back.
func (s *Server) WaitReady(ctx context.Context, shard int) (Session, error) {
	var found Session
	err := s.await(ctx, fmt.Sprintf("shard %d in service", shard), func() bool {
		if ss := s.newest(shard); ss != nil {
			found = ss.snapshot()
		}
		return found.Connected
	})
	return found, err
}

// WaitConnected waits until the n-th WebSocket was opened.
func (s *Server) WaitConnected(ctx context.Context, n int) (Entry, error) {
	return s.WaitCount(ctx, Connected, AnyShard, n)
}

// WaitIdentify waits until the shard has sent its n-th IDENTIFY and returns it.
func (s *Server) WaitIdentify(ctx context.Context, shard, n int) (Entry, error) {
	return s.WaitCount(ctx, Identify, shard, n)
}

// WaitResume waits until the shard has sent its n-th RESUME and returns it.
func (s *Server) WaitResume(ctx context.Context, shard, n int) (Entry, error) {
	return s.WaitCount(ctx, Resume, shard, n)
}

// WaitAcked waits until a heartbeat of the shard's newest session has
// acknowledged seq.
func (s *Server) WaitAcked(ctx context.Context, shard int, seq int64) error {
	return s.await(ctx, fmt.Sprintf("shard %d acknowledging %d", shard, seq), func() bool {
		ss := s.newest(shard)
		return ss != nil && ss.acked >= seq
	})
}

// WaitCount waits until something has happened n times to a shard, or to
// AnyShard, counted from Start, and returns the entry of the n-th time. The
// entry is empty if it is so long ago that the log has forgotten it.
func (s *Server) WaitCount(ctx context.Context, k Kind, shard, n int) (Entry, error) {
	var found Entry
	err := s.await(ctx, fmt.Sprintf("%s number %d of shard %d", k, n, shard), func() bool {
		total := s.count(k, shard)
		if total < n {
			return false
		}
		for _, e := range slices.Backward(s.log.entries) {
			if e.Kind != k || shard != AnyShard && e.Shard != shard {
				continue
			}
			if total == n {
				found = e
				return true
			}
			total--
		}
		return true
	})
	return found, err
}

// await returns when cond, which is called with s.mu held, holds.
func (s *Server) await(ctx context.Context, what string, cond func() bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !cond() {
		if s.closed {
			return ErrClosed
		}
		s.log.waiting = true
		changed := s.log.changed
		s.mu.Unlock()
		select {
		case <-changed:
			s.mu.Lock()
		case <-ctx.Done():
			s.mu.Lock()
			return fmt.Errorf("discordtest: no %s: %w; last: %s", what, context.Cause(ctx), s.tail())
		}
	}
	return nil
}

// tail describes the last entries for a message to people. s.mu is held.
func (s *Server) tail() string {
	last := s.log.entries[max(0, len(s.log.entries)-8):]
	if len(last) == 0 {
		return "nothing happened"
	}
	lines := make([]string, len(last))
	for i, e := range last {
		lines[i] = e.String()
	}
	return strings.Join(lines, "; ")
}
