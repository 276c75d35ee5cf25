package callback

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"log/slog"
	"strings"
	"sync"

	"github.com/gatehook/gatehook/internal/event"
)

// signer makes the signatures of one listener, one per secret. It is safe for concurrent use.
type signer struct {
	// macs keep keyed hashes for reuse, because keying one costs two rounds of SHA-256.
	macs []*sync.Pool
}

func newSigner(l *event.Listener) (*signer, error) {
	s := &signer{}
	for _, secret := range l.Secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Reveal(), "whsec_"))
		if err != nil || len(key) == 0 {
			return nil, fmt.Errorf("a secret of the listener is not whsec_ followed by base64: rotate it")
		}
		s.macs = append(s.macs, &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }})
	}
	if len(s.macs) == 0 {
		return nil, fmt.Errorf("the listener has no secret: rotate it")
	}
	return s, nil
}

// sign returns the webhook-signature header for a body (Standard Webhooks 1.0.0,
// Signature scheme): one signature per secret, joined with spaces, so that a receiver
// may know any one of them during a rotation.
func (s *signer) sign(id, timestamp string, body []byte) string {
	const version = "v1,"
	out := make([]byte, 0, len(s.macs)*(len(version)+base64.StdEncoding.EncodedLen(sha256.Size)+1))
	var sum [sha256.Size]byte
	head := make([]byte, 0, 64)
	head = append(head, id...)
	head = append(head, '.')
	head = append(head, timestamp...)
	head = append(head, '.')
	for i, pool := range s.macs {
		mac, ok := pool.Get().(hash.Hash)
		if !ok {
			continue // the pools hold nothing else
		}
		mac.Reset()
		mac.Write(head)
		mac.Write(body)
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, version...)
		out = base64.StdEncoding.AppendEncode(out, mac.Sum(sum[:0]))
		pool.Put(mac)
	}
	return string(out)
}

// Key signs in the format discord (Discord: Security and Authorization). Printing it
// does not show its private half. Its zero value is not a key.
type Key struct{ private ed25519.PrivateKey }

// KeyFromSeed makes a key from a seed of [ed25519.SeedSize] bytes. It panics if the seed has
// another size.
func KeyFromSeed(seed []byte) Key { return Key{ed25519.NewKeyFromSeed(seed)} }

// Public returns the key that receivers verify with, in hex, as Discord's developer portal
// shows its own.
func (k Key) Public() string {
	pub, ok := k.private.Public().(ed25519.PublicKey)
	if !ok {
		return "" // it is always an ed25519.PublicKey
	}
	return hex.EncodeToString(pub)
}

// String implements fmt.Stringer.
func (k Key) String() string { return "signing key " + k.Public() }

// GoString implements fmt.GoStringer.
func (k Key) GoString() string { return k.String() }

// LogValue implements slog.LogValuer.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// sign returns X-Signature-Ed25519 for a body: the signature of the timestamp and the
// body, in hex.
func (k Key) sign(timestamp string, body []byte) string {
	message := make([]byte, 0, len(timestamp)+len(body))
	message = append(append(message, timestamp...), body...)
	return hex.EncodeToString(ed25519.Sign(k.private, message))
}
