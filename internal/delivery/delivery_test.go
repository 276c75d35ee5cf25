package delivery

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// registry replaces the listeners package.
type registry struct {
	mu       sync.Mutex
	m        map[int64]*event.Listener
	disabled map[int64]string

	disabling sync.Mutex
	pool      *pgxpool.Pool
}

func (r *registry) Listener(id int64) *event.Listener {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m[id]
}

func (r *registry) Match(e *event.Event) (ids []int64, missed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(r.m)) {
		if l := r.m[id]; l.Wants(e) && l.Enabled {
			ids = append(ids, id)
		} else {
			missed = missed || l.Wants(e)
		}
	}
	return ids, missed
}

// Disable locks as a transaction would: of several calls at once, one disables the
// listener.
func (r *registry) Disable(ctx context.Context, id int64, url, reason string, also func(context.Context, pgx.Tx) error) error {
	r.disabling.Lock()
	defer r.disabling.Unlock()
	if !r.Listener(id).Enabled {
		return nil
	}
	if err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error { return also(ctx, tx) }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.disabled[id] = reason
	r.set(id, func(l *event.Listener) { l.Enabled = false })
	return nil
}

// change replaces a registration by a changed copy.
func (r *registry) change(id int64, f func(*event.Listener)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(id, f)
}

func (r *registry) set(id int64, f func(*event.Listener)) {
	l := *r.m[id]
	f(&l)
	r.m[id] = &l
}

func (r *registry) remove(id int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, id)
}

// self is an instance that always has its lease.
type self int64

func (s self) ID() int64                           { return int64(s) }
func (s self) Hold(context.Context) (int64, error) { return int64(s), nil }
func (s self) Now() time.Time                      { return time.Now() }

// call is one POST that a callback received.
type call struct {
	id, eventID, name string
	attempt           int
	seq               int64
	channel           string
}

// receiver is a customer's callback. It verifies every signature with the Standard
// Webhooks library, and answers with answer.
type receiver struct {
	*httptest.Server
	verify *standardwebhooks.Webhook
	answer func(call) (status int, header http.Header)

	mu    sync.Mutex
	calls []call
	got   chan call
}

func newReceiver(t *testing.T, answer func(call) (int, http.Header)) *receiver {
	t.Helper()
	verify, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	c := &receiver{verify: verify, answer: answer, got: make(chan call, 10000)}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = c.verify.Verify(body, r.Header)
	}
	var envelope struct {
		Seq  int64
		Data struct {
			Channel string `json:"channel_id"`
		}
	}
	if err == nil {
		err = json.Unmarshal(body, &envelope)
	}
	attempt, _ := strconv.Atoi(r.Header.Get("gatehook-attempt"))
	if err != nil || attempt == 0 {
		http.Error(w, fmt.Sprint(err), http.StatusUnauthorized)
		return
	}
	got := call{
		id: r.Header.Get("webhook-id"), eventID: r.Header.Get("gatehook-event-id"), name: r.Header.Get("gatehook-event"),
		attempt: attempt, seq: envelope.Seq, channel: envelope.Data.Channel,
	}
	status, header := c.answer(got)
	c.mu.Lock()
	c.calls = append(c.calls, got)
	c.mu.Unlock()
	maps.Copy(w.Header(), header)
	w.WriteHeader(status)
	c.got <- got
}

func (c *receiver) await(t *testing.T, n int) (calls []call) {
	t.Helper()
	for len(calls) < n {
		select {
		case got := <-c.got:
			calls = append(calls, got)
		case <-time.After(60 * time.Second):
			t.Fatalf("%d of %d calls were received", len(calls), n)
		}
	}
	return calls
}

func ok(call) (int, http.Header) { return http.StatusNoContent, nil }

type bundle struct {
	*Delivery
	pool     *pgxpool.Pool
	registry *registry
	journal  *journal
	stop     func()
	batch    int64
	// readEvents, if set, may make a read of events fail.
	readEvents func() error
	settled    chan int64 // the batches that were settled
	metrics    *prometheus.Registry
}

