// Package postgres opens and migrates the database, runs an embedded one if none is
// configured, and creates and drops the partitions of tables that are partitioned by
// time. It accesses none of the program's tables by name.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/secret"
)

// connectTimeout is how long Open waits for a database that is starting up.
const connectTimeout = 60 * time.Second

// session is what every connection sets.
//
// A transaction waits at most 6 s for its client: a process that is stopped must not
// hold its locks for longer. A slow network or pooler may need seconds for the way to the
// client and back. This bound does not apply in the middle of a COPY or of statements that
// were sent together.
//
// A statement waits at most 7 s for a lock: nothing that another process does, or
// fails to do, may stop this one. That is longer than the 6 s, so that a statement
// outwaits a transaction whose client is stopped.
//
// PostgreSQL notices within some 15 s that a machine died without a word.
//
// The other limits of a role or a database are for people: each call here has its own, and
// the statements are written for the isolation that PostgreSQL has by default. The limit
// of a statement comes first: it applies to each of these.
//
// PostgreSQL's default compression takes ten times as long for payloads of many
// kilobytes as lz4, without which a server may have been built.
const session = `SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 6000; SET lock_timeout = 7000;
	SET default_transaction_isolation = 'read committed';
	SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3;
	SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('transaction_timeout', 'idle_session_timeout');
	SELECT set_config(name, 'lz4', false) FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)`

// process tells the connections of this process from those of every other one.
var process = uuid.NewString()

// maxApplicationName is how long PostgreSQL lets an application name be.
const maxApplicationName = 63

// Open connects to the database, waiting up to a minute for one that is starting up.
// The application name of its connections is the URL's, or "gatehook", and an ID of this
// process. All statements share one pool, which the caller closes.
func Open(ctx context.Context, url secret.Value, log *slog.Logger) (*pgxpool.Pool, error) {
	total, err := totalOf(url)
	if err != nil {
		return nil, err
	}
	pooled, err := await(ctx, url, log)
	if err != nil {
		return nil, err
	}
	return newPool(ctx, url, kind{most: max(total, minTotal), pooled: pooled})
}

// await waits up to connectTimeout for the database, and reports whether a pooler is
// between: then two statements of a connection can come to two processes of PostgreSQL,
// which know nothing of each other's prepared statements.
func await(ctx context.Context, url secret.Value, log *slog.Logger) (pooled bool, err error) {
	pool, err := newPool(ctx, url, kind{most: 1, pooled: true})
	if err != nil {
		return false, err
	}
	defer pool.Close()
	readOnly := false
	for {
		pooled, err = look(ctx, pool, log)
		if !errors.Is(err, errReadOnly) {
			return pooled, err
		}
		if !readOnly {
			readOnly = true
			log.LogAttrs(ctx, slog.LevelWarn, "the database takes no changes, waiting until it does: it is a standby, or default_transaction_read_only is set")
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// errReadOnly means that the database is a standby, or that its sessions may only read. It
// may be promoted, so whoever needs it waits.
var errReadOnly = errors.New("the database takes no changes")

// look connects, waiting up to connectTimeout for a database that is starting up.
func look(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (pooled bool, err error) {
	backoff := retry.WithMaxDuration(connectTimeout, retry.WithCappedDuration(2*time.Second, retry.NewExponential(50*time.Millisecond)))
	logged := false
	err = retry.Do(ctx, backoff, func(ctx context.Context) error {
		err := pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			var (
				pid      uint32
				readOnly bool
			)
			err := c.QueryRow(ctx, `SELECT pg_backend_pid(), pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'`,
				pgx.QueryExecModeSimpleProtocol).Scan(&pid, &readOnly)
			if err != nil {
				return err
			}
			// A pooler makes up a number for the connection that it accepts.
			pooled = pid != c.Conn().PgConn().PID()
			if readOnly {
				_ = c.Conn().Close(ctx) // its settings are those from when it was opened
				return errReadOnly
			}
			return nil
		})
		if errors.Is(err, errReadOnly) {
			return err
		}
		if err != nil && !logged {
			logged = true
			log.LogAttrs(ctx, slog.LevelWarn, "waiting for the database", slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		at := pool.Config().ConnConfig
		return false, fmt.Errorf("the database at %s:%d does not answer: %w", at.Host, at.Port, err)
	}
	return pooled, nil
}

// errURL leaves out pgx's own text, which quotes the URL with some of its secrets.
var errURL = errors.New("the database URL can't be parsed: it should look like postgres://user:password@host:5432/database")

// totalOf returns how many connections a server may open: what the URL says, or
// defaultTotal. pgx's own default depends on the machine's processors.
func totalOf(url secret.Value) (int32, error) {
	plain, err := pgx.ParseConfig(url.Reveal())
	if err != nil {
		return 0, errURL
	}
	if _, ok := plain.RuntimeParams["pool_max_conns"]; !ok {
		return defaultTotal, nil
	}
	cfg, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return 0, errURL
	}
	return cfg.MaxConns, nil
}

// Connect opens a connection beside a pool, with the settings of the pool's. The caller
// closes it.
func Connect(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	if err := setSession(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

func setSession(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, session)
	return err
}

// readOnlyTransaction is the code of a change that a database does not take.
const readOnlyTransaction = "25006"

// kind is what a pool is like.
type kind struct {
	most   int32         // connections
	dial   time.Duration // bounds a connect of a pool for the heartbeat; 0 for any other pool
	pooled bool          // a pooler is between
}

// newPool makes a pool. It does not wait for a connection.
func newPool(ctx context.Context, url secret.Value, k kind) (*pgxpool.Pool, error) {
	most, dial := k.most, k.dial
	cfg, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, errURL
	}
	if k.pooled && cfg.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		// Nothing is prepared under a name. PostgreSQL parses and plans each statement anew.
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	cfg.MaxConns, cfg.MinConns, cfg.MinIdleConns = most, min(cfg.MinConns, most), min(cfg.MinIdleConns, most)
	name := cmp.Or(cfg.ConnConfig.RuntimeParams["application_name"], "gatehook")
	cfg.ConnConfig.RuntimeParams["application_name"] = name[:min(len(name), maxApplicationName-1-len(process))] + " " + process
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = usualDial
	}
	if dial > 0 {
		cfg.ConnConfig.ConnectTimeout = min(cfg.ConnConfig.ConnectTimeout, dial)
		// All are open before they are needed: to connect takes several round trips.
		cfg.MinConns = most
		// A ping would double the time of a renewal. One that fails is soon repeated.
		cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	}
	// Not parameters of the connection: poolers refuse parameters that they
	// don't know.
	cfg.AfterConnect = setSession
	// A connection through a pooler outlives a switchover, but it leads to what is a standby
	// now: every change would fail on it for ever. A new connection finds the primary.
	keeps := cfg.ConnConfig.OnPgError
	cfg.ConnConfig.OnPgError = func(c *pgconn.PgConn, err *pgconn.PgError) bool {
		return keeps(c, err) && err.Code != readOnlyTransaction
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return pool, nil
}
