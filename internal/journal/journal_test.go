package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

const app = event.Snowflake(42)

var shard0 = event.Shard{ID: 0, Count: 2}

// wantsOnly is a matcher: listeners 7 and 8 want the events of one name.
type wantsOnly string

func (w wantsOnly) Match(e *event.Event) (ids []int64, missed bool) {
	if e.Name == string(w) {
		return []int64{7, 8}, false
	}
	return nil, e.Name == "MISSED"
}

// sink is a deliverer that records all events and batches.
type sink struct {
	mu        sync.Mutex
	delivered []event.Stored
	recovered []*event.Batch
	got       chan struct{}
}

func newSink() *sink { return &sink{got: make(chan struct{}, 1000)} }

func (s *sink) Deliver(_ context.Context, b *event.Batch) error {
	s.mu.Lock()
	s.delivered = append(s.delivered, b.Events...)
	s.mu.Unlock()
	for range b.Events {
		s.got <- struct{}{}
	}
	return nil
}

func (s *sink) Recover(_ context.Context, batches []*event.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recovered = append(s.recovered, batches...)
	return nil
}

func (s *sink) Free(context.Context, int64) error        { return nil }
func (s *sink) Yield(context.Context, event.Shard) error { return nil }
func (s *sink) Prepare(context.Context) error            { return nil }

func (s *sink) seqs() (seqs []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.delivered {
		seqs = append(seqs, s.delivered[i].Seq)
	}
	return seqs
}

// await waits until n events were delivered.
func (s *sink) await(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		select {
		case <-s.got:
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of %d events were delivered", i, n)
		}
	}
}

type bundle struct {
	*Journal
	sink *sink
	stop func() // stops the journal and waits for it
}

