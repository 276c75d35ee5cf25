package identify

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sethvargo/go-retry"

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

// minAsk and maxAsk bound the waits between two questions whether there are
// session starts again.
const (
	minAsk = 5 * time.Second
	maxAsk = 10 * time.Minute
)

// Slots paces IDENTIFYs across all instances that share a token. Buckets
// implements it. All methods are safe for concurrent use, and return an error
// only if ctx ends.
type Slots interface {
	// Learn notes Discord's answer about the session starts left (Discord:
	// Session Start Limit Object).
	Learn(ctx context.Context, applicationID event.Snowflake, total, remaining int, resetAfter time.Duration) error
	// Spend takes one of the session starts left, and returns 0, if at least floor
	// are left afterwards. Otherwise it returns the time until the reset, which is
	// not 0.
	Spend(ctx context.Context, applicationID event.Snowflake, floor int) (wait time.Duration, err error)
	// Take takes the bucket's slot, which permits one IDENTIFY (Discord: Max
	// Concurrency), and returns 0. If the slot is taken, it returns how long to wait
	// before the next try: a bit less for a more urgent class, which then goes first
	// when several shards wait for the same slot.
	Take(ctx context.Context, applicationID event.Snowflake, bucket int, class Class) (wait time.Duration, err error)
	// Extend makes the bucket's slot begin now.
	Extend(ctx context.Context, applicationID event.Snowflake, bucket int) error
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

	mu         sync.Mutex // guards the fields below, and the queues
	info       discord.GatewayInfo
	fetchedAt  time.Time
	learned    bool           // the slots have learned info
	delivering int            // how many shards deliver
	queues     map[int]*queue // by bucket
	refused    refusal
	// late is when a bucket's last IDENTIFY was sent, if it was sent late and the slot could
	// not be extended.
	late map[int]time.Time
}

