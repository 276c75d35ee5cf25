package gateway

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// The reasons why a connection ends, other than a fault of the network or a
// close frame from Discord. Each is a cause that the connection's context is
// canceled with.
var (
	errReconnect = errors.New("a reconnect was asked for (op 7)")
	errInvalid   = errors.New("the session was invalidated (op 9)")
	errTryResume = errors.New("a resume of the session was asked for (op 9)")
	errZombie    = errors.New("no heartbeat was acknowledged") // Discord: Heartbeat Interval
	errNoHello   = errors.New("no HELLO came in time")
	// errClaimLost: another instance has the claim, or this one's lease ran out.
	errClaimLost = errors.New("the lease on the shard ran out, or another instance has it")
	// errLeaving ends the last but one connection of a session. The last one
	// fetches the remaining events, and ends with errReplaced.
	errLeaving  = errors.New("another session takes over")
	errReplaced = errors.New("another session took over")
	errShared   = errors.New("another instance gets its share of the shards")
	errRestart  = errors.New("a restart of the shard was asked for")
	errDrain    = errors.New("this server is shutting down")
	// errUnanswered: heartbeats are acknowledged, but nothing else comes.
	errUnanswered = errors.New("a RESUME was not answered")
)

// localCauses are the causes for which this side closes the connection, each
// with its label in metrics.
var localCauses = []struct {
	err   error
	label string
}{
	{errReconnect, "op7"},
	{errInvalid, "op9"},
	{errTryResume, "op9"},
	{errZombie, "zombie"},
	{errNoHello, "no_hello"},
	{errUnanswered, "unanswered"},
	{discord.ErrDefect, "defect"},
	{errClaimLost, "lease_lost"},
	{errLeaving, "leaving"},
	{errReplaced, "replaced"},
	{errShared, "shared"},
	{errRestart, "restart"},
	{errDrain, "shutdown"},
}

// ending is how a connection ended.
type ending struct {
	cause   error
	session bool // there is one to resume
	opened  bool // the socket opened
	// progress: READY, RESUMED or a new dispatch arrived. A new dispatch counts
	// too, because a replay that gets further will finish, and is too valuable
	// to give up for a third network fault. One that always breaks at the same
	// place brings nothing new.
	progress bool
	// unreachable: many dials of the session's URL failed, while Discord's API
	// answers.
	unreachable bool
}

// code returns the close code that Discord sent, to this shard or to another
// one on behalf of all; 0 for none.
func (e ending) code() discord.CloseCode {
	if r, ok := errors.AsType[identify.RefusedError](e.cause); ok {
		return r.Code
	}
	return discord.CloseCodeOf(e.cause)
}

const (
	// maxFailedResumes is how many RESUMEs may fail in a row: for some dead
	// sessions Discord never answers with op 9, only breaks the connection.
	maxFailedResumes = 3
	// maxFailedDials is how many dials of a session's URL may fail in a row, in
	// about 15 s, before we check whether the network is down.
	maxFailedDials = 6
)

// decide decides what follows from an ending: resume, identify or stop. failed
// is how many resumes have failed in a row before. It returns how many have
// now.
func decide(e ending, failed int) (discord.Course, int) {
	if !e.session {
		if e.code().Course() == discord.CourseStop {
			return discord.CourseStop, 0
		}
		return discord.CourseIdentify, 0
	}
	switch {
	case e.progress:
		failed = 0
	case e.opened:
		failed++
	}
	// A connection that never opened says nothing about the session.
	switch c := e.code().Course(); {
	case c != discord.CourseResume:
		return c, 0
	case errors.Is(e.cause, errInvalid), e.unreachable, failed >= maxFailedResumes:
		return discord.CourseIdentify, 0
	default:
		return discord.CourseResume, failed
	}
}

// invalidWait returns the pause that op 9 asks for, from the shortest to five
// times that, so that many shards don't come back at once. r is uniform in
// [0, 1).
func invalidWait(cause error, shortest time.Duration, r float64) time.Duration {
	if !errors.Is(cause, errInvalid) && !errors.Is(cause, errTryResume) {
		return 0
	}
	return shortest + time.Duration(r*float64(4*shortest))
}

// lossOf returns a text for people that says why a session is gone.
func lossOf(end ending) string {
	if end.code() == 0 && !errors.Is(end.cause, errInvalid) {
		return "it could not be resumed"
	}
	_, reason := closeText(end.cause)
	return reason
}

// abnormalClosure stands for a connection that ended without a close frame
// (RFC 6455, section 7.1.5).
const abnormalClosure = 1006

// closeText returns the close code and a text for people that say how a
// connection ended. The text goes to callbacks, so it never contains an address
// of this machine.
func closeText(cause error) (code int, reason string) {
	if sent := (ending{cause: cause}).code(); sent != 0 {
		code = int(sent)
		return code, cmp.Or(sent.Meaning(), "closed with code "+strconv.Itoa(code))
	}
	for _, local := range localCauses {
		if errors.Is(cause, local.err) {
			return int(discord.CodeKeepSession), local.err.Error()
		}
	}
	return abnormalClosure, "the connection broke"
}

// reconnectReason returns the label for metrics that says why a connection
// ended. The number of labels is bounded.
func reconnectReason(cause error) string {
	code := ending{cause: cause}.code()
	if code.Meaning() != "" {
		return strconv.Itoa(int(code))
	}
	for _, local := range localCauses {
		if errors.Is(cause, local.err) {
			return local.label
		}
	}
	if code != 0 {
		return "other_code"
	}
	return "network"
}