// journal replaces the journal's store. A test that reads or adds events sets the
// functions.
type journal struct {
	Store     // nil: no test calls its other methods
	b         *bundle
	add       func() event.Key
	span      func(take func([]event.Stored) error) error
	unsettled []int64
	at        func(time.Time) int64
	dead      error // what ProveAlive returns
}

func (j *journal) Events(ctx context.Context, keys []event.Key) (out []event.Stored, err error) {
	if j.b.readEvents != nil {
		if err := j.b.readEvents(); err != nil {
			return nil, err
		}
	}
	for _, k := range keys {
		e := event.Stored{Key: k}
		err := j.b.pool.QueryRow(ctx, `SELECT id, name, seq, received_at, data FROM events WHERE batch_id = $1 AND ordinal = $2`,
			k.Batch, k.Ordinal).Scan(&e.ID, &e.Name, &e.Seq, &e.ReceivedAt, &e.Data)
		if err == nil {
			event.FindIDs(&e.Event)
			out = append(out, e)
		}
	}
	return out, nil
}

func (j *journal) Span(_ context.Context, _, _ time.Time, _ string, take func([]event.Stored) error) error {
	return j.span(take)
}

func (*journal) Within(_ context.Context, keys []event.Key, _, _ time.Time) ([]event.Key, error) {
	return keys, nil
}

func (j *journal) Add(context.Context, *event.Event, []int64) (event.Key, error) { return j.add(), nil }

func (*journal) Key() event.Key {
	return event.Key{Batch: time.Now().UnixMicro() << 10, Ordinal: rand.Int32()}
}

func (*journal) Put(batch *pgx.Batch, events []event.Stored) {
	for _, e := range events {
		batch.Queue(`INSERT INTO events (batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at, guild_id, channel_id, user_id, listeners, data)
			VALUES ($1, $2, $3, $4, 0, 1, 0, $5, 0, 0, 0, $6, $7) ON CONFLICT DO NOTHING`,
			e.Key.Batch, e.Key.Ordinal, e.ID, e.Name, e.ReceivedAt, e.Listeners, e.Data)
	}
}

func (*journal) Ensure(context.Context) error { return nil }

func (j *journal) Settle(batch *pgx.Batch, owner int64, ids []int64) {
	batch.Queue(`DELETE FROM batches WHERE id = ANY($1) AND owner = $2`, ids, owner)
	for _, id := range ids {
		j.b.settled <- id
	}
}

func (j *journal) Unsettled(context.Context, []int64) ([]int64, error) { return j.unsettled, nil }