// refusal remembers a fatal close code that concerns every shard, so that the
// other shards need not spend an IDENTIFY each to learn the same.
type refusal struct {
	code    discord.CloseCode // 0 for none
	intents event.Intents
	count   int // of shards
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
		info:   cfg.Info, fetchedAt: time.Now(), queues: make(map[int]*queue), late: make(map[int]time.Time),
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

// SetDelivering notes how many shards deliver, on all instances. The budget keeps
// starts back for them.
func (t *Turns) SetDelivering(shards int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delivering = shards
}

// Budget returns what is left of the session starts, as Discord last said.
func (t *Turns) Budget() Budget {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.info.Limit
	return Budget{
		Total: l.Total, Remaining: l.Remaining, Shards: t.delivering,
		ResetAfter: time.Duration(l.ResetAfter)*time.Millisecond - time.Since(t.fetchedAt),
	}
}

// Turn is the turn of one shard, from its place in the queue to its IDENTIFY.
type Turn struct {
	turns  *Turns
	class  Class
	shard  int
	queue  *queue
	member *member
	once   sync.Once
	spent  bool      // a session start
	taken  time.Time // when the slot was asked for
	bucket int       // whose slot it is
}

// Turn waits until no other shard of the same or a more urgent class is about to
// IDENTIFY in the bucket. Among the waiting shards, the one with the most urgent
// class and then the lowest id is next (Discord: Max Concurrency). Call it before
// the dial: a shard whose turn is minutes away should not hold an idle connection
// until then. The caller releases the turn. If ctx ends first, the error is its
// cause.
func (t *Turns) Turn(ctx context.Context, class Class, shardID int) (*Turn, error) {
	t.mu.Lock()
	bucket := t.bucketLocked(shardID)
	q := t.queues[bucket]
	if q == nil {
		q = newQueue()
		t.queues[bucket] = q
	}
	turn := &Turn{turns: t, class: class, shard: shardID, queue: q, member: q.join(class, shardID)}
	t.mu.Unlock()
	select {
	case <-turn.member.turn:
		return turn, nil
	case <-ctx.Done():
		turn.Release()
		return nil, context.Cause(ctx)
	}
}

func (t *Turns) bucketLocked(shardID int) int { return shardID % t.info.Limit.MaxConcurrency }

// Release gives the turn to the next shard, once the IDENTIFY was sent or given
// up. It may be called again, and on nil.
func (u *Turn) Release() {
	if u == nil {
		return
	}
	u.once.Do(func() {
		u.turns.mu.Lock()
		defer u.turns.mu.Unlock()
		u.queue.leave(u.member)
	})
}

// Permit returns when the shard may send its IDENTIFY, and counts it as sent: once, if it
// is called again. The error wraps the one that ended ctx.
func (u *Turn) Permit(ctx context.Context) error {
	if !u.spent {
		if err := u.spend(ctx); err != nil {
			return err
		}
		u.spent = true
	}
	t := u.turns
	for {
		bucket, err := u.giveWay(ctx)
		if err != nil {
			return err
		}
		if err := discord.Sleep(ctx, t.untilFree(bucket)); err != nil {
			return err
		}
		u.taken, u.bucket = time.Now(), bucket
		wait, err := t.slots.Take(ctx, t.applicationID, bucket, u.class)
		if err != nil {
			return fmt.Errorf("wait for identify bucket %d: %w", bucket, err)
		}
		if wait <= 0 {
			return nil
		}
		if err := discord.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// Holds reports whether the slot is still this turn's. If the database, or this process,
// took so long since Permit that another shard can get the next slot before Sent has said
// when the IDENTIFY was sent, the caller calls Permit again.
func (u *Turn) Holds() bool { return time.Since(u.taken) < SlotLength*3/4 }

// Sent is called once the IDENTIFY was sent. If that was late, because the database was
// slow since it gave the slot, the next IDENTIFY must wait from now on: Discord counts
// from its arrival. If the database does not answer before ctx ends, this instance's shards
// wait nevertheless, but another instance's may come too early.
func (u *Turn) Sent(ctx context.Context) error {
	sent := time.Now()
	if sent.Sub(u.taken) < slotMargin/2 {
		return nil
	}
	t := u.turns
	err := t.slots.Extend(ctx, t.applicationID, u.bucket)
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.late[u.bucket] = sent
	}
	return err
}

// untilFree returns how long a bucket's slot must not be taken because of a late IDENTIFY
// that the database does not know of.
func (t *Turns) untilFree(bucket int) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	sent, ok := t.late[bucket]
	if !ok {
		return 0
	}
	wait := SlotLength - time.Since(sent)
	if wait <= 0 {
		delete(t.late, bucket)
	}
	return max(0, wait)
}

// giveWay waits until no shard of a more urgent class wants to IDENTIFY in the
// bucket, and returns the bucket.
func (u *Turn) giveWay(ctx context.Context) (bucket int, err error) {
	t := u.turns
	for {
		t.mu.Lock()
		bucket = t.bucketLocked(u.shard)
		first, changed := u.queue.first(u.member), u.queue.changed
		t.mu.Unlock()
		if first {
			return bucket, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// spend waits until the budget has a start for the class, and takes it.
func (u *Turn) spend(ctx context.Context) error {
	t := u.turns
	// Discord may not say when the reset is, or say it wrongly. Then this asks
	// less and less often.
	backoff := retry.WithCappedDuration(maxAsk, retry.NewExponential(minAsk))
	var least time.Duration
	for fresh := infoFresh; ; fresh = 0 { // the number from before a wait is out of date
		if err := t.refresh(ctx, fresh); err != nil {
			return err
		}
		wait, err := t.slots.Spend(ctx, t.applicationID, t.Budget().floor(u.class))
		if err != nil {
			return fmt.Errorf("take one of the session starts left: %w", err)
		}
		if wait <= 0 {
			return nil
		}
		wait = min(max(wait, least), maxAsk)
		least, _ = backoff.Next()
		t.log.LogAttrs(ctx, slog.LevelWarn, "the session starts that Discord allows are used up, or kept back for others: waiting",
			slog.Int("shard", u.shard), slog.String("class", u.class.String()), slog.Duration("wait", wait))
		if err := discord.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// Ask asks Discord how many shards there should be, and notes the session
// starts left.
func (t *Turns) Ask(ctx context.Context) (shards int, err error) {
	info, err := t.rest.Gateway(ctx)
	if err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.info, t.fetchedAt, t.learned = info, time.Now(), false
	t.left(info.Limit.Remaining)
	return info.Shards, nil
}

// refresh asks Discord for the session starts left unless the last answer is
// younger than fresh, and lets all instances know. When Discord does not
// answer, the old answer stands.
func (t *Turns) refresh(ctx context.Context, fresh time.Duration) error {
	t.mu.Lock()
	old := time.Since(t.fetchedAt) >= fresh
	t.mu.Unlock()
	if old {
		if _, err := t.Ask(ctx); err != nil {
			t.log.LogAttrs(ctx, slog.LevelWarn, "could not ask Discord for the session starts left", slog.Any("error", err))
		}
	}
	t.mu.Lock()
	learned, at := t.learned, t.fetchedAt
	t.mu.Unlock()
	if learned {
		return nil
	}
	b := t.Budget()
	if err := t.slots.Learn(ctx, t.applicationID, b.Total, b.Remaining, max(b.ResetAfter, 0)); err != nil {
		return fmt.Errorf("store the session starts left: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.learned = t.fetchedAt.Equal(at) // otherwise there is a newer answer
	return nil
}

// Refuse remembers the close code with which Discord answered an IDENTIFY with
// these intents in a set of count shards, or a RESUME. It does nothing unless every
// shard of the set would get the same.
func (t *Turns) Refuse(code discord.CloseCode, intents event.Intents, count int) {
	if !code.ConcernsAll() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused = refusal{code, intents, count, time.Now()}
}

// Allowed returns a RefusedError if it is known that Discord would refuse an
// IDENTIFY with these intents in a set of count shards: one of the intents is
// switched off, or Refuse has remembered such a code within the last hour.
func (t *Turns) Allowed(intents event.Intents, count int) error {
	if t.Missing(intents) != 0 {
		return RefusedError{discord.CodeDisallowedIntents}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.refused
	switch {
	case r.code == 0, time.Since(r.at) >= refusalKept:
		return nil
	case r.code.LiftedByIntents() && r.intents != intents, r.code == discord.CodeInvalidShard && r.count != count:
		return nil
	default:
		return RefusedError{r.code}
	}
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
