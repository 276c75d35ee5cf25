package delivery

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
)

// traceOf returns the ids of an event's trace and of its receipt's span. All deliveries
// of an event, with their attempts and replays, are in one trace. Any server can name
// the receipt as the parent of an attempt, even hours later. The ids are a hash,
// because samplers judge a trace by the last bytes of its id, and the last bytes of
// event ids count up.
func traceOf(e uuid.UUID) (trace.TraceID, trace.SpanID) {
	h := sha256.Sum256(e[:])
	return trace.TraceID(h[:16]), trace.SpanID(h[16:24])
}

// newSpanID returns a random id for a span.
func newSpanID() (id trace.SpanID) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64()|1) //nolint:gosec // an id; all zeros would be invalid
	return id
}

// traceparent returns a trace context (W3C Trace Context, 3.2). The sampler's decision
// is its only flag, because many receivers' libraries drop the whole header if it also
// has the random flag of level 2.
func traceparent(id trace.TraceID, span trace.SpanID, sampled bool) string {
	const length = len("00-") + 32 + len("-") + 16 + len("-00")
	b := make([]byte, 0, length)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, id[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, span[:])
	if sampled {
		return string(append(b, "-01"...))
	}
	return string(append(b, "-00"...))
}
