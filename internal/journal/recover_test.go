package journal

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

var errNotNow = errors.New("not now")

// heir is a deliverer that can be made to fail.
type heir struct {
	*sink
	fail  error
	freed []int64
	sizes []int // how many events Recover got each time
	// prepared is called before the first event of a shard.
	prepared func()
}

func (h *heir) Recover(ctx context.Context, batches []*event.Batch) error {
	if h.fail != nil {
		return h.fail
	}
	n := 0
	for _, b := range batches {
		n += len(b.Events)
	}
	h.sizes = append(h.sizes, n)
	return h.sink.Recover(ctx, batches)
}

func (h *heir) Free(_ context.Context, dead int64) error {
	h.freed = append(h.freed, dead)
	return nil
}

func (h *heir) Prepare(context.Context) error {
	if h.prepared != nil {
		h.prepared()
	}
	return nil
}

func openHeir(t *testing.T, pool *pgxpool.Pool) (*bundle, *heir) {
	t.Helper()
	b := open(t, pool, judging(join(t, pool, uuid.New())), Config{})
	h := &heir{sink: b.sink}
	b.deliverer = h
	return b, h
}

// inherited returns the ids of the batches that Recover gave to the deliverer.
func (s *sink) inherited() (ids []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.recovered {
		ids = append(ids, b.ID)
	}
	return ids
}

// unsettled stores n batches of one event each as a live instance, and returns their
// ids.
func unsettled(t *testing.T, b *bundle, s *Claim, n int) (ids []int64) {
	t.Helper()
	for seq := range int64(n) {
		c := newCommit()
		b.collect(c, entry{claim: s, session: session(seq + 1), event: wanted(s.shard, seq+1)})
		b.takeCursors(c)
		if err := b.commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.batch.ID)
	}
	return ids
}

// lapse ends the lease of an instance in the database, without its knowledge, as
// if it had been paused.
func lapse(t *testing.T, pool *pgxpool.Pool, i *Instance) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `UPDATE instances SET lease_until = now() - interval '1 ms' WHERE id = $1`, i.ID()); err != nil {
		t.Fatal(err)
	}
}

func TestHeirTakesEverythingOver(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := a.claim(t, shard0)
	ids := unsettled(t, a, s, 2*recoverBatches+1)
	b, h := openHeir(t, pool)
	if err := b.Recover(t.Context()); err != nil || len(h.inherited()) > 0 {
		t.Fatalf("took over from a living instance: %v, %v", h.inherited(), err)
	}
	lapse(t, pool, a.instance)
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.inherited(); !slices.Equal(got, ids) {
		t.Errorf("inherited %d batches, want %d in order", len(got), len(ids))
	}
	for _, batch := range h.recovered {
		if batch.Owner != b.instance.ID() || len(batch.Events) != 1 {
			t.Fatalf("inherited %+v", batch)
		}
	}
	if !slices.Equal(h.freed, []int64{a.instance.ID()}) {
		t.Errorf("freed %v", h.freed)
	}
	if n := count(t, pool, `SELECT count(*) FROM shards WHERE owner IS NOT NULL`) +
		count(t, pool, `SELECT count(*) FROM instances WHERE id = $1`, a.instance.ID()); n != 0 {
		t.Errorf("%d rows name the dead instance", n)
	}

	// The dead instance wakes up between checking its lease and committing. Nobody
	// has claimed its shard yet.
	a.start(t)
	s.appendAll(t, wanted(shard0, 1000))
	select {
	case <-s.Lost():
	case <-time.After(30 * time.Second):
		t.Fatal("the dead instance did not notice that it lost the shard")
	}
	a.stop()
	if n := count(t, pool, `SELECT count(*) FROM events WHERE seq = 1000`) + len(a.sink.seqs()); n != 0 {
		t.Error("the dead instance stored and delivered an event")
	}
	was := a.instance.ID()
	if err := a.instance.beat(t.Context()); err != nil || a.instance.ID() <= was {
		t.Errorf("the dead instance has the number %d after %d (%v)", a.instance.ID(), was, err)
	}
	if c := b.claim(t, shard0).Session(); c != session(int64(len(ids))) {
		t.Errorf("the session after the takeover: %+v", c)
	}
}

// An instance whose lease ran out keeps its number if it renews the lease before it has
// an heir.
func TestRenewedLeaseIsNotInherited(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := a.claim(t, shard0)
	unsettled(t, a, s, 1)
	b, h := openHeir(t, pool)
	lapse(t, pool, a.instance)
	was := a.instance.ID()
	if err := a.instance.beat(t.Context()); err != nil || a.instance.ID() != was {
		t.Fatalf("the instance has the number %d after %d (%v)", a.instance.ID(), was, err)
	}
	if err := b.Recover(t.Context()); err != nil || len(h.inherited()) > 0 {
		t.Errorf("inherited %v (%v)", h.inherited(), err)
	}
	a.start(t)
	s.appendAll(t, wanted(shard0, 2))
	a.sink.await(t, 1)
}

