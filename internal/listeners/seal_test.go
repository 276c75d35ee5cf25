package listeners

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

func keysOf(t *testing.T, letters ...string) secret.Keys {
	t.Helper()
	parts := make([]string, len(letters))
	for i, letter := range letters {
		parts[i] = hex.EncodeToString([]byte(strings.Repeat(letter, 32)))
	}
	keys, err := secret.ParseKeys(strings.Join(parts, ","))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// dump returns everything in the listeners' tables.
func (a *api) dump(t *testing.T) string {
	t.Helper()
	rows, err := a.pool.Query(t.Context(), `SELECT l::text FROM listeners l UNION ALL SELECT s::text FROM listener_secrets s`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// TestSecretsAreSealed checks that several instances at once seal secrets in plain text
// at the first start with a key, and seal them again at the first start with another
// key, without changing their values.
func TestSecretsAreSealed(t *testing.T) {
	t.Parallel()
	a := setup(t)
	const header = "tokentokentoken"
	plain := map[int64]string{} // the secrets by listener
	create := func(n int) {
		t.Helper()
		got := a.call(t, "POST", "/listeners", fmt.Sprintf(`{"event":"GUILD_BAN_ADD","url":"https://x.example/%d","headers":{"x-token":%q}}`, n, header))
		if got.status != http.StatusCreated {
			t.Fatalf("%d %v", got.status, got.body)
		}
		rotated := a.call(t, "POST", "/listeners/"+got.body["id"].(string)+"/rotate-secret", "")
		if rotated.status != http.StatusOK {
			t.Fatalf("%d %v", rotated.status, rotated.body)
		}
		page, err := a.page(t.Context(), nil, nil, 1<<62, 1)
		if err != nil {
			t.Fatal(err)
		}
		plain[page[0].ID] = rotated.body["secret"].(string) + " " + got.body["secret"].(string)
	}
	check := func(s *Listeners) {
		t.Helper()
		for id, want := range plain {
			l := s.Listener(id)
			if l == nil || len(l.Secrets) != 2 || l.Secrets[0].Reveal()+" "+l.Secrets[1].Reveal() != want || l.Headers["x-token"] != header {
				t.Fatalf("listener %d has changed", id)
			}
		}
	}
	for n := range 3 {
		create(n)
	}
	check(a.Listeners)
	if !strings.Contains(a.dump(t), header) {
		t.Error("the dump does not show headers in plain text, so this test can't find them")
	}
	// Enough secrets for several batches; some have expired.
	if _, err := a.pool.Exec(t.Context(), `
		INSERT INTO listeners (event, url, headers) SELECT 'TYPING_START', 'https://y.example/' || n, '{"x-token":"`+header+`"}' FROM generate_series(1, 1200) n;
		INSERT INTO listener_secrets (listener_id, secret) SELECT id, 'whsec_'||id FROM listeners WHERE event = 'TYPING_START';
		INSERT INTO listener_secrets (listener_id, secret, expires_at) SELECT id, 'aes256gcm:lost:x', now() FROM listeners`); err != nil {
		t.Fatal(err)
	}
	for i, keys := range []secret.Keys{keysOf(t, "a"), keysOf(t, "b", "a"), keysOf(t, "b"), keysOf(t, "c", "b")} {
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				s, err := openWith(t, a.pool, keys)
				if err != nil {
					t.Errorf("start %d: %v", i, err)
					return
				}
				check(s)
			})
		}
		all.Wait()
		dump := a.dump(t)
		if strings.Contains(dump, header) || strings.Contains(dump, "whsec_") || strings.Count(dump, keys.Newest()) != strings.Count(dump, "aes256gcm:") {
			t.Errorf("start %d leaves a value in plain text or under another key", i)
		}
		var err error
		if a.Listeners, err = openWith(t, a.pool, keys); err != nil {
			t.Fatal(err)
		}
		a.handler = handlerOf(t, a.Listeners)
		create(10 + i) // new secrets are sealed too
		check(a.Listeners)
		if got := a.call(t, "PATCH", "/listeners/lst_1", `{"headers":{"x-token":"`+header+`"}}`); got.status != http.StatusOK {
			t.Errorf("%d %v", got.status, got.body)
		}
		if dump := a.dump(t); strings.Contains(dump, header) || strings.Contains(dump, "whsec_") {
			t.Errorf("after start %d a value is stored in plain text", i)
		}
	}
}

// TestWithoutTheKey checks that a server without the key does not start, changes
// nothing, and says which key is missing. A value that was copied to another row can't
// be decrypted.
func TestWithoutTheKey(t *testing.T) {
	t.Parallel()
	a := &api{pool: postgrestest.New(t)}
	var err error
	if a.Listeners, err = openWith(t, a.pool, keysOf(t, "a")); err != nil {
		t.Fatal(err)
	}
	a.handler = handlerOf(t, a.Listeners)
	for n := range 2 {
		if got := a.call(t, "POST", "/listeners", fmt.Sprintf(`{"event":"GUILD_BAN_ADD","url":"https://x.example/%d"}`, n)); got.status != http.StatusCreated {
			t.Fatalf("%d %v", got.status, got.body)
		}
	}
	before := a.dump(t)
	for _, keys := range []secret.Keys{{}, keysOf(t, "b")} {
		_, err := openWith(t, a.pool, keys)
		if _, ok := errors.AsType[*secret.UnknownKeyError](err); !ok || strings.Contains(err.Error(), "\n") {
			t.Errorf("without the key: %v", err)
		}
	}
	if a.dump(t) != before {
		t.Error("a server without the key changed the tables")
	}
	for _, move := range []string{
		`UPDATE listeners SET headers = (SELECT headers FROM listeners WHERE id = 1) WHERE id = 2`,
		`UPDATE listener_secrets SET secret = (SELECT secret FROM listener_secrets WHERE id = 1) WHERE id = 2`,
	} {
		tx, err := a.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), move); err != nil {
			t.Fatal(err)
		}
		if _, err := a.find(t.Context(), tx, `l.id = 2`); err == nil || !strings.Contains(err.Error(), "can't be decrypted") {
			t.Errorf("after %s: %v", move, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
