package journal

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

var shard1 = event.Shard{ID: 1, Count: 2}

// commitEvent commits one wanted event, and returns the number of its batch.
func commitEvent(t *testing.T, b *bundle, c *Claim, seq int64) int64 {
	t.Helper()
	k := newCommit()
	b.collect(k, entry{claim: c, session: session(seq), event: wanted(c.shard, seq)})
	if err := b.flush(t.Context(), k, false); err != nil {
		t.Fatal(err)
	}
	return k.batch.ID
}

// commitCursors stores the cursors that moved, as once a second.
func commitCursors(t *testing.T, b *bundle) {
	t.Helper()
	if err := b.flush(t.Context(), newCommit(), true); err != nil {
		t.Fatal(err)
	}
}

// loseBatches makes the database go back to before some batches.
func loseBatches(t *testing.T, pool *pgxpool.Pool, ids ...int64) {
	t.Helper()
	exec(t, pool, `DELETE FROM events WHERE batch_id = ANY($1)`, ids)
	exec(t, pool, `DELETE FROM batches WHERE id = ANY($1)`, ids)
}

func exec(t *testing.T, pool *pgxpool.Pool, query string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

// holdCommits makes commits of events wait; claims and cursors go on.
func holdCommits(t *testing.T, pool *pgxpool.Pool) (goOn func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE batches IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	goOn = sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	t.Cleanup(goOn)
	return goOn
}

// awaitHeld waits until a commit waits.
func awaitHeld(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("no commit waits")
		}
		time.Sleep(time.Millisecond)
	}
}

// A commit of cursors alone also finds out that the last events are gone.
func TestNoCursorPastLostEvents(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	c := b.claim(t, shard0)
	unsettled(t, b, c, 1)
	loseBatches(t, pool, commitEvent(t, b, c, 2))
	commitCursors(t, b)
	commitEvent(t, b, c, 3)
	if again := b.claim(t, shard0).Session().Seq; again != 1 {
		t.Errorf("goes on after %d; the newest event that is stored is 1 (the loss was noticed: %v)", again, c.isLost())
	}
}

func TestLeaveAfterLostEvents(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*Claim, context.Context) error{"Release": (*Claim).Release, "End": (*Claim).End} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := postgrestest.New(t)
			b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour}).start(t)
			c := b.claim(t, shard0)
			for seq := range int64(2) {
				c.appendAll(t, wanted(shard0, seq+1))
				b.sink.await(t, 1)
			}
			loseBatches(t, pool, b.sink.delivered[1].Key.Batch)
			if err := leave(c, t.Context()); !errors.Is(err, ErrLost) {
				t.Errorf("the error is %v", err)
			}
			if again := b.claim(t, shard0).Session(); again.ID == "" || again.Seq != 1 {
				t.Errorf("goes on after %d of the session %q; the newest event that is stored is 1", again.Seq, again.ID)
			}
		})
	}
}

// The database goes back to before a claim, and before the last events of the owner
// before: the new owner continues after events that are not stored.
func TestClaimThatTheDatabaseLost(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, b *bundle){
		"nothing stored before": func(*testing.T, *bundle) {},
		"another shard's batch": func(t *testing.T, b *bundle) {
			t.Helper()
			commitEvent(t, b, b.claim(t, shard1), 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := postgrestest.New(t)
			a, b := open(t, pool, join(t, pool, uuid.New()), Config{}), open(t, pool, join(t, pool, uuid.New()), Config{})
			prepare(t, b)
			before := a.claim(t, shard0)
			unsettled(t, a, before, 1)
			lost := commitEvent(t, a, before, 2)
			a.start(t)
			if err := before.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := b.claim(t, shard0)
			if c.Session().Seq != 2 {
				t.Fatal(c.Session())
			}
			loseBatches(t, pool, lost)
			exec(t, pool, `UPDATE shards SET seq = 1, epoch = $1, owner = $2 WHERE shard_id = 0`, before.epoch, before.owner)
			commitEvent(t, b, c, 3)
			if again := a.claim(t, shard0).Session().Seq; again != 1 {
				t.Errorf("goes on after %d, and event 2 is not stored", again)
			}
		})
	}
}

// A quiet fleet's database is restored from a backup.
func TestDatabaseGoesBackAfterAQuietHour(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	c := b.claim(t, shard0)
	unsettled(t, b, c, 1)
	lost := commitEvent(t, b, c, 2)
	commitCursors(t, b)
	b.stored = b.store.At(time.Now().Add(-time.Hour)) // that batch, an hour later
	loseBatches(t, pool, lost)
	exec(t, pool, `UPDATE shards SET seq = 1`)
	commitEvent(t, b, c, 3)
	if again := b.claim(t, shard0).Session().Seq; again != 1 {
		t.Errorf("goes on after %d, and event 2 is not stored", again)
	}
}

