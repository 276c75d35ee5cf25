package delivery

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// keysPoll is how often the keyring checks whether another instance rotated the keys.
const keysPoll = 5 * time.Second

// signingKey is a stored key that signs deliveries in the format discord.
type signingKey struct {
	callback.Key
	id                   int64
	createdAt, signsFrom time.Time
}

// keyring holds the signing keys, newest first. The newest one whose time has come signs.
type keyring struct {
	pool postgres.DB
	seal secret.Keys
	keys atomic.Pointer[[]signingKey]
}

// openKeyring reads the keys, and creates the first one if there is none. It also
// seals, with the first sealing key, all keys that are not sealed with it.
func openKeyring(ctx context.Context, pool *pgxpool.Pool, seal secret.Keys) (*keyring, error) {
	r := &keyring{pool: postgres.On(pool), seal: seal}
	if err := r.add(ctx, true, 0); err != nil {
		return nil, fmt.Errorf("make the first signing key: %w", err)
	}
	if err := r.sealStored(ctx); err != nil {
		return nil, fmt.Errorf("encrypt the signing keys: %w", err)
	}
	return r, r.load(ctx)
}

// seedRow names the place where a key's private half is stored. The seal authenticates
// this name.
func seedRow(public []byte) string { return "signing key " + hex.EncodeToString(public) }

// sealStored seals, with the first sealing key, the seeds that are stored in plain text
// or sealed with another key.
func (r *keyring) sealStored(ctx context.Context) error {
	if r.seal.Empty() {
		return nil
	}
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE signing_keys IN EXCLUSIVE MODE`); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `SELECT id, public_key, seed FROM signing_keys`)
		var (
			b            pgx.Batch
			id           int64
			public, seed []byte
		)
		if _, err := pgx.ForEachRow(rows, []any{&id, &public, &seed}, func() error {
			if strings.HasPrefix(string(seed), r.seal.Newest()) {
				return nil
			}
			plain, err := r.seal.Open(string(seed), seedRow(public))
			if err == nil {
				b.Queue(`UPDATE signing_keys SET seed = $2 WHERE id = $1`, id, []byte(r.seal.Seal(plain, seedRow(public))))
			}
			return err
		}); err != nil {
			return err
		}
		return tx.SendBatch(ctx, &b).Close()
	})
}

// current returns the key that signs at a time, by the database's clock. At the first
// key's beginning, that is the first one.
func (r *keyring) current(now time.Time) signingKey {
	keys := *r.keys.Load()
	for _, k := range keys {
		if !k.signsFrom.After(now) {
			return k
		}
	}
	return keys[len(keys)-1]
}

// all lists the keys, newest first.
func (r *keyring) all() []signingKey { return *r.keys.Load() }

// rotate makes a new key, which signs after some time. Other instances know it within
// keysPoll.
func (r *keyring) rotate(ctx context.Context, after time.Duration) error {
	if err := r.add(ctx, false, after); err != nil {
		return fmt.Errorf("make a signing key: %w", err)
	}
	return r.load(ctx)
}

// add creates a key, which signs after some time. If onlyFirst is true, it does so only if
// there is none yet.
func (r *keyring) add(ctx context.Context, onlyFirst bool, after time.Duration) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		// Two instances that start at once must not both create the first key.
		if _, err := tx.Exec(ctx, `LOCK TABLE signing_keys IN EXCLUSIVE MODE`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO signing_keys (public_key, seed, signs_from)
			SELECT $1, $2, now() + $4::interval WHERE NOT $3 OR NOT EXISTS (SELECT FROM signing_keys)`, []byte(public),
			[]byte(r.seal.Seal(string(private.Seed()), seedRow(public))), onlyFirst, after)
		return err
	})
}

func (r *keyring) load(ctx context.Context) error {
	rows, _ := r.pool.Query(ctx, `SELECT id, public_key, seed, created_at, coalesce(signs_from, created_at) FROM signing_keys ORDER BY id DESC`)
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k signingKey, err error) {
		var public, stored []byte
		if err := row.Scan(&k.id, &public, &stored, &k.createdAt, &k.signsFrom); err != nil {
			return k, err
		}
		seed, err := r.seal.Open(string(stored), seedRow(public))
		if err != nil {
			return k, err
		}
		if len(seed) != ed25519.SeedSize {
			return k, fmt.Errorf("key %d has %d bytes instead of %d", k.id, len(seed), ed25519.SeedSize)
		}
		k.Key = callback.KeyFromSeed([]byte(seed))
		return k, nil
	})
	if err == nil && len(keys) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return fmt.Errorf("read the signing keys: %w", err)
	}
	r.keys.Store(&keys)
	return nil
}

// follow reads the keys again whenever another instance rotated them, until
// ctx ends.
func (r *keyring) follow(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(keysPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var id int64
		err := r.pool.QueryRow(ctx, `SELECT max(id) FROM signing_keys`).Scan(&id)
		if err == nil && id != r.all()[0].id {
			err = r.load(ctx)
		}
		if err != nil && ctx.Err() == nil {
			log.LogAttrs(ctx, slog.LevelDebug, "could not look for new signing keys", slog.Any("error", err))
		}
	}
}
