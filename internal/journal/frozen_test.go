package journal

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

// named returns how to connect under an application name of its own, as another process
// does.
func named(t *testing.T, database, name string) secret.Value {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", name)
	u.RawQuery = q.Encode()
	return secret.New(u.String())
}

// asProcess opens a pool as another process does.
func asProcess(t *testing.T, database, name string) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), named(t, database, name), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// freeze begins a commit of a shard and goes silent in the middle of its COPY, as a
// process does that is stopped there: PostgreSQL waits for the rest without a limit,
// and the transaction has the shard's row and an unsettled batch's. The function that
// it returns ends it.
func freeze(t *testing.T, pool *pgxpool.Pool, s event.Shard) (thaw func()) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		`BEGIN`, `UPDATE shards SET seq = seq + 1`, `SELECT FROM batches FOR UPDATE`,
	} {
		if _, err := conn.Exec(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM shards WHERE shard_id = $1`, s.ID); n != 1 {
		t.Fatalf("%d rows of shard %v", n, s)
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Release()
		_, _ = conn.Conn().PgConn().CopyFrom(t.Context(), r, `COPY batches (id, owner) FROM STDIN`) // it never succeeds
	}()
	// The pipe hands the bytes over when the COPY has begun.
	if _, err := w.Write([]byte("1")); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		_ = w.CloseWithError(errors.New("thawed"))
		<-done
	})
}

// live joins an instance that sends heartbeats until the test ends.
func live(t *testing.T, pool *pgxpool.Pool, ttl time.Duration) *bundle {
	t.Helper()
	i, err := Join(t.Context(), pool, Home{Name: uuid.New()}, ttl, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := *judging(i).lease.Load()
	l.inTime = trusted
	i.lease.Store(&l)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return open(t, pool, i, Config{})
}

// trusted is more renewals than an instance makes in a test.
const trusted = 1000

// keptLease checks that no renewal of an instance of live failed or came late.
func (b *bundle) keptLease(t *testing.T) {
	t.Helper()
	l := b.instance.lease.Load()
	if !l.valid(time.Now()) || l.inTime < trusted {
		t.Errorf("instance %d was without a lease", l.id)
	}
}

// A server that is frozen in the middle of a commit keeps the locks that it has. Its
// heir ends its connections, and goes on.
func TestHeirEndsTheCommitOfAFrozenInstance(t *testing.T) {
	t.Parallel()
	database := postgrestest.URL(t)
	frozen, pool := asProcess(t, database, "frozen"), asProcess(t, database, "live")
	a := open(t, frozen, join(t, frozen, uuid.New()), Config{})
	unsettled(t, a, a.claim(t, shard0), 1)
	thaw := freeze(t, frozen, shard0)
	t.Cleanup(thaw)
	b, c := live(t, pool, 2*time.Second), live(t, pool, 2*time.Second)
	lapse(t, pool, a.instance)
	var all sync.WaitGroup
	for _, j := range []*bundle{b, c} {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := j.Recover(ctx); err != nil {
				t.Errorf("Recover: %v", err)
			}
		})
	}
	all.Wait()
	b.keptLease(t)
	c.keptLease(t)
	if t.Failed() {
		t.FailNow() // what follows would wait as well
	}
	if s := b.claim(t, shard0).Session(); s != session(1) {
		t.Errorf("the session stands at %+v", s)
	}
	if n := len(b.sink.inherited()) + len(c.sink.inherited()); n != 1 {
		t.Errorf("inherited %d batches, want 1", n)
	}
}

// Whatever a dead server's connections are for, its heir ends all of them: each may hold
// locks.
func TestHeirEndsTheConnectionsOfAllPurposes(t *testing.T) {
	t.Parallel()
	database := postgrestest.URL(t)
	pools, err := postgres.OpenPools(t.Context(), named(t, database, "frozen"), secret.Value{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pools.Close)
	i := join(t, pools.Heartbeat, uuid.New())
	conns := make(map[string]*pgx.Conn)
	for name, pool := range map[string]*pgxpool.Pool{
		"heartbeat": pools.Heartbeat, "journal": pools.Journal, "engine": pools.Engine, "api": pools.API,
	} {
		c, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Release)
		conns[name] = c.Conn()
	}
	// As package listeners hears of changes.
	listening, err := pgx.ConnectConfig(t.Context(), pools.Engine.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close(t.Context()) //nolint:errcheck // nothing is lost with it
	conns["listening"] = listening

	pool := asProcess(t, database, "live")
	heir := open(t, pool, judging(join(t, pool, uuid.New())), Config{})
	lapse(t, pool, i)
	if err := heir.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for name, c := range conns {
		if _, err := c.WaitForNotification(ctx); !isCode(err, "57P01") { // admin_shutdown
			t.Errorf("the connection %s was not ended: %v", name, err)
		}
	}
}

// The frozen server's connections can't be ended: there is a pooler between, say. Then
// its shards stay where they are, but nobody else is harmed.
func TestFrozenInstanceCostsNobodyALease(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	unsettled(t, a, a.claim(t, shard0), 1)
	other := event.Shard{ID: 1, Count: 2}
	thaw := freeze(t, pool, shard0)
	t.Cleanup(thaw)
	b, c := live(t, pool, 2*time.Second), live(t, pool, 2*time.Second)
	lapse(t, pool, a.instance)
	var all sync.WaitGroup
	for _, j := range []*bundle{b, c} {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for range 2 {
				if err := j.Recover(ctx); ctx.Err() != nil {
					t.Errorf("Recover waits without a limit: %v", err)
				}
			}
		})
	}
	all.Wait()
	b.keptLease(t)
	c.keptLease(t)
	if t.Failed() {
		t.FailNow() // what follows would wait as well
	}
	c.claim(t, other)
	thaw()
	b.keptLease(t)
	heir := b
	if n := count(t, pool, `SELECT count(*) FROM instances WHERE heir = $1`, c.instance.ID()); n != 0 {
		heir = c
	}
	if err := heir.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	heir.claim(t, shard0)
	if n := len(heir.sink.inherited()); n != 1 {
		t.Errorf("inherited %d batches, want 1", n)
	}
}