// A shard is being released while a commit of another one finds the loss.
func TestLossIsNoticedDuringARelease(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour}).start(t)
	c0, c1 := b.claim(t, shard0), b.claim(t, shard1)
	c1.appendAll(t, wanted(shard1, 1))
	b.sink.await(t, 1)
	for seq := range int64(2) {
		c0.appendAll(t, wanted(shard0, seq+1))
		b.sink.await(t, 1)
	}
	loseBatches(t, pool, b.sink.delivered[2].Key.Batch)
	goOn := holdCommits(t, pool)
	c1.appendAll(t, wanted(shard1, 2))
	awaitHeld(t, pool)
	c0.appendAll(t, wanted(shard0, 3))
	released := make(chan error, 1)
	go func() { released <- c0.Release(t.Context()) }()
	for n := 0; n < 2; n, _, _ = b.queue.load() {
		time.Sleep(time.Millisecond)
	}
	goOn()
	if err := <-released; !errors.Is(err, ErrLost) {
		t.Errorf("the error of Release is %v", err)
	}
	if again := b.claim(t, shard0).Session().Seq; again != 1 {
		t.Errorf("goes on after %d, and event 2 is not stored", again)
	}
}

// From the moment at which it has an heir, an instance changes no shard, although the
// heir has not raised their epochs yet.
func TestInstanceWithAnHeirChangesNoShard(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bundle, *Claim, context.Context) error{
		"Mark":    func(_ *bundle, c *Claim, ctx context.Context) error { return c.Mark(ctx, event.StageReady) },
		"Begin":   func(_ *bundle, c *Claim, ctx context.Context) error { return c.Begin(ctx) },
		"Unbegin": func(_ *bundle, c *Claim, ctx context.Context) error { return c.Unbegin(ctx) },
		"Release": func(_ *bundle, c *Claim, ctx context.Context) error { return c.Release(ctx) },
		"End":     func(_ *bundle, c *Claim, ctx context.Context) error { return c.End(ctx) },
		"cursors": func(b *bundle, c *Claim, ctx context.Context) error {
			if err := c.Append(ctx, session(9), nil); err != nil {
				return err
			}
			if err := b.sync(ctx); err != nil {
				return err
			}
			<-c.Lost()
			return ErrLost
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := postgrestest.New(t)
			b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour})
			c := b.claim(t, shard0)
			unsettled(t, b, c, 1)
			b.start(t)
			heir, _ := openHeir(t, pool)
			lapse(t, pool, b.instance)
			if _, err := heir.inherit(t.Context(), heir.instance.ID()); err != nil {
				t.Fatal(err)
			}
			const row = `SELECT count(*) FROM shards WHERE owner = $1 AND stage = '' AND NOT session_begins AND session_id <> '' AND seq = 1`
			if count(t, pool, row, c.owner) != 1 {
				t.Fatal("the row is not as expected before")
			}
			if err := change(b, c, t.Context()); !errors.Is(err, ErrLost) || !c.isLost() {
				t.Errorf("the error is %v, lost: %v", err, c.isLost())
			}
			if count(t, pool, row, c.owner) != 1 {
				t.Error("the shard's row was changed")
			}
		})
	}
}

// The database goes back to before a claim, and the next one gets the same epoch.
func TestReleaseUnderTheEpochOfAnotherOwner(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	c := a.claim(t, shard0)
	exec(t, pool, `UPDATE shards SET owner = NULL, epoch = epoch - 1`)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	if theirs := b.claim(t, shard0); theirs.epoch != c.epoch {
		t.Fatal("the epochs differ")
	}
	err := c.Release(t.Context())
	if n := count(t, pool, `SELECT count(*) FROM shards WHERE owner = $1`, b.instance.ID()); n != 1 || !errors.Is(err, ErrLost) {
		t.Errorf("the shard was released (%v); its owner has %d", err, n)
	}
}

