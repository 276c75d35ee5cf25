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

// shard is one shard that this instance may run. While it does there is a
// tenure: it keeps it connected, and decides after every connection what
// follows.
type shard struct {
	id             event.Shard
	token          secret.Value
	dialer         *discord.Dialer
	turns          *identify.Turns
	dials          *semaphore.Weighted
	intents        func() event.Intents
	intentsChanged chan struct{} // holds one token after the intents changed
	retryAsked     chan struct{} // holds one token after retry
	relay          *Relay        // has the presence; nil for none
	outgrown       func()        // says that there are too few shards
	// deliveredBefore lists what the set of shards before this one delivered.
	deliveredBefore func(context.Context) ([]event.Told, error)
	timing          timing
	log             *slog.Logger
	metrics         *metrics

	// The run loop's and, while a link runs, its reader's.
	lost        *lostData // a session that could not be resumed, until it was told
	deadSession string    // its id: it is not tried again, should a new claim name it
	upgrades    upgrades

	// current is the connection that delivers, or the last one that did.
	current atomic.Pointer[running]
	// upgrade is what a session with more intents holds back; nil while there
	// is none.
	upgrade atomic.Pointer[holding]

	// tenure is nil while this instance does not run the shard.
	tenure atomic.Pointer[tenure]

	mu     sync.Mutex // guards status, which agrees with tenure
	status ShardStatus
}

// heldBack is how many events wait for the session or the set of shards that
// still delivers.
func (s *shard) heldBack() (n int) {
	if t := s.tenure.Load(); t != nil && t.gate != nil {
		n = t.gate.len()
	}
	if h := s.upgrade.Load(); h != nil {
		n += h.len()
	}
	return n
}

func (s *shard) setStatus(f func(*ShardStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
}

// snapshot is the shard's status at the moment.
func (s *shard) snapshot() ShardStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if t := s.tenure.Load(); t != nil {
		st.Received, st.Stored = t.out.position().Seq, t.claim.Stored()
	}
	return st
}

// keepConnected connects again and again until ctx ends. It returns true if the session
// was read to its end, because another set of shards takes over.
func (s *shard) keepConnected(ctx context.Context, t *tenure) (ended bool) {
	session := t.out.position()
	s.lost = nil
	if session.ID != "" && session.ID == s.deadSession {
		s.loseSession(ctx, t, session, "it could not be resumed")
		session = event.Session{}
	}
	failed, failedDials := 0, 0
	backoff := discord.NewBackoff(s.timing.reconnect)
	for {
		if t.leaving() && session.ID == "" {
			s.reportLost(ctx, t)
			return true
		}
		if session.ID == "" {
			s.turns.RefreshGrants(ctx)
		}
		l, end := s.runLink(ctx, t, s.nextLink(t, session))
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
				s.loseSession(ctx, t, session, lossOf(end))
				session = event.Session{}
			}
			if !goOn {
				continue
			}
		case next == discord.CourseIdentify && session.ID != "":
			s.loseSession(ctx, t, session, lossOf(end))
			session = event.Session{}
		}
		wait, _ := backoff.Next()
		if discord.Sleep(ctx, max(wait, invalidWait(end.cause, s.timing.invalid, rand.Float64()))) != nil {
			return false
		}
	}
}

// nextLink makes the next connection.
func (s *shard) nextLink(t *tenure, session event.Session) *link {
	l := newLink(s, t.sink(), session)
	l.inherit(s.current.Load())
	l.final = t.leaving() && session.ID != ""
	l.primary.Store(true)
	state := StateResuming
	if session.ID == "" {
		state, l.intents = StateConnecting, s.intents()
	}
	s.setStatus(func(st *ShardStatus) { st.State, st.Problem, st.ConnectedSince = state, "", time.Time{} })
	return l
}

// loseSession notes that a session is gone. It is told with the next READY, when the
// gap has an end.
func (s *shard) loseSession(ctx context.Context, t *tenure, session event.Session, reason string) {
	s.metrics.lost.Inc()
	s.deadSession = session.ID
	t.setComplete(false)
	s.lost = &lostData{ShardID: s.id.ID, SessionID: session.ID, AfterSeq: session.Seq, Reason: reason}
	s.setStatus(func(st *ShardStatus) { st.SessionSince = time.Time{} })
	s.log.LogAttrs(ctx, slog.LevelWarn, "session lost", slog.String("reason", reason), slog.Int64("after_seq", session.Seq))
}

