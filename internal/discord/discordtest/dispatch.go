package discordtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Sent identifies a dispatch by session and sequence number. It is zero if the
// intents of the session don't include the event.
type Sent struct {
	Session string
	Seq     int64
}

// Record is a dispatch in the log of Dispatched.
type Record struct {
	// Call numbers the calls of Dispatch, DispatchFrame, DispatchGuild and
	// Broadcast, from 1. The copies for several sessions share it. It is 0 for
	// READY, RESUMED and the answers to commands.
	Call  int64
	Shard int
	Name  string
	Sent
}

// ShardOf returns the shard that carries a guild (Discord: Sharding Formula).
func ShardOf(guild uint64, count int) int { return int((guild >> 22) % uint64(count)) }

// Dispatch sends an event to every session of the shard, connected or away, and
// returns its place in the newest session. The bytes of data become its `d`
// unchanged, and must not be modified afterwards. Dispatch waits while a
// connected client is ReplayLimit dispatches behind. Without a session, when no
// client could ever receive the event, it returns ErrNoSession.
func (s *Server) Dispatch(shard int, name string, data []byte) (Sent, error) {
	f, err := newFrame(name, data)
	if err != nil {
		return Sent{}, err
	}
	return s.dispatch(shard, f)
}

// Frame is a recorded dispatch, ready to be sent again.
type Frame struct {
	// Name is the `t` and Data the bytes of `d`.
	Name string
	Data []byte
	f    frame
}

// ParseFrame reads a recorded dispatch. Its bytes are sent unchanged except for
// `s`, and must not be modified afterwards.
func ParseFrame(recorded []byte) (Frame, error) {
	members, err := spans(recorded)
	if err != nil {
		return Frame{}, fmt.Errorf("discordtest: parse frame: %w", err)
	}
	text := func(key string) []byte { return recorded[members[key].from:members[key].to] }
	var out Frame
	if op := text("op"); string(op) != "0" {
		return Frame{}, fmt.Errorf("discordtest: parse frame: op is %q: only dispatches, op 0, can be sent again", op)
	}
	if err := json.Unmarshal(text("t"), &out.Name); err != nil || out.Name == "" {
		return Frame{}, fmt.Errorf("discordtest: parse frame: t is %q: a dispatch needs a name", text("t"))
	}
	seq, ok := members["s"]
	if !ok || members["d"] == (span{}) {
		return Frame{}, errors.New("discordtest: parse frame: s or d is missing: record whole frames")
	}
	out.Data = text("d")
	out.f = frame{name: out.Name, head: recorded[:seq.from:seq.from], data: recorded[seq.to:]}
	return out, nil
}

// span is where a value begins and ends.
type span struct{ from, to int }

// spans finds the values of an object's members.
func spans(object []byte) (map[string]span, error) {
	d := json.NewDecoder(bytes.NewReader(object))
	switch t, err := d.Token(); {
	case err != nil:
		return nil, fmt.Errorf("not a JSON object: %w", err)
	case t != json.Delim('{'):
		return nil, errors.New("not a JSON object")
	}
	found := map[string]span{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		end := int(d.InputOffset())
		found[key.(string)] = span{end - len(value), end} // a key is always a string
	}
	_, err := d.Token()
	return found, err
}

// DispatchFrame is Dispatch for a recorded frame.
func (s *Server) DispatchFrame(shard int, f Frame) (Sent, error) {
	if f.f.head == nil {
		return Sent{}, errors.New("discordtest: dispatch an empty Frame: make one with ParseFrame")
	}
	return s.dispatch(shard, f.f)
}

func (s *Server) dispatch(shard int, f frame) (Sent, error) {
	var one [1]Sent // room for the usual case: one session on this shard
	sent, err := s.send(one[:0], f, func() []*session { return s.byShard[shard] })
	if err != nil {
		return Sent{}, fmt.Errorf("shard %d, %s: %w", shard, f.name, err)
	}
	return sent[len(sent)-1], nil
}

// DispatchGuild sends an event to every session whose shard carries the guild.
func (s *Server) DispatchGuild(guild uint64, name string, data []byte) ([]Sent, error) {
	return s.broadcast(name, data, func(ss *session) bool { return ShardOf(guild, ss.count) == ss.shard })
}

// Broadcast sends an event to every session.
func (s *Server) Broadcast(name string, data []byte) ([]Sent, error) {
	return s.broadcast(name, data, func(*session) bool { return true })
}

func (s *Server) broadcast(name string, data []byte, to func(*session) bool) ([]Sent, error) {
	f, err := newFrame(name, data)
	if err != nil {
		return nil, err
	}
	return s.send(nil, f, func() (found []*session) {
		for _, sessions := range s.byShard {
			for _, ss := range sessions {
				if to(ss) {
					found = append(found, ss)
				}
			}
		}
		return found
	})
}

// newFrame checks that the name can't break the JSON around it.
func newFrame(name string, data []byte) (frame, error) {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
		return frame{}, fmt.Errorf("discordtest: dispatch: %q is not an event name", name)
	}
	if len(data) == 0 {
		data = []byte("null")
	}
	return frame{name: name, data: data}, nil
}

// send puts a frame into the sessions that targets returns, once all of them
// have room, and appends its place in each to sent. It calls targets with s.mu
// held.
func (s *Server) send(sent []Sent, f frame, targets func() []*session) ([]Sent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := targets()
	if s.expireLocked(sessions...) {
		sessions = targets()
	}
	for !s.closed && slices.ContainsFunc(sessions, (*session).blocked) {
		s.blocked++
		s.room.Wait()
		s.blocked--
		sessions = targets()
	}
	switch {
	case s.closed:
		return nil, ErrClosed
	case len(sessions) == 0:
		return nil, ErrNoSession
	}
	s.calls++
	for _, ss := range sessions {
		sent = append(sent, s.pushLocked(ss, f, s.calls))
	}
	return sent, nil
}

// pushLocked puts a frame into the session, unless its intents exclude it. call
// is 0 for frames that are sent regardless of the intents.
func (s *Server) pushLocked(ss *session, f frame, call int64) Sent {
	if s.cfg.Wants != nil && call != 0 && !s.cfg.Wants(ss.intents, f.name) {
		return Sent{}
	}
	ss.push(f)
	sent := Sent{ss.id, ss.seq}
	if s.cfg.LogDispatches {
		s.records = append(s.records, Record{call, ss.shard, f.name, sent})
	}
	return sent
}

// Dispatched returns every dispatch since Start, READY and RESUMED included, in
// order. It is empty without Config.LogDispatches.
func (s *Server) Dispatched() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.records)
}
