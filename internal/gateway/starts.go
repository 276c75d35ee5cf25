package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// Starts paces IDENTIFYs across all instances that share a token. Buckets
// implements it.
type Starts interface {
	// Learn notes what Discord said of the session starts left (Discord:
	// Session Start Limit Object).
	Learn(ctx context.Context, applicationID event.Snowflake, total, remaining int, resetAfter time.Duration) error
	// Spend takes one of the session starts left, or tells how long to wait
	// until there are more.
	Spend(ctx context.Context, applicationID event.Snowflake) (wait time.Duration, err error)
	// Wait returns when the caller may send one IDENTIFY of this bucket
	// (Discord: Max Concurrency).
	Wait(ctx context.Context, applicationID event.Snowflake, bucket int) error
}

// infoFresh is how long an answer of GET /gateway/bot is believed.
const infoFresh = time.Minute

// starts decides when a shard may begin a session. Two things are counted:
// the buckets, one IDENTIFY per 5 s each, and the budget of the day, beyond
// which Discord resets the token (Discord: Identifying).
type starts struct {
	applicationID event.Snowflake
	rest          *discord.REST
	slots         Starts
	log           *slog.Logger

	mu        sync.Mutex
	info      discord.GatewayInfo
	fetchedAt time.Time
	learned   bool              // info is in the database
	lines     map[int]*turnLine // by bucket
	refused   refusal
	grants    *grants // nil: nothing is known; set before the first shard runs

	// left hears how many session starts there are; nil for nobody.
	left func(remaining int)
}

// refusal is a fatal close code that concerns every shard: the others need not
// spend an IDENTIFY each to learn the same.
type refusal struct {
	code    discord.CloseCode // 0 for none
	intents event.Intents
	at      time.Time
}

// refusalKept is how long a refusal is believed: a shard that asks for more
// intents while its session goes on is to find out that it may have them now.
const refusalKept = time.Hour

func newStarts(id event.Snowflake, info discord.GatewayInfo, rest *discord.REST, slots Starts, log *slog.Logger) *starts {
	return &starts{
		applicationID: id, info: info, fetchedAt: time.Now(), rest: rest, slots: slots, log: log,
		lines: make(map[int]*turnLine),
	}
}

// url is where a new session begins.
func (s *starts) url() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info.URL
}

// turn waits until no other shard of the bucket is about to IDENTIFY; of those
// that wait the one with the lowest id is next (Discord: Max Concurrency). It
// comes before the dial: a shard whose slot is minutes away should not hold an
// idle connection until then. release may be called more than once.
func (s *starts) turn(ctx context.Context, shardID int) (release func(), err error) {
	s.mu.Lock()
	bucket := shardID % s.info.Limit.MaxConcurrency
	line := s.lines[bucket]
	if line == nil {
		line = new(turnLine)
		s.lines[bucket] = line
	}
	w := line.join(shardID)
	s.mu.Unlock()
	release = sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		line.leave(w)
	})
	select {
	case <-w.turn:
		return release, nil
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
}

// turnLine is who wants to IDENTIFY in one bucket.
type turnLine struct {
	now  *turnWaiter   // whose turn it is
	next []*turnWaiter // by shard id
}

type turnWaiter struct {
	shardID int
	turn    chan struct{} // closed when it has its turn
}

func (l *turnLine) join(shardID int) *turnWaiter {
	w := &turnWaiter{shardID, make(chan struct{})}
	i, _ := slices.BinarySearchFunc(l.next, shardID, func(w *turnWaiter, id int) int { return w.shardID - id })
	l.next = slices.Insert(l.next, i, w)
	l.advance()
	return w
}

// leave takes w out, whether it had its turn or not.
func (l *turnLine) leave(w *turnWaiter) {
	if l.now == w {
		l.now = nil
	}
	l.next = slices.DeleteFunc(l.next, func(other *turnWaiter) bool { return other == w })
	l.advance()
}

func (l *turnLine) advance() {
	if l.now == nil && len(l.next) > 0 {
		l.now, l.next = l.next[0], l.next[1:]
		close(l.now.turn)
	}
}

// permit returns when an IDENTIFY may be sent. It counts it.
func (s *starts) permit(ctx context.Context, shardID int) error {
	fresh := infoFresh
	for {
		if err := s.refresh(ctx, fresh); err != nil {
			return err
		}
		wait, err := s.slots.Spend(ctx, s.applicationID)
		if err != nil {
			return fmt.Errorf("take one of the session starts left: %w", err)
		}
		if wait <= 0 {
			break
		}
		s.log.LogAttrs(ctx, slog.LevelWarn, "the session starts that Discord allows are used up, waiting",
			slog.Int("shard", shardID), slog.Duration("wait", wait))
		if err := discord.Sleep(ctx, min(wait, 10*time.Minute)); err != nil {
			return err
		}
		// Ask again before believing a number from before the wait.
		fresh = 0
	}
	bucket := s.bucket(shardID)
	if err := s.slots.Wait(ctx, s.applicationID, bucket); err != nil {
		return fmt.Errorf("wait for identify bucket %d: %w", bucket, err)
	}
	return nil
}

func (s *starts) bucket(shardID int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return shardID % s.info.Limit.MaxConcurrency
}

// refresh asks for the limit anew unless it is fresh, and lets all instances
// know. When Discord does not answer, the old one stands.
func (s *starts) refresh(ctx context.Context, fresh time.Duration) error {
	s.mu.Lock()
	info, learned, old := s.info, s.learned, time.Since(s.fetchedAt) >= fresh
	s.mu.Unlock()
	if old {
		asked, err := s.rest.Gateway(ctx)
		if err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord for the session starts left", slog.Any("error", err))
		} else {
			info, learned = asked, false
		}
	}
	if learned {
		return nil
	}
	l := info.Limit
	if err := s.slots.Learn(ctx, s.applicationID, l.Total, l.Remaining, time.Duration(l.ResetAfter)*time.Millisecond); err != nil {
		return fmt.Errorf("store the session starts left: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old {
		s.fetchedAt = time.Now()
	}
	s.info, s.learned = info, true
	if s.left != nil {
		s.left(l.Remaining)
	}
	return nil
}

// reachable tells whether Discord's API answers.
func (s *starts) reachable(ctx context.Context) bool {
	_, err := s.rest.Gateway(ctx)
	return err == nil
}

// refuse remembers the close code that an IDENTIFY with these intents, or a
// RESUME, was answered with, if every shard would get it.
func (s *starts) refuse(code discord.CloseCode, intents event.Intents) {
	if !code.ConcernsAll() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = refusal{code, intents, time.Now()}
}

// allowed returns a refusedError if it is known what an IDENTIFY with these
// intents would be answered with.
func (s *starts) allowed(intents event.Intents) error {
	if s.missing(intents) != 0 {
		return refusedError{discord.CodeDisallowedIntents}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.refused
	if r.code == 0 || time.Since(r.at) >= refusalKept || r.code.LiftedByIntents() && r.intents != intents {
		return nil
	}
	return refusedError{r.code}
}

// missing returns those of the intents that are known to be switched off.
func (s *starts) missing(intents event.Intents) event.Intents {
	if s.grants == nil {
		return 0
	}
	return s.grants.missing(intents)
}

// ask looks, before a session is begun, which intents are switched on.
func (s *starts) ask(ctx context.Context) {
	if s.grants != nil {
		s.grants.refresh(ctx, grantsFresh)
	}
}

// lift forgets what was refused.
func (s *starts) lift() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = refusal{}
}