func (*journal) LockOwned(ctx context.Context, tx pgx.Tx, owner int64, ids []int64) ([]int64, error) {
	rows, err := tx.Query(ctx, `SELECT id FROM batches WHERE id = ANY($1) AND owner = $2 FOR SHARE`, ids, owner)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func (j *journal) ProveAlive(context.Context, pgx.Tx, int64) error { return j.dead }

func (*journal) Committed(batch int64) time.Time { return time.UnixMicro(batch) }

func (j *journal) At(at time.Time) int64 {
	switch {
	case j.at != nil:
		return j.at(at)
	case time.Since(at) < time.Minute: // all stored events count as older
		return math.MaxInt64
	default:
		return 0
	}
}

// setup opens and runs a Delivery on a fresh database with one listener per URL,
// numbered from 1.
func setup(t *testing.T, cfg Config, urls ...string) *bundle {
	t.Helper()
	b := &bundle{
		pool: postgrestest.New(t), registry: &registry{m: map[int64]*event.Listener{}, disabled: map[int64]string{}},
		settled: make(chan int64, 1000),
	}
	b.registry.pool = b.pool
	for i, u := range urls {
		id := int64(i + 1)
		b.registry.m[id] = &event.Listener{
			ID: id, Event: "MESSAGE_CREATE", URL: u, Format: event.FormatStandard,
			Secrets: []secret.Value{secret.New(testSecret)}, Ordering: event.OrderingNone, MaxInFlight: 4, Enabled: true,
		}
	}
	if cfg.Schedule == nil {
		cfg.Schedule = Schedule{10 * time.Millisecond, 10 * time.Millisecond}
	}
	cfg.AllowTargets = loopback
	if _, err := b.pool.Exec(t.Context(), `CREATE TABLE events_all PARTITION OF events DEFAULT`); err != nil {
		t.Fatal(err)
	}
	b.open(t, cfg, 1)
	return b
}

func (b *bundle) open(t *testing.T, cfg Config, instance int64) {
	t.Helper()
	b.openAs(t, cfg, self(instance))
}

func (b *bundle) openAs(t *testing.T, cfg Config, instance Instance) {
	t.Helper()
	if cfg.Schedule == nil {
		cfg.Schedule = Schedule{10 * time.Millisecond, 10 * time.Millisecond}
	}
	b.journal = &journal{b: b}
	b.metrics = prometheus.NewRegistry()
	d, err := Open(t.Context(), b.pool, b.registry, b.journal, instance, cfg, slog.New(slog.DiscardHandler), b.metrics)
	if err != nil {
		t.Fatal(err)
	}
	b.Delivery = d
	done := make(chan error, 1)
	go func() { done <- d.Run(context.WithoutCancel(t.Context())) }()
	b.stop = sync.OnceFunc(func() {
		d.Stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
}

// commit stores a batch of n events for the listeners, as the journal would. The events
// are spread evenly over the channels.
func (b *bundle) commit(t *testing.T, n int, channels int, listeners ...int64) *event.Batch {
	t.Helper()
	b.batch += 1024
	batch := &event.Batch{ID: b.batch, Owner: 1}
	rows := [][]any{}
	for i := range n {
		e := event.Stored{Key: event.Key{Batch: b.batch, Ordinal: int32(i)}, Listeners: listeners}
		e.ID, e.Name, e.Seq, e.ReceivedAt = uuid.New(), "MESSAGE_CREATE", b.batch+int64(i), time.Now()
		e.Data = fmt.Appendf(nil, `{"id":"7","channel_id":"%d","author":{"id":"8"}}`, i%channels+1)
		event.FindIDs(&e.Event)
		batch.Events = append(batch.Events, e)
		rows = append(rows, []any{b.batch, int32(i), e.ID, e.Name, 0, 1, e.Seq, e.ReceivedAt, 0, int64(e.ChannelID), 0, listeners, e.Data})
	}
	if _, err := b.pool.Exec(t.Context(), `INSERT INTO batches (id, owner) VALUES ($1, 1)`, b.batch); err != nil {
		t.Fatal(err)
	}
	if _, err := b.pool.CopyFrom(t.Context(), pgx.Identifier{"events"}, []string{
		"batch_id", "ordinal", "id", "name", "shard_id", "shard_count", "seq", "received_at", "guild_id", "channel_id", "user_id", "listeners", "data",
	}, pgx.CopyFromRows(rows)); err != nil {
		t.Fatal(err)
	}
	return batch
}

// inherit gives a batch to the second instance, as the journal would.
func (b *bundle) inherit(t *testing.T, batch *event.Batch) {
	t.Helper()
	if _, err := b.pool.Exec(t.Context(), `UPDATE batches SET owner = 2 WHERE id = $1`, batch.ID); err != nil {
		t.Fatal(err)
	}
	batch.Owner = 2
}

func (b *bundle) deliver(t *testing.T, batch *event.Batch) {
	t.Helper()
	if err := b.Deliver(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
}

func (b *bundle) count(t *testing.T, query string) (n int) {
	t.Helper()
	if err := b.pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// books stops the Delivery, so that everything is recorded, and checks the numbers of
// rows.
func (b *bundle) books(t *testing.T, attempts, pending, final, batches int) {
	t.Helper()
	b.stop()
	got := [4]int{
		b.count(t, `SELECT count(*) FROM attempts`), b.count(t, `SELECT count(*) FROM retries WHERE state = 'pending'`),
		b.count(t, `SELECT count(*) FROM retries WHERE state <> 'pending'`), b.count(t, `SELECT count(*) FROM batches`),
	}
	if want := [4]int{attempts, pending, final, batches}; got != want {
		t.Errorf("attempts, pending, final, unsettled batches: %v, want %v", got, want)
	}
}

func TestDeliveryIsSignedRecordedAndSettled(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL, c.URL+"/other")
	batch := b.commit(t, 50, 1, 1, 2)
	b.deliver(t, batch)
	calls := c.await(t, 100)
	ids := map[string]bool{}
	for _, got := range calls {
		ids[got.id] = true
		if got.attempt != 1 || got.name != "MESSAGE_CREATE" {
			t.Errorf("call %+v", got)
		}
	}
	if len(ids) != 100 {
		t.Errorf("%d different webhook-ids for 100 deliveries", len(ids))
	}
	b.books(t, 100, 0, 0, 0)
}

func TestFailedDeliveryIsRetriedUnderTheSameID(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(got call) (int, http.Header) {
		if got.attempt < 3 {
			return http.StatusInternalServerError, nil
		}
		return http.StatusOK, nil
	})
	b := setup(t, Config{}, c.URL)
	b.deliver(t, b.commit(t, 5, 1, 1))
	attempts := map[string][]int{}
	for _, got := range c.await(t, 15) {
		attempts[got.id] = append(attempts[got.id], got.attempt)
	}
	for id, got := range attempts {
		if diff := cmp.Diff([]int{1, 2, 3}, got); diff != "" {
			t.Errorf("%s:\n%s", id, diff)
		}
	}
	b.books(t, 15, 0, 0, 0)
}

func TestExhaustedDeliveryIsKept(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(call) (int, http.Header) { return http.StatusFound, http.Header{"Location": {"/elsewhere"}} })
	b := setup(t, Config{}, c.URL)
	b.deliver(t, b.commit(t, 2, 1, 1))
	c.await(t, 6)
	b.books(t, 6, 0, 2, 0)
	if n := b.count(t, `SELECT count(*) FROM retries WHERE state = 'exhausted' AND attempt = 3`); n != 2 {
		t.Errorf("%d rows are exhausted after 3 attempts, want 2", n)
	}
}

func TestGoneDisablesTheListener(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, func(call) (int, http.Header) { return http.StatusGone, nil })
	b := setup(t, Config{}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1 })
	b.deliver(t, b.commit(t, 3, 1, 1))
	c.await(t, 1)
	<-b.settled
	b.books(t, 1, 2, 1, 0)
	if b.registry.disabled[1] != "gone" {
		t.Errorf("disabled for %q, want gone", b.registry.disabled[1])
	}
}

