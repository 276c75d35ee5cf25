package gateway

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
)

// A session keeps the intents that it was identified with. When more are
// needed, a second connection begins a session with them while the first one
// goes on delivering: Discord allows the same shard twice (Discord: Sharding).
// What the second one gets is held back until it gets everything; then the
// first one is read to its end, and the second takes its place. So no event
// falls between the two, and what came on both is told once.

const (
	// maxHeldEvents and maxHeldBytes bound what is held back. A second
	// connection that meets them is not read on.
	maxHeldEvents = 8192
	maxHeldBytes  = 64 << 20
)

// errUpgradeFailed is why a second connection is let go that could not take
// over.
var errUpgradeFailed = errors.New("the first connection ended before the second could take over")

// running is a link at work.
type running struct {
	*link
	cancel context.CancelCauseFunc
	done   chan struct{}
	end    ending // once done is closed
}

func start(ctx context.Context, l *link) *running {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &running{link: l, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.end = l.run(ctx)
	}()
	return r
}

// stop ends the link and waits for it.
func (r *running) stop(cause error) {
	r.cancel(cause)
	<-r.done
}

// carry runs a link to its end, and lets another one take its place whenever
// more intents are needed. It returns the one that was last.
func (s *shard) carry(ctx context.Context, out *outlet, l *link) (*link, ending) {
	current := start(ctx, l)
	defer func() { current.stop(errDrain) }()
	began := current.began
	var again <-chan time.Time
	for {
		select {
		case <-current.done:
			return current.link, current.end
		case <-began:
			began = nil
		case <-s.changed:
		case <-again:
		}
		again = nil
		wanted := s.intents()
		if !current.isLive() || current.lacks(wanted) == 0 {
			continue
		}
		if wait := s.upgrades.wait(wanted, time.Now()); wait > 0 {
			again = time.After(wait)
			s.set(func(st *ShardStatus) { st.Problem = s.upgrades.problem })
			continue
		}
		next, err := s.replace(ctx, out, current)
		switch {
		case err == nil:
			current = next
		case current.ended():
			// The next turn of the loop returns it.
		default:
			s.upgrades.failed(wanted, time.Now(), err, current.lacks(wanted))
			again = time.After(s.upgrades.wait(wanted, time.Now()))
			s.set(func(st *ShardStatus) { st.Problem = s.upgrades.problem })
			s.log.LogAttrs(ctx, slog.LevelWarn, "could not begin a session with more intents, the present one goes on", slog.Any("error", err))
		}
	}
}

// upgrades remembers what came of asking for more intents. Every try costs a
// session start, so they are far apart: from half a minute to an hour.
type upgrades struct {
	tried   event.Intents
	backoff retry.Backoff
	at      time.Time
	problem string
}

// wait tells how long not to try. Other intents may be tried at once.
func (u *upgrades) wait(wanted event.Intents, now time.Time) time.Duration {
	if wanted != u.tried {
		return 0
	}
	return max(u.at.Sub(now), 0)
}

func (u *upgrades) failed(wanted event.Intents, now time.Time, err error, missing event.Intents) {
	if wanted != u.tried {
		u.backoff = retry.WithCappedDuration(time.Hour, retry.NewExponential(30*time.Second))
	}
	wait, _ := u.backoff.Next()
	u.tried, u.at = wanted, now.Add(wait)
	u.problem = "events are missing: no session with more intents could begin"
	if code := (ending{cause: err}).code(); courseOf(code) == courseStop {
		u.problem = "events are missing: " + remedyFor(code, missing)
	}
}

// lacks returns the intents that the link's session is without. It is known
// once the link is live.
func (l *link) lacks(wanted event.Intents) event.Intents {
	return wanted &^ event.Intents(l.has.Load())
}

// replace begins a session with the intents that are needed and lets it take
// over from old, which has ended then. On an error old is as it was.
func (s *shard) replace(ctx context.Context, out *outlet, old *running) (*running, error) {
	held := newHolding(out)
	l := newLink(s, held, event.Session{})
	l.intents = s.intents()
	s.log.LogAttrs(ctx, slog.LevelInfo, "beginning a session with more intents", slog.String("intents", l.intents.String()))
	old.overlap.Store(newOverlap())
	defer old.overlap.Store(nil)
	next := start(ctx, l)
	if err := s.await(next, old); err != nil {
		next.stop(err)
		return nil, err
	}
	close(old.leave)
	<-old.done
	// Nothing of the next one was told yet. Unless all is well the old session
	// is resumed, with all that it missed.
	if !errors.Is(old.end.cause, errReplaced) || next.ended() {
		next.stop(errUpgradeFailed)
		return nil, errUpgradeFailed
	}
	if err := held.open(ctx, old.overlap.Load()); err != nil {
		next.stop(err)
		return nil, err
	}
	now := time.Now()
	next.primary.Store(true)
	s.set(next.connected(now))
	s.set(func(st *ShardStatus) { st.SessionSince = now })
	return next, nil
}

func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// await returns when next gets everything that old gets.
func (s *shard) await(next, old *running) error {
	select {
	case <-next.began:
	case <-next.done:
		return next.end.cause
	case <-old.done:
		return errUpgradeFailed
	}
	old.overlap.Load().begin(time.Now())
	patience := s.timing.load
	if next.intents&event.IntentGuilds == 0 {
		patience = s.timing.settle
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-next.loaded:
	case <-limit.C:
	case <-next.done:
		return next.end.cause
	case <-old.done:
		return errUpgradeFailed
	}
	return nil
}