func join(t *testing.T, pool *pgxpool.Pool, name uuid.UUID) *Instance {
	t.Helper()
	i, err := Join(t.Context(), pool, Home{Name: name}, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// judging lets an instance judge others, as after two renewals, for the time of a test.
func judging(i *Instance) *Instance {
	l := *i.lease.Load()
	l.inTime, l.judgesSince, l.judgesUntil = 2, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	i.lease.Store(&l)
	return i
}

func open(t *testing.T, pool *pgxpool.Pool, i *Instance, cfg Config) *bundle {
	t.Helper()
	b := &bundle{sink: newSink()}
	log := slog.New(slog.DiscardHandler)
	s, err := OpenStore(t.Context(), pool, i, 24*time.Hour, log)
	if err != nil {
		t.Fatal(err)
	}
	b.Journal = New(s, wantsOnly("WANTED"), b.sink, cfg, log, prometheus.NewRegistry())
	return b
}

func (b *bundle) start(t *testing.T) *bundle {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- b.Run(context.WithoutCancel(t.Context())) }()
	b.stop = sync.OnceFunc(func() {
		b.Stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

func (b *bundle) claim(t *testing.T, s event.Shard) *Claim {
	t.Helper()
	claimed, err := b.Claim(t.Context(), app, []event.Shard{s})
	if err != nil || len(claimed) != 1 {
		t.Fatalf("claimed %d shards, %v", len(claimed), err)
	}
	return claimed[0]
}

func wanted(s event.Shard, seq int64) *event.Event {
	return &event.Event{
		ID: event.DispatchID(app, "sess", s, seq), Name: "WANTED", Shard: s, Seq: seq,
		ReceivedAt: time.Now().UTC().Truncate(time.Microsecond), GuildID: 1, ChannelID: 2, UserID: 1<<63 - 1, Origin: event.OriginJoin,
		Data: []byte(`{"n": ` + strconv.FormatInt(seq, 10) + "}"),
	}
}

func session(seq int64) event.Session {
	return event.Session{ID: "sess", ResumeURL: "wss://resume", Seq: seq, Intents: 513}
}

func (s *Claim) appendAll(t *testing.T, events ...*event.Event) {
	t.Helper()
	for _, e := range events {
		if err := s.Append(t.Context(), session(e.Seq), e); err != nil {
			t.Fatal(err)
		}
	}
}

func count(t *testing.T, pool *pgxpool.Pool, query string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEventsAreStoredBeforeTheyAreDelivered(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	s := b.claim(t, shard0)
	if s.Session() != (event.Session{}) {
		t.Fatalf("a new shard has the session %+v", s.Session())
	}
	var want []int64
	for seq := int64(1); seq <= 300; seq++ {
		e := wanted(shard0, seq)
		if seq%3 == 0 {
			e.Name = "UNWANTED"
		} else {
			want = append(want, seq)
		}
		s.appendAll(t, e)
	}
	b.sink.await(t, len(want))
	b.stop()
	if diff := cmp.Diff(want, b.sink.seqs()); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
	if got := s.Stored(); got != 300 {
		t.Errorf("Stored() = %d, want 300", got)
	}
	first := b.sink.delivered[0]
	read, err := b.store.Events(t.Context(), []event.Key{first.Key, {Batch: 1, Ordinal: 1}})
	if err != nil || len(read) != 1 {
		t.Fatalf("Events: %d events, %v", len(read), err)
	}
	read[0].ReceivedAt = read[0].ReceivedAt.UTC()
	if diff := cmp.Diff(first, read[0]); diff != "" {
		t.Errorf("read back (-delivered +read):\n%s", diff)
	}
	if n := count(t, pool, `SELECT count(*) FROM events`); n != len(want) {
		t.Errorf("%d events stored, want %d", n, len(want))
	}

	again := open(t, pool, join(t, pool, uuid.New()), Config{})
	if claimed, err := again.Claim(t.Context(), app, []event.Shard{shard0}); err != nil || len(claimed) != 0 {
		t.Errorf("claimed %d shards of a live instance, %v", len(claimed), err)
	}
}

func TestRestartResumesAndRecovers(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	name := uuid.New()
	b := open(t, pool, join(t, pool, name), Config{}).start(t)
	s := b.claim(t, shard0)
	s.appendAll(t, wanted(shard0, 1), wanted(shard0, 2))
	b.sink.await(t, 2)
	settled := b.sink.delivered[0].Key.Batch
	s.appendAll(t, wanted(shard0, 3))
	b.sink.await(t, 1)
	unsettled := b.sink.delivered[2].Key
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		var batch pgx.Batch
		b.store.Settle(&batch, b.instance.ID(), []int64{settled})
		return tx.SendBatch(t.Context(), &batch).Close()
	}); err != nil {
		t.Fatal(err)
	}

	// The same name again: the first instance is dead, even if its lease is valid.
	after := open(t, pool, join(t, pool, name), Config{})
	if got := after.claim(t, shard0).Session(); got != session(3) {
		t.Errorf("session after the restart: %+v, want %+v", got, session(3))
	}
	if err := after.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	var keys []event.Key
	for _, batch := range after.sink.recovered {
		for _, e := range batch.Events {
			keys = append(keys, e.Key)
		}
	}
	for _, k := range keys {
		if k.Batch == settled && settled != unsettled.Batch {
			t.Errorf("the settled batch was dispatched again")
		}
	}
	if len(keys) == 0 || keys[len(keys)-1] != unsettled {
		t.Errorf("recovered %v, want %v among them", keys, unsettled)
	}
	n := len(after.sink.recovered)
	if err := after.Recover(t.Context()); err != nil || len(after.sink.recovered) != n {
		t.Errorf("a second Recover took %d more batches (%v)", len(after.sink.recovered)-n, err)
	}

	// The first instance wakes up: nothing that it appends may be stored.
	stored, cursor := count(t, pool, `SELECT count(*) FROM events`), count(t, pool, `SELECT seq FROM shards`)
	if err := s.Append(t.Context(), session(4), wanted(shard0, 4)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Lost():
	case <-time.After(30 * time.Second):
		t.Fatal("the stale owner did not notice that it lost the shard")
	}
	if err := s.Append(t.Context(), session(5), wanted(shard0, 5)); !errors.Is(err, ErrLost) {
		t.Errorf("Append of a stale owner: %v, want ErrLost", err)
	}
	b.stop()
	if n := count(t, pool, `SELECT count(*) FROM events`); n != stored {
		t.Errorf("a stale owner stored %d events", n-stored)
	}
	if n := count(t, pool, `SELECT seq FROM shards`); n != cursor {
		t.Errorf("a stale owner moved the cursor from %d to %d", cursor, n)
	}
}

// If one shard of a commit was taken over, the other shards stay in the commit.
func TestOnlyTheLostShardLeavesTheCommit(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	shard1 := event.Shard{ID: 1, Count: 2}
	s0, s1 := b.claim(t, shard0), b.claim(t, shard1)
	if _, err := pool.Exec(t.Context(), `UPDATE shards SET epoch = epoch + 1 WHERE shard_id = 0`); err != nil {
		t.Fatal(err)
	}
	s0.appendAll(t, wanted(shard0, 1))
	s1.appendAll(t, wanted(shard1, 1), wanted(shard1, 2))
	b.start(t)
	b.sink.await(t, 2)
	b.stop()
	for i, e := range b.sink.delivered {
		// The lost event leaves a gap: the others keep their keys.
		if e.Shard != shard1 || e.Key.Ordinal != int32(i+1) {
			t.Errorf("delivered %v of shard %v as number %d", e.Key, e.Shard, i)
		}
	}
	select {
	case <-s0.Lost():
	default:
		t.Error("shard 0 did not notice that it was lost")
	}
	select {
	case <-s1.Lost():
		t.Error("shard 1 is lost too")
	default:
	}
}

// The answer to a commit was lost, and one of its shards was claimed again since. What
// is stored is delivered, under the keys by which it is stored.
func TestStoredCommitIsDeliveredWhateverBecameOfItsShards(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, minCopyEvents} {
		pool := postgrestest.New(t)
		b := open(t, pool, join(t, pool, uuid.New()), Config{})
		shard1 := event.Shard{ID: 1, Count: 2}
		s0, s1 := b.claim(t, shard0), b.claim(t, shard1)
		c := newCommit()
		for seq := range n {
			b.collect(c, entry{claim: s0, session: session(seq + 1), event: wanted(shard0, seq+1)})
			b.collect(c, entry{claim: s1, session: session(seq + 1), event: wanted(shard1, seq+1)})
		}
		b.takeCursors(c)
		if err := b.tryCommit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `UPDATE shards SET epoch = epoch + 1, owner = owner + 1 WHERE shard_id = 0`); err != nil {
			t.Fatal(err)
		}
		if err := b.flush(t.Context(), c, false); err != nil {
			t.Fatal(err)
		}
		var keys []event.Key
		for _, e := range b.sink.delivered {
			keys = append(keys, e.Key)
		}
		read, err := b.store.Events(t.Context(), keys)
		if err != nil || len(read) != 2*int(n) {
			t.Fatalf("%d of the %d delivered events are stored under their keys (%v)", len(read), len(keys), err)
		}
		for i := range read {
			if read[i].ID != b.sink.delivered[i].ID {
				t.Errorf("%v is stored as %v of shard %v", read[i].Key, read[i].Seq, read[i].Shard)
			}
		}
	}
}

// The answer is still on its way: the next try waits for the outcome before it judges
// anything by the cursors.
func TestNextTryWaitsForTheOneUnderWay(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := b.claim(t, shard0)
	c := newCommit()
	b.collect(c, entry{claim: s, session: session(1), event: wanted(shard0, 1)})
	underWay, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.takeCursors(c)
	c.batch.ID, c.batch.Owner = b.nextBatch(time.Now()), b.instance.ID()
	c.batch.Events[0].Key.Batch = c.batch.ID
	var earlier pgx.Batch
	earlier.Queue(`INSERT INTO batches (id, owner) VALUES ($1, $2)`, c.batch.ID, c.batch.Owner)
	queueEvents(&earlier, &c.batch)
	earlier.Queue(moveCursors, cursorArgs(c, []*Claim{s})...)
	// The shard is claimed again before the next try looks at the cursors, and after
	// this one did.
	earlier.Queue(`UPDATE shards SET epoch = epoch + 1`)
	if err := underWay.SendBatch(t.Context(), &earlier).Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.commit(t.Context(), c) }()
	for waiting := 0; waiting == 0; {
		waiting = count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	}
	if err := underWay.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM events`); n != len(c.batch.Events) || n != 1 {
		t.Errorf("%d events are stored, and %d would be delivered", n, len(c.batch.Events))
	}
}

// A shard is claimed again while events of its earlier claim wait for a commit, and its
// cursor in the database is behind: each event is stored once, by the one claim or the other.
func TestClaimAgainWhileEventsWait(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour}).start(t)
	claim := b.claim(t, shard0)
	var want []int64
	seq := int64(0)
	for range 10 {
		for range 50 {
			seq++
			if err := claim.Append(t.Context(), session(seq), wanted(shard0, seq)); err != nil {
				t.Fatal(err)
			}
		}
		before := claim
		claim = b.claim(t, shard0)
		if !before.isLost() || claim.isLost() {
			t.Fatal("lost the wrong claim")
		}
		found := claim.Session().Seq
		if stored := count(t, pool, `SELECT coalesce(max(seq), 0) FROM events`); found != int64(stored) || claim.Stored() != found {
			t.Errorf("goes on at %d, %d are stored", found, stored)
		}
		for seq = found; len(want) < int(found); {
			want = append(want, int64(len(want)+1))
		}
	}
	b.stop()
	if got := b.sink.seqs(); !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %d", got, len(want))
	}
}

// Something is stored under a batch's number, and it is not of this commit: the batch
// gets another number, and what is there stays as it is.
func TestBatchWhoseNumberIsTakenGetsAnother(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, minCopyEvents} {
		for _, settled := range []bool{false, true} {
			pool := postgrestest.New(t)
			b := open(t, pool, join(t, pool, uuid.New()), Config{})
			s := b.claim(t, shard0)
			first := newCommit()
			b.collect(first, entry{claim: s, session: session(1), event: wanted(shard0, 1)})
			b.takeCursors(first)
			if err := b.commit(t.Context(), first); err != nil {
				t.Fatal(err)
			}
			id := first.batch.ID
			query := `UPDATE batches SET owner = -1`
			if settled {
				query = `DELETE FROM batches`
			}
			if _, err := pool.Exec(t.Context(), query); err != nil {
				t.Fatal(err)
			}
			c := newCommit()
			for seq := range n {
				b.collect(c, entry{claim: s, session: session(seq + 2), event: wanted(shard0, seq+2)})
			}
			c.batch.ID = id
			for i := range c.batch.Events {
				c.batch.Events[i].Key.Batch = id
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := b.flush(ctx, c, true); err != nil {
				t.Fatalf("%d events, settled %v: %v", n, settled, err)
			}
			if c.batch.ID == id || count(t, pool, `SELECT count(*) FROM events WHERE batch_id = $1`, c.batch.ID) != int(n) ||
				count(t, pool, `SELECT count(*) FROM events WHERE batch_id = $1`, id) != 1 {
				t.Errorf("%d events, settled %v: stored as %d, after %d", n, settled, c.batch.ID, id)
			}
			for _, e := range b.sink.delivered {
				if e.Key.Batch != c.batch.ID {
					t.Errorf("delivered as %v", e.Key)
				}
			}
		}
	}
}

// A standby that lacks the last commits has become the primary: each shard goes on from
// what is stored, and not past what was lost.
func TestDatabaseThatWentBackIsNoticed(t *testing.T) {
	t.Parallel()
	shard1 := event.Shard{ID: 1, Count: 2}
	tests := map[string]struct {
		// cursor is how the row of shard 0 is again; lost are its last events, gone with it.
		cursor string
		lost   int
		// after: the lost commits are the last ones of this instance.
		after bool
	}{
		"commits of the session":     {`session_id = 'sess', seq = 1`, 1, false},
		"the beginning of a session": {`session_id = 'earlier', seq = 2`, 2, false},
		"the first commit":           {`session_id = '', seq = 0`, 2, false},
		"no cursor":                  {`seq = seq`, 1, true},
	}
	for name, tt := range tests {
		pool := postgrestest.New(t)
		b := open(t, pool, join(t, pool, uuid.New()), Config{})
		s0, s1 := b.claim(t, shard0), b.claim(t, shard1)
		stored := unsettled(t, b, s0, 2)
		if tt.after {
			// An event whose cursor is not due.
			c := newCommit()
			b.collect(c, entry{claim: s0, session: session(3), event: wanted(shard0, 3)})
			if err := b.commit(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			stored = append(stored, c.batch.ID)
		} else {
			unsettled(t, b, s1, 2)
		}
		if _, err := pool.Exec(t.Context(), `DELETE FROM events WHERE batch_id = ANY($1)`, stored[len(stored)-tt.lost:]); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `UPDATE shards SET `+tt.cursor+` WHERE shard_id = 0`); err != nil {
			t.Fatal(err)
		}
		c := newCommit()
		b.collect(c, entry{claim: s0, session: session(4), event: wanted(shard0, 4)})
		b.collect(c, entry{claim: s1, session: session(3), event: wanted(shard1, 3)})
		if err := b.flush(t.Context(), c, !tt.after); err != nil {
			t.Fatal(err)
		}
		if tt.after {
			// Any shard may have had events in what was lost.
			if len(b.sink.delivered) != 0 || !s0.isLost() || !s1.isLost() || testutil.ToFloat64(b.metrics.reverted) != 2 {
				t.Errorf("%s: delivered %+v", name, b.sink.delivered)
			}
		} else if len(b.sink.delivered) != 1 || b.sink.delivered[0].Shard != shard1 || !s0.isLost() || s1.isLost() || testutil.ToFloat64(b.metrics.reverted) != 1 {
			t.Errorf("%s: delivered %+v", name, b.sink.delivered)
		}
		found := event.Session{}
		if err := pool.QueryRow(t.Context(), `SELECT session_id, seq FROM shards WHERE shard_id = 0`).Scan(&found.ID, &found.Seq); err != nil {
			t.Fatal(err)
		}
		again := b.claim(t, shard0).Session()
		if again.ID != found.ID || again.Seq != found.Seq || again.Seq > 2 {
			t.Errorf("%s: goes on at %+v, the database has %+v", name, again, found)
		}
	}
}

// With the database, the epochs go back too: another instance has claimed the shard under
// the same epoch.
func TestEpochOfAnotherOwnerMovesNoCursor(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := b.claim(t, shard0)
	if _, err := pool.Exec(t.Context(), `UPDATE shards SET owner = owner + 1`); err != nil {
		t.Fatal(err)
	}
	c := newCommit()
	b.collect(c, entry{claim: s, session: session(1), event: wanted(shard0, 1)})
	if err := b.flush(t.Context(), c, true); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM events`) + len(b.sink.delivered); n != 0 || !s.isLost() {
		t.Errorf("stored %d events of another's shard", n)
	}
	if n := testutil.ToFloat64(b.metrics.reverted); n != 0 {
		t.Errorf("%v reverted cursors", n)
	}
}

