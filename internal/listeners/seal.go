package listeners

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// A listener's secrets are stored sealed, and so are its headers, which may hold
// tokens. Sealed headers are a JSON string instead of an object.

func secretRow(id, listener int64) string {
	return fmt.Sprintf("secret %d of listener %s", id, event.ListenerID(listener))
}

func headersRow(listener int64) string {
	return "the headers of listener " + event.ListenerID(listener)
}

// sealHeaders returns the stored form of headers, as JSON.
func sealHeaders(keys secret.Keys, listener int64, headers map[string]string) ([]byte, error) {
	plain, err := json.Marshal(headers)
	if err != nil || keys.Empty() {
		return plain, err
	}
	return json.Marshal(keys.Seal(string(plain), headersRow(listener)))
}

func openHeaders(keys secret.Keys, listener int64, stored []byte) (headers map[string]string, err error) {
	plain := stored
	if len(stored) > 0 && stored[0] == '"' {
		var s string
		if err := json.Unmarshal(stored, &s); err != nil {
			return nil, err
		}
		if s, err = keys.Open(s, headersRow(listener)); err != nil {
			return nil, err
		}
		plain = []byte(s)
	}
	return headers, json.Unmarshal(plain, &headers)
}

// sealing says how to find and replace one kind of secret in the database.
type sealing struct {
	// find selects the id, the listener and the stored value of some secrets that
	// the first key has not sealed. It locks the rows in order, so that instances
	// that start at once can't deadlock.
	find, replace string
	row           func(id, listener int64) string
}

func sealings() []sealing {
	return []sealing{
		{
			`SELECT id, listener_id, secret FROM listener_secrets WHERE NOT starts_with(secret, $1) ORDER BY id LIMIT $2 FOR UPDATE`,
			`UPDATE listener_secrets s SET secret = u.sealed FROM unnest($1::bigint[], $2::text[]) AS u (id, sealed) WHERE s.id = u.id`,
			secretRow,
		}, {
			`SELECT id, id, headers #>> '{}' FROM listeners WHERE NOT starts_with(headers #>> '{}', $1) ORDER BY id LIMIT $2 FOR UPDATE`,
			`UPDATE listeners l SET headers = to_jsonb(u.sealed) FROM unnest($1::bigint[], $2::text[]) AS u (id, sealed) WHERE l.id = u.id`,
			func(_, listener int64) string { return headersRow(listener) },
		},
	}
}

// sealBatch is how many secrets are sealed in one transaction. After a crash the
// next start seals the rest.
const sealBatch = 500

// sealStored seals with the first key all secrets and headers that are stored in
// plain text or under another key. Without a key it does nothing.
func (s *Listeners) sealStored(ctx context.Context) error {
	if s.cfg.Keys.Empty() {
		return nil
	}
	// Expired secrets no longer sign, and nobody should have to keep an old key for
	// them.
	if _, err := s.pool.Exec(ctx, `DELETE FROM listener_secrets WHERE expires_at <= now()`); err != nil {
		return fmt.Errorf("remove secrets that have expired: %w", err)
	}
	for _, kind := range sealings() {
		for n := sealBatch; n == sealBatch; {
			err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
				n, err = kind.sealNext(ctx, tx, s.cfg.Keys)
				return err
			})
			if err != nil {
				return fmt.Errorf("encrypt the stored secrets: %w", err)
			}
		}
	}
	return nil
}

// sealNext seals the next batch, and returns its size.
func (k sealing) sealNext(ctx context.Context, tx pgx.Tx, keys secret.Keys) (int, error) {
	rows, err := tx.Query(ctx, k.find, keys.Newest(), sealBatch)
	if err != nil {
		return 0, err
	}
	var (
		ids          []int64
		values       []string
		id, listener int64
		stored       string
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &listener, &stored}, func() error {
		row := k.row(id, listener)
		plain, err := keys.Open(stored, row)
		if err != nil {
			return err
		}
		ids, values = append(ids, id), append(values, keys.Seal(plain, row))
		return nil
	}); err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, k.replace, ids, values)
	return len(ids), err
}
