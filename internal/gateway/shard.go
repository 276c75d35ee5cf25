package gateway

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/secret"
)

// shard is one shard that this instance may run. While the instance runs it,
// there is a tenure: the shard stays connected, and after every connection it
// decides how to go on.
type shard struct {
	id             event.Shard
	token          secret.Value
	dialer         *discord.Dialer
	turns          *identify.Turns
	dials          *semaphore.Weighted
	silent         *silentURLs
	lapse          *lapse
	unnamed        discord.Compression // Config.UnnamedCompression
	intents        func() event.Intents
	intentsChanged chan struct{}    // holds one token after the intents changed
	retryAsked     chan struct{}    // holds one token after retry
	relay          *Relay           // stores the presence; nil for none
	outgrown       func(int)        // reports that Discord does not accept this number of shards
	now            func() time.Time // Config.Now
	// deliveredBefore recognizes what the previous set of shards delivered while this
	// set received it too.
	deliveredBefore func(context.Context) (*copies, error)
	room            *room // for what is held back
	timing          timing
	log             *slog.Logger
	metrics         *metrics

	// These belong to the run loop and, while a link runs, to its reader.
	lost     *lostData     // the lost session, until a notice reports it
	dead     event.Session // the lost session: not resumed from here if a claim offers it again
	upgrades upgrades
	pace     pace

	// current is the connection that delivers, or the last one that did.
	current atomic.Pointer[running]
	// upgrade holds back the events of a session with more intents; nil while
	// there is none.
	upgrade atomic.Pointer[holding]

	// tenure is nil while this instance does not run the shard. It changes
	// under mu, together with status.
	tenure atomic.Pointer[tenure]

	mu          sync.Mutex // guards the fields below
	status      ShardStatus
	failedDials failedDials
}

// adopt begins a tenure.
func (s *shard) adopt(t *tenure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tenure.Store(t)
	s.failedDials = failedDials{}
	s.status = ShardStatus{
		Shard: s.id, State: StateConnecting, Intents: t.out.position().Intents,
		Identifies: s.status.Identifies, Resumes: s.status.Resumes, LastClose: s.status.LastClose,
	}
}

// run keeps a claimed shard connected until ctx ends, the claim is lost or the
// session was read to its end, and then releases the claim.
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
	if t.gate != nil {
		t.gate.discard()
	}
	s.letGo(ctx, t, ended)
	s.setStatus(func(st *ShardStatus) {
		st.State, st.Problem = StateStandby, ""
		s.tenure.Store(nil)
	})
}

// letGo releases the claim, so that another instance need not wait until this
// one's lease runs out.
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
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not release the shard: it stays with this server until the lease runs out", slog.Any("error", err))
	}
}

// keepConnected connects again and again until ctx ends. It returns true if the
// session was read to its end because another set of shards takes over.
func (s *shard) keepConnected(ctx context.Context, t *tenure) (ended bool) {
	session := t.out.position()
	s.lost = nil
	switch {
	case session.ID == "" && t.claim.Begun():
		s.metrics.lost.Inc()
		s.lost = &lostData{ShardID: s.id.ID, Reason: "a server ended before it stored the session that it began"}
		s.log.LogAttrs(ctx, slog.LevelWarn, "session lost", slog.String("reason", s.lost.Reason))
	case session.ID != "" && session.ID == s.dead.ID && session.Seq <= s.dead.Seq:
		s.loseSession(ctx, t, session, "it could not be resumed")
		session = event.Session{}
	}
	s.pace.left = time.Now() // the session may live
	failed, taken := 0, false
	var before *ending
	for {
		if t.leaving() && session.ID == "" {
			s.reportLost(ctx, t)
			return true
		}
		if session.ID == "" {
			s.turns.RefreshGrants(ctx)
		}
		if session.ID != "" && !s.lapse.wait(ctx, s.reportLapse) {
			return false
		}
		l, end := s.runLink(ctx, t, s.nextLink(t, session, before))
		session, before = l.session, &end
		taken = taken && end.served < minServed
		if session.ID == "" && !end.identified.IsZero() {
			s.unbeginSession(ctx, t)
		}
		if end.code() == discord.CodeSessionTaken {
			s.lapse.taken()
		}
		switch {
		case errors.Is(end.cause, errReplaced) && t.leaving():
			return true
		case errors.Is(end.cause, errLeaving):
			continue
		}
		if ctx.Err() != nil {
			return false
		}
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
			// Discord says so too if another instance resumed the session while this
			// process was stopped, or cut off from the database. That instance has it now.
			if !s.lapse.regain(ctx, s.reportLapse) {
				return false
			}
			if s.confirm(ctx) != nil {
				t.end(errClaimLost)
				return false
			}
			// A server that was cut off may have resumed it, too. Whoever has the shard
			// takes the session back, once.
			if taken = !taken && end.served > 0 && end.code() == discord.CodeSessionTaken && s.lapse.isShared(); taken {
				break
			}
			s.loseSession(ctx, t, session, lossOf(end))
			session = event.Session{}
		}
		wait := s.pace.wait(end, session.ID != "", s.turns.Budget(), time.Now(), s.timing, rand.Float64())
		wait = max(wait, invalidWait(end.cause, s.timing.invalid, rand.Float64()))
		s.reportWait(ctx, session, wait)
		if !s.pause(ctx, t, wait) {
			return false
		}
	}
}

