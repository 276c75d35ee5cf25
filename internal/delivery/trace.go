package delivery

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
)

// traceOf is the trace of an event and the span of its receipt. The trace is the
// event: every delivery of it, every attempt and every replay is in the same
// one, and whoever makes an attempt, hours later on another server, can name the
// receipt as its parent. A hash, since samplers judge a trace by the last bytes
// of its id, and those of events count up.
func traceOf(e uuid.UUID) (trace.TraceID, trace.SpanID) {
	h := sha256.Sum256(e[:])
	return trace.TraceID(h[:16]), trace.SpanID(h[16:24])
}

// newSpanID makes the id of one more span of a trace.
func newSpanID() (id trace.SpanID) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64()|1) //nolint:gosec // an id; all zeros would be invalid
	return id
}

// traceparent writes a trace context (W3C Trace Context, 3.2). Of the flags only
// the sampler's decision is used: many receivers' libraries drop the whole
// header if the random flag of level 2 stands beside it.
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
