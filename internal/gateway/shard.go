package gateway

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/gatehook/gatehook/internal/event"
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
	// held is how often, about, a shard that another instance has is asked for.
	held time.Duration
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
	held:      2 * time.Second,
	notice:    time.Second,
	release:   5 * time.Second,
	load:      15 * time.Second,
	settle:    5 * time.Second,
}

// shard keeps one shard connected: it claims it, connects, and decides after
// every connection what follows.
type shard struct {
	id          event.Shard
	token       secret.Value
	agent       string
	compression Compression
	store       Store
	starts      *starts
	dials       *semaphore.Weighted
	intents     func() event.Intents
	changed     chan struct{} // holds one token after the intents changed
	timing      timing
	log         *slog.Logger
	metrics     *metrics

	// The run loop's and, while a link runs, its reader's.
	lost     *lostData // a session that could not be resumed, until it was told
	upgrades upgrades

	mu     sync.Mutex // guards what follows
	status ShardStatus
	out    *outlet
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
	if s.out != nil {
		st.Received, st.Stored = s.out.at().Seq, s.out.claim.Stored()
	}
	return st
}

// run claims the shard and keeps it connected until ctx ends. Whenever another
// instance takes it over, it starts again.
func (s *shard) run(ctx context.Context) {
	for {
		claim, err := s.claim(ctx)
		if err != nil {
			return
		}
		s.own(ctx, claim)
		if ctx.Err() != nil {
			return
		}
	}
}

// claim tries until it has the shard or ctx ends.
func (s *shard) claim(ctx context.Context) (Claim, error) {
	s.set(func(st *ShardStatus) { st.State, st.Problem = StateStandby, "" })
	backoff := newBackoff(s.timing.reconnect)
	for {
		claim, err := s.store.Claim(ctx, s.starts.applicationID, s.id)
		if err == nil {
			return claim, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		wait, _ := backoff.Next()
		if errors.Is(err, ErrHeld) {
			wait, backoff = s.timing.held/2+rand.N(s.timing.held), newBackoff(s.timing.reconnect)
			s.set(func(st *ShardStatus) { st.Problem = "" })
		} else {
			s.set(func(st *ShardStatus) { st.Problem = err.Error() })
			s.log.LogAttrs(ctx, slog.LevelWarn, "could not claim the shard, trying again", slog.Any("error", err))
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// own keeps a claimed shard connected until ctx ends or the lease is lost.
func (s *shard) own(parent context.Context, claim Claim) {
	ctx, end := context.WithCancelCause(parent)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-claim.Lost():
			end(errLeaseLost)
		case <-ctx.Done():
		}
	})
	out := &outlet{claim: claim, cursor: claim.Session()}
	s.adopt(out)
	s.keep(ctx, out)
	end(errDrain)
	watch.Wait()
	if errors.Is(context.Cause(ctx), errLeaseLost) {
		s.log.LogAttrs(ctx, slog.LevelWarn, "shard let go: another instance took it over")
		return
	}
	release, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timing.release, errors.New("the journal is busy"))
	defer cancel()
	if err := claim.Release(release); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "shard not given back: its lease has to run out", slog.Any("error", err))
	}
}

func (s *shard) adopt(out *outlet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = out
	s.status = ShardStatus{
		Shard: s.id, State: StateConnecting, Intents: out.at().Intents,
		Identifies: s.status.Identifies, Resumes: s.status.Resumes, LastClose: s.status.LastClose,
	}
}

// keep connects again and again until ctx ends.
func (s *shard) keep(ctx context.Context, out *outlet) {
	session := out.at()
	s.lost = nil
	failed, failedDials := 0, 0
	backoff := newBackoff(s.timing.reconnect)
	for {
		l, end := s.carry(ctx, out, s.prepare(out, session))
		session = l.session
		if ctx.Err() != nil {
			return
		}
		if l.isLive() {
			backoff = newBackoff(s.timing.reconnect)
		}
		if failedDials++; end.opened {
			failedDials = 0
		}
		end.unreachable = end.session && failedDials >= maxFailedDials && s.starts.reachable(ctx)
		var next course
		next, failed = decide(end, failed)
		switch {
		case next == courseStop:
			if !s.fail(ctx, end.code()) {
				return
			}
		case next == courseIdentify && session.ID != "":
			s.lose(ctx, session, end)
			session = event.Session{}
		}
		wait, _ := backoff.Next()
		if sleep(ctx, max(wait, invalidWait(end.cause, s.timing.invalid, rand.Float64()))) != nil {
			return
		}
	}
}

// prepare makes the next connection.
func (s *shard) prepare(out *outlet, session event.Session) *link {
	l := newLink(s, out, session)
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
func (s *shard) lose(ctx context.Context, session event.Session, end ending) {
	_, reason := closeText(end.cause)
	if end.code() == 0 && !errors.Is(end.cause, errInvalid) {
		reason = "it could not be resumed"
	}
	s.metrics.lost.Inc()
	s.lost = &lostData{ShardID: s.id.ID, SessionID: session.ID, AfterSeq: session.Seq, Reason: reason}
	s.set(func(st *ShardStatus) { st.SessionSince = time.Time{} })
	s.log.LogAttrs(ctx, slog.LevelWarn, "session lost", slog.String("reason", reason), slog.Int64("after_seq", session.Seq))
}

// fail stays where a person has to change something. It returns true if the
// intents changed and that may be enough, false when ctx ends.
func (s *shard) fail(ctx context.Context, code int) bool {
	intents := s.intents()
	remedy := remedyFor(code, intents)
	s.set(func(st *ShardStatus) { st.State, st.Problem = StateFailed, remedy })
	s.log.LogAttrs(ctx, slog.LevelError, "shard stopped", slog.Int("code", code), slog.String("remedy", remedy))
	for {
		select {
		case <-ctx.Done():
			return false
		case <-s.changed:
			if liftedByIntents(code) && s.intents() != intents {
				return true
			}
		}
	}
}

// url is where to connect: to a session's own URL, or to the gateway to begin
// one. A resume URL that is no URL, or less safe than the gateway's, is not
// used: the token goes there.
func (s *shard) url(resumeURL string) string {
	gateway := s.starts.url()
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