// However an earlier claim of the same instance ended, the next one waits for its events.
func TestClaimAgainWaits(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(*testing.T, *bundle, *Claim){
		"after a release that failed": func(t *testing.T, _ *bundle, c *Claim) {
			t.Helper()
			c.appendAll(t, wanted(shard0, 3))
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := c.Release(ctx); err == nil {
				t.Fatal("released")
			}
		},
		"after a claim that failed": func(t *testing.T, b *bundle, _ *Claim) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := b.Claim(ctx, app, []event.Shard{shard0}); err == nil {
				t.Fatal("claimed")
			}
		},
		"beside another claim": func(t *testing.T, b *bundle, c *Claim) {
			t.Helper()
			var other sync.WaitGroup
			other.Go(func() { _, _ = b.Claim(t.Context(), app, []event.Shard{shard0}) })
			t.Cleanup(other.Wait)
			<-c.Lost()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := postgrestest.New(t)
			b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour}).start(t)
			c := b.claim(t, shard0)
			c.appendAll(t, wanted(shard0, 1))
			b.sink.await(t, 1)
			goOn := holdCommits(t, pool)
			c.appendAll(t, wanted(shard0, 2))
			awaitHeld(t, pool)
			before(t, b, c)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if again, err := b.Claim(ctx, app, []event.Shard{shard0}); err == nil {
				t.Errorf("it goes on after %d while event 2 is being stored", again[0].Session().Seq)
			}
			goOn()
			if again := b.claim(t, shard0).Session().Seq; again < 2 {
				t.Errorf("it goes on after %d", again)
			}
		})
	}
}

// The cursor was stored before the database's clock was set back by an hour.
func TestClaimAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	c := b.claim(t, shard0)
	unsettled(t, b, c, 1)
	exec(t, pool, `UPDATE shards SET cursor_at = now() + interval '1 hour'`)
	commitEvent(t, b, c, 2)
	lapse(t, pool, b.instance)
	heir, _ := openHeir(t, pool)
	if again := heir.claim(t, shard0).Session().Seq; again != 2 {
		t.Errorf("goes on after %d, and event 2 is stored", again)
	}
}

// A batch has the ends and beginnings of several sessions.
func TestSessionsChangeWithinABatch(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	c := b.claim(t, shard0)
	type step struct {
		id   string
		seq  int64
		name string
	}
	for _, batch := range [][]step{
		{{"a", 1, "WANTED"}, {"a", 9, "WANTED"}, {"b", 1, "UNWANTED"}, {"b", 2, "WANTED"}, {"", 0, "WANTED"}, {"c", 1, "UNWANTED"}, {"c", 2, "WANTED"}},
		{{"c", 3, "WANTED"}},
		{{"a", 10, "WANTED"}}, // back to a
		{{"a", 11, "WANTED"}},
	} {
		k := newCommit()
		for _, s := range batch {
			e, at := wanted(shard0, s.seq), session(s.seq)
			e.Name, e.ID, at.ID = s.name, event.DispatchID(app, s.id, shard0, s.seq), s.id
			b.collect(k, entry{claim: c, session: at, event: e})
		}
		if err := b.flush(t.Context(), k, false); err != nil {
			t.Fatal(err)
		}
	}
	lapse(t, pool, b.instance)
	heir, _ := openHeir(t, pool)
	if again := heir.claim(t, shard0).Session(); again.ID != "a" || again.Seq != 11 {
		t.Errorf("goes on at %+v", again)
	}
}

// An event is delivered now as it will be when it is read again: bodies are the same bytes
// at every attempt.
func TestEventIsWhatIsReadAgain(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	c := b.claim(t, shard0)
	e := wanted(shard0, 1)
	e.ReceivedAt = e.ReceivedAt.Add(123 * time.Nanosecond)
	c.appendAll(t, e)
	b.sink.await(t, 1)
	now := b.sink.delivered[0]
	again, err := b.store.Events(t.Context(), []event.Key{now.Key})
	if err != nil || len(again) != 1 {
		t.Fatal(again, err)
	}
	again[0].ReceivedAt, now.ReceivedAt = again[0].ReceivedAt.UTC(), now.ReceivedAt.UTC()
	if diff := cmp.Diff(now, again[0]); diff != "" {
		t.Errorf("delivered at first and read again differ:\n%s", diff)
	}
	sample := *wanted(shard0, 2)
	sample.ReceivedAt = sample.ReceivedAt.Add(999 * time.Nanosecond)
	key, err := b.store.Add(t.Context(), &sample, []int64{1})
	if err != nil {
		t.Fatal(err)
	}
	if again, err = b.store.Events(t.Context(), []event.Key{key}); err != nil || !again[0].ReceivedAt.Equal(sample.ReceivedAt) {
		t.Errorf("a sample of %v is read again as of %v, %v", sample.ReceivedAt, again[0].ReceivedAt, err)
	}
}
