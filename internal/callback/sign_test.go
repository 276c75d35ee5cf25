package callback

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

func BenchmarkSign(b *testing.B) {
	s, err := newSigner(testListener(""))
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 1000)
	b.ReportAllocs()
	for b.Loop() {
		s.sign("dlv_dyuvmkdd4mip_1_2", "1767319445", body)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	k := KeyFromSeed([]byte(strings.Repeat("s", ed25519.SeedSize)))
	body := []byte(`{"type":1}`)
	signature, err := hex.DecodeString(k.sign("1767319445", body))
	if err != nil {
		t.Fatal(err)
	}
	public, err := hex.DecodeString(k.Public())
	if err != nil || !ed25519.Verify(public, []byte("1767319445"+string(body)), signature) {
		t.Errorf("the signature does not verify, %v", err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(format, k); strings.Contains(out, "115") || strings.Contains(out, "ssss") || !strings.Contains(out, k.Public()) {
			t.Errorf("%s prints %s", format, out)
		}
	}
}