// expect notes the guilds that a new session is still to be told of (Discord:
// Guild Availability). Only a link that waits to take over wants to know.
func (l *link) expect(guilds []guildID) {
	if l.primary.Load() || l.intents&event.IntentGuilds == 0 || l.loading != nil {
		return
	}
	l.loading = make(map[event.Snowflake]bool, len(guilds))
	for _, g := range guilds {
		if id, err := event.ParseSnowflake(strings.Trim(string(g.ID), `"`)); err == nil {
			l.loading[id] = true
		}
	}
	if len(l.loading) == 0 {
		close(l.loaded)
	}
}

// loads crosses off a guild.
func (l *link) loads(e *event.Event) {
	if len(l.loading) == 0 || e.Name != "GUILD_CREATE" && e.Name != "GUILD_DELETE" {
		return
	}
	delete(l.loading, e.GuildID)
	if len(l.loading) == 0 {
		close(l.loaded)
	}
}

// holding keeps what a link puts until it is opened, and from then on hands it
// on to the outlet.
type holding struct {
	out *outlet

	mu     sync.Mutex
	held   []heldEvent
	bytes  int
	space  chan struct{} // closed and replaced when held was taken
	opened chan struct{} // closed when nothing is held back any more
}

type heldEvent struct {
	session *event.Session
	event   *event.Event
}

func newHolding(out *outlet) *holding {
	return &holding{out: out, space: make(chan struct{}), opened: make(chan struct{})}
}

// put implements sink. It waits while the holding is full.
func (h *holding) put(ctx context.Context, session *event.Session, e *event.Event) error {
	for {
		space, kept := h.keep(session, e)
		if kept {
			return nil
		}
		select {
		case <-h.opened:
			return h.out.put(ctx, session, e)
		case <-space:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// keep holds an event back if that is still to be done and there is room.
func (h *holding) keep(session *event.Session, e *event.Event) (space <-chan struct{}, kept bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isOpen() || len(h.held) > 0 && (len(h.held) >= maxHeldEvents || h.bytes+len(e.Data) > maxHeldBytes) {
		return h.space, false
	}
	h.held = append(h.held, heldEvent{session, e})
	h.bytes += len(e.Data)
	return nil, true
}

func (h *holding) isOpen() bool {
	select {
	case <-h.opened:
		return true
	default:
		return false
	}
}

// putSoon implements sink. Of a link that never took over nothing is told.
func (h *holding) putSoon(ctx context.Context, limit time.Duration, events ...*event.Event) {
	if h.isOpen() {
		h.out.putSoon(ctx, limit, events...)
	}
}

// stored implements sink.
func (h *holding) stored(sessionID string) int64 { return h.out.stored(sessionID) }

// open hands on what was held back, less what the connection before told
// already, and holds nothing back from then on.
func (h *holding) open(ctx context.Context, told *overlap) error {
	counts := told.counts()
	for {
		held := h.take()
		if held == nil {
			return nil
		}
		for _, e := range held {
			if k := told.key(e.event); e.event.Seq > 0 && counts[k] > 0 {
				counts[k]--
				e.event = nil // the session moves all the same
			}
			if err := h.out.put(ctx, e.session, e.event); err != nil {
				return err
			}
		}
	}
}

// take returns what is held. When that is nothing, the holding is open.
func (h *holding) take() []heldEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := h.held
	h.held, h.bytes = nil, 0
	if held == nil {
		close(h.opened)
		return nil
	}
	close(h.space)
	h.space = make(chan struct{})
	return held
}

// overlapMargin is by how much a dispatch may arrive earlier on one connection
// than on another.
const overlapMargin = 2 * time.Second

// overlap remembers the dispatches that a connection told since another one of
// the same shard gets them as well.
type overlap struct {
	seed maphash.Seed

	mu    sync.Mutex
	begun bool // both get them
	told  []toldEvent
}

type toldEvent struct {
	key uint64
	at  time.Time
}

func newOverlap() *overlap { return &overlap{seed: maphash.MakeSeed()} }

func (o *overlap) key(e *event.Event) uint64 {
	var h maphash.Hash
	h.SetSeed(o.seed)
	_, _ = h.WriteString(e.Name) // a hash takes everything
	_ = h.WriteByte(0)
	_, _ = h.Write(e.Data)
	return h.Sum64()
}

// add notes what was told. Until begin, only the latest is kept.
func (o *overlap) add(e *event.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, toldEvent{o.key(e), e.ReceivedAt})
	if !o.begun {
		o.forget(e.ReceivedAt)
	}
}

func (o *overlap) forget(now time.Time) {
	i := 0
	for i < len(o.told) && now.Sub(o.told[i].at) > overlapMargin {
		i++
	}
	o.told = o.told[i:]
}

// begin is called when the other connection begins to get dispatches.
func (o *overlap) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forget(now)
	o.begun = true
}

// counts tells how often each dispatch was told.
func (o *overlap) counts() map[uint64]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	counts := make(map[uint64]int, len(o.told))
	for _, t := range o.told {
		counts[t.key]++
	}
	return counts
}
