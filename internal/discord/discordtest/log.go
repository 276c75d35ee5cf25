package discordtest

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// The errors of Server's methods.
var (
	ErrClosed       = errors.New("discordtest: the server is closed")
	ErrNoSession    = errors.New("discordtest: no session to dispatch to")
	ErrNotConnected = errors.New("discordtest: no connection with a session")
)

// Kind is the kind of an Entry.
type Kind int

// The kinds of log entries.
const (
	Connected    Kind = iota // a client opened a WebSocket
	Identify                 // a client sent IDENTIFY
	Resume                   // a client sent RESUME; Seq is its `seq`, -1 if there is none
	Ready                    // Discord began a session
	Resumed                  // Discord accepted a RESUME; Seq is where the replay begins
	Refused                  // Discord answered IDENTIFY or RESUME with op 9
	Heartbeat                // a client sent a heartbeat; Seq is its `d`, -1 for null
	Missed                   // a client's heartbeat did not come in time
	Command                  // a client sent op 3, 4, 8, 31 or 43
	ClientClosed             // a client ended its connection; Code is its close code
	ServerClosed             // Discord ended a connection; Code is the close code
	Silenced                 // Discord left a connection half-open
	Illegal                  // a client broke a rule
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
	// Conn numbers the connections, from 1.
	Conn int
	// Shard is AnyShard until the client has named its shard.
	Shard   int
	Session string
	Seq     int64
	// Op is the op code of a Command.
	Op int
	// Code is a close code: 1005 for a close frame without a code, 1006 for
	// a connection that ended without a close frame.
	Code int
	// Data is the `d` of an Identify or a Command.
	Data []byte
	// Detail is the reason of a Refused or Illegal entry.
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

// maxEntries is how many entries are kept. When there are more, the older half
// is forgotten; Count still counts them.
const maxEntries = 1 << 16

// entryLog is the log and its counts.
type entryLog struct {
	// Server.mu guards all fields.
	entries []Entry
	illegal []Entry
	counts  map[countKey]int
	changed chan struct{} // closed and replaced at a change, if anybody waits
	waiting bool          // somebody waits for changed
}

type countKey struct {
	kind  Kind
	shard int
}

func keepHalf(entries []Entry) []Entry {
	if len(entries) < maxEntries {
		return entries
	}
	return slices.Delete(entries, 0, maxEntries/2)
}

// noteLocked adds an entry to the log.
func (s *Server) noteLocked(e Entry) {
	e.At = time.Now()
	s.log.entries = append(keepHalf(s.log.entries), e)
	s.log.counts[countKey{e.Kind, e.Shard}]++
	if e.Kind == Illegal {
		s.log.illegal = append(keepHalf(s.log.illegal), e)
	}
	s.signalLocked()
}

// Log returns the entries so far, oldest first.
func (s *Server) Log() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log.entries)
}

// Illegal returns an entry for every rule that a client broke, whether or not
// Discord would have punished it.
func (s *Server) Illegal() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log.illegal)
}

// Count returns the number of entries of a kind for a shard, or for AnyShard.
// Entries of kind Connected have no shard.
func (s *Server) Count(k Kind, shard int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.countLocked(k, shard)
}

func (s *Server) countLocked(k Kind, shard int) (n int) {
	if shard != AnyShard {
		return s.log.counts[countKey{k, shard}]
	}
	for c, m := range s.log.counts {
		if c.kind == k {
			n += m
		}
	}
	return n
}
