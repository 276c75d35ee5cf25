package delivery

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/event"
)

// A long replay delays nobody, and queues no delivery that is already under way,
// whether in memory or taken up from retries.
func TestReplayDelaysNobody(t *testing.T) {
	t.Parallel()
	fail, arrived := make(chan struct{}), make(chan struct{}, 10)
	var calls atomic.Int32
	failing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) <= 2 {
			arrived <- struct{}{}
			<-fail
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(failing.Close)
	good := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(good.Close)
	b := setup(t, Config{Schedule: Schedule{time.Hour}}, failing.URL, good.URL)

	nobody := []int64{}
	inMemory, takenUp, missed, other := b.commit(t, 1, 1, 1), b.commit(t, 1, 1, 1), b.commit(t, 1, 1, nobody...), b.commit(t, 1, 1, 2)
	b.exec(t, `DELETE FROM batches WHERE id = ANY($1)`, []int64{takenUp.ID, missed.ID})
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at) VALUES ($1, 0, 1, 0, now())`, takenUp.ID)
	b.deliver(t, inMemory)
	<-arrived
	<-arrived

	read, ended := make(chan struct{}), make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	t.Cleanup(end)
	b.journal.span = func(take func([]event.Stored) error) error {
		page := slices.Concat(inMemory.Events, takenUp.Events, missed.Events)
		for i := range page {
			page[i].ID = uuid.Must(uuid.NewV7()) // a random id would make it a sample
		}
		err := take(page)
		close(read)
		<-ended
		return err
	}
	b.journal.unsettled = []int64{inMemory.ID}
	type result struct {
		queued int64
		err    error
	}
	replayed := make(chan result, 1)
	go func() {
		queued, err := b.replay(t.Context(), b.registry.Listener(1), time.Time{}, time.Now())
		replayed <- result{queued, err}
	}()
	<-read
	close(fail)
	b.deliver(t, other)
	for _, want := range []int64{inMemory.ID, other.ID} {
		eventually(t, "the batch is settled during the replay", func() bool {
			return b.count(t, `SELECT count(*) FROM batches WHERE id = `+event.Snowflake(want).String()) == 0
		})
	}
	end()
	if got := <-replayed; got.err != nil || got.queued != 1 {
		t.Errorf("%d deliveries were queued, %v; want only the missed one", got.queued, got.err)
	}
	eventually(t, "the missed event is delivered", func() bool {
		return b.count(t, `SELECT count(*) FROM attempts WHERE listener_id = 1 AND delivered`) == 1
	})
	b.books(t, 4, 2, 0, 0)
}

// Deliveries that became too old while a callback is down expire, except for those that
// a replay of that listener has locked, because nobody may wait for the replay. Rows
// are checked only once, except for those of the last minute.
func TestExpiringWaitsForNobody(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{}, "http://127.0.0.1:1")
	b.stop()
	b.journal.at = func(at time.Time) int64 { return at.Unix() }
	const maxAge = time.Hour
	now := time.Now()
	old := now.Add(-maxAge).Unix()
	wait := func(batches ...int64) {
		t.Helper()
		b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at) SELECT unnest($1::bigint[]), 0, 1, 1, now()`, batches)
	}
	wait(old-600, old-2, old-1, old)
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // it changed nothing
	// Otherwise the server would end the transaction and release its lock.
	if _, err := tx.Exec(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM retries WHERE batch_id = $1 FOR UPDATE`, old-2); err != nil {
		t.Fatal(err)
	}
	expire := func(want ...int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := b.expirePaused(ctx, &event.Listener{ID: 1, MaxAge: maxAge}, now); err != nil {
			t.Fatal(err)
		}
		var got []int64
		if err := b.pool.QueryRow(t.Context(), `SELECT array_agg(batch_id ORDER BY batch_id) FROM retries WHERE state = 'expired'`).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("batches %d are expired, want %d", got, want)
		}
	}
	expire(old-600, old-1)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(old-601, old-30)
	expire(old-600, old-30, old-2, old-1)
}
