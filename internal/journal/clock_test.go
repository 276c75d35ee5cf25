package journal

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// The estimate of the database's clock holds the true time, however the clocks run, and a
// slow answer does not spoil what a quick one has told.
func TestEstimateHoldsTheDatabasesTime(t *testing.T) {
	t.Parallel()
	here := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const s, ms = time.Second, time.Millisecond
	// Times are since the beginning; the database's clock showed shown between sent
	// and answered.
	type answer struct{ sent, answered, shown time.Duration }
	for _, tt := range []struct {
		name      string
		answers   []answer
		low, high time.Duration // when the last answer came
	}{
		{"one answer", []answer{{0, 10 * ms, 5 * s}}, 5 * s, 5*s + 10*ms},
		{"days ahead", []answer{{0, 10 * ms, -200 * time.Hour}}, -200 * time.Hour, -200*time.Hour + 10*ms},
		{"a quick answer after a slow one", []answer{{0, s, 5 * s}, {2 * s, 2*s + 2*ms, 6*s + 900*ms}}, 6*s + 900*ms, 6*s + 902*ms},
		// No more is lost than the clocks may drift.
		{"a slow answer after a quick one", []answer{{0, 2 * ms, 5 * s}, {2 * s, 3*s + 2*ms, 7*s + 500*ms}}, 8*s - 1500*time.Microsecond, 8*s + 2*ms + 1500*time.Microsecond},
		{"two that agree in part", []answer{{0, 10 * ms, 0}, {0, 30 * ms, 5 * ms}}, 20*ms - 10*time.Microsecond, 30*ms + 10*time.Microsecond},
		{"the database's clock was set back", []answer{{0, 10 * ms, s}, {2 * s, 2*s + 10*ms, -5 * s}}, -5 * s, -5*s + 10*ms},
		{"the database's clock was set ahead", []answer{{0, 10 * ms, s}, {2 * s, 2*s + 10*ms, time.Hour}}, time.Hour, time.Hour + 10*ms},
		{"the machine slept for an hour", []answer{{0, 10 * ms, s}, {2 * s, 2*s + 10*ms, time.Hour + 3*s}}, time.Hour + 3*s, time.Hour + 3*s + 10*ms},
	} {
		var e estimate
		for _, a := range tt.answers {
			e, _ = e.after(reading{here.Add(a.sent), here.Add(a.answered), here.Add(a.shown)})
		}
		if low, high := e.low.Sub(here), e.high.Sub(here); low != tt.low || high != tt.high {
			t.Errorf("%s: from %v to %v, want %v to %v", tt.name, low, high, tt.low, tt.high)
		}
		if last := tt.answers[len(tt.answers)-1]; !e.at.Equal(here.Add(last.answered)) {
			t.Errorf("%s: it is of %v", tt.name, e.at)
		}
	}
}

// Whatever the answers tell, the time that is told does not step back; it follows the
// database's clock back only if that was set back by much.
func TestClockDoesNotStepBack(t *testing.T) {
	t.Parallel()
	here := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	local := here
	c := clock{local: func() time.Time { return local }}
	if got := c.Now(); !got.Equal(here) {
		t.Errorf("before the first answer it is %v", got)
	}
	for _, step := range []struct {
		name string
		wait time.Duration
		db   time.Duration // since the beginning; 0 for no answer
		want time.Duration
	}{
		{"the first answer", 0, time.Hour, time.Hour},
		{"time passes", time.Second, 0, time.Hour + time.Second},
		{"set back by 2 s: it stands still", 0, time.Hour - time.Second, time.Hour + time.Second},
		{"until the database has caught up", time.Second, 0, time.Hour + time.Second},
		{"and then goes on", 2 * time.Second, 0, time.Hour + 2*time.Second},
		{"set ahead: it follows", 0, 3 * time.Hour, 3 * time.Hour},
		{"set back by an hour: it follows", 0, 2 * time.Hour, 2 * time.Hour},
		{"and then goes on", time.Second, 0, 2*time.Hour + time.Second},
	} {
		local = local.Add(step.wait)
		if step.db != 0 {
			c.learn(reading{local, local, here.Add(step.db)})
		}
		if got := c.Now().Sub(here); got != step.want {
			t.Errorf("%s: it is %v, want %v", step.name, got, step.want)
		}
	}
}

