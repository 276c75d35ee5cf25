package delivery

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestKeyring: instances that start at once share one key, and follow when one
// of them rotates it.
func TestKeyring(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	rings := make([]*keyring, 4)
	var all sync.WaitGroup
	for i := range rings {
		all.Go(func() {
			var err error
			if rings[i], err = openKeyring(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	first := rings[0].newest()
	for _, r := range rings {
		if len(r.all()) != 1 || r.newest().public() != first.public() {
			t.Fatalf("%d keys, %v", len(r.all()), r.newest())
		}
	}
	if err := rings[0].rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := rings[1].load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range rings[:2] {
		if keys := r.all(); len(keys) != 2 || keys[0].public() == first.public() || keys[1].public() != first.public() {
			t.Errorf("after the rotation %v", keys)
		}
	}
	again, err := openKeyring(t.Context(), pool)
	if err != nil || len(again.all()) != 2 || again.newest().public() != rings[0].newest().public() {
		t.Errorf("a later start has %v, %v", again.all(), err)
	}
}

func TestSigningKey(t *testing.T) {
	t.Parallel()
	k := signingKey{private: ed25519.NewKeyFromSeed([]byte(strings.Repeat("s", ed25519.SeedSize)))}
	body := []byte(`{"type":1}`)
	signature, err := hex.DecodeString(k.sign("1767319445", body))
	if err != nil {
		t.Fatal(err)
	}
	public, err := hex.DecodeString(k.public())
	if err != nil || !ed25519.Verify(public, []byte("1767319445"+string(body)), signature) {
		t.Errorf("the signature does not verify, %v", err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(format, k); strings.Contains(out, "115") || strings.Contains(out, "ssss") || !strings.Contains(out, k.public()) {
			t.Errorf("%s prints %s", format, out)
		}
	}
}
