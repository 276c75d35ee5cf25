package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// keySize is the size of an AES-256 key in bytes.
const keySize = 32

// sealed is the prefix of every sealed value. No value that is stored in plain
// text begins with it.
const sealed = "aes256gcm:"

// Keys seal values for storage: AES-256-GCM (NIST SP 800-38D) with a random nonce.
// The first key seals, all keys open. The zero value has no key: it seals nothing,
// and opens only plain text. It is safe for concurrent use.
type Keys struct{ keys []key }

type key struct {
	id   string // identifies the key without revealing anything about it
	aead cipher.AEAD
}

// UnknownKeyError means that a value is sealed under a key that Keys does not have.
type UnknownKeyError struct{ Row, Key string }

func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf("%s is encrypted under the key %s, which GATEHOOK_ENCRYPTION_KEY does not contain: add that key, after the first one if it is an old key",
		e.Row, e.Key)
}

// ParseKeys reads keys joined with commas, each 32 bytes in base64 or hex. The empty
// string contains no keys. The error reveals nothing about the keys.
func ParseKeys(s string) (Keys, error) {
	var out Keys
	if strings.TrimSpace(s) == "" {
		return out, nil
	}
	for i, part := range strings.Split(s, ",") {
		raw, ok := decodeKey(strings.TrimSpace(part))
		if !ok {
			return Keys{}, fmt.Errorf("key %d is not valid", i+1)
		}
		k, err := newKey(raw)
		if err != nil {
			return Keys{}, fmt.Errorf("key %d: %w", i+1, err)
		}
		if slices.ContainsFunc(out.keys, func(o key) bool { return o.id == k.id }) {
			return Keys{}, fmt.Errorf("key %d is given twice", i+1)
		}
		out.keys = append(out.keys, k)
	}
	return out, nil
}

func decodeKey(s string) (raw []byte, ok bool) {
	unpadded := strings.TrimRight(s, "=")
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString,
		func(string) ([]byte, error) { return base64.RawStdEncoding.Strict().DecodeString(unpadded) },
		func(string) ([]byte, error) { return base64.RawURLEncoding.Strict().DecodeString(unpadded) },
	} {
		if raw, err := decode(s); err == nil && len(raw) == keySize {
			return raw, true
		}
	}
	return nil, false
}

func newKey(raw []byte) (key, error) {
	block, err := aes.NewCipher(raw)
	if err != nil {
		return key{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return key{}, err
	}
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte("gatehook: which key it is"))
	return key{id: hex.EncodeToString(mac.Sum(nil)[:4]), aead: aead}, nil
}

// Empty reports whether there is no key.
func (k Keys) Empty() bool { return len(k.keys) == 0 }

// Newest returns the prefix of every value that the first key has sealed, or ""
// without a key.
func (k Keys) Newest() string {
	if k.Empty() {
		return ""
	}
	return sealed + k.keys[0].id + ":"
}

// Seal returns the stored form of a value. row names the row that it is stored in: a
// value that was copied to another row can't be decrypted.
func (k Keys) Seal(plain, row string) string {
	if k.Empty() {
		return plain
	}
	return k.Newest() + base64.RawStdEncoding.EncodeToString(k.keys[0].aead.Seal(nil, nil, []byte(plain), []byte(row)))
}

// Open returns the value that is stored in a row. Plain text is returned as it is.
// The error is an *UnknownKeyError if the key is missing.
func (k Keys) Open(stored, row string) (string, error) {
	rest, ok := strings.CutPrefix(stored, sealed)
	if !ok {
		return stored, nil
	}
	id, encoded, _ := strings.Cut(rest, ":")
	i := slices.IndexFunc(k.keys, func(o key) bool { return o.id == id })
	if i < 0 {
		return "", &UnknownKeyError{Row: row, Key: id}
	}
	b, err := base64.RawStdEncoding.DecodeString(encoded)
	if err == nil {
		b, err = k.keys[i].aead.Open(nil, nil, b, []byte(row))
	}
	if err != nil {
		return "", errors.New(row + " can't be decrypted: it was changed, or belongs to another row")
	}
	return string(b), nil
}

// String implements fmt.Stringer.
func (Keys) String() string { return redacted }

// GoString keeps %#v from printing the keys.
func (Keys) GoString() string { return redacted }
