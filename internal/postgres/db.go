package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DB sends a package's statements. The context says where to: to the transaction that
// it holds (WithTx), or else to the pool of its purpose (WithPool), or else to the
// package's own pool. So who begins a piece of work decides whose connections it uses,
// and nothing that runs inside a transaction acquires a second connection.
type DB struct{ pool *pgxpool.Pool }

// On returns a DB whose own pool is this one, which the caller closes.
func On(pool *pgxpool.Pool) DB { return DB{pool} }

type (
	poolKey struct{}
	txKey   struct{}
)

// WithPool returns a context in which every DB uses this pool; nil changes nothing.
func WithPool(ctx context.Context, pool *pgxpool.Pool) context.Context {
	if pool == nil {
		return ctx
	}
	return context.WithValue(ctx, poolKey{}, pool)
}

// WithTx returns a context in which every DB uses this transaction. If a call inside a
// transaction acquired another connection, as many such calls as there are
// connections would wait for each other.
func WithTx(ctx context.Context, tx pgx.Tx) context.Context {
	return context.WithValue(ctx, txKey{}, tx)
}

func (db DB) poolFor(ctx context.Context) *pgxpool.Pool {
	if pool, ok := ctx.Value(poolKey{}).(*pgxpool.Pool); ok {
		return pool
	}
	return db.pool
}

// sender is what a pool and a transaction have in common.
type sender interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func (db DB) sender(ctx context.Context) sender {
	if tx, ok := ctx.Value(txKey{}).(pgx.Tx); ok {
		return tx
	}
	return db.poolFor(ctx)
}

// Begin begins a transaction; inside another one, a savepoint.
func (db DB) Begin(ctx context.Context) (pgx.Tx, error) { return db.sender(ctx).Begin(ctx) }

// BeginTx begins a transaction with options. It can't do so inside another one.
func (db DB) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	return db.poolFor(ctx).BeginTx(ctx, o)
}

// Exec runs a statement that returns no rows.
func (db DB) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return db.sender(ctx).Exec(ctx, sql, args...)
}

// Query runs a statement. Its connection is in use until the rows are read or closed.
func (db DB) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return db.sender(ctx).Query(ctx, sql, args...)
}

// QueryRow runs a statement that returns one row.
func (db DB) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return db.sender(ctx).QueryRow(ctx, sql, args...)
}

// SendBatch sends statements together. Outside of a transaction they are one.
func (db DB) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return db.sender(ctx).SendBatch(ctx, b)
}
