package gateway

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// Why a connection ends, besides what the network and Discord's close frame
// say. Each is the cause that the connection's context is canceled with.
var (
	errReconnect = errors.New("a reconnect was asked for (op 7)")
	errInvalid   = errors.New("the session was invalidated (op 9)")
	errTryResume = errors.New("a resume of the session was asked for (op 9)")
	errZombie    = errors.New("no heartbeat was acknowledged") // Discord: Heartbeat Interval
	errNoHello   = errors.New("no HELLO came in time")
	errClaimLost = errors.New("the lease on the shard ran out, or another instance has it")
	// errLeaving ends the last but one connection of a session: the last one
	// fetches what it still has, and ends with errReplaced.
	errLeaving  = errors.New("another session takes over")
	errReplaced = errors.New("another session took over")
	errShared   = errors.New("another instance gets its share of the shards")
	errRestart  = errors.New("a restart of the shard was asked for")
	errDrain    = errors.New("this server is shutting down")
	// Heartbeats are acknowledged and nothing else comes.
	errUnanswered = errors.New("a RESUME was not answered")
)

// localCauses are the causes for which this side closes the connection, with
// their label in metrics.
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

// ending tells how a connection ended.
type ending struct {
	cause error
	// session: there is one to resume. opened: the socket opened. progress:
	// READY, RESUMED or a dispatch that did not come before arrived. The last
	// of them is not in the rule to count RESUMED only, but a replay that gets
	// further comes to its end, and is too valuable to be given up for the
	// third network fault; one that breaks at the same place does not count.
	// unreachable: the session's URL could not be dialed many times, while
	// Discord's API answers.
	session, opened, progress, unreachable bool
}

// code is the close code that Discord sent, here or to another shard that
// spoke for all; 0 for none.
func (e ending) code() discord.CloseCode {
	if r, ok := errors.AsType[identify.RefusedError](e.cause); ok {
		return r.Code
	}
	return discord.CloseCodeOf(e.cause)
}

const (
	// maxFailedResumes is how often a RESUME is tried in a row: some dead
	// sessions are never answered with op 9, only with a broken connection.
	maxFailedResumes = 3
	// maxFailedDials is how often a session's URL is dialed in vain before it
	// is asked whether it is the network that is down: about a quarter of a
	// minute.
	maxFailedDials = 6
)

// decide says what follows, given how many resumes failed in a row before. It
// returns how many that are now.
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

// invalidWait is the pause that op 9 asks for: from least to five times that,
// so that many shards don't come back at once. r is uniform in [0, 1).
func invalidWait(cause error, least time.Duration, r float64) time.Duration {
	if !errors.Is(cause, errInvalid) && !errors.Is(cause, errTryResume) {
		return 0
	}
	return least + time.Duration(r*float64(4*least))
}

// lossOf says for people why a session is gone.
func lossOf(end ending) string {
	if end.code() == 0 && !errors.Is(end.cause, errInvalid) {
		return "it could not be resumed"
	}
	_, reason := closeText(end.cause)
	return reason
}

// closeText says for people how a connection ended. Addresses of this machine
// are not in it: it goes to callbacks.
func closeText(cause error) (code int, reason string) {
	if sent := (ending{cause: cause}).code(); sent != 0 {
		code = int(sent)
		return code, cmp.Or(sent.Meaning(), "closed with code "+strconv.Itoa(code))
	}
	for _, own := range localCauses {
		if errors.Is(cause, own.err) {
			return int(discord.CodeKeepSession), own.err.Error()
		}
	}
	return abnormalClosure, "the connection broke"
}

// abnormalClosure stands for a connection that ended without a close frame
// (RFC 6455, section 7.1.5).
const abnormalClosure = 1006

// reconnectReason is a bounded label for why a connection ended.
func reconnectReason(cause error) string {
	code := ending{cause: cause}.code()
	if code.Meaning() != "" {
		return strconv.Itoa(int(code))
	}
	for _, own := range localCauses {
		if errors.Is(cause, own.err) {
			return own.label
		}
	}
	if code != 0 {
		return "other_code"
	}
	return "network"
}