// A commit of cursors alone may be tried again after its answer was lost.
func TestCursorThatIsThereAlreadyIsMoved(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	s := b.claim(t, shard0)
	c := newCommit()
	b.collect(c, entry{claim: s, session: session(4)})
	b.takeCursors(c)
	for range 2 {
		if err := b.tryCommit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCursorOfUnwantedEventsIsStoredAfterADelay(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: 50 * time.Millisecond}).start(t)
	s := b.claim(t, shard0)
	unwanted := wanted(shard0, 9)
	unwanted.Name = "UNWANTED"
	s.appendAll(t, unwanted)
	// The mark of Release comes after the event in the queue.
	if err := s.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT seq FROM shards WHERE owner IS NULL`); n != 9 {
		t.Errorf("the cursor stands at %d, want 9", n)
	}
	if len(b.sink.seqs()) != 0 {
		t.Error("an unwanted event was delivered")
	}
}

func TestCommitThatSeemedToFailIsNotStoredTwice(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, minCopyEvents - 1, minCopyEvents, 3 * minCopyEvents} {
		pool := postgrestest.New(t)
		b := open(t, pool, join(t, pool, uuid.New()), Config{})
		s := b.claim(t, shard0)
		c := newCommit()
		for seq := range n {
			e := wanted(shard0, seq+1)
			// Whether by INSERT or COPY, they read back the same.
			e.Name, e.Data, e.GuildID = "WANTED", []byte("{\"a\":\"\xff\x00\"}"), 1<<63-1
			b.collect(c, entry{claim: s, session: session(seq + 1), event: e})
			c.batch.Events[seq].Name = "ODD\xff"
		}
		for range 2 {
			if err := b.tryCommit(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		// The earlier try succeeds just before this one.
		if err := b.transact(t.Context(), c); !errors.Is(err, errTaken) {
			t.Errorf("%d events stored twice (%v)", n, err)
		}
		if got := count(t, pool, `SELECT count(*) FROM batches`); got != 1 {
			t.Errorf("%d events: %d batches", n, got)
		}
		var read []event.Stored
		if err := b.store.Span(t.Context(), time.Time{}, time.Now().Add(time.Hour), "", func(page []event.Stored) error {
			read = append(read, page...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for i := range c.batch.Events {
			want := &c.batch.Events[i]
			want.Name, want.Data = "ODD\uFFFD", []byte{} // Span omits payloads
			want.ReceivedAt = want.ReceivedAt.Truncate(time.Microsecond)
		}
		if diff := cmp.Diff(c.batch.Events, read); diff != "" {
			t.Errorf("%d events (-stored +read):\n%s", n, diff)
		}
		if got := count(t, pool, `SELECT count(*) FROM events WHERE data = '\x7b2261223a22ff00227d'`); got != int(n) {
			t.Errorf("%d of %d payloads are unchanged", got, n)
		}
	}
}

// A clock that jumped past the partitions must not stop the journal.
func TestMissingPartitionIsCreated(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	b.lastBatch = time.Now().AddDate(1, 0, 0).UnixMicro() << batchShift
	b.start(t)
	b.claim(t, shard0).appendAll(t, wanted(shard0, 1))
	b.sink.await(t, 1)
}

func TestRetentionDropsPartitions(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	b.start(t)
	b.claim(t, shard0).appendAll(t, wanted(shard0, 1))
	b.sink.await(t, 1)
	if err := b.store.parts.Maintain(t.Context(), time.Now().Add(12*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM events`); n != 1 {
		t.Errorf("%d events after 12 h, want 1", n)
	}
	if err := b.store.parts.Maintain(t.Context(), time.Now().Add(36*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM events`); n != 0 {
		t.Errorf("%d events after the retention, want none", n)
	}
	if n := count(t, pool, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass`); n == 0 {
		t.Error("no partition is left")
	}
}

