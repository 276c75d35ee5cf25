package identify

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

const (
	// infoFresh is how long an answer of GET /gateway/bot is trusted.
	infoFresh = time.Minute
	// grantsFresh is how long an answer about the switched-on intents is trusted
	// when a session is about to begin.
	grantsFresh = time.Minute
	// refusalKept is how long a refusal is trusted. A shard whose session goes on
	// without the refused intents has to find out when it may have them.
	refusalKept = time.Hour
)

// Slots paces IDENTIFYs across all instances that share a token. Buckets
// implements it. All methods are safe for concurrent use, and return an error
// only if ctx ends.
type Slots interface {
	// Learn notes Discord's answer about the session starts left (Discord:
	// Session Start Limit Object).
	Learn(ctx context.Context, applicationID event.Snowflake, total, remaining int, resetAfter time.Duration) error
	// Spend takes one of the session starts left. If there are none, it returns
	// how long to wait until there are more; otherwise 0.
	Spend(ctx context.Context, applicationID event.Snowflake) (wait time.Duration, err error)
	// Wait returns when the caller may send one IDENTIFY of this bucket
	// (Discord: Max Concurrency).
	Wait(ctx context.Context, applicationID event.Snowflake, bucket int) error
}

// Config of Turns.
type Config struct {
	// Application and Info are Discord's current answers about the bot.
	Application discord.Application
	Info        discord.GatewayInfo
	// REST asks Discord again. The caller closes it.
	REST  *discord.REST
	Slots Slots
	Log   *slog.Logger
	// Left, if not nil, is called with the number of session starts left whenever
	// Discord has answered with a new one. It must not block or call the Turns.
	Left func(remaining int)
}

// Turns decides when a shard of this instance may begin a session. Two limits
// have to hold: one IDENTIFY per bucket every 5 s (Discord: Max Concurrency),
// and the session starts of the day, beyond which Discord resets the token
// (Discord: Identifying). It is safe for concurrent use.
type Turns struct {
	applicationID event.Snowflake
	rest          *discord.REST
	slots         Slots
	log           *slog.Logger
	left          func(remaining int)
	grants        *Grants

	mu        sync.Mutex // guards the fields below, and the queues
	info      discord.GatewayInfo
	fetchedAt time.Time
	learned   bool           // the slots have learned info
	queues    map[int]*queue // by bucket
	refused   refusal
}

// refusal remembers a fatal close code that concerns every shard, so that the
// other shards need not spend an IDENTIFY each to learn the same.
type refusal struct {
	code    discord.CloseCode // 0 for none
	intents event.Intents
	at      time.Time
}

// RefusedError says that an IDENTIFY was not sent, because Discord would answer
// it with this close code.
type RefusedError struct{ Code discord.CloseCode }

// Error implements error.
func (e RefusedError) Error() string {
	return fmt.Sprintf("no IDENTIFY was sent: another shard was closed with %d, %s", e.Code, e.Code.Meaning())
}

// NewTurns returns the Turns of one application.
func NewTurns(cfg Config) *Turns {
	if cfg.Left == nil {
		cfg.Left = func(int) {}
	}
	return &Turns{
		applicationID: cfg.Application.ID, rest: cfg.REST, slots: cfg.Slots, log: cfg.Log, left: cfg.Left,
		grants: newGrants(cfg.Application, cfg.REST, cfg.Log),
		info:   cfg.Info, fetchedAt: time.Now(), queues: make(map[int]*queue),
	}
}

// ApplicationID returns the id of the application.
func (t *Turns) ApplicationID() event.Snowflake { return t.applicationID }

// Grants returns which privileged intents are switched on.
func (t *Turns) Grants() *Grants { return t.grants }

// URL returns the gateway's URL, where a new session begins.
func (t *Turns) URL() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info.URL
}

// Turn waits until no other shard of the bucket is about to IDENTIFY. Among the
// waiting shards, the one with the lowest id is next (Discord: Max
// Concurrency). Call it before the dial: a shard whose turn is minutes away
// should not hold an idle connection until then. The caller calls release once
// the IDENTIFY was sent or given up, and may call it again. If ctx ends first,
// the error is its cause.
func (t *Turns) Turn(ctx context.Context, shardID int) (release func(), err error) {
	t.mu.Lock()
	bucket := t.bucketLocked(shardID)
	q := t.queues[bucket]
	if q == nil {
		q = new(queue)
		t.queues[bucket] = q
	}
	w := q.join(shardID)
	t.mu.Unlock()
	release = sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		q.leave(w)
	})
	select {
	case <-w.turn:
		return release, nil
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
}