// reportLapse says that the shard has no connection because this server has no lease.
func (s *shard) reportLapse() {
	s.setStatus(func(st *ShardStatus) {
		st.State, st.ConnectedSince = StateResuming, time.Time{}
		st.Problem = "this server can't reach the database to renew its lease, and another server may have the shard"
	})
}

// reportWait says that the shard has no connection, and why it has no session for a
// while.
func (s *shard) reportWait(ctx context.Context, session event.Session, wait time.Duration) {
	long := session.ID == "" && wait >= minServed
	s.setStatus(func(st *ShardStatus) {
		st.State, st.ConnectedSince = StateResuming, time.Time{}
		if session.ID == "" {
			st.State = StateConnecting
		}
		if long {
			why := cmp.Or(s.failedDials.problem, "sessions end too soon, or can't begin")
			st.Problem = why + "; the next try is at " + time.Now().Add(wait).UTC().Format(time.RFC3339)
		}
	})
	if !long {
		return
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "waiting before the next session start", slog.Duration("wait", wait))
}

// pause waits before the next connection, for less if a person asks for another
// try or the duty becomes dutyLeave. It returns false if ctx ends.
func (s *shard) pause(ctx context.Context, t *tenure, wait time.Duration) bool {
	leave := t.leave
	if t.leaving() {
		leave = nil
	}
	select {
	case <-s.retryAsked: // asked for before the connection ended
	default:
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-leave:
	case <-s.retryAsked:
		s.pace.forgive()
	}
	return ctx.Err() == nil
}

// nextLink makes the next link: it resumes the session, or begins one if there
// is none. before is how the previous one ended; nil for none.
func (s *shard) nextLink(t *tenure, session event.Session, before *ending) *link {
	l := newLink(s, t.sink(), session)
	l.inherit(s.current.Load())
	l.before, l.class = before, s.class(t)
	l.final = t.leaving() && session.ID != ""
	l.primary.Store(true)
	state := StateResuming
	if session.ID == "" {
		state, l.intents = StateConnecting, s.intents()
	}
	s.setStatus(func(st *ShardStatus) { st.State, st.Problem, st.ConnectedSince = state, "", time.Time{} })
	return l
}

// class returns the class of the shard's next session start.
func (s *shard) class(t *tenure) identify.Class {
	d, _ := t.state()
	switch {
	case d == dutyWarm:
		return identify.ClassWarming
	case s.lost != nil:
		return identify.ClassLost
	default:
		return identify.ClassFirst
	}
}

// fail is called when Discord closed a connection with these intents with a
// code that a mere retry would only repeat. It returns true once a person asks
// for another try, or once the intents have changed in a way that may be
// enough. It returns false if ctx ends or the duty becomes dutyLeave.
func (s *shard) fail(ctx context.Context, t *tenure, code discord.CloseCode, intents event.Intents) bool {
	select {
	case <-s.retryAsked: // asked for before the shard failed
	default:
	}
	missing := s.turns.Missing(intents)
	remedy := code.Remedy(cmp.Or(missing, intents))
	s.setStatus(func(st *ShardStatus) { st.State, st.Problem = StateFailed, remedy })
	s.log.LogAttrs(ctx, slog.LevelError, "shard stopped", slog.Int("code", int(code)), slog.String("remedy", remedy))
	if code.LiftedByCount() {
		s.outgrown(s.id.Count)
	}
	for !code.LiftedByIntents() || s.intents() == intents && (missing == 0 || s.turns.Missing(intents) != 0) {
		select {
		case <-ctx.Done():
			return false
		case <-t.leave:
			return false
		case <-s.retryAsked:
			s.pace.forgive()
			return true
		case <-s.intentsChanged:
		}
	}
	return true
}

