package postgrestest

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/postgres"
)

func TestMain(m *testing.M) { Main(m) }

// A goroutine that acquires a second connection is found, whatever it holds the first one
// for; goroutines with one connection each are not, nor are statements in a transaction.
func TestWatchFindsSecondConnections(t *testing.T) {
	t.Parallel()
	one := func(ctx context.Context, pool *pgxpool.Pool) error {
		_, err := pool.Exec(ctx, `SELECT 1`)
		return err
	}
	for name, tt := range map[string]struct {
		do    func(ctx context.Context, pool *pgxpool.Pool) error
		found int
	}{
		"a transaction": {func(ctx context.Context, pool *pgxpool.Pool) error {
			return pgx.BeginFunc(ctx, pool, func(pgx.Tx) error { return one(ctx, pool) })
		}, 1},
		"rows that are not read": {func(ctx context.Context, pool *pgxpool.Pool) error {
			rows, err := pool.Query(ctx, `SELECT 1`)
			if err != nil {
				return err
			}
			defer rows.Close()
			return one(ctx, pool)
		}, 1},
		"one after the other": {func(ctx context.Context, pool *pgxpool.Pool) error {
			if err := one(ctx, pool); err != nil {
				return err
			}
			return one(ctx, pool)
		}, 0},
		"in the transaction": {func(ctx context.Context, pool *pgxpool.Pool) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := postgres.On(pool).Exec(postgres.WithTx(ctx, tx), `SELECT 1`)
				return err
			})
		}, 0},
		"another goroutine": {func(ctx context.Context, pool *pgxpool.Pool) error {
			return pgx.BeginFunc(ctx, pool, func(pgx.Tx) error {
				done := make(chan error)
				go func() { done <- one(ctx, pool) }()
				return <-done
			})
		}, 0},
	} {
		pool := New(t)
		w, ok := pool.Config().ConnConfig.Tracer.(*watch)
		if !ok {
			t.Fatal("the pool is not watched")
		}
		if err := tt.do(t.Context(), pool); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		w.mu.Lock()
		if len(w.faults) != tt.found || tt.found > 0 && !strings.Contains(w.faults[0], "holds one") {
			t.Errorf("%s: found %q, want %d", name, w.faults, tt.found)
		}
		w.faults = nil // they are no faults of this test
		w.mu.Unlock()
	}
}
