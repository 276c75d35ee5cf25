package gateway

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/secret"
)

// timing is how long things take. Tests can't wait that long.
type timing struct {
	// hello is how long HELLO may take to come.
	hello time.Duration
	// reconnect is the first wait before a reconnect; later ones are longer.
	reconnect time.Duration
	// invalid is the shortest pause after op 9; the longest is five times it.
	invalid time.Duration
	// survey is how often is looked who has which shards.
	survey time.Duration
	// grants is how often is looked whether a missing intent was switched on.
	grants time.Duration
	// recommend is how often Discord is asked how many shards there should be.
	recommend time.Duration
	// overlap is how long two sets of shards receive the same before the first
	// one is let go: by so much may it be behind the other.
	overlap time.Duration
	// margin is by how much a dispatch may arrive earlier on one connection
	// than on another.
	margin time.Duration
	// notice is how long the journal may take for a SHARD_DISCONNECT.
	notice time.Duration
	// release bounds giving a shard back.
	release time.Duration
	// load is how long the guilds of a new session may take to come before it
	// takes over: its events begin with them, and one in an outage does not
	// come at all. settle is the time that a session gets instead which is not
	// told of its guilds, for want of the GUILDS intent.
	load, settle time.Duration
}

var usualTiming = timing{
	hello:     20 * time.Second,
	reconnect: 500 * time.Millisecond,
	invalid:   time.Second,
	survey:    time.Second,
	grants:    time.Minute,
	recommend: 10 * time.Minute,
	overlap:   5 * time.Second,
	margin:    2 * time.Second,
	notice:    time.Second,
	release:   5 * time.Second,
	load:      15 * time.Second,
	settle:    5 * time.Second,
}

// shard is one shard that this instance may run. While it does there is a
// tenure: it keeps it connected, and decides after every connection what
// follows.
type shard struct {
	id       event.Shard
	token    secret.Value
	dialer   *discord.Dialer
	turns    *identify.Turns
	dials    *semaphore.Weighted
	intents  func() event.Intents
	changed  chan struct{} // holds one token after the intents changed
	again    chan struct{} // holds one token after retry
	relay    *Relay        // has the presence; nil for none
	outgrown func()        // says that there are too few shards
	// told lists what the set of shards before this one delivered.
	told    func(context.Context) ([]event.Told, error)
	timing  timing
	log     *slog.Logger
	metrics *metrics

	// The run loop's and, while a link runs, its reader's.
	lost     *lostData // a session that could not be resumed, until it was told
	dead     string    // its id: it is not tried again, should a new claim name it
	upgrades upgrades

	// current is the connection that delivers, or the last one that did.
	current atomic.Pointer[running]
	// upgrade is what a session with more intents holds back; nil while there
	// is none.
	upgrade atomic.Pointer[holding]

	mu     sync.Mutex // guards what follows
	status ShardStatus
	tenure *tenure // nil while another instance has it
}

// held is the shard's tenure, or nil.
func (s *shard) held() *tenure {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenure
}

// heldBack is how many events wait for the session or the set of shards that
// still delivers.
func (s *shard) heldBack() (n int) {
	if t := s.held(); t != nil && t.gate != nil {
		n = t.gate.len()
	}
	if h := s.upgrade.Load(); h != nil {
		n += h.len()
	}
	return n
}

func (s *shard) set(f func(*ShardStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
}

// snapshot is the shard's status at the moment.
func (s *shard) snapshot() ShardStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if s.tenure != nil {
		st.Received, st.Stored = s.tenure.out.at().Seq, s.tenure.claim.Stored()
	}
	return st
}