// loseSession notes that a session is gone. The notice goes out with the next
// READY: only then is the end of the gap known.
func (s *shard) loseSession(ctx context.Context, t *tenure, session event.Session, reason string) {
	s.metrics.lost.Inc()
	s.dead = session
	t.setComplete(false)
	s.lost = &lostData{ShardID: s.id.ID, SessionID: session.ID, AfterSeq: session.Seq, Reason: reason}
	s.setStatus(func(st *ShardStatus) { st.SessionSince = time.Time{} })
	s.log.LogAttrs(ctx, slog.LevelWarn, "session lost", slog.String("reason", reason), slog.Int64("after_seq", session.Seq))
}

// reportLost sends the notice of a lost session that no other session of this
// shard follows.
func (s *shard) reportLost(ctx context.Context, t *tenure) {
	if s.lost == nil {
		return
	}
	e, err := newNotice(s.id, s.now(), "GATEHOOK_SESSION_LOST", s.lost)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "could not make an event", slog.String("event", "GATEHOOK_SESSION_LOST"), slog.Any("error", err))
		return
	}
	s.lost = nil
	t.sink().putSoon(ctx, s.timing.begin, e)
}

// retry makes a shard try again that failed or waits before its next connection.
// It forgets what Discord refused, so that every shard may send its next
// IDENTIFY. It does nothing to any other shard.
func (s *shard) retry() {
	s.turns.Lift()
	wake(s.retryAsked)
}

// restart makes a shard that failed or waits try again, and a working one
// reconnect. A shard that is already connecting goes on.
func (s *shard) restart() {
	if r := s.liveLink(); r != nil {
		r.cancel(errRestart)
		return
	}
	s.retry()
}

// liveLink returns the link that commands go through, or nil while there is
// none.
func (s *shard) liveLink() *running {
	r := s.current.Load()
	if r == nil || !r.isLive() || r.ended() {
		return nil
	}
	return r
}

// confirm returns errClaimLost if another instance has the shard, or the cause of ctx.
// Call it before every step that would end the connection of that instance: a paused
// process can wake up at any point.
func (s *shard) confirm(ctx context.Context) error {
	if t := s.tenure.Load(); t != nil && t.claim.Confirm(ctx) != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errClaimLost
	}
	return nil
}

// beginSession stores that an IDENTIFY is about to be sent. If this instance ends
// before it stores the session, the next one says that it is lost.
func (s *shard) beginSession(ctx context.Context) error {
	t := s.tenure.Load()
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.timing.begin, errors.New("the database is slow"))
	defer cancel()
	return t.claim.Begin(ctx)
}

// unbeginSession takes beginSession back after an IDENTIFY that began no session. If
// that fails, a session that never was may be reported as lost.
func (s *shard) unbeginSession(ctx context.Context, t *tenure) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.timing.begin, errors.New("the database is slow"))
	defer cancel()
	if err := t.claim.Unbegin(ctx); err != nil {
		s.log.LogAttrs(ctx, slog.LevelDebug, "could not store that no session began", slog.Any("error", err))
	}
}

// presence returns the presence for the next IDENTIFY. If the database does not
// answer in time, it returns the zero value, and sendPresence sends the
// presence later.
func (s *shard) presence(ctx context.Context) presence {
	if s.relay == nil {
		return presence{}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("the database is slow"))
	defer cancel()
	p, err := s.relay.presence(ctx, s.turns.ApplicationID())
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not read the presence, it will be sent later", slog.Any("error", err))
		return presence{}
	}
	return p
}

// setStatus changes the status with f, which must not block.
func (s *shard) setStatus(f func(*ShardStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
}

// snapshot returns the current status.
func (s *shard) snapshot() ShardStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if t := s.tenure.Load(); t != nil {
		st.Received, st.Stored = t.out.position().Seq, t.claim.Stored()
	}
	if st.Problem == "" && (st.State == StateConnecting || st.State == StateResuming) {
		st.Problem = s.failedDials.problem
	}
	return st
}

// heldBack returns how many events wait because another session, or another
// set of shards, still delivers.
func (s *shard) heldBack() (n int) {
	if t := s.tenure.Load(); t != nil && t.gate != nil {
		n = t.gate.len()
	}
	if h := s.upgrade.Load(); h != nil {
		n += h.len()
	}
	return n
}
