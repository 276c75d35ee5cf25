package delivery

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"github.com/google/uuid"
)

// traceparent returns the trace context of an attempt (W3C Trace Context, 3.2).
// The trace is the event: every delivery of it, every attempt and every replay
// is in the same one, on whatever server, since its id is the event's. Each
// attempt is a parent of its own. Nothing of it is recorded here, which the
// flags say: a receiver whose sampler follows its parent records nothing either.
func traceparent(e uuid.UUID) string {
	const length = len("00-") + 32 + len("-") + 16 + len("-00")
	b := make([]byte, 0, length)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, e[:])
	b = append(b, '-')
	var span [8]byte
	binary.BigEndian.PutUint64(span[:], rand.Uint64()|1) //nolint:gosec // an id; all zeros would be invalid
	b = hex.AppendEncode(b, span[:])
	return string(append(b, "-00"...))
}
