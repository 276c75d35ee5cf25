package gateway

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// Each of these tests is about one defect, found by reading other programs with
// the same purpose.

// TestDefect1PoisonEvent: a program that decodes an event before it counts the
// event as received ends the connection at an event that fits no model. It
// resumes before that event, gets it again, and so on forever.
func TestDefect1PoisonEvent(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 5)
	poison := []string{`{"id":{"x":1},"author":"nobody","guild_id":-1}`, `null`, `[[[]]]`}
	for _, data := range poison {
		if _, err := r.Dispatch(0, "MESSAGE_UPDATE", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	r.dispatch(0, 5, 5)
	r.messages(10)
	r.do(0, discordtest.Drop())
	if e := r.count(discordtest.Resume, 0, 1); e.Seq != 14 {
		t.Errorf("RESUME from %d, want 14: READY, 10 messages, 3 others", e.Seq)
	}
	r.named("SHARD_RESUME", 1)
	r.ready(0)
	r.dispatch(0, 10, 1)
	r.messages(11)
	var delivered []string
	for _, e := range r.store.all() {
		if e.Name == "MESSAGE_UPDATE" {
			delivered = append(delivered, string(e.Data))
		}
	}
	if !slices.Equal(delivered, poison) {
		t.Errorf("delivered %q, want %q", delivered, poison)
	}
	if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestDefect2FailureBeforeResumed: a program that forgets a connection that
// ended before READY or RESUMED loses the session to one fault at that moment,
// and with it the whole replay.
func TestDefect2FailureBeforeResumed(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	old := r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.Arm(discordtest.AtHello, discordtest.AnyShard, 1, discordtest.Reconnect(), discordtest.Skip())
	r.Arm(discordtest.AtResume, 0, 1, discordtest.Drop())
	r.Arm(discordtest.AtResume, 0, 1, discordtest.After(3, discordtest.Drop()))
	r.Arm(discordtest.AtResume, 0, 1, discordtest.After(3, discordtest.Reconnect()))
	r.do(0, discordtest.Drop())
	r.dispatch(0, 10, 20)
	r.messages(30)
	if now := r.ready(0); now.ID != old.ID || r.Count(discordtest.Identify, 0) != 1 {
		t.Errorf("session %s became %s with %d IDENTIFYs", old.ID, now.ID, r.Count(discordtest.Identify, 0))
	}
	r.legal()
}

// slowShard is a Store that makes the events of one shard wait.
type slowShard struct {
	Store
	shard event.Shard
	busy  atomic.Bool
	waits chan struct{} // receives a value for every event that waits
	hold  chan struct{}
}

func (s *slowShard) Claim(ctx context.Context, id event.Snowflake, shards []event.Shard) ([]Claim, error) {
	claims, err := s.Store.Claim(ctx, id, shards)
	for i, c := range claims {
		if c.Shard() == s.shard {
			claims[i] = slowClaim{c, s}
		}
	}
	return claims, err
}

type slowClaim struct {
	Claim
	s *slowShard
}

func (c slowClaim) Append(ctx context.Context, session event.Session, e *event.Event) error {
	if c.s.busy.Load() {
		c.s.waits <- struct{}{}
		select {
		case <-c.s.hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return c.Claim.Append(ctx, session, e)
}

// TestDefect3OneLockForAll: if one lock orders the events of all shards, one
// shard that has to wait stops every reader.
func TestDefect3OneLockForAll(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Shards: 2, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 2}})
	slow := &slowShard{shard: event.Shard{ID: 0, Count: 2}, waits: make(chan struct{}, 16), hold: make(chan struct{})}
	r.wrap = func(s Store) Store {
		slow.Store = s
		return slow
	}
	r.start()
	r.named("READY", 2)
	slow.busy.Store(true)
	for range 10 {
		if _, err := r.Dispatch(0, "TYPING_START", []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-slow.waits:
	case <-r.ctx.Done():
		t.Fatal("shard 0 does not wait")
	}
	r.dispatch(1, 0, 100)
	r.messages(100)
	if slices.Contains(names(r.store.all()), "TYPING_START") {
		t.Error("shard 0 did not wait")
	}
	close(slow.hold)
	r.named("TYPING_START", 10)
	if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	r.legal()
}

// TestDefect4SameEvents: a program that compares events to find duplicates
// mistakes equal reactions, two quick edits of a message, or the same event of
// two bots in one guild for one event. Only the session's sequence number tells
// such events apart.
func TestDefect4SameEvents(t *testing.T) {
	t.Parallel()
	reaction := []byte(`{"user_id":"1","channel_id":"2","message_id":"3","guild_id":"4","emoji":{"id":null,"name":"x"},"burst":false,"type":0}`)
	ids := make(map[string]bool)
	for _, application := range []uint64{77, 78} {
		r := newRig(t, discordtest.Config{ApplicationID: application})
		r.start()
		r.ready(0)
		for range 20 {
			if _, err := r.Dispatch(0, "MESSAGE_REACTION_ADD", reaction); err != nil {
				t.Fatal(err)
			}
		}
		r.named("MESSAGE_REACTION_ADD", 20)
		for _, e := range r.store.all() {
			if e.Name == "MESSAGE_REACTION_ADD" {
				ids[e.ID.String()] = true
			}
		}
	}
	if len(ids) != 40 {
		t.Errorf("%d different events, want 40", len(ids))
	}
}

// TestDefect5SilentFailures: a zombie that is never closed; a close with 1000
// after a fault, which ends the session; and seconds that are milliseconds.
func TestDefect5SilentFailures(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{}, func(r *clockRig) {
		t := r.t
		r.Arm(discordtest.AtHeartbeat, discordtest.AnyShard, 1, discordtest.Delay(2*time.Second))
		r.start()
		r.ready(0)
		r.count(discordtest.Heartbeat, 0, 2)
		if shown := r.scrape(); !strings.Contains(shown, "gatehook_gateway_heartbeat_seconds_sum 2\n") {
			t.Errorf("a heartbeat that was acknowledged after 2 s is shown as\n%s", shown)
		}
		faults := []func(){
			func() { r.net.freeze(0, true) }, // nothing more arrives
			func() { r.do(0, discordtest.Corrupt()) },
			func() { r.do(0, discordtest.Reconnect()) },
			func() { r.do(0, discordtest.Invalidate(true)) },
		}
		for n, fault := range faults {
			fault()
			r.count(discordtest.Resumed, 0, n+1)
			r.ready(0)
			r.sleep(time.Second)
		}
		for _, e := range r.entries(discordtest.ClientClosed) {
			if e.Code != int(discord.CodeKeepSession) && e.Code != abnormalClosure {
				t.Errorf("closed with %d", e.Code)
			}
		}
		// The URL of a lost session must not be used again.
		r.do(0, discordtest.Invalidate(false))
		r.count(discordtest.Ready, 0, 2)
		r.legal()
	})
}

// TestDefect6RangeOfShards: if a list of shards is indexed by their ids
// although it does not begin at 0, a process that runs the second half
// confuses its shards or stops.
func TestDefect6RangeOfShards(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{Shards: 8, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 8}})
	r.cfg.Shards = Shards{First: 4, Last: 7, Count: 8}
	r.start()
	for id := 4; id < 8; id++ {
		if s := r.ready(id); s.Count != 8 {
			t.Errorf("session %+v", s)
		}
		if _, err := r.Dispatch(id, "TYPING_START", fmt.Append(nil, id)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 4 {
		e := r.named("TYPING_START", n+1)
		if want := (event.Shard{ID: e.Shard.ID, Count: 8}); e.Shard != want || !bytes.Equal(e.Data, fmt.Append(nil, e.Shard.ID)) {
			t.Errorf("shard %v delivered %s", e.Shard, e.Data)
		}
	}
	for i, st := range r.gateway.Status() {
		if st.Shard != (event.Shard{ID: 4 + i, Count: 8}) || st.State != StateConnected {
			t.Errorf("status %+v", st)
		}
	}
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != 4 {
		t.Errorf("%d IDENTIFYs, want 4", n)
	}
	r.legal()
}

// TestDefect7BucketsOfARange: if shards are started in groups in the order of a
// list, the shards of a range exceed the limit of the bucket that their ids
// share. After a handful of failures, such a bot stays dead.
func TestDefect7BucketsOfARange(t *testing.T) {
	t.Parallel()
	t.Run("buckets", func(t *testing.T) {
		t.Parallel()
		const window = 100 * time.Millisecond
		r := newRig(t, discordtest.Config{
			IdentifyWindow: window, SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: 3},
		})
		r.cfg.Shards = Shards{First: 2, Last: 7, Count: 16}
		r.slots = pacedBuckets(t, 3*window)
		r.start()
		for id := 2; id < 8; id++ {
			r.ready(id)
		}
		r.legal() // two IDENTIFYs of a bucket within the window would be illegal
	})
	t.Run("failures", func(t *testing.T) {
		t.Parallel()
		withClock(t, discordtest.Config{}, func(r *clockRig) {
			r.Arm(discordtest.AtIdentify, 0, 20, discordtest.Close(4000))
			r.Arm(discordtest.AtConnect, discordtest.AnyShard, 20, discordtest.Status(500))
			r.start()
			r.ready(0)
			r.legal()
		})
	})
}