// While one callback hangs, another one gets its deliveries as usual.
func TestHangingCallbackDelaysNoOther(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hanging := newReceiver(t, func(call) (int, http.Header) { <-release; return http.StatusOK, nil })
	c := newReceiver(t, ok)
	b := setup(t, Config{LaneQueue: 10}, hanging.URL, c.URL)
	for range 20 {
		b.deliver(t, b.commit(t, 10, 1, 1, 2))
	}
	c.await(t, 200)
	if len(hanging.got) != 0 {
		t.Error("the hanging callback did not hang")
	}
	close(release)
	hanging.await(t, 200)
	b.books(t, 400, 0, 0, 0)
}

func TestTimeoutIsAnAttempt(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c := newReceiver(t, func(got call) (int, http.Header) {
		if got.attempt == 1 {
			<-release
		}
		return http.StatusOK, nil
	})
	b := setup(t, Config{AttemptTimeout: time.Second}, c.URL)
	b.deliver(t, b.commit(t, 1, 1, 1))
	if got := c.await(t, 1)[0]; got.attempt != 2 {
		t.Errorf("attempt %d came first, want 2", got.attempt)
	}
	close(release)
	b.books(t, 2, 0, 0, 0)
}

func TestOrderHoldsThroughRetriesAndSpills(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	failed := map[int64]bool{}
	c := newReceiver(t, func(got call) (int, http.Header) {
		mu.Lock()
		defer mu.Unlock()
		if got.seq%7 == 0 && !failed[got.seq] {
			failed[got.seq] = true
			return http.StatusInternalServerError, nil
		}
		return http.StatusOK, nil
	})
	b := setup(t, Config{LaneQueue: 8}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.Ordering = event.OrderingChannel })
	for range 6 {
		b.deliver(t, b.commit(t, 20, 3, 1))
	}
	seen := map[string][]int64{}
	for done := 0; done < 120; {
		got := c.await(t, 1)[0]
		if got.seq%7 == 0 && got.attempt == 1 {
			continue
		}
		done++
		seen[got.channel] = append(seen[got.channel], got.seq)
	}
	for channel, seqs := range seen {
		if !slices.IsSorted(seqs) {
			t.Errorf("channel %s: %v", channel, seqs)
		}
	}
	if len(failed) == 0 {
		t.Error("nothing failed")
	}
	b.stop()
	if n := b.count(t, `SELECT count(*) FROM retries`) + b.count(t, `SELECT count(*) FROM batches`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// After a 503, the lane pauses for as long as Retry-After says.
func TestLaneSlowsDown(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var down time.Time
	c := newReceiver(t, func(call) (int, http.Header) {
		mu.Lock()
		defer mu.Unlock()
		if down.IsZero() {
			down = time.Now()
			return http.StatusServiceUnavailable, http.Header{"Retry-After": {"2"}}
		}
		return http.StatusOK, nil
	})
	b := setup(t, Config{}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1 })
	b.deliver(t, b.commit(t, 4, 1, 1))
	c.await(t, 2)
	if waited := time.Since(down); waited < 1900*time.Millisecond {
		t.Errorf("the lane continued after %v", waited)
	}
	c.await(t, 3)
	b.books(t, 5, 0, 0, 0)
}

