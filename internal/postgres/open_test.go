package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A process that stops in the middle of a transaction, with its connection
// open, does not hold its locks for ever: others go on.
func TestStoppedTransactionLetsOthersGoOn(t *testing.T) {
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
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // it has ended, if all is well
	if _, err := tx.Exec(ctx, `UPDATE leases SET n = 1`); err != nil {
		t.Fatal(err)
	}
	// It says nothing more.
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