// countingSlots are Slots that signal each refusal.
type countingSlots struct {
	identify.Slots
	refused chan struct{}
}

func (c *countingSlots) Spend(ctx context.Context, id event.Snowflake, floor int) (time.Duration, error) {
	wait, err := c.Slots.Spend(ctx, id, floor)
	if wait > 0 {
		c.refused <- struct{}{}
	}
	return wait, err
}

// TestDefect8BudgetPerProcess: if every process counts the day's session
// starts for itself, two processes spend them twice, and Discord resets the
// token.
func TestDefect8BudgetPerProcess(t *testing.T) {
	t.Parallel()
	const shards, left = 8, 3
	r := newRig(t, discordtest.Config{Shards: shards, SessionStart: discordtest.SessionStart{
		Total: 1000, Remaining: 1000/20 + left, ResetAfter: time.Hour, MaxConcurrency: 16,
	}})
	pool := postgrestest.New(t)
	refused := make(chan struct{}, 2*shards)
	for _, half := range []Shards{{First: 0, Last: 3, Count: shards}, {First: 4, Last: 7, Count: shards}} {
		r.cfg.Shards = half
		r.slots = &countingSlots{identify.NewBuckets(pool, quiet), refused}
		r.start()
	}
	for range shards - left {
		select {
		case <-refused:
		case <-r.ctx.Done():
			t.Fatal("the session starts are not used up")
		}
	}
	r.count(discordtest.Ready, discordtest.AnyShard, left)
	if n := r.Count(discordtest.Identify, discordtest.AnyShard); n != left {
		t.Errorf("%d IDENTIFYs, want %d", n, left)
	}
	r.legal()
}

// TestDefect9SequenceBeforeStore: if the sequence number advances before the
// events are stored, a crash silently loses the events in between.
func TestDefect9SequenceBeforeStore(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	stop := r.start()
	r.ready(0)
	r.dispatch(0, 0, 10)
	r.messages(10)
	r.store.setFrozen(true)
	r.dispatch(0, 10, 10)
	r.messages(20)
	r.do(0, discordtest.Drop())
	if e := r.count(discordtest.Resume, 0, 1); e.Seq != 11 {
		t.Errorf("RESUME from %d, want 11, the stored number", e.Seq)
	}
	r.ready(0)
	stop()
	// Events that were not committed are gone with the process.
	r.store.do(func() {
		r.store.frozen = false
		r.store.events = slices.DeleteFunc(r.store.events, func(e *event.Event) bool { return e.Seq > 11 })
	})
	r.start()
	if e := r.count(discordtest.Resume, 0, 2); e.Seq != 11 {
		t.Errorf("RESUME from %d after a restart, want 11", e.Seq)
	}
	r.messages(20)
	if strings.Contains(strings.Join(names(r.store.all()), " "), "GATEHOOK_SESSION_LOST") {
		t.Error("the session was lost")
	}
	r.legal()
}
