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
// close frame from Discord. Each is the cause with which the connection's
// context is canceled.
var (
	errReconnect = errors.New("op 7: Discord asked for a reconnect")
	errInvalid   = errors.New("op 9: Discord invalidated the session")
	errTryResume = errors.New("op 9: Discord asked for a resume of the session")
	errZombie    = errors.New("no heartbeat was acknowledged") // Discord: Heartbeat Interval
	errNoHello   = errors.New("no HELLO came in time")
	// errClaimLost: another instance has the claim, or this one's lease ran out.
	errClaimLost = errors.New("another server has the shard, or this server's lease ran out")
	// errLeaving ends the second-to-last connection of a session. The last
	// connection fetches the remaining events, and ends with errReplaced.
	errLeaving  = errors.New("another session takes over")
	errReplaced = errors.New("another session took over")
	// errLapsed: the lease is about to run out, and cannot be renewed.
	errLapsed  = errors.New("this server cannot renew its lease: another one may resume the session")
	errShared  = errors.New("another server gets its share of the shards")
	errRestart = errors.New("an API client asked for a restart of the shard")
	errDrain   = errors.New("this server is shutting down")
	// errUnanswered: heartbeats are acknowledged, but nothing else comes.
	errUnanswered = errors.New("no answer to a RESUME came")
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
	{errLapsed, "lapsed"},
	{errShared, "shared"},
	{errRestart, "restart"},
	{errDrain, "shutdown"},
}

// ending is how a connection ended.
type ending struct {
	cause   error
	session bool // there is a session to resume
	opened  bool // the socket opened
	greeted bool // HELLO came
	// identified is when the IDENTIFY was sent; zero for never. served is for how
	// long the link was live.
	identified time.Time
	served     time.Duration
	// progress: READY, RESUMED or a new dispatch arrived. A new dispatch counts
	// too, because a replay that gets further will finish, and is too valuable to
	// give up for a third network fault. A replay that always breaks at the same
	// place brings no new dispatch.
	progress bool
	// skipped: the session goes on behind a payload that could not be inflated.
	// Only the next connection shows whether that helped: if every stream breaks, it
	// never does.
	skipped bool
}

// code returns the close code that Discord sent, to this shard or to another
// one on behalf of all; 0 for none.
func (e ending) code() discord.CloseCode {
	if r, ok := errors.AsType[identify.RefusedError](e.cause); ok {
		return r.Code
	}
	return discord.CloseCodeOf(e.cause)
}

// maxFailedResumes is how many RESUMEs may fail in a row. For some dead
// sessions, Discord never answers with op 9, but only breaks the connection.
const maxFailedResumes = 3

// decide decides what to do after an ending: resume, identify or stop. failed
// is the number of resumes that had failed in a row before it. decide also
// returns the new number.
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
	case e.skipped, errors.Is(e.cause, errLapsed): // no RESUME was sent
	case e.greeted:
		failed++
	}
	// Without HELLO no RESUME was sent, which says nothing about the session.
	switch c := e.code().Course(); {
	case c != discord.CourseResume:
		return c, 0
	case errors.Is(e.cause, errInvalid), failed >= maxFailedResumes:
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

// lossOf says, for people, why a session is lost.
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

// closeText returns the close code of a connection that ended and, for people,
// the reason. The reason goes to callbacks, so it never contains an address of
// this machine.
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