func TestBytesThatPostgreSQLRefusesDontStopTheJournal(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	s := b.claim(t, shard0)
	odd := wanted(shard0, 1)
	odd.Data = []byte("{\"a\":\"\xff\x00\"}")
	if err := s.Append(t.Context(), event.Session{ID: "a\x00b\xff", Seq: 1}, odd); err != nil {
		t.Fatal(err)
	}
	b.sink.await(t, 1)
	read, err := b.store.Events(t.Context(), []event.Key{b.sink.delivered[0].Key})
	if err != nil || string(read[0].Data) != string(odd.Data) {
		t.Errorf("read %+v, %v", read, err)
	}
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	q := newQueue(2, 10*entryOverhead)
	small := entry{event: &event.Event{}}
	large := entry{event: &event.Event{Data: []byte(strings.Repeat("x", 100*entryOverhead))}}
	full := errors.New("still full")
	brief := func() context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(full)
		return ctx
	}
	for i, step := range []struct {
		push entry
		want error
	}{{large, nil}, {small, full}} {
		if err := q.push(brief(), step.push); !errors.Is(err, step.want) {
			t.Errorf("step %d: %v, want %v", i, err, step.want)
		}
	}
	if n := len(q.take()); n != 1 {
		t.Fatalf("took %d", n)
	}
	for i, step := range []struct {
		push entry
		want error
	}{{small, nil}, {large, full}, {small, nil}, {small, full}} {
		if err := q.push(brief(), step.push); !errors.Is(err, step.want) {
			t.Errorf("second round, step %d: %v, want %v", i, err, step.want)
		}
	}
	if n, bytes, waits := q.load(); n != 2 || bytes != 2*entryOverhead || waits != 3 {
		t.Errorf("%d entries of %d bytes, %d waits; want 2, %d, 3", n, bytes, waits, 2*entryOverhead)
	}
	waiting := make(chan error)
	go func() { waiting <- q.push(t.Context(), small) }()
	if n := len(q.take()); n < 2 {
		t.Fatalf("took %d", n)
	}
	if err := <-waiting; err != nil {
		t.Errorf("a waiting push: %v", err)
	}
	q.close()
	if err := q.push(t.Context(), small); !errors.Is(err, errQueueClosed) {
		t.Errorf("push after close: %v", err)
	}
}

