package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/migrations"
)

// migrationLock bounds each wait of a migration for a lock. Whoever else uses the table
// queues behind a migration that waits, so it is short, and the migration tries again.
const migrationLock = time.Second

// Migrate applies the migrations that the database lacks. Several instances may
// call it at once: the lock is a row with a lease, so it works through poolers, and
// a holder that was killed does not block the others for long.
//
// A database that a newer build has migrated is left as it is, and used, if its
// oldest_build is not newer than this build.
func Migrate(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	pool, err := withLockTimeout(ctx, pool, migrationLock)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer pool.Close()
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
		oldest, err := oldestBuild(ctx, pool)
		if err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		if newest < oldest {
			return fmt.Errorf("the database has schema version %d, which builds older than version %d can't use, and this one knows only %d: run a newer build", at, oldest, newest)
		}
		log.LogAttrs(ctx, slog.LevelWarn, "a newer build has migrated the database; this one goes on with it",
			slog.Int64("schema_version", at), slog.Int64("known", newest))
		return nil
	}
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

// withLockTimeout returns a pool of its own for the same database, with another bound of
// the waits for locks.
func withLockTimeout(ctx context.Context, pool *pgxpool.Pool, limit time.Duration) (*pgxpool.Pool, error) {
	cfg := pool.Config()
	connected := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if connected != nil {
			if err := connected(ctx, conn); err != nil {
				return err
			}
		}
		_, err := conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = %d`, limit.Milliseconds()))
		return err
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// oldestBuild returns the schema version that a build must know to use the database.
func oldestBuild(ctx context.Context, pool *pgxpool.Pool) (version int64, err error) {
	err = pool.QueryRow(ctx, `SELECT oldest_build FROM schema_compatibility`).Scan(&version)
	return version, err
}

// schemaVersion returns the version that the database was migrated to; 0 for none.
func schemaVersion(ctx context.Context, pool *pgxpool.Pool) (version int64, err error) {
	err = pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "42P01" {
		return 0, nil // no such table
	}
	return version, err
}
