package secret

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

var (
	oldKey = hex.EncodeToString([]byte(strings.Repeat("o", keySize)))
	newest = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\xfe", keySize)))
)

func parse(t *testing.T, s string) Keys {
	t.Helper()
	k, err := ParseKeys(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	before, after := parse(t, oldKey), parse(t, newest+" , "+oldKey)
	stored := before.Seal("whsec_hunter2", "row 1")
	if strings.Contains(stored, "hunter2") || !strings.HasPrefix(stored, before.Newest()) || stored == before.Seal("whsec_hunter2", "row 1") {
		t.Errorf("sealed as %s", stored)
	}
	for _, k := range []Keys{before, after} {
		if got, err := k.Open(stored, "row 1"); got != "whsec_hunter2" || err != nil {
			t.Errorf("opened %q, %v", got, err)
		}
		if got, err := k.Open("whsec_plain", "row 1"); got != "whsec_plain" || err != nil {
			t.Errorf("plain text: %q, %v", got, err)
		}
		if got, err := k.Open(stored, "row 2"); err == nil {
			t.Errorf("in another row the value opens as %q", got)
		}
		if got, err := k.Open(stored[:len(stored)-2]+"AA", "row 1"); err == nil && stored[len(stored)-2:] != "AA" {
			t.Errorf("a changed value opens as %q", got)
		}
		if _, err := k.Open(k.Newest()+"A", "row 1"); err == nil {
			t.Error("a value that is not base64 was opened")
		}
	}
	if after.Newest() == before.Newest() || !strings.HasPrefix(after.Seal("x", ""), after.Newest()) {
		t.Error("a value was not sealed with the first key")
	}
	for _, k := range []Keys{{}, parse(t, newest)} {
		_, err := k.Open(stored, "row 1")
		if _, ok := errors.AsType[*UnknownKeyError](err); !ok || !strings.Contains(err.Error(), "GATEHOOK_ENCRYPTION_KEY") {
			t.Errorf("without its key: %v", err)
		}
	}
	if none := (Keys{}); !none.Empty() || none.Seal("x", "") != "x" || none.Newest() != "" {
		t.Error("a value was sealed without a key")
	}
}

func TestParseKeys(t *testing.T) {
	t.Parallel()
	url := strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(newest)
	for s, n := range map[string]int{"": 0, "  ": 0, oldKey: 1, strings.ToUpper(oldKey): 1, newest: 1, url: 1, oldKey + "," + newest: 2} {
		if k, err := ParseKeys(s); err != nil || len(k.keys) != n {
			t.Errorf("%q: %d keys, %v", s, len(k.keys), err)
		}
	}
	if parse(t, newest).Newest() != parse(t, url).Newest() {
		t.Error("one key in two spellings counts as two keys")
	}
	for _, s := range []string{"hunter2", ",", oldKey + ",", oldKey + "," + oldKey, oldKey[2:], oldKey + "00", newest + "AAAA", newest[1:]} {
		if _, err := ParseKeys(s); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", s, err)
		}
	}
	k := parse(t, oldKey)
	if out := fmt.Sprintf("%v %+v %#v %s", k, k, k, struct{ K Keys }{k}); strings.Count(out, redacted) != 4 {
		t.Errorf("keys print as %s", out)
	}
}
