package discordtest

import (
	"fmt"
	"slices"
	"time"
)

// AnyShard stands for every shard, in Arm, Do and Count.
const AnyShard = -1

// Always is for the times of Arm: every time until the fault is disarmed.
const Always = -1

// Moment is when an armed fault happens: right before the step that gives the
// moment its name.
type Moment int

// The moments, each with the step that it precedes. The step is left out if an
// action ends the connection, or is Skip or Invalidate.
const (
	AtGatewayBot    Moment = iota // the answer to GET /gateway/bot
	AtApplication                 // the answer to GET /applications/@me
	AtConnect                     // the WebSocket handshake on the gateway's URL
	AtResumeConnect               // the WebSocket handshake on the resume URL
	AtHello                       // HELLO
	AtIdentify                    // READY, for a valid IDENTIFY
	AtResume                      // the replay, for a valid RESUME
	AtHeartbeat                   // the heartbeat's ACK
)

// overHTTP reports whether the moment comes before there is a WebSocket.
func (m Moment) overHTTP() bool { return m <= AtResumeConnect }

// knowsShard reports whether the client has named its shard by then.
func (m Moment) knowsShard() bool { return m >= AtIdentify }

// Action is something that Discord does to a connection. The functions below
// make one.
type Action struct {
	verb    verb
	code    int
	wait    time.Duration
	payload []byte
	later   int64 // how many dispatches to wait for
}

type verb int

const (
	verbSend verb = iota
	verbReconnect
	verbInvalidate
	verbClose
	verbDrop
	verbReset
	verbSilence
	verbCorrupt
	verbText
	verbDelay
	verbSkip
	verbStatus
)

// Reconnect sends op 7. The connection stays open until the client leaves.
func Reconnect() Action {
	return Action{verb: verbReconnect, payload: []byte(`{"t":null,"s":null,"op":7,"d":null}`)}
}

// Invalidate sends op 9. It ends the session unless resumable is true. The
// connection stays open, and the client may IDENTIFY or RESUME on it.
func Invalidate(resumable bool) Action {
	a := Action{verb: verbInvalidate, payload: fmt.Appendf(nil, `{"t":null,"s":null,"op":9,"d":%t}`, resumable)}
	if resumable {
		a.code = 1
	}
	return a
}

// RequestHeartbeat sends op 1.
func RequestHeartbeat() Action { return Send([]byte(`{"t":null,"s":null,"op":1,"d":null}`)) }

// Send sends a payload unchanged, in the connection's encoding. It is not a
// dispatch of the session and is never replayed.
func Send(payload []byte) Action { return Action{verb: verbSend, payload: payload} }

// Close sends a close frame with the code and ends the connection. 1005 sends a
// close frame without a code; 1006 is Drop. Codes that tell a client to start a
// new session (4001, 4003 to 4007, 4009 to 4014) end the session. After any
// other code the session can be resumed.
func Close(code int) Action {
	if code == 1006 {
		return Drop()
	}
	return Action{verb: verbClose, code: code}
}

// Drop ends the TCP connection without a close frame, after everything that was
// sent: a client reads all of it and then the end.
func Drop() Action { return Action{verb: verbDrop} }

// Reset ends the TCP connection at once with RST. Dispatches that were not sent
// yet are not sent on this connection.
func Reset() Action { return Action{verb: verbReset} }

// Silence leaves the connection half-open: the socket stays open, but Discord
// no longer sends anything on it, not even ACKs, and ignores whatever arrives.
func Silence() Action { return Action{verb: verbSilence} }

// Corrupt sends a message that can't be decoded: broken JSON, or broken
// compressed data on a connection with transport compression, of which a client
// can read nothing any more.
func Corrupt() Action { return Action{verb: verbCorrupt} }

// TextFrame sends a payload as an uncompressed text message, which is invalid
// in a compressed stream.
func TextFrame(payload []byte) Action { return Action{verb: verbText, payload: payload} }

// Delay waits before the next action or dispatch.
func Delay(d time.Duration) Action { return Action{verb: verbDelay, wait: d} }