// reportLost tells of a lost session that no other one of this shard follows.
func (s *shard) reportLost(ctx context.Context, t *tenure) {
	if s.lost == nil {
		return
	}
	e, err := newNotice(s.id, "GATEHOOK_SESSION_LOST", s.lost)
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
	case <-s.retryAsked: // from before there was something to try again
	default:
	}
	missing := s.turns.Missing(intents)
	remedy := code.Remedy(cmp.Or(missing, intents))
	s.setStatus(func(st *ShardStatus) { st.State, st.Problem = StateFailed, remedy })
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
		case <-s.retryAsked:
			return true
		case <-s.intentsChanged:
		}
	}
	return true
}

// retry makes a shard that has failed try again, and lets all shards that
// IDENTIFY from now on find out for themselves whether they may. It does
// nothing to a shard that has not failed.
func (s *shard) retry() {
	s.turns.Lift()
	wake(s.retryAsked)
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

// run keeps a claimed shard connected until ctx ends, the lease is lost or
// the session was read to its end, and gives it back.
func (s *shard) run(ctx context.Context, t *tenure) {
	var tasks sync.WaitGroup
	tasks.Go(func() {
		select {
		case <-t.claim.Lost():
			t.end(errClaimLost)
		case <-ctx.Done():
		}
	})
	if t.gate != nil {
		tasks.Go(func() { s.guide(ctx, t) })
	}
	ended := s.keepConnected(ctx, t)
	t.end(errDrain)
	tasks.Wait()
	s.letGo(ctx, t, ended)
	s.setStatus(func(st *ShardStatus) {
		st.State, st.Problem = StateStandby, ""
		s.tenure.Store(nil)
	})
}

// confirm returns errLeaseLost if another instance has the shard. It is asked
// before what would end the other's connection: a process that was paused
// wakes up in the middle of anything.
func (s *shard) confirm(ctx context.Context) error {
	if t := s.tenure.Load(); t != nil && t.claim.Confirm(ctx) != nil {
		return errClaimLost
	}
	return nil
}

func (s *shard) adopt(t *tenure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tenure.Store(t)
	s.status = ShardStatus{
		Shard: s.id, State: StateConnecting, Intents: t.out.position().Intents,
		Identifies: s.status.Identifies, Resumes: s.status.Resumes, LastClose: s.status.LastClose,
	}
}

// letGo gives the shard back, so that another instance need not wait for the
// lease to run out.
func (s *shard) letGo(ctx context.Context, t *tenure, ended bool) {
	if errors.Is(context.Cause(ctx), errClaimLost) {
		s.log.LogAttrs(ctx, slog.LevelWarn, "shard let go: another instance took it over")
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timing.release, errors.New("the journal is busy"))
	defer cancel()
	release := t.claim.Release
	if ended {
		s.log.LogAttrs(ctx, slog.LevelInfo, "shard ended: another set of shards takes over")
		release = t.claim.End
	}
	if err := release(ctx); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "shard not given back: its lease has to run out", slog.Any("error", err))
	}
}

// restart lets a shard that failed try again, and one that works connect again.
// One that is connecting does that already.
func (s *shard) restart() {
	if r := s.liveLink(); r != nil {
		r.cancel(errRestart)
		return
	}
	s.retry()
}

// presence is what the next IDENTIFY carries. A database that does not answer
// in time is not waited for: present makes up for that.
func (s *shard) presence(ctx context.Context) presence {
	if s.relay == nil {
		return presence{}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("the database is slow"))
	defer cancel()
	p, err := s.relay.presence(ctx, s.turns.ApplicationID())
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not read the presence, it is sent later", slog.Any("error", err))
		return presence{}
	}
	return p
}

// liveLink returns the connection that commands go through, or nil while there
// is none.
func (s *shard) liveLink() *running {
	r := s.current.Load()
	if r == nil || !r.isLive() || r.ended() {
		return nil
	}
	return r
}
