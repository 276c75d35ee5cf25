package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/migrations"
)

// Migrate applies the migrations that the database lacks. Several instances may
// call it at once: the lock is a row with a lease, so it works through poolers, and
// a holder that was killed does not block the others for long.
func Migrate(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	locker, err := lock.NewPostgresTableLocker(
		lock.WithTableLockTimeout(200*time.Millisecond, 600), // two minutes
		lock.WithTableLeaseDuration(10*time.Second),
		lock.WithTableHeartbeatInterval(3*time.Second),
		lock.WithTableLogger(slog.New(slog.DiscardHandler)),
	)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // it does not close the pool
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS, goose.WithLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	ours := provider.ListSources()
	newest := ours[len(ours)-1].Version
	// Checked first: most starts have nothing to do and need no lock.
	switch at, err := schemaVersion(ctx, pool); {
	case err != nil:
		return fmt.Errorf("migrate: %w", err)
	case at == newest:
		return nil
	case at > newest:
		return fmt.Errorf("the database has schema version %d, but this build knows only %d: run a newer build", at, newest)
	}
	// A migration that waits for a table holds up everybody who uses it. So each try
	// waits no longer than any statement does.
	var results []*goose.MigrationResult
	err = retry.Do(ctx, retry.WithMaxDuration(time.Minute, Backoff()), func(ctx context.Context) error {
		applied, err := provider.Up(ctx)
		results = append(results, applied...)
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == lockNotAvailable {
			return retry.RetryableError(err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	for _, r := range results {
		log.LogAttrs(ctx, slog.LevelInfo, "applied a migration", slog.Int64("version", r.Source.Version), slog.Duration("took", r.Duration))
	}
	return nil
}

// schemaVersion returns the version that the database was migrated to; 0 for none.
func schemaVersion(ctx context.Context, pool *pgxpool.Pool) (version int64, err error) {
	err = pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "42P01" {
		return 0, nil // no such table
	}
	return version, err
}