// keep connects again and again until ctx ends. It returns true if the session
// was read to its end, because another set of shards takes over.
func (s *shard) keep(ctx context.Context, t *tenure) (ended bool) {
	session := t.out.at()
	s.lost = nil
	if session.ID != "" && session.ID == s.dead {
		s.lose(ctx, t, session, "it could not be resumed")
		session = event.Session{}
	}
	failed, failedDials := 0, 0
	backoff := discord.NewBackoff(s.timing.reconnect)
	for {
		if t.leaving() && session.ID == "" {
			s.tellLost(ctx, t)
			return true
		}
		if session.ID == "" {
			s.turns.RefreshGrants(ctx)
		}
		l, end := s.carry(ctx, t, s.prepare(t, session))
		session = l.session
		switch {
		case errors.Is(end.cause, errReplaced) && t.leaving():
			return true
		case errors.Is(end.cause, errLeaving):
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		if l.isLive() {
			backoff = discord.NewBackoff(s.timing.reconnect)
		}
		if failedDials++; end.opened {
			failedDials = 0
		}
		end.unreachable = end.session && failedDials >= maxFailedDials && s.turns.Reachable(ctx)
		var next discord.Course
		next, failed = decide(end, failed)
		switch {
		case next == discord.CourseStop:
			goOn := s.fail(ctx, t, end.code(), l.intents)
			if !goOn && !t.leaving() {
				return false
			}
			// A session keeps its intents: resumed, it would be refused again.
			if session.ID != "" && (!goOn || end.code().LiftedByIntents()) {
				s.lose(ctx, t, session, lossOf(end))
				session = event.Session{}
			}
			if !goOn {
				continue
			}
		case next == discord.CourseIdentify && session.ID != "":
			s.lose(ctx, t, session, lossOf(end))
			session = event.Session{}
		}
		wait, _ := backoff.Next()
		if discord.Sleep(ctx, max(wait, invalidWait(end.cause, s.timing.invalid, rand.Float64()))) != nil {
			return false
		}
	}
}

// prepare makes the next connection.
func (s *shard) prepare(t *tenure, session event.Session) *link {
	l := newLink(s, t.sink(), session)
	l.inherit(s.current.Load())
	l.last = t.leaving() && session.ID != ""
	l.primary.Store(true)
	state := StateResuming
	if session.ID == "" {
		state, l.intents = StateConnecting, s.intents()
	}
	s.set(func(st *ShardStatus) { st.State, st.Problem, st.ConnectedSince = state, "", time.Time{} })
	return l
}

// lose notes that a session is gone. It is told with the next READY, when the
// gap has an end.
func (s *shard) lose(ctx context.Context, t *tenure, session event.Session, reason string) {
	s.metrics.lost.Inc()
	s.dead = session.ID
	t.lose()
	s.lost = &lostData{ShardID: s.id.ID, SessionID: session.ID, AfterSeq: session.Seq, Reason: reason}
	s.set(func(st *ShardStatus) { st.SessionSince = time.Time{} })
	s.log.LogAttrs(ctx, slog.LevelWarn, "session lost", slog.String("reason", reason), slog.Int64("after_seq", session.Seq))
}

// lossOf says for people why a session is gone.
func lossOf(end ending) string {
	if end.code() == 0 && !errors.Is(end.cause, errInvalid) {
		return "it could not be resumed"
	}
	_, reason := closeText(end.cause)
	return reason
}

// tellLost tells of a lost session that no other one of this shard follows.
func (s *shard) tellLost(ctx context.Context, t *tenure) {
	if s.lost == nil {
		return
	}
	e, err := ownEvent(s.id, "GATEHOOK_SESSION_LOST", s.lost)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "could not make an event", slog.String("event", "GATEHOOK_SESSION_LOST"), slog.Any("error", err))
		return
	}
	s.lost = nil
	t.sink().putSoon(ctx, s.timing.release, e)
}

// fail stays where a person has to change something, after a close code that
// intents were refused with. It returns true if a person asks for another try
// or the intents changed and that may be enough, false when ctx ends or the
// shard is to be let go.
func (s *shard) fail(ctx context.Context, t *tenure, code discord.CloseCode, intents event.Intents) bool {
	select {
	case <-s.again: // from before there was something to try again
	default:
	}
	missing := s.turns.Missing(intents)
	remedy := code.Remedy(cmp.Or(missing, intents))
	s.set(func(st *ShardStatus) { st.State, st.Problem = StateFailed, remedy })
	s.log.LogAttrs(ctx, slog.LevelError, "shard stopped", slog.Int("code", int(code)), slog.String("remedy", remedy))
	if code == discord.CodeShardingRequired {
		s.outgrown()
	}
	for !code.LiftedByIntents() || s.intents() == intents && (missing == 0 || s.turns.Missing(intents) != 0) {
		select {
		case <-ctx.Done():
			return false
		case <-t.leave:
			return false
		case <-s.again:
			return true
		case <-s.changed:
		}
	}
	return true
}

// retry makes a shard that has failed try again, and lets all shards that
// IDENTIFY from now on find out for themselves whether they may. It does
// nothing to a shard that has not failed.
func (s *shard) retry() {
	s.turns.Lift()
	select {
	case s.again <- struct{}{}:
	default: // it has not seen the one before
	}
}

// url is where to connect: to a session's own URL, or to the gateway to begin
// one. A resume URL that is no URL, or less safe than the gateway's, is not
// used: the token goes there.
func (s *shard) url(resumeURL string) string {
	gateway := s.turns.URL()
	if resumeURL == "" {
		return gateway
	}
	g, err1 := url.Parse(gateway)
	r, err2 := url.Parse(resumeURL)
	if errors.Join(err1, err2) != nil || r.Host == "" || g.Scheme == "wss" && r.Scheme != "wss" {
		return gateway
	}
	return resumeURL
}