func TestNextBatchGrows(t *testing.T) {
	t.Parallel()
	j := &Journal{instance: &Instance{}}
	j.instance.lease.Store(newLease(member{id: 1027, slot: 3}, time.Now(), time.Hour))
	now := time.Now()
	last := int64(0)
	for i, at := range []time.Time{now, now, now.Add(-time.Hour), now.Add(time.Second)} {
		id := j.nextBatch(at)
		if id <= last || id&(1<<batchShift-1) != 3 {
			t.Errorf("step %d: %d after %d", i, id, last)
		}
		last = id
	}
	if got := new(Store).Committed(last); got.Sub(now.Add(time.Second)).Abs() > time.Millisecond {
		t.Errorf("Committed is off by %v", got.Sub(now.Add(time.Second)))
	}
}

// discard is a deliverer that does nothing.
type discard struct{}

func (discard) Deliver(context.Context, *event.Batch) error   { return nil }
func (discard) Recover(context.Context, []*event.Batch) error { return nil }
func (discard) Free(context.Context, int64) error             { return nil }
func (discard) Yield(context.Context, event.Shard) error      { return nil }
func (discard) Prepare(context.Context) error                 { return nil }

// BenchmarkJournal measures one event from Append to its commit.
func BenchmarkJournal(b *testing.B) {
	for _, size := range []int{300, 1000, 16000} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			pool := postgrestest.New(b)
			i, err := Join(b.Context(), pool, Home{Name: uuid.New()}, 0, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			s, err := OpenStore(b.Context(), pool, i, 0, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			j := New(s, wantsOnly("WANTED"), discard{}, Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			claimed, err := j.Claim(b.Context(), app, []event.Shard{shard0})
			if err != nil {
				b.Fatal(err)
			}
			claim := claimed[0]
			done := make(chan error, 1)
			go func() { done <- j.Run(b.Context()) }()
			e := wanted(shard0, 1)
			e.Data = []byte(`"` + strings.Repeat("x", size-2) + `"`)
			b.ReportAllocs()
			seq := int64(0)
			for b.Loop() {
				seq++
				if err := claim.Append(b.Context(), session(seq), e); err != nil {
					b.Fatal(err)
				}
			}
			j.Stop()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

// Commits leave the row of the shard alone: each update of it would add to a chain of
// versions, which a backup's snapshot keeps. A claim finds the newest stored event all the
// same, however the instance ended.
func TestCommitsOfEventsDoNotTouchTheShard(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour}).start(t)
	s := b.claim(t, shard0)
	version := func() int { return count(t, pool, `SELECT xmin::text::bigint FROM shards`) }
	s.appendAll(t, wanted(shard0, 1)) // a session begins
	b.sink.await(t, 1)
	begun := version()
	for seq := int64(2); seq <= 20; seq++ {
		s.appendAll(t, wanted(shard0, seq))
		b.sink.await(t, 1)
		if s.Stored() != seq {
			t.Errorf("%d is stored, the claim says %d", seq, s.Stored())
		}
	}
	if err := s.Append(t.Context(), session(25), nil); err != nil { // unwanted ones
		t.Fatal(err)
	}
	if version() != begun {
		t.Error("commits of events updated the row of the shard")
	}
	lapse(t, pool, b.instance)
	other, _ := openHeir(t, pool)
	if got := other.claim(t, shard0).Session(); got != session(20) {
		t.Errorf("after a crash, the next one goes on at %+v", got)
	}

	// Released, the shard has its cursor in its row.
	c := open(t, pool, join(t, pool, uuid.New()), Config{CursorDelay: time.Hour}).start(t)
	shard1 := event.Shard{ID: 1, Count: 2}
	s1 := c.claim(t, shard1)
	s1.appendAll(t, wanted(shard1, 1), wanted(shard1, 2))
	if err := s1.Append(t.Context(), session(9), nil); err != nil {
		t.Fatal(err)
	}
	if err := s1.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT seq FROM shards WHERE shard_id = 1`); n != 9 {
		t.Errorf("released at %d", n)
	}
}

type counting struct {
	discard
	delivered chan int
}

func (d counting) Deliver(_ context.Context, b *event.Batch) error {
	d.delivered <- len(b.Events)
	return nil
}

// BenchmarkCommitsBesideASnapshot commits events of 20 of 1,000 shards at a time, while a
// backup keeps a snapshot open.
func BenchmarkCommitsBesideASnapshot(b *testing.B) {
	const n = 1000
	pool := postgrestest.New(b)
	i, err := Join(b.Context(), pool, Home{Name: uuid.New()}, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	s, err := OpenStore(b.Context(), pool, i, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	go i.Run(b.Context()) //nolint:errcheck // ends with the benchmark
	d := counting{delivered: make(chan int, n)}
	j := New(s, wantsOnly("WANTED"), d, Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	shards := make([]event.Shard, n)
	for k := range shards {
		shards[k] = event.Shard{ID: k, Count: n}
	}
	claims, err := j.Claim(b.Context(), app, shards)
	if err != nil || len(claims) != n {
		b.Fatal(len(claims), err)
	}
	done := make(chan error, 1)
	go func() { done <- j.Run(b.Context()) }()
	backup, err := pool.BeginTx(b.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		b.Fatal(err)
	}
	defer backup.Rollback(b.Context()) //nolint:errcheck // it changes nothing
	if _, err := backup.Exec(b.Context(), `SELECT count(*) FROM shards`); err != nil {
		b.Fatal(err)
	}
	seq := int64(0)
	for b.Loop() {
		seq++
		for k, c := range claims {
			if (int64(k)+seq)%50 == 0 {
				if err := c.Append(b.Context(), session(seq), wanted(c.shard, seq)); err != nil {
					b.Fatal(err)
				}
			}
		}
		for waiting := n / 50; waiting > 0; {
			waiting -= <-d.delivered
		}
	}
	j.Stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