// Nobody can claim a dead instance's shards until all of its batches are dispatched. An
// heir that failed to dispatch some of them tries again.
func TestShardsAreFreeOnlyAfterAllBatchesAreDispatched(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	ids := unsettled(t, a, a.claim(t, shard0), recoverBatches+1)
	lapse(t, pool, a.instance)
	b, h := openHeir(t, pool)
	other, idle := openHeir(t, pool)
	h.fail = errNotNow
	for range 2 {
		if err := b.Recover(t.Context()); !errors.Is(err, errNotNow) {
			t.Fatalf("Recover: %v", err)
		}
		for _, j := range []*bundle{b, other} {
			if claimed, err := j.Claim(t.Context(), app, []event.Shard{shard0}); err != nil || len(claimed) > 0 {
				t.Errorf("claimed %d shards (%v)", len(claimed), err)
			}
		}
	}
	// The dead instance has an heir, although the heir is not done yet.
	was := a.instance.ID()
	if err := a.instance.beat(t.Context()); err != nil || a.instance.ID() == was {
		t.Errorf("the dead instance has the number %d (%v), want a new one", a.instance.ID(), err)
	}
	h.fail = nil
	b.claim(t, shard0)
	if got := h.inherited(); !slices.Equal(got, ids) {
		t.Errorf("inherited %v, want %v", got, ids)
	}
	if got := idle.inherited(); len(got) > 0 {
		t.Errorf("a third instance inherited %v", got)
	}
}

func TestHeirOfAnHeir(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	ids := unsettled(t, a, a.claim(t, shard0), 3*recoverBatches)
	lapse(t, pool, a.instance)
	b, h := openHeir(t, pool)
	c, last := openHeir(t, pool)
	h.fail, last.fail = errNotNow, errNotNow
	for _, heir := range []*bundle{b, c} {
		if err := heir.Recover(t.Context()); err != nil && !errors.Is(err, errNotNow) {
			t.Fatalf("Recover: %v", err)
		}
		lapse(t, pool, b.instance)
	}
	// The first heir wakes up in the middle of its work, and then so does the second.
	h.fail = nil
	if err := b.settleEstate(t.Context(), b.instance.ID(), a.instance.ID(), new(estate)); !errors.Is(err, errDisinherited) || len(h.inherited()) > 0 {
		t.Errorf("the first heir went on: %v, %v", h.inherited(), err)
	}
	last.fail = nil
	if err := c.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := last.inherited()
	slices.Sort(got)
	if !slices.Equal(got, ids) {
		t.Errorf("inherited %d batches, want %d", len(got), len(ids))
	}
	c.claim(t, shard0)
	if n := count(t, pool, `SELECT count(*) FROM instances`); n != 1 {
		t.Errorf("%d instances are left", n)
	}
}