func TestRestartDispatchesUnsettledDeliveries(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c := newReceiver(t, func(got call) (int, http.Header) {
		switch {
		case got.attempt == 1 && got.seq%10 == 1:
			return http.StatusInternalServerError, nil
		case got.seq%10 >= 5:
			<-release
		}
		return http.StatusOK, nil
	})
	cfg := Config{Schedule: Schedule{time.Hour}}
	b := setup(t, cfg, c.URL)
	batch := b.commit(t, 40, 1, 1)
	b.deliver(t, batch)
	first := c.await(t, 1) // four of the slow ones are in flight now
	stopped := make(chan struct{})
	go func() { defer close(stopped); b.stop() }()
	close(release)
	<-stopped
	if n := b.count(t, `SELECT count(*) FROM batches`); n != 1 {
		t.Fatalf("%d batches are unsettled, want 1", n)
	}
	b.open(t, Config{Schedule: cfg.Schedule, AllowTargets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, 2)
	b.inherit(t, batch)
	if err := b.Recover(t.Context(), []*event.Batch{batch}); err != nil {
		t.Fatal(err)
	}
	seen := map[int64]int{}
	for _, got := range append(first, c.await(t, 40-len(first))...) {
		seen[got.seq]++
	}
	if len(seen) != 40 {
		t.Errorf("%d of 40 events were received: %v", len(seen), seen)
	}
	b.stop()
	if n := b.count(t, `SELECT count(*) FROM batches`); n != 0 {
		t.Errorf("%d batches are left", n)
	}
}

func TestDisabledAndDeletedListeners(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL, c.URL+"/2")
	b.registry.change(1, func(l *event.Listener) { l.Enabled = false })
	b.registry.remove(2)
	b.deliver(t, b.commit(t, 3, 1, 1, 2))
	<-b.settled
	b.books(t, 0, 3, 0, 0)
	b.registry.change(1, func(l *event.Listener) { l.Enabled = true })
	b.open(t, Config{AllowTargets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, 2)
	c.await(t, 3)
	b.books(t, 3, 0, 0, 0)
}

func TestOldEventExpires(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	b := setup(t, Config{}, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxAge = time.Nanosecond })
	b.deliver(t, b.commit(t, 1, 1, 1))
	<-b.settled
	b.books(t, 0, 0, 1, 0)
}