func (t *Turns) bucketLocked(shardID int) int { return shardID % t.info.Limit.MaxConcurrency }

// Permit returns when a shard that has its turn may send an IDENTIFY, and
// counts it as sent. The error wraps the one that ended ctx.
func (t *Turns) Permit(ctx context.Context, shardID int) error {
	fresh := infoFresh
	for {
		if err := t.refresh(ctx, fresh); err != nil {
			return err
		}
		wait, err := t.slots.Spend(ctx, t.applicationID)
		if err != nil {
			return fmt.Errorf("take one of the session starts left: %w", err)
		}
		if wait <= 0 {
			break
		}
		t.log.LogAttrs(ctx, slog.LevelWarn, "the session starts that Discord allows are used up, waiting",
			slog.Int("shard", shardID), slog.Duration("wait", wait))
		if err := discord.Sleep(ctx, min(wait, 10*time.Minute)); err != nil {
			return err
		}
		// The number from before the wait is out of date.
		fresh = 0
	}
	t.mu.Lock()
	bucket := t.bucketLocked(shardID)
	t.mu.Unlock()
	if err := t.slots.Wait(ctx, t.applicationID, bucket); err != nil {
		return fmt.Errorf("wait for identify bucket %d: %w", bucket, err)
	}
	return nil
}

// refresh asks Discord for the session starts left unless the last answer is
// younger than fresh, and lets all instances know. When Discord does not
// answer, the old answer stands.
func (t *Turns) refresh(ctx context.Context, fresh time.Duration) error {
	t.mu.Lock()
	info, learned, old := t.info, t.learned, time.Since(t.fetchedAt) >= fresh
	t.mu.Unlock()
	if old {
		asked, err := t.rest.Gateway(ctx)
		if err != nil {
			t.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord for the session starts left", slog.Any("error", err))
		} else {
			info, learned = asked, false
		}
	}
	if learned {
		return nil
	}
	l := info.Limit
	if err := t.slots.Learn(ctx, t.applicationID, l.Total, l.Remaining, time.Duration(l.ResetAfter)*time.Millisecond); err != nil {
		return fmt.Errorf("store the session starts left: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old {
		t.fetchedAt = time.Now()
	}
	t.info, t.learned = info, true
	t.left(l.Remaining)
	return nil
}

// Reachable reports whether Discord's API answers a call.
func (t *Turns) Reachable(ctx context.Context) bool {
	_, err := t.rest.Gateway(ctx)
	return err == nil
}

// Refuse remembers the close code with which Discord answered an IDENTIFY with
// these intents, or a RESUME. It does nothing unless every shard would get the
// same.
func (t *Turns) Refuse(code discord.CloseCode, intents event.Intents) {
	if !code.ConcernsAll() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused = refusal{code, intents, time.Now()}
}

// Allowed returns a RefusedError if it is known that Discord would refuse an
// IDENTIFY with these intents: one of them is switched off, or Refuse has
// remembered such a code within the last hour.
func (t *Turns) Allowed(intents event.Intents) error {
	if t.Missing(intents) != 0 {
		return RefusedError{discord.CodeDisallowedIntents}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.refused
	if r.code == 0 || time.Since(r.at) >= refusalKept || r.code.LiftedByIntents() && r.intents != intents {
		return nil
	}
	return RefusedError{r.code}
}

// Lift forgets what Refuse remembered.
func (t *Turns) Lift() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused = refusal{}
}

// Missing returns the intents among wanted that are known to be switched off.
func (t *Turns) Missing(wanted event.Intents) event.Intents { return t.grants.Missing(wanted) }

// RefreshGrants asks Discord which intents are switched on, unless Discord has
// answered within the last minute. Call it before a session begins.
func (t *Turns) RefreshGrants(ctx context.Context) { t.grants.Refresh(ctx, grantsFresh) }
