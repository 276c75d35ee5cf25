package discordtest

import (
	"fmt"
	"slices"
	"time"
)

// AnyShard stands for every shard, in Arm, Do and Count.
const AnyShard = -1

// Always as the times of Arm means until disarmed.
const Always = -1

// Moment is when an armed fault happens: right before the step that it is
// named for.
type Moment int

// The moments. What they precede is left out if an action ends the connection
// or is Skip or Invalidate.
const (
	AtGatewayBot    Moment = iota // the answer to GET /gateway/bot
	AtApplication                 // the answer to GET /applications/@me
	AtConnect                     // the WebSocket handshake on the gateway's URL
	AtResumeConnect               // the WebSocket handshake on the resume URL
	AtHello                       // HELLO
	AtIdentify                    // READY, for an IDENTIFY that is in order
	AtResume                      // the replay, for a RESUME that is in order
	AtHeartbeat                   // the heartbeat's ACK
)

// overHTTP tells whether no WebSocket exists yet.
func (m Moment) overHTTP() bool { return m <= AtResumeConnect }

// knowsShard tells whether it is known by then which shard the client is.
func (m Moment) knowsShard() bool { return m >= AtIdentify }

// Action is something that Discord does to a connection. Make one with the
// functions that return it.
type Action struct {
	verb    verb
	code    int
	wait    time.Duration
	payload []byte
	later   int64
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

// Reconnect sends op 7. The client is expected to leave by itself.
func Reconnect() Action {
	return Action{verb: verbReconnect, payload: []byte(`{"t":null,"s":null,"op":7,"d":null}`)}
}

// Invalidate sends op 9. The session is gone unless it is resumable; the
// connection stays and may IDENTIFY or RESUME anew.
func Invalidate(resumable bool) Action {
	a := Action{verb: verbInvalidate, payload: fmt.Appendf(nil, `{"t":null,"s":null,"op":9,"d":%t}`, resumable)}
	if resumable {
		a.code = 1
	}
	return a
}

// RequestHeartbeat sends op 1.
func RequestHeartbeat() Action { return Send([]byte(`{"t":null,"s":null,"op":1,"d":null}`)) }

// Send sends a payload as it is, in the connection's encoding. It is not a
// dispatch of the session: it is not replayed.
func Send(payload []byte) Action { return Action{verb: verbSend, payload: payload} }

// Close sends a close frame with the code and ends the connection. 1005 sends
// a close frame without a code, 1006 is Drop. The session is gone after the
// codes that tell a client to start a new one (4001, 4003 to 4007, 4009 to
// 4014) and can be resumed after all others.
func Close(code int) Action {
	if code == 1006 {
		return Drop()
	}
	return Action{verb: verbClose, code: code}
}

// Drop ends the TCP connection without a close frame, behind everything that
// was sent: a client reads all of it and then the end.
func Drop() Action { return Action{verb: verbDrop} }

// Reset ends the TCP connection at once with RST: what was dispatched and did
// not leave yet is not sent on this connection.
func Reset() Action { return Action{verb: verbReset} }

// Silence leaves the connection half-open: the socket stays, but nothing is
// sent on it any more, not even ACKs, and what comes is ignored.
func Silence() Action { return Action{verb: verbSilence} }

// Corrupt sends what can't be decoded: broken JSON, or broken compressed data
// on a connection with transport compression.
func Corrupt() Action { return Action{verb: verbCorrupt} }

// TextFrame sends a payload as an uncompressed text message, which has no
// place in a compressed stream.
func TextFrame(payload []byte) Action { return Action{verb: verbText, payload: payload} }

// Delay waits before what follows.
func Delay(d time.Duration) Action { return Action{verb: verbDelay, wait: d} }

// Skip leaves out the step that the moment precedes: Arm(AtHeartbeat, 0,
// Always, Skip()) withholds the ACKs.
func Skip() Action { return Action{verb: verbSkip} }

// After holds the action back until n further dispatches, replayed ones
// included, went out on the connection. The step that the moment precedes
// takes place.
func After(n int, a Action) Action {
	a.later += int64(n)
	return a
}

// Status answers an HTTP request, or a WebSocket handshake, with this status
// and Discord's JSON error body.
func Status(code int) Action { return Action{verb: verbStatus, code: code} }

// RateLimit answers an HTTP request with 429 and Retry-After.
func RateLimit(retryAfter time.Duration) Action {
	return Action{verb: verbStatus, code: 429, wait: retryAfter}
}

// ends tells whether nothing can follow the action on its connection.
func (a Action) ends() bool {
	switch a.verb {
	case verbClose, verbDrop, verbReset, verbSilence, verbStatus:
		return a.later == 0
	default:
		return false
	}
}

// skips tells whether the step that a moment precedes is left out.
func (a Action) skips() bool {
	return a.ends() || a.later == 0 && (a.verb == verbSkip || a.verb == verbInvalidate)
}

// expelling tells whether a client is expected to leave the connection.
func (a Action) expelling() bool {
	return a.ends() || a.later == 0 &&
		(a.verb == verbReconnect || a.verb == verbInvalidate || a.verb == verbCorrupt)
}

// killsSession tells whether nothing can be resumed after the action.
func (a Action) killsSession() bool {
	return a.later == 0 && (a.verb == verbInvalidate && a.code == 0 || a.verb == verbClose && ends(a.code))
}

func skipsStep(actions []Action) bool { return slices.ContainsFunc(actions, Action.skips) }

// armed is a fault that waits for its moment.
type armed struct {
	at      Moment
	shard   int
	times   int
	actions []Action
}

// Arm lets the actions happen, in their order, the next times that the moment
// comes for the shard; faults of the same moment take turns in the order in
// which they were armed. The function returned disarms it. Arm panics on a
// script that can't work: a shard before the client told its shard, or an
// action that needs a WebSocket before there is one.
func (s *Server) Arm(at Moment, shard, times int, actions ...Action) (disarm func()) {
	if shard != AnyShard && !at.knowsShard() {
		panic("discordtest: no shard is known at this moment: arm it for AnyShard")
	}
	for _, a := range actions {
		http := a.verb == verbStatus || a.verb == verbDelay || a.verb == verbDrop || a.verb == verbReset || a.verb == verbSilence
		if at.overHTTP() && !http || !at.overHTTP() && a.verb == verbStatus {
			panic("discordtest: this action can't happen at this moment")
		}
	}
	f := &armed{at, shard, times, actions}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(other *armed) bool { return other == f })
	}
}

// fire returns what was armed for the moment, and uses it up. s.mu is held.
func (s *Server) fire(at Moment, shard int) []Action {
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

// Do lets the actions happen now on the connection of the shard, behind
// everything that was dispatched to it so far; Reset does not wait. It returns
// before they happened, but WaitReady no longer counts a connection that they
// end. Without a connection it returns ErrNotConnected. With AnyShard it acts on
// all connections that have a session.
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
				c.abort()
				break
			}
			if a.verb == verbSilence && a.later == 0 {
				c.deaf = true // not only once the writer comes to it
			}
			c.enqueue(c.session.seq+a.later, a)
		}
	}
	if !found {
		return fmt.Errorf("shard %d: %w", shard, ErrNotConnected)
	}
	return nil
}