// After an outage of the database, the first instance to recover must not take
// everything from the others, which recover a moment later.
func TestFirstBackDoesNotInherit(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a, left := open(t, pool, join(t, pool, uuid.New()), Config{}), join(t, pool, uuid.New())
	unsettled(t, a, a.claim(t, shard0), 1)
	b, h := openHeir(t, pool)
	i := b.instance
	lapse(t, pool, a.instance)
	if err := left.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Its own lease has not run out: it was renewed just before the outage, and the
	// other's a second earlier.
	failing, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.beat(failing); err == nil {
		t.Fatal("renewed in an outage")
	}
	for n := range 3 {
		if err := b.Recover(t.Context()); err != nil || len(h.inherited()) > 0 {
			t.Errorf("inherited %v (%v) after %d renewals", h.inherited(), err, n)
		}
		if err := i.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(h.freed, []int64{left.ID()}) {
		t.Errorf("freed the retries of %v, want those of the instance that left", h.freed)
	}
	if err := b.Recover(t.Context()); err != nil || len(h.inherited()) != 1 {
		t.Errorf("inherited %v (%v), want one batch", h.inherited(), err)
	}
}

// A judgment is only as good as the renewal that it follows. One that an outage held up on
// its way to the database finds the others' leases run out as well.
func TestLateJudgmentIsVoid(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	unsettled(t, a, a.claim(t, shard0), 1)
	b, h := openHeir(t, pool)
	l := *b.instance.lease.Load()
	if err := pool.QueryRow(t.Context(), `SELECT now() - interval '1 ms'`).Scan(&l.judgesUntil); err != nil {
		t.Fatal(err)
	}
	b.instance.lease.Store(&l)
	lapse(t, pool, a.instance)
	if err := b.Recover(t.Context()); err != nil || len(h.inherited()) > 0 {
		t.Errorf("inherited %v (%v)", h.inherited(), err)
	}
}

// Even if the clock of the earlier owner was ahead, later batches have higher numbers,
// and they are stored only after the earlier owner's deliveries are known.
func TestBatchesFollowThoseOfTheEarlierOwner(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	a.lastBatch = time.Now().Add(time.Hour).UnixMicro() << batchShift
	a.start(t)
	first := a.claim(t, shard0)
	first.appendAll(t, wanted(shard0, 1), wanted(shard0, 2))
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, h := openHeir(t, pool)
	prepared := 0
	h.prepared = func() {
		if prepared++; len(h.seqs()) > 0 {
			t.Error("an event was delivered before Prepare")
		}
	}
	b.start(t)
	b.claim(t, shard0).appendAll(t, wanted(shard0, 3), wanted(shard0, 4))
	b.sink.await(t, 2)
	b.stop()
	if n := count(t, pool, `SELECT count(*) FROM events n JOIN events o ON o.seq <= 2 WHERE n.seq > 2 AND n.batch_id <= o.batch_id`); n != 0 {
		t.Error("newer batches have lower numbers")
	}
	if prepared != 1 {
		t.Errorf("prepared %d times for a claim, want once", prepared)
	}
	for _, e := range b.sink.delivered {
		if e.Key.Batch&(slots-1) != b.instance.slot() {
			t.Errorf("batch %d has the low bits of another instance", e.Key.Batch)
		}
	}
}

// A shard is not released while one of its events is on its way to delivery.
func TestReleaseWaitsForDeliveryAndYields(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	y := &yielder{sink: a.sink, err: errNotNow}
	a.deliverer = y
	a.start(t)
	s := a.claim(t, shard0)
	s.appendAll(t, wanted(shard0, 1))
	if err := s.Release(t.Context()); !errors.Is(err, errNotNow) {
		t.Errorf("Release: %v, want the error of Yield", err)
	}
	if n := count(t, pool, `SELECT count(*) FROM shards WHERE owner IS NULL`); n != 0 {
		t.Error("the shard is free before its deliveries are yielded")
	}
	y.err = nil
	if err := s.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if y.delivered != 1 || count(t, pool, `SELECT count(*) FROM shards WHERE owner IS NULL`) != 1 {
		t.Errorf("yielded after %d events", y.delivered)
	}
}

type yielder struct {
	*sink
	err       error
	delivered int
}

func (y *yielder) Yield(context.Context, event.Shard) error {
	y.delivered = len(y.seqs())
	return y.err
}

// An idle shard is given up too.
func TestShardsOfADeadNumberAreLost(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := a.claim(t, shard0)
	a.loseStale(t.Context())
	if s.isLost() {
		t.Fatal("the shard is lost although its owner's number is alive")
	}
	lapse(t, pool, a.instance)
	b, _ := openHeir(t, pool)
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.instance.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.loseStale(t.Context())
	if !s.isLost() {
		t.Error("the shard is not lost although its owner's number is dead")
	}
}

func TestOnlyTheOwnerSettles(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	for _, c := range []struct{ owner, left int64 }{{2, 1}, {1, 0}} {
		if _, err := pool.Exec(t.Context(), `INSERT INTO batches VALUES (5, 1) ON CONFLICT DO NOTHING`); err != nil {
			t.Fatal(err)
		}
		var b pgx.Batch
		new(Store).Settle(&b, c.owner, []int64{5})
		if err := pool.SendBatch(t.Context(), &b).Close(); err != nil {
			t.Fatal(err)
		}
		if n := count(t, pool, `SELECT count(*) FROM batches`); int64(n) != c.left {
			t.Errorf("%d batches are left after instance %d settled that of instance 1", n, c.owner)
		}
	}
}

// Two instances that judge each other at the same moment are both dead. Whoever looks
// next inherits from both, be it one of them under its new number.
func TestHeirsOfEachOther(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a, ofA := openHeir(t, pool)
	b, ofB := openHeir(t, pool)
	ids := unsettled(t, a, a.claim(t, shard0), 1)
	ids = append(ids, unsettled(t, b, b.claim(t, event.Shard{ID: 1, Count: 2}), 1)...)
	if _, err := pool.Exec(t.Context(), `UPDATE instances SET heir = $1::bigint + $2::bigint - id`, a.instance.ID(), b.instance.ID()); err != nil {
		t.Fatal(err)
	}
	for _, j := range []*bundle{a, b} {
		if err := j.Recover(t.Context()); !errors.Is(err, errDisinherited) {
			t.Errorf("Recover of a dead instance: %v", err)
		}
	}
	if n := len(ofA.inherited()) + len(ofB.inherited()); n != 0 {
		t.Errorf("the dead inherited %d batches", n)
	}
	if err := a.instance.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It need not judge anybody for that.
	if err := a.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := ofA.inherited()
	slices.Sort(got)
	if !slices.Equal(got, ids) {
		t.Errorf("inherited %v, want %v", got, ids)
	}
	noOrphans(t, pool)
}

// noOrphans checks that every owner is in the table of instances: what a dead instance
// without a row owned would be nobody's for ever.
func noOrphans(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if n := count(t, pool, `SELECT count(*) FROM (SELECT owner FROM batches UNION ALL SELECT owner FROM shards) AS o
		WHERE owner IS NOT NULL AND owner NOT IN (SELECT id FROM instances)`); n != 0 {
		t.Errorf("%d rows name an owner that is gone", n)
	}
}

// However the heirs, the renewals and the claims of many instances interleave, somebody
// dispatches every batch, and no row is left with an owner that is gone.
func TestNothingIsOrphaned(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	const n = 5
	var all []*bundle
	var heirs []*heir
	for range n {
		j, h := openHeir(t, pool)
		all, heirs = append(all, j), append(heirs, h)
	}
	stored := make(map[int64]bool)
	for range 10 {
		for k, j := range all {
			shard := event.Shard{ID: k, Count: n}
			claimed, err := j.Claim(t.Context(), app, []event.Shard{shard})
			if err != nil && !errors.Is(err, errDisinherited) {
				t.Fatal(err)
			}
			for _, s := range claimed {
				c := newCommit()
				j.collect(c, entry{claim: s, session: session(s.Session().Seq + 1), event: wanted(shard, s.Session().Seq+1)})
				j.takeCursors(c)
				if err := j.commit(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				if len(c.batch.Events) > 0 { // otherwise it was taken over meanwhile
					stored[c.batch.ID] = true
				}
				j.untrack(s) // as Release does
			}
		}
		if _, err := pool.Exec(t.Context(), `UPDATE instances SET lease_until = now() - interval '1 ms'`); err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for _, j := range all {
			work.Go(func() {
				// Disinherited, perhaps, or waiting for one who is.
				_ = j.Recover(t.Context())
				_ = j.instance.beat(t.Context())
				judging(j.instance)
			})
		}
		work.Wait()
	}
	for _, j := range all {
		if err := j.instance.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, j := range all { // the first one may find that another is at it
		if err := j.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	dispatched := make(map[int64]bool)
	for _, h := range heirs {
		for _, id := range h.inherited() {
			dispatched[id] = true
		}
	}
	noOrphans(t, pool)
	waiting := count(t, pool, `SELECT count(*) FROM batches b JOIN instances i ON i.id = b.owner WHERE i.heir IS NOT NULL`)
	if waiting != 0 {
		t.Errorf("%d batches wait for an heir", waiting)
	}
	own := 0
	for id := range stored {
		if !dispatched[id] {
			own++ // its committer lives, and has it in memory
			if count(t, pool, `SELECT count(*) FROM batches WHERE id = $1`, id) == 0 {
				t.Errorf("batch %d was dispatched by nobody", id)
			}
		}
	}
	t.Logf("%d batches, %d of them still with their committers", len(stored), own)
}

// An instance that does not know yet that it is dead claims nothing: the shard would be
// nobody's for ever.
func TestDeadNumberClaimsNothing(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	lapse(t, pool, a.instance)
	b, _ := openHeir(t, pool)
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if claims, err := a.Claim(t.Context(), app, []event.Shard{shard0}); !errors.Is(err, errDisinherited) {
		t.Errorf("claimed %d shards under a dead number (%v)", len(claims), err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return a.store.ProveAlive(t.Context(), tx, a.instance.ID()) }); !errors.Is(err, errDisinherited) {
		t.Errorf("a dead number is proven alive (%v)", err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return b.store.ProveAlive(t.Context(), tx, b.instance.ID()) }); err != nil {
		t.Error(err)
	}
	noOrphans(t, pool)
	b.claim(t, shard0)
}

// No two instances have the same slot, however far apart their numbers are, and so their
// batches never have the same number. The slot of an instance is free once its estate is
// settled.
func TestSlots(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	const n = 20
	instances := make([]*Instance, n)
	var all sync.WaitGroup
	for k := range instances {
		all.Go(func() {
			if _, err := pool.Exec(t.Context(), `SELECT setval(pg_get_serial_sequence('instances', 'id'), nextval(pg_get_serial_sequence('instances', 'id')) + 1023)`); err != nil {
				t.Error(err)
			}
			i, err := Join(t.Context(), pool, Home{Name: uuid.New()}, 0, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
			}
			instances[k] = i
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	numbers, keys := make(map[int64]bool), make(map[int64]bool)
	now := time.Now()
	for _, i := range instances {
		numbers[(&Journal{instance: i}).nextBatch(now)] = true
		keys[(&Store{instance: i}).Key().Batch&(slots-1)] = true
		if i.slot() >= n {
			t.Errorf("slot %d, though smaller ones are free", i.slot())
		}
	}
	if len(numbers) != n || len(keys) != n {
		t.Errorf("%d instances have %d numbers for a batch, and %d for a key", n, len(numbers), len(keys))
	}
	if err := instances[7].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, _ := openHeir(t, pool)
	if b.instance.slot() != n {
		t.Errorf("slot %d while the one that left has a row", b.instance.slot())
	}
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i := join(t, pool, uuid.New()); i.slot() != instances[7].slot() {
		t.Errorf("slot %d, want %d, which is free", i.slot(), instances[7].slot())
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO instances (name, hostname, lease_until, slot)
		SELECT gen_random_uuid(), '', now(), s FROM generate_series(0, 1023) AS s ON CONFLICT (slot) DO NOTHING`); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), pool, Home{Name: uuid.New()}, 0, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "1024 instances are registered") {
		t.Errorf("joined a full table: %v", err)
	}
}

// homed joins an instance whose name is in a directory.
func homed(t *testing.T, pool *pgxpool.Pool, name uuid.UUID, directory string, ttl time.Duration) (*Instance, error) {
	t.Helper()
	return Join(t.Context(), pool, Home{Name: name, Directory: directory}, ttl, slog.New(slog.DiscardHandler))
}

// A data directory was copied while its server runs: the copy is refused, and the server
// is not harmed.
func TestLiveNamesakeIsRefused(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	name := uuid.New()
	a, err := homed(t, pool, name, "/original", 4*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	was := a.ID()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	_, err = homed(t, pool, name, "/copy", 10*time.Second)
	var other *NamesakeError
	if !errors.As(err, &other) || other.Directory != "/original" || other.Host == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("joined beside it: %v", err)
	}
	if a.ID() != was || !isValid(t.Context(), a) {
		t.Errorf("the live one goes on as %d after %d", a.ID(), was)
	}
}

// A container that crashed is made again, on another host: it waits for the lease of the
// earlier one. On the same machine, the directory's lock says at once that that is dead.
func TestDeadNamesakeIsWaitedOut(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	name := uuid.New()
	was, err := homed(t, pool, name, "/data", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE instances SET hostname = 'earlier'`); err != nil {
		t.Fatal(err)
	}
	if _, err := homed(t, pool, name, "/data", 2*time.Second); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM instances WHERE id = $1 AND lease_until = 'epoch'`, was.ID()); n != 1 {
		t.Error("the earlier one is not free")
	}
	lease, err := homed(t, pool, name, "/data", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := homed(t, pool, name, "/data", time.Hour); err != nil {
		t.Fatal(err)
	}
	// The earlier one of that directory was not dead after all. It must not bury its
	// successor in turn.
	var other *NamesakeError
	if err := lease.beat(t.Context()); !errors.As(err, &other) {
		t.Errorf("it renews its lease: %v", err)
	}
}

// What a takeover holds in memory is bounded, however large the batches are.
func TestTakeoverIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := a.claim(t, shard0)
	large := bytes.Repeat([]byte("x"), recoverBytes/4)
	var want []int64
	for seq, events := range []int{1, 1, 6, 1, 1, 1, 1, 1, 5} {
		c := newCommit()
		for k := range events {
			n := int64(10*seq + k + 1)
			e := wanted(shard0, n)
			e.Data = large
			a.collect(c, entry{claim: s, session: session(n), event: e})
		}
		if err := a.commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		want = append(want, c.batch.ID)
	}
	b, h := openHeir(t, pool)
	lapse(t, pool, a.instance)
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.inherited(); !slices.Equal(got, want) {
		t.Errorf("inherited %v, want %v", got, want)
	}
	if want := []int{2, 6, 4, 1, 5}; !slices.Equal(h.sizes, want) {
		t.Errorf("took over %v large events at a time, want %v", h.sizes, want)
	}
}
