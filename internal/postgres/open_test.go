package postgres

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/secret"
)

// A process that is stopped in the middle of a transaction, with its connection open,
// does not hold its locks forever: other processes can continue.
func TestStoppedTransactionLetsOthersContinue(t *testing.T) {
	t.Parallel()
	e := start(t, dataDir(t))
	open := func() *pgxpool.Pool {
		pool, err := Open(t.Context(), e.URL(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	stopped, other := open(), open()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := other.Exec(ctx, `CREATE TABLE leases (id int PRIMARY KEY, n int); INSERT INTO leases VALUES (1, 0)`); err != nil {
		t.Fatal(err)
	}
	tx, err := stopped.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // it has ended if the test passes
	if _, err := tx.Exec(ctx, `UPDATE leases SET n = 1`); err != nil {
		t.Fatal(err)
	}
	// The transaction sends nothing more.
	if _, err := other.Exec(ctx, `UPDATE leases SET n = n + 2`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err == nil {
		t.Error("the transaction that stopped was committed")
	}
	var n int
	if err := other.QueryRow(ctx, `SELECT n FROM leases`).Scan(&n); err != nil || n != 2 {
		t.Errorf("n is %d, %v", n, err)
	}
}

// TestReadOnlyConnectionIsClosed: a pool does not keep a connection on which no change is
// possible, such as one through a pooler to what has become a standby.
func TestReadOnlyConnectionIsClosed(t *testing.T) {
	t.Parallel()
	pools, err := OpenPools(t.Context(), start(t, dataDir(t)).URL(), secret.Value{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer pools.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := pools.Engine.Exec(ctx, `CREATE TABLE changes (id int)`); err != nil {
		t.Fatal(err)
	}
	for _, pool := range pools.named() {
		stale := pool.Config().MaxConns
		held := make([]*pgxpool.Conn, stale)
		for i := range held {
			if held[i], err = pool.Acquire(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := held[i].Exec(ctx, `SET default_transaction_read_only = on`); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range held {
			c.Release()
		}
		for i := range stale {
			if _, err := pool.Exec(ctx, `INSERT INTO changes VALUES (1)`); !Unavailable(err) {
				t.Fatalf("%s: change %d on a connection that takes none: %v", pool.name, i, err)
			}
		}
		if _, err := pool.Exec(ctx, `INSERT INTO changes VALUES (1)`); err != nil {
			t.Errorf("%s: no new connection is used: %v", pool.name, err)
		}
	}
}

// TestPoolMetrics checks that the metrics show waits for connections, and of which pool.
func TestPoolMetrics(t *testing.T) {
	t.Parallel()
	pools, err := OpenPools(t.Context(), start(t, dataDir(t)).URL(), secret.Value{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer pools.Close()
	reg := prometheus.NewRegistry()
	RegisterMetrics(reg, pools)
	shown := func(pool string) map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == pool {
					values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
		return values
	}
	limit := int(pools.Engine.Config().MaxConns)
	for range limit {
		c, err := pools.Engine.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := pools.Engine.Exec(ctx, `SELECT 1`); err == nil {
		t.Fatal("the pool has more connections than its limit")
	}
	got := shown("engine")
	if got["gatehook_postgres_waits_total"] == 0 || got["gatehook_postgres_wait_seconds_total"] == 0 {
		t.Errorf("no waits: %v", got)
	}
	maps.DeleteFunc(got, func(name string, _ float64) bool {
		return name == "gatehook_postgres_waits_total" || name == "gatehook_postgres_wait_seconds_total"
	})
	want := map[string]float64{
		"gatehook_postgres_connections_in_use": float64(limit), "gatehook_postgres_connections_idle": 0, "gatehook_postgres_connections_max": float64(limit),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, other := range []string{"heartbeat", "journal", "api"} {
		if n := shown(other)["gatehook_postgres_connections_in_use"]; n != 0 {
			t.Errorf("%v connections of the pool %s are in use", n, other)
		}
	}
}