// joinWithClock joins as a machine whose clock is wrong by offset.
func joinWithClock(t *testing.T, pool *pgxpool.Pool, offset time.Duration) *Instance {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	i, err := joinRegister(t.Context(), &instances{pool: pool, home: Home{Name: uuid.New()}, hostname: host, ttl: testTTL}, testTTL,
		func() time.Time { return time.Now().Add(offset) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// databaseTime asks the database what time it is.
func databaseTime(t *testing.T, pool *pgxpool.Pool) (now time.Time) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now); err != nil {
		t.Fatal(err)
	}
	return now
}

// However wrong the machine's clock is, an instance tells the database's time, after it
// has joined and after each heartbeat.
func TestInstanceTellsTheDatabasesTime(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	for _, offset := range []time.Duration{0, time.Hour, 8 * 24 * time.Hour, -10 * time.Second, -8 * 24 * time.Hour} {
		i := joinWithClock(t, pool, offset)
		for _, step := range []func(context.Context) error{func(context.Context) error { return nil }, i.beat} {
			if err := step(t.Context()); err != nil {
				t.Fatal(err)
			}
			now := i.Now()
			after := databaseTime(t, pool)
			if now.After(after) || after.Sub(now) > time.Second {
				t.Errorf("with a clock that is wrong by %v it is %v when the database has %v", offset, now, after)
			}
		}
	}
}

// A machine that was suspended, and has lost its number to an heir meanwhile, tells the
// database's time again before it continues under a new number.
func TestSuspendedInstanceReadsTheClockBeforeItContinues(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	var slept time.Duration // for so long the machine's monotonic clock stood still
	i, err := joinRegister(t.Context(), &instances{pool: pool, home: Home{Name: uuid.New()}, ttl: testTTL}, testTTL,
		func() time.Time { return time.Now().Add(-slept) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before := i.ID()
	slept = time.Hour
	if _, err := pool.Exec(t.Context(), `UPDATE instances SET heir = 0`); err != nil {
		t.Fatal(err)
	}
	if err := i.beat(t.Context()); err != nil || i.ID() == before {
		t.Fatalf("it continues under the number %d: %v", i.ID(), err)
	}
	now := i.Now()
	if after := databaseTime(t, pool); after.Sub(now) > time.Second {
		t.Errorf("it is %v when the database has %v", now, after)
	}
}

// A machine whose clock is days ahead neither drops a partition early, at its start or
// later, nor loses an event that waits.
func TestClockDaysAheadDropsNothing(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	first := open(t, pool, joinWithClock(t, pool, 0), Config{})
	key, err := first.store.Add(t.Context(), wanted(shard0, 1), []int64{7})
	if err != nil {
		t.Fatal(err)
	}
	i := joinWithClock(t, pool, 8*24*time.Hour)
	ahead := open(t, pool, i, Config{}) // with a retention of 24 h
	if err := ahead.store.parts.Maintain(t.Context(), i.Now()); err != nil {
		t.Fatal(err)
	}
	left, err := ahead.store.Events(t.Context(), []event.Key{key})
	if err != nil || len(left) != 1 {
		t.Errorf("%d of 1 events are left, %v", len(left), err)
	}
}

// The events of a machine whose clock is behind or ahead count as received when they were:
// after a change of sets, those that the old set delivered are recognized.
func TestWrongClockLeavesReceiptsComparable(t *testing.T) {
	t.Parallel()
	for _, offset := range []time.Duration{-10 * time.Second, time.Hour} {
		pool := postgrestest.New(t)
		i := joinWithClock(t, pool, offset)
		j := open(t, pool, i, Config{}).start(t)
		c := j.claim(t, shard0)
		if _, err := j.Plan(t.Context(), app, shard0.Count); err != nil {
			t.Fatal(err)
		}
		p, err := j.Plan(t.Context(), app, shard0.Count)
		if err != nil {
			t.Fatal(err)
		}
		next := p
		next.Next, next.Phase = 2*shard0.Count, event.Holding
		if done, err := j.Replan(t.Context(), app, p, next); err != nil || !done {
			t.Fatal(done, err)
		}
		if p, err = j.Plan(t.Context(), app, shard0.Count); err != nil {
			t.Fatal(err)
		}
		e := wanted(shard0, 1)
		e.ReceivedAt = i.Now() // as the gateway does
		if err := c.Append(t.Context(), event.Session{ID: "s", Seq: 1}, e); err != nil {
			t.Fatal(err)
		}
		j.sink.await(t, 1)
		delivered, err := j.Delivered(t.Context(), shard0.Count, p.OverlapAt.Add(-2*time.Second))
		if err != nil || len(delivered) != 1 {
			t.Errorf("a clock that is wrong by %v: %d events were delivered during the overlap, want 1 (%v)", offset, len(delivered), err)
		}
		j.stop()
	}
}

// A machine whose clock is an hour ahead numbers its batches by the database's clock, and
// so drags nobody's numbers along.
func TestClockAheadDoesNotRunBatchNumbersAhead(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	for _, offset := range []time.Duration{time.Hour, 0, -time.Hour} {
		j := open(t, pool, joinWithClock(t, pool, offset), Config{}).start(t)
		c := j.claim(t, event.Shard{ID: 0, Count: 1})
		before := databaseTime(t, pool)
		if err := c.Append(t.Context(), event.Session{ID: "s", Seq: 1}, wanted(event.Shard{ID: 0, Count: 1}, 1)); err != nil {
			t.Fatal(err)
		}
		j.sink.await(t, 1)
		if err := c.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		at := j.store.Committed(j.sink.delivered[0].Key.Batch)
		if after := databaseTime(t, pool); at.Before(before.Add(-10*time.Second)) || at.After(after) {
			t.Errorf("a clock that is wrong by %v: the batch is of %v, committed between %v and %v", offset, at, before, after)
		}
		j.stop()
	}
}

// After the database's clock was set back, a lease that was renewed before is further
// ahead than any can be: its owner is dead. But nobody judges before two renewals have
// shown what time it is now, so the living have renewed theirs.
func TestDatabaseClockSetBack(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	dead := open(t, pool, join(t, pool, uuid.New()), Config{})
	b, _ := openHeir(t, pool)
	if _, err := pool.Exec(t.Context(), `UPDATE instances SET lease_until = lease_until + interval '1 day' WHERE id = $1`, dead.instance.ID()); err != nil {
		t.Fatal(err)
	}
	heirs := func() int {
		t.Helper()
		if err := b.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		return 1 - count(t, pool, `SELECT count(*) FROM instances WHERE id = $1`, dead.instance.ID())
	}
	// It was renewed an hour ahead.
	l := *b.instance.lease.Load()
	l.judgesSince, l.judgesUntil = l.judgesSince.Add(10*time.Hour), l.judgesUntil.Add(10*time.Hour)
	b.instance.lease.Store(&l)
	if heirs() != 0 {
		t.Error("an instance judged by a time that had not come yet")
	}
	b.instance.clock.learn(reading{time.Now(), time.Now(), time.Now().Add(10 * time.Hour)})
	for range 2 {
		if err := b.instance.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		if heirs() != 0 {
			t.Error("an instance judged before two renewals in a row after the clock was set")
		}
	}
	for range 2 {
		if err := b.instance.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if heirs() != 1 {
		t.Error("a dead instance was not taken over")
	}
	// A namesake's lease of that kind keeps nobody from starting.
	home := Home{Name: uuid.New(), Directory: "/one"}
	other, err := Join(t.Context(), pool, home, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE instances SET lease_until = lease_until + interval '1 day' WHERE id = $1`, other.ID()); err != nil {
		t.Fatal(err)
	}
	home.Directory = "/two"
	if _, err := Join(t.Context(), pool, home, 0, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}

// However many statements of the API and the engine hang, the lease is renewed and
// events are committed.
func TestOtherStatementsDontHoldUpHeartbeatAndWriter(t *testing.T) {
	t.Parallel()
	pools := postgrestest.Pools(t)
	ctx, cancel := context.WithCancel(t.Context())
	i, err := Join(ctx, pools.Heartbeat, Home{Name: uuid.New()}, testTTL, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	store, err := OpenStore(ctx, pools.Engine, i, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	j := &bundle{sink: newSink()}
	j.Journal = New(store, wantsOnly("WANTED"), j.sink, Config{Writer: pools.Journal}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	j.start(t)
	c := j.claim(t, shard0)

	asleep := make(chan error)
	n := 0
	for _, pool := range []*pgxpool.Pool{pools.Engine, pools.API} {
		for range pool.Config().MaxConns + 3 {
			n++
			go func() {
				_, err := pool.Exec(ctx, `SELECT pg_sleep(600)`)
				asleep <- err
			}()
		}
	}
	defer func() {
		cancel()
		for range n {
			if err := <-asleep; err == nil {
				t.Error("a statement that was to hang has ended")
			}
		}
	}()
	full := func() bool {
		for _, pool := range []*pgxpool.Pool{pools.Engine, pools.API} {
			if s := pool.Stat(); s.AcquiredConns() < s.MaxConns() {
				return false
			}
		}
		return true
	}
	for !full() {
		select {
		case err := <-asleep:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	for seq := range int64(100) {
		if err := i.beat(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Append(ctx, event.Session{ID: "s", Seq: seq + 1}, wanted(shard0, seq+1)); err != nil {
			t.Fatal(err)
		}
		j.sink.await(t, 1)
	}
	if i.Err() != nil || j.Err() != nil {
		t.Errorf("the instance has %v, the journal %v", i.Err(), j.Err())
	}
}