// Skip leaves out the step that the moment precedes: Arm(AtHeartbeat, 0,
// Always, Skip()) withholds the ACKs.
func Skip() Action { return Action{verb: verbSkip} }

// After delays the action until n further dispatches, replayed ones included,
// have been sent on the connection. The step that the moment precedes takes
// place.
func After(n int, a Action) Action {
	a.later += int64(n)
	return a
}

// Status answers an HTTP request or a WebSocket handshake with this status and
// Discord's JSON error body.
func Status(code int) Action { return Action{verb: verbStatus, code: code} }

// RateLimit answers an HTTP request with 429 and Retry-After.
func RateLimit(retryAfter time.Duration) Action {
	return Action{verb: verbStatus, code: 429, wait: retryAfter}
}

// ends reports whether the action is the last on its connection.
func (a Action) ends() bool {
	switch a.verb {
	case verbClose, verbDrop, verbReset, verbSilence, verbStatus:
		return a.later == 0
	default:
		return false
	}
}

// skips reports whether the action replaces the step that its moment precedes.
func (a Action) skips() bool {
	return a.ends() || a.later == 0 && (a.verb == verbSkip || a.verb == verbInvalidate)
}

// expels reports whether a client has to leave the connection after the action.
func (a Action) expels() bool {
	return a.ends() || a.later == 0 &&
		(a.verb == verbReconnect || a.verb == verbInvalidate || a.verb == verbCorrupt)
}

// killsSession reports whether the session can't be resumed after the action.
func (a Action) killsSession() bool {
	return a.later == 0 && (a.verb == verbInvalidate && a.code == 0 || a.verb == verbClose && ends(a.code))
}

func skipsStep(actions []Action) bool { return slices.ContainsFunc(actions, Action.skips) }

// fault holds actions that wait for their moment.
type fault struct {
	at      Moment
	shard   int
	times   int
	actions []Action
}

// Arm makes the actions happen, in this order, whenever the moment comes for
// the shard, as often as times says. Faults armed for the same moment are used
// up in the order in which they were armed. The returned function disarms the
// fault. Arm panics on a script that can't work: one that names a shard before
// the client does, or uses an action that needs a WebSocket before there is
// one.
func (s *Server) Arm(at Moment, shard, times int, actions ...Action) (disarm func()) {
	if shard != AnyShard && !at.knowsShard() {
		panic("discordtest: the shard is not known at this moment: arm it for AnyShard")
	}
	for _, a := range actions {
		http := a.verb == verbStatus || a.verb == verbDelay || a.verb == verbDrop || a.verb == verbReset || a.verb == verbSilence
		if at.overHTTP() && !http || !at.overHTTP() && a.verb == verbStatus {
			panic("discordtest: this action can't happen at this moment")
		}
	}
	f := &fault{at, shard, times, actions}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(other *fault) bool { return other == f })
	}
}

// fireLocked returns the actions that are armed for the moment, and counts the
// use.
func (s *Server) fireLocked(at Moment, shard int) []Action {
	for i, f := range s.faults {
		if f.at != at || f.shard != AnyShard && f.shard != shard || f.times == 0 {
			continue
		}
		if f.times--; f.times == 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
		return f.actions
	}
	return nil
}

// Do makes the actions happen now on the connection of the shard, after
// everything that was dispatched to it so far; only Reset happens at once. Do
// does not wait for the actions, but from now on WaitReady ignores a connection
// that they end. Without a connection Do returns ErrNotConnected. With AnyShard
// it acts on all connections that have a session.
func (s *Server) Do(shard int, actions ...Action) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for c := range s.conns {
		if c.session == nil || c.ending || shard != AnyShard && c.session.shard != shard {
			continue
		}
		found = true
		for _, a := range actions {
			if a.verb == verbReset && a.later == 0 {
				c.abortLocked()
				break
			}
			if a.verb == verbSilence && a.later == 0 {
				c.deaf = true // at once, not when the writer gets to the action
			}
			c.enqueueLocked(c.session.seq+a.later, a)
		}
	}
	if !found {
		return fmt.Errorf("shard %d: %w", shard, ErrNotConnected)
	}
	return nil
}
