package delivery

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

// TestKeyring: instances that start at once share one key, and follow a rotation by one
// of them.
func TestKeyring(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	rings := make([]*keyring, 4)
	var all sync.WaitGroup
	for i := range rings {
		all.Go(func() {
			var err error
			if rings[i], err = openKeyring(t.Context(), pool, secret.Keys{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	first := rings[0].current(time.Now())
	for _, r := range rings {
		if len(r.all()) != 1 || r.current(time.Now()).Public() != first.Public() {
			t.Fatalf("%d keys, %v", len(r.all()), r.current(time.Now()))
		}
	}
	if err := rings[0].rotate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := rings[1].load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range rings[:2] {
		if keys := r.all(); len(keys) != 2 || keys[0].Public() == first.Public() || keys[1].Public() != first.Public() {
			t.Errorf("after the rotation %v", keys)
		}
	}
	again, err := openKeyring(t.Context(), pool, secret.Keys{})
	if err != nil || len(again.all()) != 2 || again.current(time.Now()).Public() != rings[0].current(time.Now()).Public() {
		t.Errorf("after a later start: %v, %v", again.all(), err)
	}
}

// TestKeyIsKnownBeforeItSigns: receivers can learn a new key before it signs.
func TestKeyIsKnownBeforeItSigns(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	ring, err := openKeyring(t.Context(), pool, secret.Keys{})
	if err != nil {
		t.Fatal(err)
	}
	first := ring.all()[0].Public()
	if err := ring.rotate(t.Context(), 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	second := ring.all()[0].Public()
	if err := ring.rotate(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	third := ring.all()[0].Public()
	for after, want := range map[time.Duration]string{
		-24 * time.Hour: first, 0: first, 59 * time.Minute: first, 61 * time.Minute: third, 25 * time.Hour: third,
	} {
		if got := ring.current(time.Now().Add(after)).Public(); got != want {
			t.Errorf("after %v, %s signs; the keys are %s, %s and %s", after, got, first, second, third)
		}
	}
}

// TestSigningKeyIsRedacted checks that no way of printing a stored key shows its private
// half.
func TestSigningKeyIsRedacted(t *testing.T) {
	t.Parallel()
	k := signingKey{Key: callback.KeyFromSeed([]byte(strings.Repeat("s", ed25519.SeedSize))), id: 1}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).LogAttrs(t.Context(), slog.LevelInfo, "rotated", slog.Any("key", k))
	printed := []string{fmt.Sprintf("%v", k), fmt.Sprintf("%+v", k), fmt.Sprintf("%#v", k), fmt.Sprint(k), log.String()}
	for _, out := range printed {
		if strings.Contains(out, "115") || strings.Contains(out, "ssss") || !strings.Contains(out, k.Public()) {
			t.Errorf("it is printed as %s", out)
		}
	}
}

// TestSigningKeysAreSealed: the private halves are stored encrypted, and one that was
// stored in plain text is encrypted at the next start.
func TestSigningKeysAreSealed(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	key := func(letter string) string { return hex.EncodeToString([]byte(strings.Repeat(letter, 32))) }
	seals := make([]secret.Keys, 0, 4)
	for _, s := range []string{"", key("a"), key("b") + "," + key("a"), key("b")} {
		keys, err := secret.ParseKeys(s)
		if err != nil {
			t.Fatal(err)
		}
		seals = append(seals, keys)
	}
	first := ""
	var plain []byte
	for i, keys := range seals {
		r, err := openKeyring(t.Context(), pool, keys)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = r.current(time.Now()).Public()
			if err := pool.QueryRow(t.Context(), `SELECT seed FROM signing_keys`).Scan(&plain); err != nil || callback.KeyFromSeed(plain).Public() != first {
				t.Fatalf("a key that is not sealed is stored as %x, %v", plain, err)
			}
		}
		if err := r.rotate(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if all := r.all(); len(all) != i+2 || all[i+1].Public() != first {
			t.Errorf("start %d has %v", i, all)
		}
		var unsealed, holding int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE substr(seed, 1, length($1::bytea)) <> $1::bytea), count(*) FILTER (WHERE position($2::bytea in seed) > 0)
			FROM signing_keys`, []byte(keys.Newest()), plain).Scan(&unsealed, &holding); err != nil {
			t.Fatal(err)
		}
		if unsealed != 0 || i > 0 && holding != 0 {
			t.Errorf("start %d: %d keys are not sealed by the newest key, %d in plain text", i, unsealed, holding)
		}
	}
	for _, keys := range seals[:2] {
		if _, err := openKeyring(t.Context(), pool, keys); err == nil || !strings.Contains(err.Error(), "GATEHOOK_ENCRYPTION_KEY") || strings.Contains(err.Error(), "\n") {
			t.Errorf("without the key: %v", err)
		}
	}
}
